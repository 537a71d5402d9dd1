"""The pages of stable links: the page of a link with limits, and why a link does not open.

They need no JavaScript. People get them in a language that their browser accepts (``words.py``), programs in English.
Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from presignd.broker.links.words import ENGLISH, Words
from presignd.broker.state.links import Link
from presignd.pages.html import Html, figure, join, name_of, tag
from presignd.units import short_size

ASSETS = ("style.css", "icon.svg")


@dataclass(frozen=True, slots=True)
class Offer:
    """What the page of a link with limits shows. ``known`` means that the browser has opened it just now."""

    link: Link
    ends: datetime | None
    known: bool
    wrong_pin: bool = False

    @property
    def needs_pin(self) -> bool:
        """Whether the page has a field for the PIN."""
        return bool(self.link.new.pin) and not self.known


def offer_page(offer: Offer, words: Words = ENGLISH) -> str:
    """Return the page with the file and its button."""
    new = offer.link.new
    return document(
        new.filename,
        tag("h1", name_of(new.filename)),
        tag("p", new.note) if new.note else None,
        tag("dl", *(figure(name, value) for name, value in _facts(offer, words))),
        tag("form", *_fields(offer, words), method="post"),
        tag("p", words.known) if offer.known else None,
        lang=words.language,
    )


def _fields(offer: Offer, words: Words) -> list[Html]:
    opens = offer.link.new.disposition == "inline" or offer.link.new.unit
    button = tag("button", words.open if opens else words.download, type="submit")
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
    wrong = [tag("p", words.wrong_pin, id="wrong", class_="over", role="alert")] if offer.wrong_pin else []
    return [tag("p", tag("label", "PIN", for_="pin"), " ", field), *wrong, tag("p", button)]


def _facts(offer: Offer, words: Words) -> list[tuple[str, str]]:
    new = offer.link.new
    facts = [] if new.size is None or new.unit else [(words.size, short_size(new.size))]
    facts += [(words.type, words.folder if new.unit else new.content_type)] if new.content_type else []
    facts += [(words.shared_by, new.token)]
    if offer.ends is not None:
        facts.append((words.until, f"{offer.ends.astimezone(UTC):%Y-%m-%d %H:%M} UTC"))
    if new.max_downloads is not None:
        left = max(0, new.max_downloads - offer.link.opened)
        facts.append((words.downloads_left, words.left.format(left, new.max_downloads)))
    return facts


def offer_text(offer: Offer) -> str:
    """Return the text for a program that is no browser: it must send a POST, which is counted."""
    pin = "the form field pin, e.g. curl -OJL --data-urlencode pin=…" if offer.needs_pin else "e.g. curl -OJL --data ''"
    wrong = f"{ENGLISH.wrong_pin}\n" if offer.wrong_pin else ""
    facts = "".join(f"{name}: {value}\n" for name, value in _facts(offer, ENGLISH))
    return f"{wrong}{offer.link.new.filename}\n{facts}To get it, send a POST to this address: {pin}\n"


def refusal_page(why: str, words: Words = ENGLISH) -> str:
    """Return the page that says why a link or an invitation does not open."""
    title, advice = words.why[why]
    return document(title, tag("h1", title), tag("p", advice), lang=words.language)


def refusal_text(why: str) -> str:
    """Return the same as a line of text."""
    title, advice = ENGLISH.why[why]
    return f"{title}. {advice}\n"


def document(title: str, *body: Html | None, lang: str = "en") -> str:
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
    return "<!doctype html>\n" + tag("html", head, tag("body", main), lang=lang)
