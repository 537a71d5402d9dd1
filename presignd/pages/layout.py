"""The layout of a page: head, headline, sections, foot. It reads well without JavaScript and without CSS. Pure."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from importlib.resources import files

from presignd.pages.html import Html, join, tag

ASSETS = {"style.css": "text/css", "live.js": "text/javascript", "icon.svg": "image/svg+xml"}
"""The files that a page loads, each with its media type."""

Parts = dict[str, tuple[str, str]]
"""An update of an open page: each section's version and HTML, by its id; the headline has no version."""

_RUNNING = re.compile(r"(<time [^>]*>)[^<]*")


def asset(name: str) -> bytes:
    """Return one of ``ASSETS``."""
    return files(__package__).joinpath(name).read_bytes()


def versions(sections: Mapping[str, Html]) -> dict[str, str]:
    """Return a version for each section; a running time (``<time>``) alone does not change it."""
    return {name: f"{zlib.crc32(_without_running_words(text).encode()):08x}" for name, text in sections.items()}


def _without_running_words(text: str) -> str:
    return _RUNNING.sub(r"\1", text)


def document(
    headline: str, sections: Mapping[str, Html], *, heading: Html, foot: Mapping[str, str], hint: Html | None = None
) -> str:
    """Return a whole page: ``heading`` says whose it is, ``hint`` how to log in, ``foot`` has links by their texts."""
    version = versions(sections)
    return _html(
        headline,
        tag("header", heading, tag("p", headline, id="headline"), hint),
        tag("p", id="note", role="status"),
        tag("main", *(tag("section", part, id=name, data_version=version[name]) for name, part in sections.items())),
        tag("footer", tag("p", "This page does not update itself: reload it to see changes.", id="still"), _foot(foot)),
    )


def live(headline: str, sections: Mapping[str, Html]) -> Parts:
    """Return the update of an open page."""
    version = versions(sections)
    return {name: (version[name], text) for name, text in sections.items()} | {"headline": ("", headline)}


def _html(title: str, *body: str) -> str:
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} - presignd"),
        tag("link", rel="stylesheet", href="style.css"),
        tag("link", rel="icon", href="icon.svg"),
        tag("script", src="live.js", defer=True),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", *body), lang="en")


def _foot(places: Mapping[str, str]) -> Html:
    return join(*(join(tag("a", words, href=href), " ") for words, href in places.items()))
