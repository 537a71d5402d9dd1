"""What ``presignd status`` prints: for a person on a terminal, and as tab-separated rows in a pipe."""

from __future__ import annotations

import sys
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from presignd.cli import show
from presignd.cli.layout import Line, bar, columns, wrapped
from presignd.cli.streams import clean
from presignd.control.documents import IDLE_SECONDS
from presignd.system.clock import utcnow
from presignd.units import ago, short_duration, short_size, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    Document = dict[str, Any]


def print_status(found: Document) -> None:
    """Print the whole status: blocks for a person, or rows that begin with the name of their table."""
    now = utcnow()
    if sys.stdout.isatty():
        show.lines(status_lines(found, show.width(), now))
        return
    show.say(_daemon(found, now))
    show.table("watch", _WATCH, map(partial(_watch_row, now=now), found["watches"]))
    show.table("blocked", _BLOCKED, map(partial(_blocked_row, now=now), found["blocked"]))
    show.table("in flight", _IN_FLIGHT, map(_upload_row, found["in_flight"]))
    show.table("settling", _SETTLING, map(partial(_settling_row, now=now), found["settling"]))
    show.table("quarantined", _QUARANTINED, map(_stopped_row, found["quarantined"]))
    for name in ("settling", "quarantined"):
        if more := _more(found, name):
            show.say(more)


def _daemon(found: Document, now: datetime) -> str:
    daemon = found["daemon"]
    return f"daemon: pid {daemon['pid']}, up {ago(daemon['started_at'], now)}" if daemon else "daemon: not running"


def _more(found: Document, name: str) -> str:
    more = found[f"{name}_count"] - len(found[name])
    return f"and {more} more {name}" if more > 0 else ""


# --- for a person -----------------------------------------------------------------------------------
def status_lines(found: Document, width: int, now: datetime) -> list[Line]:
    """Lay out the whole status for a terminal ``width`` cells wide: what waits stands with its cause and since when.

    Words are never broken; ``now`` (UTC) is what ages are counted from.
    """
    parts: list[tuple[str, Sequence[Document], Callable[[Document, int, datetime], Iterable[Line]]]] = [
        ("Blocked", found["blocked"], _blocked_lines),
        ("Uploading", found["in_flight"], _upload_lines),
        ("Settling", found["settling"], _settling_lines),
        ("Quarantined", found["quarantined"], _stopped_lines),
    ]
    lines = [Line(_daemon(found, now), "dim")]
    for watch in found["watches"]:
        lines += [Line(""), *_watch_lines(watch, width, now)]
    for title, rows, laid_out in parts:
        if rows:
            lines += [Line(""), Line(title, "bold"), *chain.from_iterable(laid_out(row, width, now) for row in rows)]
        if more := _more(found, title.lower()) if f"{title.lower()}_count" in found else "":
            lines.append(Line(f"  {more}"))
    return lines


def _watch_lines(watch: Document, width: int, now: datetime) -> Iterator[Line]:
    counts = watch["counts"]
    oldest = ago(watch["oldest_queued_at"], now)
    next_scan = until(watch["next_scan"], now)
    numbers = [
        f"{counts['queued']:,} queued" + (f" (the oldest for {oldest})" if oldest else ""),
        f"{_under_way(counts):,} in flight",
        f"{counts['finished']:,} done",
        f"{counts['quarantined']:,} quarantined",
    ]
    how = [f"settles by {watch['writer_check']}"] if watch["writer_check"] else []
    how += [f"next scan in {next_scan}"] if next_scan else []
    yield Line(clean(watch["name"]), "bold")
    if watch["lost"]:
        yield from wrapped("Its folder is away. presignd looks for it each second.", width, indent=2, style="red")
    yield from wrapped(clean(f"{watch['path']} to bucket {watch['bucket']}"), width, indent=2, hang=4)
    yield from wrapped(", ".join(numbers), width, indent=2, hang=4)
    if how:
        yield from wrapped(", ".join(how), width, indent=2, hang=4, style="dim")


def _blocked_lines(found: Document, width: int, now: datetime) -> Iterator[Line]:
    what = f"{found['what']} ({found['code']}), for {ago(found['since'], now)}"
    yield from _problem_lines(what, found, width, "yellow")


def _stopped_lines(found: Document, width: int, now: datetime) -> Iterator[Line]:  # noqa: ARG001 - as the others
    error = found["error"] or {"code": "", "cause": "", "fix": ""}
    yield from _problem_lines(f"{found['path']} ({error['code']})", error, width, "red")


def _problem_lines(what: str, problem: Document, width: int, style: str) -> Iterator[Line]:
    yield from wrapped(clean(what), width, indent=2, hang=4, style=style)
    yield from wrapped(clean(problem["cause"]), width, indent=4)
    if problem["fix"]:
        yield from wrapped(clean(f"Fix: {problem['fix']}"), width, indent=4)


