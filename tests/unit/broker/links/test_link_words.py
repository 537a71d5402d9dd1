"""The languages of the pages for strangers: which one a browser gets, and that none lacks a text."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from presignd.broker.invitations import page as invitation
from presignd.broker.links.page import offer_page, refusal_page
from presignd.broker.links.words import ENGLISH, GERMAN, LANGUAGES, Words, words_for
from tests.unit.broker.links.test_link_page import offer


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("de", "de"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("en-GB,en;q=0.9,de;q=0.8", "en"),
        ("fr, de;q=0.5, en;q=0.4", "de"),
        ("en;q=0.1,DE", "de"),
        ("de;q=0", "en"),
        ("de;q=x, *", "en"),
        ("fr", "en"),
    ],
)
def test_a_browser_gets_the_language_that_it_likes_best(accepted: str, language: str) -> None:
    assert words_for(accepted).language == language


@pytest.mark.parametrize("words", LANGUAGES.values(), ids=LANGUAGES)
def test_every_language_has_every_text(words: Words) -> None:
    assert set(words.why) == set(ENGLISH.why)
    assert all(title and advice.endswith(".") for title, advice in words.why.values())
    assert all(getattr(words, each.name) for each in fields(words))
    assert words.left.format(3, 5).startswith("3 ")


def test_the_page_of_a_link_is_german_throughout() -> None:
    found = offer_page(offer(size=1, max_downloads=5, opened=2, pin="scrypt:x", wrong_pin=True), GERMAN)
    assert '<html lang="de">' in found
    assert "3 von 5" in found
    for english in (ENGLISH.wrong_pin, ENGLISH.download, ENGLISH.shared_by, ENGLISH.until, ENGLISH.downloads_left):
        assert not re.search(rf">{re.escape(english)}<", found)
    assert "Dieser Link ist abgelaufen" in refusal_page("expired", GERMAN)


def test_why_an_invitation_does_not_open_is_told_in_german_too() -> None:
    assert "Diese Einladung ist beendet" in invitation.refusal_page("invitation_ended", GERMAN)
    away = "<h1>Einladungen k\u00f6nnen gerade nicht"
    assert away in invitation.refusal_page("state_unreachable", GERMAN), "not the text of links"
