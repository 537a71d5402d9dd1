"""The page of an invitation: what it allows, and why it does not open. Pure."""

from __future__ import annotations

from datetime import UTC

from presignd.broker.guest_page.page import guest_page
from presignd.broker.links.page import refusal_page as of_links
from presignd.broker.links.words import Words
from presignd.broker.state.invitations import Invitation
from presignd.pages.html import count, figure, join, tag
from presignd.units import short_size

_OWN_REASONS = ("unknown_invitation", "invitation_ended", "rate_limited")
_SWITCH_ON = {
    "en": "To send files, switch JavaScript on for this page, or open its address in a browser that has it.",
    "de": "Um Dateien zu senden, schalten Sie JavaScript für diese Seite ein, oder öffnen Sie ihre Adresse in einem "
    "Browser, der es hat.",
}


def offer_page(invitation: Invitation) -> str:
    """Return the page on which guests send files; without JavaScript it says what an invitation allows."""
    return guest_page(
        join(
            tag("p", invitation.new.note) if invitation.new.note else None,
            tag("dl", *(figure(words, value) for words, value in _facts(invitation))),
            tag("p", "A PIN is needed: whoever invited you has it.") if invitation.new.pin else None,
            *(tag("p", words, class_="over", lang=language) for language, words in _SWITCH_ON.items()),
        )
    )


def _facts(invitation: Invitation) -> list[tuple[str, str]]:
    new = invitation.new
    facts = [("Until", f"{new.ends_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC")]
    if (files := invitation.files_left) is not None:
        facts.append(("Room for", count(files, "file")))
    if (left := invitation.bytes_left) is not None:
        facts.append(("Room left", short_size(left)))
    if new.max_size is not None:
        facts.append(("Largest file", short_size(new.max_size)))
    return facts


def refusal_page(code: str, words: Words) -> str:
    """Return the page that says why an invitation does not open; ``code`` is that of the refusal."""
    return of_links(code if code in _OWN_REASONS else "away", words)
