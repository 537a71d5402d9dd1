"""What an invitation may be made with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from presignd.broker.invitations.terms import LONGEST_NOTE, check_terms
from presignd.broker.state.invitations import NewInvitation
from presignd.errors import UsageError
from presignd.s3.limits import LARGEST_OBJECT

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)


def terms(**changes: Any) -> NewInvitation:
    new = NewInvitation(b"i", "march", "scans", "in/", "", "", NOW, NOW + timedelta(days=14), None, None, None)
    return new._replace(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prefix": ""},
        {"prefix": "a/b/"},
        {"note": "two\nlines, \u00e4 \U0001f600"},
        {"max_files": 1, "max_size": 0, "total": 0},
        {"max_size": LARGEST_OBJECT},
    ],
)
def test_terms_that_can_be(changes: dict[str, Any]) -> None:
    check_terms(terms(**changes))


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"name": ""}, "NAME"),
        ({"name": "a/b"}, "NAME"),
        ({"bucket": "B"}, "--bucket"),
        ({"prefix": "in"}, "--prefix"),
        ({"prefix": "/"}, "--prefix"),
        ({"prefix": "../"}, "--prefix"),
        ({"prefix": "x" * 600 + "/"}, "--prefix"),
        ({"note": "x" * (LONGEST_NOTE + 1)}, "--note"),
        ({"note": "\x1b[31m"}, "--note"),
        ({"max_size": LARGEST_OBJECT + 1}, "--max-size"),
        ({"total": 1 << 62}, "--total"),
        ({"max_files": 1 << 62}, "--max-files"),
    ],
)
def test_terms_that_can_not_be(changes: dict[str, Any], option: str) -> None:
    with pytest.raises(UsageError) as refused:
        check_terms(terms(**changes))
    (problem,) = refused.value.problems
    assert problem.startswith(f"{option}: ")
