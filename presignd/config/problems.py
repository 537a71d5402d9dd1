"""Turn pydantic's errors into lines for the user: key, what is wrong, what to do; secrets are never repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import SecretStr, ValidationError

from presignd.config.models import PresignConfig
from presignd.config.options import Option

_SECRETS = {"access_key", "access_key_id", "headers", "proxy", "endpoint", "public_endpoint", "url", "secret"} | {
    name for name, field in PresignConfig.model_fields.items() if SecretStr in getattr(field.annotation, "__args__", ())
}
_NEEDED = {
    "name": 'is missing; give each one, e.g. name = "drop"',
    "path": "is missing; name the folder",
    "invitation": "is missing; name the invitation whose files it takes",
    "bucket": "is missing; name the bucket its files go to",
}
_WANTED = {
    "string": "must be text in quotes",
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "tuple": 'must be a list, e.g. ["*.bak"]',
    "dict": 'must be a table, e.g. {"x-amz-meta-origin" = "scanner"}',
    "path": "must be a path",
}
_SHOWN = 60


def describe(error: ValidationError, slots: Mapping[str, Sequence[str]], sources: Mapping[str, str]) -> list[str]:
    """Return a line for each problem in ``error``.

    ``slots`` names the tables of each section of many, in order; ``sources`` has the source of each value by dotted
    key.
    """
    return [_line(each, slots, sources) for each in error.errors(include_url=False)]


def _line(error: Any, slots: Mapping[str, Sequence[str]], sources: Mapping[str, str]) -> str:
    option, rest = _option(error["loc"], slots)
    source = sources.get(option.dotted, "")
    origin = "" if source.startswith("file ") or source in ("", "default") else f" (from {source})"
    return f"{option.dotted}{rest}{origin}: {words(error, option.key)}"


def _option(loc: tuple[int | str, ...], slots: Mapping[str, Sequence[str]]) -> tuple[Option, str]:
    section, *tail = loc
    table = slots[str(section)][int(tail.pop(0))] if section in slots and tail else ""
    key = str(tail.pop(0)) if tail else ""
    rest = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in tail)
    return Option(str(section), table, key), rest


def words(error: Any, key: str, needed: Mapping[str, str] = _NEEDED) -> str:
    """Return what is wrong with an option by pydantic's error; ``needed`` has the words for missing ones."""
    kind, value = error["type"], error["input"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "missing":
        return needed.get(key, "is missing")
    if kind == "literal_error":
        wanted = "must be " + error["ctx"]["expected"].replace("'", '"')
    else:
        wanted = _WANTED.get(kind.split("_")[0], error["msg"])
    return wanted if key in _SECRETS else f"{wanted}, not {_shown(value)}"


def _shown(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