def _upload_lines(found: Document, width: int, now: datetime) -> Iterator[Line]:  # noqa: ARG001 - as the others
    part = found["sent"] / found["size"] if found["size"] else 1.0
    _, _, sent, size, rate, left = _upload_row(found)
    words = f"{bar(part)} {part:4.0%}  {sent} of {size}, {rate}" + (f", {left} left" if left else "")
    yield from wrapped(clean(found["path"]), width, indent=2, hang=4)
    yield from wrapped(words, width, indent=4)


def _settling_lines(found: Document, width: int, now: datetime) -> Iterator[Line]:
    text = f"{found['path']}: {found['why']}, for {ago(found['since'], now)}"
    yield from wrapped(clean(text), width, indent=2, hang=4)


def _under_way(counts: Document) -> int:
    return sum(counts[state] for state in ("uploading", "verified", "linked"))


# --- rows -------------------------------------------------------------------------------------------
_WATCH = ("name", "folder", "bucket", "queued", "in flight", "done", "quarantined", "oldest", "next scan", "settles by")
_BLOCKED = ("what", "error", "since", "cause", "fix")
_IN_FLIGHT = ("watch", "path", "sent", "of", "rate", "left")
_SETTLING = ("watch", "path", "since", "why")
_QUARANTINED = ("watch", "path", "error", "cause", "fix")


def _watch_row(watch: Document, now: datetime) -> list[str]:
    counts = watch["counts"]
    folder = watch["path"] + (" (its folder is away)" if watch["lost"] else "")
    return [
        watch["name"],
        folder,
        watch["bucket"],
        str(counts["queued"]),
        str(_under_way(counts)),
        str(counts["finished"]),
        str(counts["quarantined"]),
        ago(watch["oldest_queued_at"], now),
        until(watch["next_scan"], now),
        watch["writer_check"],
    ]


def _blocked_row(found: Document, now: datetime) -> list[str]:
    return [found["what"], found["code"], ago(found["since"], now), found["cause"], found["fix"]]


def _upload_row(found: Document) -> list[str]:
    rate = f"{short_size(found['rate'])}/s"
    if (idle := found.get("idle_seconds", 0)) >= IDLE_SECONDS:
        rate = f"nothing sent for {short_duration(idle)}"
    left = "" if found["seconds_left"] is None else short_duration(found["seconds_left"])
    return [found["watch"], found["path"], short_size(found["sent"]), short_size(found["size"]), rate, left]


def _settling_row(found: Document, now: datetime) -> list[str]:
    return [found["watch"], found["path"], ago(found["since"], now), found["why"]]


def _stopped_row(found: Document) -> list[str]:
    error = found["error"] or {"code": "", "cause": "", "fix": ""}
    return [found["watch"], found["path"], error["code"], error["cause"], error["fix"]]


def print_path(found: Document) -> None:
    """Print where one file stands, a name and a value a line."""
    show.table("", ("", ""), _path_rows(found, utcnow()))


def path_lines(found: Document, width: int, now: datetime) -> list[Line]:
    """Lay out the same for a terminal ``width`` cells wide."""
    return columns(("", ""), [[clean(cell) for cell in cells] for cells in _path_rows(found, now)], width)


def _path_rows(found: Document, now: datetime) -> Iterator[list[str]]:
    version = found["version"]
    yield ["path", found["path"]]
    yield ["watch", found["watch"]]
    if settling := found["settling"]:
        yield ["settling", f"since {ago(settling['since'], now)}: {settling['why']}"]
    if version:
        yield ["state", version["state"]]
        if why := found.get("why"):
            yield ["why", why]
        yield from _version_rows(version, now)
    if upload := found["in_flight"]:
        sent, size = short_size(upload["sent"]), short_size(upload["size"])
        yield ["sent", f"{sent} of {size}, {short_size(upload['rate'])}/s"]


def _version_rows(version: Document, now: datetime) -> Iterator[list[str]]:
    if error := version["error"]:
        yield ["error", error["code"]]
        yield ["cause", error["cause"]]
        yield ["fix", error["fix"]]
    if receipt := version["receipt"]:
        yield ["object", f"{receipt['bucket']}/{receipt['key']}"]
        yield ["size", f"{receipt['size']} bytes"]
        yield ["checksum", receipt["checksum"]]
        yield ["etag", receipt["etag"]]
        yield ["uploaded", receipt["done_at"] or ""]
    if version["link_expires_at"]:
        yield ["link dies", f"{version['link_expires_at']} (in {until(version['link_expires_at'], now)})"]
