"""The pages of links: all that a person needs, every text escaped, nothing from elsewhere."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest

from presignd.broker.links.page import Offer, offer_page, offer_text, refusal_page, refusal_text
from presignd.broker.links.public import _STATUS
from tests.unit.broker.links.test_link_policy import recorded

ENDS = datetime(2026, 12, 24, 18, tzinfo=UTC)


def offer(*, known: bool = False, wrong_pin: bool = False, ends: datetime | None = ENDS, **link: Any) -> Offer:
    return Offer(recorded(**link), ends, known, wrong_pin)


def test_a_page_says_what_it_is_whose_and_until_when() -> None:
    found = offer_page(
        offer(size=1_234_567, content_type="application/pdf", note="As agreed", max_downloads=5, opened=2)
    )
    for text in ("a b.pdf", "1.2 MB", "application/pdf", "scanner-1", "As agreed", "2026-12-24 18:00 UTC", "3 of 5"):
        assert text in found
    assert found.count("<button") == 1
    assert "Download" in found
    assert "Until" not in offer_page(offer(ends=None))


def test_a_pin_is_asked_for_once() -> None:
    pin = 'name="pin"'
    assert pin not in offer_page(offer())
    assert pin in offer_page(offer(pin="scrypt:x"))
    assert pin not in offer_page(offer(pin="scrypt:x", known=True))
    assert 'role="alert"' in offer_page(offer(pin="scrypt:x", wrong_pin=True))
    assert "scrypt" not in offer_page(offer(pin="scrypt:x"))
    assert "curl" in offer_text(offer(pin="scrypt:x", wrong_pin=True))


@pytest.mark.parametrize("hostile", ["<script>x</script>", '"><img src=x>', "&lt;b&gt;", "\u202egpj", "a\nb"])
def test_names_and_notes_are_texts(hostile: str) -> None:
    found = offer_page(offer(filename=hostile, note=hostile, content_type=hostile, token=hostile))
    assert not re.search(r"<script|<img|<b>", found)


def test_a_page_loads_nothing_from_elsewhere() -> None:
    for found in (offer_page(offer(pin="x")), *(refusal_page(why) for why in _STATUS)):
        assert set(re.findall(r'(?:href|src|action)="([^"]*)"', found)) == {"/l/style.css", "/l/icon.svg"}
        assert "<script" not in found


@pytest.mark.parametrize("why", _STATUS)
def test_each_refusal_has_a_title_and_says_what_to_do(why: str) -> None:
    title, advice = re.findall(r"<h1>(.*?)</h1><p>(.*?)</p>", refusal_page(why))[0]
    assert title
    assert advice.endswith(".")
    assert refusal_text(why).count("\n") == 1
