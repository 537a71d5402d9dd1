"""Stable links: a token links what it may get, within its limits, and nothing unsafe is recorded."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.broker.config import TokenConfig
from presignd.broker.links.policy import decide_link, end_of
from presignd.broker.links.request import LinkRequest, LinkState, shown, state_of, url_of
from presignd.broker.policy import Refusal, RefusalCode, decide
from presignd.broker.state.links import Link, NewLink, hash_of
from presignd.presign import GrantRequest, Operation
from tests.unit.broker.test_policy import KEYS, NOW, TOKENS, token

LINK_ID = "Ab-_EfGhIjKlMnOpQrSt09"
OPERATIONS = ["put", "head", "get", "link"]
TOKEN = token(operations=OPERATIONS)


def asked(**changes: Any) -> LinkRequest:
    return LinkRequest(**{"id": LINK_ID, "bucket": "bucket", "key": "scanner-1/a b.pdf", **changes})


def allowed(token: TokenConfig = TOKEN, **changes: Any) -> LinkRequest:
    decided = decide_link(token, asked(**changes), NOW)
    assert isinstance(decided, LinkRequest), decided
    return decided


def refusal(token: TokenConfig = TOKEN, **changes: Any) -> str:
    decided = decide_link(token, asked(**changes), NOW)
    assert isinstance(decided, Refusal), decided
    return decided.code


def recorded(**changes: Any) -> Link:
    new = NewLink(
        id=hash_of(LINK_ID),
        token="scanner-1",
        bucket="bucket",
        key="scanner-1/a",
        version_id="",
        size=5,
        content_type="",
        filename="a b.pdf",
        disposition="attachment",
        note="",
        pin="",
        made_at=NOW,
        ends_at=None,
        max_downloads=None,
    )
    link = Link(new, opened=0, opened_at=None, revoked_at=None, kept=False)
    of_new = {name: changes.pop(name) for name in tuple(changes) if name in NewLink._fields}
    return link._replace(new=new._replace(**of_new), **changes)


@pytest.mark.parametrize("operations", [["get"], ["link"], ["put", "link"], ["head", "get"]])
def test_a_link_needs_the_operations_link_and_get(operations: list[str]) -> None:
    assert refusal(token(operations=operations)) == RefusalCode.OPERATION_REFUSED


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"bucket": "other"}, RefusalCode.OUTSIDE_BUCKET),
        ({"key": "scanner-2/a"}, RefusalCode.OUTSIDE_PREFIX),
        ({"key": "scanner-1/%2e%2e/a"}, RefusalCode.OUTSIDE_PREFIX),
        ({"key": "scanner-1/../a"}, RefusalCode.KEY_REFUSED),
        ({"key": ""}, RefusalCode.KEY_REFUSED),
        *(({"id": wrong}, RefusalCode.LINK_REFUSED) for wrong in ("", "short", "x" * 23, "\u00fc" * 22, "a/" * 11)),
        ({"note": "a\nb"}, RefusalCode.LINK_REFUSED),
        ({"note": "\0"}, RefusalCode.LINK_REFUSED),
        ({"note": "x" * 1001}, RefusalCode.LINK_REFUSED),
        ({"version_id": "\ud800"}, RefusalCode.LINK_REFUSED),
        ({"content_type": "text/html\r\nX: y"}, RefusalCode.LINK_REFUSED),
        ({"content_type": "x" * 256}, RefusalCode.LINK_REFUSED),
        ({"size": -1}, RefusalCode.LINK_REFUSED),
        ({"size": 1 << 63}, RefusalCode.LINK_REFUSED),
        ({"max_downloads": 0}, RefusalCode.LINK_REFUSED),
        ({"max_downloads": 1 << 40}, RefusalCode.LINK_REFUSED),
        ({"expires_at": datetime(9999, 12, 31, 23, tzinfo=timezone(-timedelta(hours=12)))}, RefusalCode.LINK_REFUSED),
        ({"expires_at": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=12)))}, RefusalCode.LINK_REFUSED),
        ({"pin": "123"}, RefusalCode.LINK_REFUSED),
        ({"pin": "x" * 65}, RefusalCode.LINK_REFUSED),
        ({"pin": "1234\n"}, RefusalCode.LINK_REFUSED),
    ],
)
def test_what_a_token_may_not_link_is_refused(changes: dict[str, Any], code: str) -> None:
    assert refusal(**changes) == code


@given(TOKENS, KEYS)
def test_no_key_is_linked_that_could_not_be_got(token: TokenConfig, key: str) -> None:
    linking = token.model_copy(update={"operations": (*token.operations, "link")})
    got = decide(linking, GrantRequest(Operation.GET, "bucket", key, 60), NOW)
    decided = decide_link(linking, asked(key=key), NOW)
    assert isinstance(decided, Refusal) == isinstance(got, Refusal)


def test_a_name_is_the_keys_last_part_unless_one_is_given() -> None:
    assert allowed().filename == "a b.pdf"
    assert allowed(filename="Report.pdf").filename == "Report.pdf"
    assert allowed(filename="../../etc/passwd\r\n").filename == ".._.._etc_passwd__"


def test_an_end_is_cut_to_the_tokens_limit() -> None:
    limited = token(operations=OPERATIONS, max_stable_link="30d")
    month = NOW + timedelta(days=30)
    assert allowed().expires_at is None
    assert allowed(limited).expires_at == month
    assert allowed(limited, expires_at=NOW + timedelta(days=31)).expires_at == month
    assert allowed(limited, expires_at=NOW + timedelta(days=1)).expires_at == NOW + timedelta(days=1)
    assert allowed(expires_at=datetime.max.replace(tzinfo=UTC)).expires_at == datetime.max.replace(tzinfo=UTC)


def test_a_link_ends_with_its_token_unless_it_is_kept() -> None:
    ending = token(operations=OPERATIONS, valid_until="2026-06-30T00:00:00Z")
    june, may = datetime(2026, 6, 30, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC)
    assert end_of(recorded(), TOKEN) is None
    assert end_of(recorded(), ending) == june
    assert end_of(recorded(ends_at=may), ending) == may
    assert end_of(recorded(kept=True), ending) is None
    assert end_of(recorded(ends_at=may), None) == may


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, LinkState.ALIVE),
        ({"ends_at": NOW}, LinkState.EXPIRED),
        ({"ends_at": NOW + timedelta(microseconds=1)}, LinkState.ALIVE),
        ({"revoked_at": NOW, "ends_at": NOW}, LinkState.REVOKED),
        ({"max_downloads": 5, "opened": 4}, LinkState.ALIVE),
        ({"max_downloads": 5, "opened": 5}, LinkState.USED_UP),
    ],
)
def test_the_state_of_a_link(changes: dict[str, Any], state: LinkState) -> None:
    link = recorded(**changes)
    assert state_of(link, link.new.ends_at, NOW) is state


def test_what_a_token_sees_of_a_link_does_not_open_it() -> None:
    document = shown(recorded(pin="scrypt:x"), None, NOW)
    assert document["pin"] is True
    assert document["state"] == "alive"
    assert hash_of(LINK_ID).hex() not in str(document)
    assert LINK_ID not in str(document)
    assert "scrypt" not in str(document)


@given(st.text(max_size=20))
def test_an_address_is_plain_whatever_the_name(name: str) -> None:
    filename = allowed(filename=name).filename
    url = url_of("https://files.example.org", LINK_ID, recorded(filename=filename))
    assert url.startswith(f"https://files.example.org/l/{LINK_ID}/")
    assert url.isascii()
    assert url.count("/") == 5
    assert not set(url) & set("?#\\ \"'<>")
