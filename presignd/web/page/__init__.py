"""The status page: server-rendered HTML that reads well without JavaScript and without CSS. Pure."""

from __future__ import annotations

import re
import zlib
from importlib.resources import files
from typing import TYPE_CHECKING

import presignd
from presignd.pages.html import Html, ago, join, tag
from presignd.web.page.sections import Snapshot, headline, sections

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ASSETS", "Snapshot", "asset", "document", "headline", "live", "sections", "versions"]

ASSETS = {"style.css": "text/css", "live.js": "text/javascript", "icon.svg": "image/svg+xml"}
"""The files that the page loads, each with its media type."""

_RUNNING = re.compile(r"(<time [^>]*>)[^<]*")


def asset(name: str) -> bytes:
    """Return one of ``ASSETS``."""
    return files("presignd.pages").joinpath(name).read_bytes()


def versions(parts: Mapping[str, Html]) -> dict[str, str]:
    """Return a version for each section; a running time (``<time>``) alone does not change it."""
    return {name: f"{zlib.crc32(_without_running_words(text).encode()):08x}" for name, text in parts.items()}


def _without_running_words(text: str) -> str:
    return _RUNNING.sub(r"\1", text)


def document(snapshot: Snapshot, *, full: bool) -> str:
    """Return the whole page; ``full`` with links and buttons, for a client that is logged in."""
    parts = sections(snapshot, full=full)
    version = versions(parts)
    said = headline(snapshot.status)
    return _html(
        said,
        tag("header", _heading(snapshot), tag("p", said, id="headline"), None if full else _login()),
        tag("p", id="note", role="status"),
        tag("main", *(tag("section", part, id=name, data_version=version[name]) for name, part in parts.items())),
        tag("footer", tag("p", "This page does not update itself: reload it to see changes.", id="still"), _foot()),
    )


def live(snapshot: Snapshot, *, full: bool) -> dict[str, tuple[str, str]]:
    """Return each section's version and HTML, and the headline, to update an open page."""
    parts = sections(snapshot, full=full)
    version = versions(parts)
    return {name: (version[name], text) for name, text in parts.items()} | {"headline": ("", headline(snapshot.status))}


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


def _heading(snapshot: Snapshot) -> Html:
    daemon = snapshot.status["daemon"]
    up = tag("p", f"{presignd.__version__}, up ", ago(daemon["started_at"], snapshot.now)) if daemon else None
    return join(tag("h1", "presignd"), up)


def _login() -> Html:
    return tag(
        "p", "To see links and retry files, log in with the address that ", tag("code", "presignd web"), " prints."
    )


def _foot() -> Html:
    places = (("api/status", "JSON"), ("metrics", "metrics"), ("healthz", "health"), ("readyz", "readiness"))
    return join(*(join(tag("a", words, href=href), " ") for href, words in places))
