"""``presignd links --issued``: the stable links of the broker's token, whether they open and how often they did."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from presignd.cli import show
from presignd.cli.ask import asking
from presignd.units import until

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    Document = dict[str, Any]

TITLES = ("ref", "made", "opened", "last opened", "until", "state", "object")


async def print_issued(config: Path | None, now: datetime, *, as_json: bool) -> None:
    """Print each link: a row, or one JSON document a line."""
    rows = []
    async with asking(config) as asker, contextlib.aclosing(asker.ask({"op": "issued"})) as answers:
        async for answer in answers:
            if "link" not in answer:
                continue
            if as_json:
                show.document(answer["link"], indent=None)
            else:
                rows.append(row_of(answer["link"], now))
    if not as_json:
        show.table("", TITLES, rows)


def row_of(link: Document, now: datetime) -> tuple[str, ...]:
    """Return a link's row."""
    most = f" of {link['max_downloads']}" if link["max_downloads"] else ""
    ends = link["expires_at"]
    return (
        link["ref"],
        _minute(link["made_at"]),
        f"{link['opened']}{most}",
        _minute(link["opened_at"]),
        f"{_minute(ends)} (in {until(ends, now)})" if ends and link["state"] == "alive" else _minute(ends) or "no end",
        link["state"] + (", PIN" if link["pin"] else ""),
        f"{link['bucket']}/{link['key']}",
    )


def _minute(time: str | None) -> str:
    return f"{time[:10]} {time[11:16]}" if time else ""
