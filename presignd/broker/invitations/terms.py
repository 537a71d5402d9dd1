"""Check the terms of a new invitation. Pure."""

from __future__ import annotations

import re

from presignd.broker.state.invitations import NewInvitation
from presignd.config import rules
from presignd.errors import UsageError
from presignd.s3.limits import LARGEST_OBJECT, key_problem

LONGEST_NOTE = 1000
LONGEST_PREFIX = 512
"""Bytes: the rest of a key is for the names of the files."""
LARGEST_NUMBER = 1 << 60

_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def check_terms(new: NewInvitation) -> None:
    """Raise ``UsageError`` with every problem of a new invitation."""
    problems = [f"{what}: {problem}" for what, problem in _problems(new)]
    if problems:
        raise UsageError("invite create", problems=tuple(problems))


def _problems(new: NewInvitation) -> list[tuple[str, str]]:
    found = []
    for what, check, value in (
        ("NAME", rules.check_watch_name, new.name),
        ("--bucket", rules.check_bucket, new.bucket),
        ("--prefix", _check_prefix, new.prefix),
    ):
        try:
            check(value)
        except ValueError as problem:
            found.append((what, str(problem)))
    if len(new.note) > LONGEST_NOTE or _UNPRINTABLE.search(new.note):
        found.append(("--note", f"is longer than {LONGEST_NOTE} characters, or holds one that can't be shown"))
    if new.max_size is not None and new.max_size > LARGEST_OBJECT:
        found.append(("--max-size", "is more than an object can have: 5 TiB"))
    numbers = (("--max-files", new.max_files), ("--total", new.total))
    found += [(what, "is too large a number") for what, number in numbers if (number or 0) > LARGEST_NUMBER]
    return found


def _check_prefix(prefix: str) -> str:
    if prefix and not prefix.endswith("/"):
        raise ValueError(f'must end with "/": "{prefix}" would cover "{prefix}0/" too')
    if len(prefix.encode("utf-8", "surrogatepass")) > LONGEST_PREFIX:
        raise ValueError(f"is longer than {LONGEST_PREFIX} bytes")
    if prefix and (problem := key_problem(f"{prefix}x")):
        raise ValueError(f"can't begin a key: {problem}")
    return prefix
