"""Render the status page from one snapshot. Pure."""

from __future__ import annotations

import presignd
from presignd.pages import layout
from presignd.pages.html import Html, ago, join, tag
from presignd.pages.layout import Parts
from presignd.web.page.sections import Snapshot, headline, living, sections

__all__ = ["Snapshot", "document", "headline", "live", "living", "sections"]

FOOT = {"JSON": "api/status", "metrics": "metrics", "health": "healthz", "readiness": "readyz"}


def document(snapshot: Snapshot, *, full: bool) -> str:
    """Return the whole page; ``full`` with links and buttons, for a client that is logged in."""
    return layout.document(
        headline(snapshot.status),
        sections(snapshot, full=full),
        heading=_heading(snapshot),
        foot=FOOT,
        hint=None if full else _login(),
    )


def live(snapshot: Snapshot, *, full: bool) -> Parts:
    """Return each section and the headline, to update an open page."""
    return layout.live(headline(snapshot.status), sections(snapshot, full=full))


def _heading(snapshot: Snapshot) -> Html:
    daemon = snapshot.status["daemon"]
    up = tag("p", f"{presignd.__version__}, up ", ago(daemon["started_at"], snapshot.now)) if daemon else None
    return join(tag("h1", "presignd"), up)


def _login() -> Html:
    return tag(
        "p", "To see links and retry files, log in with the address that ", tag("code", "presignd web"), " prints."
    )
