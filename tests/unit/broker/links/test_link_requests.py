"""The JSON of links: wrong types refuse the call, unknown fields one link, and no message repeats a value."""

from __future__ import annotations

import json
from typing import Any

import pytest

from presignd.broker.links.pin import Pins
from presignd.broker.links.request import ById, ByObject, ByRef, read_link, read_links, read_revocation
from presignd.broker.policy import RefusalCode
from presignd.broker.wire import TooMany

LINK_ID = "Ab-_EfGhIjKlMnOpQrSt09"
LINK: dict[str, Any] = {"bucket": "b", "key": "scanner-1/a"}


def body(*links: dict[str, Any]) -> bytes:
    return json.dumps({"links": [{"id": LINK_ID, **link} for link in links]}).encode()


def test_a_link_of_a_newer_client_is_refused_and_the_others_are_read() -> None:
    found = read_links(body(LINK, {**LINK, "later": 1}, LINK))
    assert len(found.links) == 3
    assert {place: refusal.code for place, refusal in found.refused.items()} == {1: RefusalCode.UNKNOWN_FIELD}


def test_a_put_has_its_id_in_the_path() -> None:
    (link,) = read_link(
        json.dumps({**LINK, "pin": "1234", "expires_at": "2027-01-01T00:00:00Z"}).encode(), LINK_ID
    ).links
    assert link.id == LINK_ID
    assert "1234" not in repr(link)
    assert LINK_ID not in repr(link)


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"[]",
        b"{",
        b"{}",
        json.dumps({**LINK, "id": LINK_ID}).encode(),
        json.dumps({**LINK, "size": "5"}).encode(),
        json.dumps({**LINK, "max_downloads": 1.5}).encode(),
        json.dumps({**LINK, "disposition": "secret-value"}).encode(),
        json.dumps({**LINK, "expires_at": "2027-01-01T00:00:00"}).encode(),
        json.dumps({**LINK, "pin": ["secret-value"]}).encode(),
    ],
)
def test_a_put_that_is_no_link_is_refused_without_its_values(wrong: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        read_link(wrong, LINK_ID)
    assert "secret-value" not in str(refused.value)
    assert LINK_ID not in str(refused.value)


def test_a_call_has_a_thousand_links_at_most() -> None:
    with pytest.raises(TooMany) as refused:
        read_links(body(*[LINK] * 1001))
    assert refused.value.code == "too_many_links"


def test_what_to_revoke_is_named_in_one_way() -> None:
    assert read_revocation(b'{"ref": "x"}') == ByRef("x")
    assert read_revocation(b'{"id": "x"}') == ById("x")
    assert read_revocation(b'{"bucket": "b", "key": "k"}') == ByObject("b", "k")
    assert "secret" not in repr(ById("secret"))
    for wrong in (b"{}", b'{"ref": "x", "id": "y"}', b'{"bucket": "b"}', b'{"ref": "x", "key": "k"}', b"[]"):
        with pytest.raises(ValueError, match=r"."):
            read_revocation(wrong)


async def test_a_pin_is_stored_salted_and_slow() -> None:
    pins = Pins()
    assert await pins.hash_of("") == ""
    one, other = await pins.hash_of("1234"), await pins.hash_of("1234")
    assert one != other
    assert "1234" not in one
    assert await pins.is_right("1234", one)
    assert not await pins.is_right("1235", one)
    assert not await pins.is_right("\ud800", one)
