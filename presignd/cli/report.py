"""What ``presignd status`` prints: for a person on a terminal, and as tab-separated rows in a pipe."""

from __future__ import annotations

import sys
from itertools import chain
from typing import TYPE_CHECKING, Any

from presignd.cli import show
from presignd.cli.layout import Line, bar, columns, wrapped
from presignd.cli.streams import clean
from presignd.control.documents import IDLE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    Document = dict[str, Any]


def print_status(found: Document) -> None:
    """Print the whole status: blocks for a person, or rows that begin with the name of their table."""
    if sys.stdout.isatty():
        show.lines(status_lines(found, show.width()))
        return
    show.say(_daemon(found))
    show.table("watch", _WATCH, map(_watch_row, found["watches"]))
    show.table("blocked", ("what", "error", "since", "cause", "fix"), map(_blocked_row, found["blocked"]))
    show.table("in flight", ("watch", "path", "sent", "of", "rate", "left"), map(_upload_row, found["in_flight"]))
    show.table("settling", ("watch", "path", "since", "why"), map(_settling_row, found["settling"]))
    show.table("quarantined", ("watch", "path", "error", "cause", "fix"), map(_stopped_row, found["quarantined"]))
    for name in ("settling", "quarantined"):
        if more := _more(found, name):
            show.say(more)


def _daemon(found: Document) -> str:
    daemon = found["daemon"]
    return f"daemon: pid {daemon['pid']}, up {show.ago(daemon['started_at'])}" if daemon else "daemon: not running"


def _more(found: Document, name: str) -> str:
    more = found[f"{name}_count"] - len(found[name])
    return f"and {more} more {name}" if more > 0 else ""


# --- for a person -----------------------------------------------------------------------------------
def status_lines(found: Document, width: int, now: datetime | None = None) -> list[Line]:
    """Lay out the whole status for a terminal ``width`` cells wide: what waits stands with its cause and since when.

    Words are never broken; ``now`` (UTC) is what ages are counted from.
    """
    parts: list[tuple[str, Sequence[Document], Callable[[Document, int, datetime | None], Iterable[Line]]]] = [
        ("Blocked", found["blocked"], _blocked_lines),
        ("Uploading", found["in_flight"], _upload_lines),
        ("Settling", found["settling"], _settling_lines),
        ("Quarantined", found["quarantined"], _stopped_lines),
    ]
    lines = [Line(_daemon(found), "dim")]
    for watch in found["watches"]:
        lines += [Line(""), *_watch_lines(watch, width, now)]
    for title, rows, laid_out in parts:
        if rows:
            lines += [Line(""), Line(title, "bold"), *chain.from_iterable(laid_out(row, width, now) for row in rows)]
        if more := _more(found, title.lower()) if f"{title.lower()}_count" in found else "":
            lines.append(Line(f"  {more}"))
    return lines


def _watch_lines(watch: Document, width: int, now: datetime | None) -> Iterator[Line]:
    counts = watch["counts"]
    oldest = show.ago(watch["oldest_queued_at"], now)
    next_scan = show.until(watch["next_scan"], now)
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


def _blocked_lines(found: Document, width: int, now: datetime | None) -> Iterator[Line]:
    what = f"{found['what']} ({found['code']}), for {show.ago(found['since'], now)}"
    yield from _problem_lines(what, found, width, "yellow")


def _stopped_lines(found: Document, width: int, now: datetime | None) -> Iterator[Line]:  # noqa: ARG001 - as the others
    error = found["error"] or {"code": "", "cause": "", "fix": ""}
    yield from _problem_lines(f"{found['path']} ({error['code']})", error, width, "red")


def _problem_lines(what: str, problem: Document, width: int, style: str) -> Iterator[Line]:
    yield from wrapped(clean(what), width, indent=2, hang=4, style=style)
    yield from wrapped(clean(problem["cause"]), width, indent=4)
    if problem["fix"]:
        yield from wrapped(clean(f"Fix: {problem['fix']}"), width, indent=4)


def _upload_lines(found: Document, width: int, now: datetime | None) -> Iterator[Line]:  # noqa: ARG001 - as the others
    part = found["sent"] / found["size"] if found["size"] else 1.0
    _, _, sent, size, rate, left = _upload_row(found)
    words = f"{bar(part)} {part:4.0%}  {sent} of {size}, {rate}" + (f", {left} left" if left else "")
    yield from wrapped(clean(found["path"]), width, indent=2, hang=4)
    yield from wrapped(words, width, indent=4)


def _settling_lines(found: Document, width: int, now: datetime | None) -> Iterator[Line]:
    text = f"{found['path']}: {found['why']}, for {show.ago(found['since'], now)}"
    yield from wrapped(clean(text), width, indent=2, hang=4)


def _under_way(counts: Document) -> int:
    return sum(counts[state] for state in ("uploading", "verified", "linked"))


# --- rows -------------------------------------------------------------------------------------------
_WATCH = ("name", "folder", "bucket", "queued", "in flight", "done", "quarantined", "oldest", "next scan", "settles by")


def _watch_row(watch: Document) -> list[str]:
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
        show.ago(watch["oldest_queued_at"]),
        show.until(watch["next_scan"]),
        watch["writer_check"],
    ]


def _blocked_row(found: Document) -> list[str]:
    return [found["what"], found["code"], show.ago(found["since"]), found["cause"], found["fix"]]


def _upload_row(found: Document) -> list[str]:
    rate = f"{show.size(found['rate'])}/s"
    if (idle := found.get("idle_seconds", 0)) >= IDLE_SECONDS:
        rate = f"nothing sent for {show.span(idle)}"
    left = "" if found["seconds_left"] is None else show.span(found["seconds_left"])
    return [found["watch"], found["path"], show.size(found["sent"]), show.size(found["size"]), rate, left]


def _settling_row(found: Document) -> list[str]:
    return [found["watch"], found["path"], show.ago(found["since"]), found["why"]]


def _stopped_row(found: Document) -> list[str]:
    error = found["error"] or {"code": "", "cause": "", "fix": ""}
    return [found["watch"], found["path"], error["code"], error["cause"], error["fix"]]


def print_path(found: Document) -> None:
    """Print where one file stands, a name and a value a line."""
    show.table("", ("", ""), _path_rows(found))


def path_lines(found: Document, width: int) -> list[Line]:
    """Lay out the same for a terminal ``width`` cells wide."""
    return columns(("", ""), [[clean(cell) for cell in cells] for cells in _path_rows(found)], width)


def _path_rows(found: Document) -> Iterator[list[str]]:
    version = found["version"]
    yield ["path", found["path"]]
    yield ["watch", found["watch"]]
    if settling := found["settling"]:
        yield ["settling", f"since {show.ago(settling['since'])}: {settling['why']}"]
    if version:
        yield ["state", version["state"]]
        if why := found.get("why"):
            yield ["why", why]
        yield from _version_rows(version)
    if upload := found["in_flight"]:
        sent, size = show.size(upload["sent"]), show.size(upload["size"])
        yield ["sent", f"{sent} of {size}, {show.size(upload['rate'])}/s"]


def _version_rows(version: Document) -> Iterator[list[str]]:
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
        yield ["link dies", f"{version['link_expires_at']} (in {show.until(version['link_expires_at'])})"]
