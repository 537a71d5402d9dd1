"""The pages of stable links: what is offered, and why a link does not open. They need no JavaScript. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from presignd.broker.state.links import Link
from presignd.pages.html import Html, figure, join, name_of, tag
from presignd.units import short_size

ASSETS = ("style.css", "icon.svg")

_WRONG_PIN = "This PIN is wrong."

_WHY: Mapping[str, tuple[str, str]] = {
    "unknown": ("There is no such link", "Check that the address is complete, or ask whoever sent it."),
    "expired": ("This link has expired", "Ask whoever sent it for a new one."),
    "revoked": ("This link was revoked", "Ask whoever sent it for a new one."),
    "used_up": (
        "This link is used up",
        "It was made for a limited number of downloads. Ask whoever sent it for a new one.",
    ),
    "no_such_file": ("There is no such file", "The folder that this link opens has no file of this name."),
    "no_manifest": (
        "The files can't be listed",
        "The list of this folder's files is missing, too long or damaged. Ask whoever sent the link.",
    ),
    "too_many_tries": ("Too many tries", "Wait a while, then try again."),
    "state_unreachable": ("Links can't be opened now", "The link is not lost. Try again in a moment."),
    "no_form": ("This request is no form", "Open the address in a browser."),
}
"""For each reason, the title of its page and what to do."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What the page of a link with limits shows. ``known`` means that the browser has opened it just now."""

    link: Link
    ends: datetime | None
    known: bool
    wrong_pin: bool = False

    @property
    def needs_pin(self) -> bool:
        """Whether a PIN is asked for."""
        return bool(self.link.new.pin) and not self.known


def offer_page(offer: Offer) -> str:
    """Return the page with the file and its button."""
    new = offer.link.new
    return document(
        new.filename,
        tag("h1", name_of(new.filename)),
        tag("p", new.note) if new.note else None,
        tag("dl", *(figure(words, value) for words, value in _facts(offer))),
        tag("form", *_fields(offer), method="post"),
        tag("p", "You have opened this link before. Opening it again is not counted.") if offer.known else None,
    )


def _fields(offer: Offer) -> list[Html]:
    button = tag(
        "button", "Open" if offer.link.new.disposition == "inline" or offer.link.new.unit else "Download", type="submit"
    )
    if not offer.needs_pin:
        return [button]
    field = tag(
        "input",
        id="pin",
        name="pin",
        type="password",
        required=True,
        autofocus=True,
        autocomplete="off",
        maxlength=64,
        aria_describedby="wrong" if offer.wrong_pin else None,
        aria_invalid="true" if offer.wrong_pin else None,
    )
    wrong = [tag("p", _WRONG_PIN, id="wrong", class_="over", role="alert")] if offer.wrong_pin else []
    return [tag("p", tag("label", "PIN", for_="pin"), " ", field), *wrong, tag("p", button)]


def _facts(offer: Offer) -> list[tuple[str, str]]:
    new = offer.link.new
    facts = [] if new.size is None or new.unit else [("Size", short_size(new.size))]
    facts += [("Type", "folder" if new.unit else new.content_type)] if new.content_type else []
    facts += [("Shared by", new.token)]
    if offer.ends is not None:
        facts.append(("Until", f"{offer.ends.astimezone(UTC):%Y-%m-%d %H:%M} UTC"))
    if new.max_downloads is not None:
        facts.append(("Downloads left", f"{max(0, new.max_downloads - offer.link.opened)} of {new.max_downloads}"))
    return facts


def offer_text(offer: Offer) -> str:
    """Return what a program without a browser gets: it has to send a POST, which is counted."""
    pin = "the form field pin, e.g. curl -OJL --data-urlencode pin=…" if offer.needs_pin else "e.g. curl -OJL --data ''"
    wrong = f"{_WRONG_PIN}\n" if offer.wrong_pin else ""
    facts = "".join(f"{words}: {value}\n" for words, value in _facts(offer))
    return f"{wrong}{offer.link.new.filename}\n{facts}To get it, send a POST to this address: {pin}\n"


def refusal_page(why: str) -> str:
    """Return the page that says why a link does not open."""
    title, advice = _WHY[why]
    return document(title, tag("h1", title), tag("p", advice))


def refusal_text(why: str) -> str:
    """Return the same as a line of text."""
    title, advice = _WHY[why]
    return f"{title}. {advice}\n"


def document(title: str, *body: Html | None) -> str:
    """Return a whole page for strangers."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="robots", content="noindex"),
        tag("title", title),
        tag("link", rel="stylesheet", href="/l/style.css"),
        tag("link", rel="icon", href="/l/icon.svg"),
    )
    main = tag("main", tag("section", join(*body)))
    return "<!doctype html>\n" + tag("html", head, tag("body", main), lang="en")
