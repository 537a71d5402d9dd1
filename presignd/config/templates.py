"""Templates of keys, and of names beside a file: their fields and rules. The pipeline renders them. Pure."""

from __future__ import annotations

import difflib
import string
from datetime import UTC, datetime
from typing import NamedTuple

from presignd.s3.limits import MAX_KEY

KEY_FIELDS = ("path", "name", "stem", "suffix", "parent", "watch", "host", "uuid", "sha256", "mtime", "queued")
"""Fields of a watch's ``key``; ``mtime`` and ``queued`` take a strftime format in the watch's timezone."""

PREFIX = "prefix"
"""The field that only a broker fills, at the start of a ``key``: the prefix that its token may write to."""

TIME_FIELDS = ("mtime", "queued")

NAME_FIELDS = ("name", "stem", "suffix")
"""Fields of ``ready_marker`` and ``link_file``."""


class TemplatePart(NamedTuple):
    """A template's literal text, then the field after it (None at the end) with its format."""

    literal: str
    field: str | None
    spec: str


def template_fields(template: str) -> tuple[TemplatePart, ...]:
    """Return the parts of ``template``; ``{{`` and ``}}`` mean a literal brace.

    Raises ``ValueError`` for unbalanced braces, and for conversions ("!r"), which templates don't have.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError:
        raise ValueError("has a brace without its partner; write {{ or }} for a brace itself") from None
    if any(conversion for *_, conversion in parsed):
        raise ValueError('has a "!" conversion in a field; there are none')
    return tuple(TemplatePart(literal, field, spec or "") for literal, field, spec, _ in parsed)


def check_key_template(template: str) -> str:
    """Return ``template`` if it makes valid keys; raise ``ValueError`` with the reason."""
    if not template:
        raise ValueError('is empty; "{path}" is the default')
    parts = template_fields(template)
    for field, spec in _fields(parts):
        _check_field(field, (*KEY_FIELDS, PREFIX))
        _check_format(field, spec)
    if uses_prefix(template) and not template.startswith("{prefix}"):
        raise ValueError("has {prefix} further on; a key begins with it")
    if template.count("{prefix}") > 1:
        raise ValueError("has {prefix} twice")
    _check_key_text("\0".join(part.literal for part in parts), template)
    return template


def uses_prefix(template: str) -> bool:
    """Return whether the key needs a broker's prefix; raise ``ValueError`` for unbalanced braces."""
    return any(part.field == PREFIX for part in template_fields(template))


def check_name_template(template: str) -> str:
    """Return ``template`` if it names another file in the same folder; raise ``ValueError`` with the reason."""
    parts = template_fields(template)
    fields = _fields(parts)
    for field, spec in fields:
        _check_field(field, NAME_FIELDS)
        _check_format(field, spec)
    if "/" in template or "\0" in template:
        raise ValueError('has a "/"; the file stands in the same folder')
    if not any(field in ("name", "stem") for field, _ in fields):
        raise ValueError('needs {name} or {stem}, e.g. "{name}.ok", to tell files apart')
    if not any(part.literal for part in parts):
        raise ValueError('would be the file itself; add to it, e.g. "{name}.ok"')
    return template


def _fields(parts: tuple[TemplatePart, ...]) -> list[tuple[str, str]]:
    """Return each field with its format, also an empty ``{}``, which is refused as unknown."""
    return [(part.field, part.spec) for part in parts if part.field is not None]


def _check_field(field: str, known: tuple[str, ...]) -> None:
    if field in known:
        return
    near = difflib.get_close_matches(field, known, 1)
    hint = f"did you mean {{{near[0]}}}?" if near else "known: " + " ".join(f"{{{name}}}" for name in known)
    raise ValueError(f"has the unknown field {{{field}}}; {hint}")


def _check_format(field: str, spec: str) -> None:
    if field not in TIME_FIELDS:
        if spec:
            raise ValueError(f"has a format in {{{field}}}; only {{mtime:…}} and {{queued:…}} take one")
        return
    if "%" not in spec:
        raise ValueError(f"needs a format in {{{field}}}, e.g. {{{field}:%Y/%m/%d}}")
    if datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC).strftime(spec) in ("", spec):
        raise ValueError(f"has a format in {{{field}}} that gives no date, e.g. use {{{field}:%Y/%m/%d}}")


def _check_key_text(literals: str, template: str) -> None:
    """Refuse text that would make every key invalid (see ``key_refused``)."""
    if template.startswith("/") or template.endswith("/") or "//" in literals:
        raise ValueError('has a "/" at its start or end, or two in a row; stores refuse or change such keys')
    if "\\" in literals or not literals.replace("\0", "").isprintable():
        raise ValueError("has a backslash or a control character; stores refuse or change such keys")
    if len(literals.encode()) > MAX_KEY:
        raise ValueError(f"is longer than a key may be ({MAX_KEY} bytes)")
