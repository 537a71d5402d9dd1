"""``presignd status``: the queue, or where one file stands; once, or again as it changes (``--follow``).

For a person on a terminal it prints blocks; in a pipe it prints rows, their cells separated by tabs.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from presignd.cli import loop, show
from presignd.cli.ask import Remote, ask_once, asking, last_answer
from presignd.cli.layout import Line, bar, columns, wrapped
from presignd.cli.options import AsJson, ConfigFile, absolute
from presignd.cli.streams import clean
from presignd.control.documents import IDLE_SECONDS
from presignd.errors import ExitCode, PresigndError, Unavailable
from presignd.system.clock import utcnow
from presignd.units import ago, short_duration, short_size, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    Document = dict[str, Any]

FOLLOW_SECONDS = 1.0
"""How often ``--follow`` queries the daemon, in seconds."""

AWAY = "The daemon is not running. presignd looks for it each second."


def status_command(
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", readable=False, help="A file: where it stands, and its receipt.")
    ] = None,
    *,
    as_json: AsJson = False,
    stay: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep running, and show changes as they happen.")
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Show the queue, or where one file stands.

    Shows what is queued, settling and since when, in flight, blocked, and quarantined with cause and fix.
    Ends with 4 when a file is quarantined, or when PATH is quarantined or missing. In a pipe it prints
    rows, their cells separated by tabs.

    Example: presignd status /srv/drop/report.pdf
    """
    request = {"op": "path", "path": absolute(path)} if path else {"op": "status"}
    print_one = print_path if path else print_status
    if stay:
        lines_of = path_lines if path else status_lines
        each = partial(show.document, indent=None) if as_json else print_one
        on_screen = None if as_json else lambda found: lines_of(found, show.width(), utcnow())
        loop.run_while_read(follow(request, config, lines_of=on_screen, print_one=each))
    found = loop.run(ask_once(request, config))
    if as_json:
        show.document(found)
    else:
        print_one(found)
    if _is_stopped(found) if path else found["quarantined_count"]:
        raise SystemExit(ExitCode.REFUSED)


def _is_stopped(found: dict[str, Any]) -> bool:
    """Return whether a path's version is quarantined, or its file vanished before it was uploaded."""
    return bool(found["version"]) and found["version"]["state"] in {"quarantined", "vanished"}


def print_status(found: Document) -> None:
    """Print the whole status: blocks on a terminal, else rows that begin with the name of their table."""
    now = utcnow()
    if sys.stdout.isatty():
        show.lines(status_lines(found, show.width(), now))
        return
    show.say(_daemon(found, now))
    show.table("watch", _WATCH, map(partial(_watch_row, now=now), found["watches"]))
    show.table("inbox", _INBOX, map(partial(_inbox_row, now=now), found.get("inboxes", [])))
    show.table("blocked", _BLOCKED, map(partial(_blocked_row, now=now), found["blocked"]))
    show.table("in flight", _IN_FLIGHT, map(_upload_row, found["in_flight"]))
    show.table("settling", _SETTLING, map(partial(_settling_row, now=now), found["settling"]))
    show.table("quarantined", _QUARANTINED, map(_quarantined_row, found["quarantined"]))
    show.table("webhook", _WEBHOOK, map(partial(_webhook_row, now=now), found.get("webhooks", ())))
    for name in ("settling", "quarantined"):
        if more := _more(found, name):
            show.say(more)


def _daemon(found: Document, now: datetime) -> str:
    daemon = found["daemon"]
    return f"daemon: pid {daemon['pid']}, up {ago(daemon['started_at'], now)}" if daemon else "daemon: not running"


def _more(found: Document, name: str) -> str:
    more = found[f"{name}_count"] - len(found[name])
    return f"and {more} more {name}" if more > 0 else ""


# --- for a person -------------------------------------------------------------------------------
def status_lines(found: Document, width: int, now: datetime) -> list[Line]:
    """Lay out the whole status for a terminal ``width`` cells wide; each thing that waits has its cause and since when.

    Lines break between words only. Ages are counted from ``now``.
    """
    parts: list[tuple[str, Sequence[Document], Callable[[Document, int, datetime], Iterable[Line]]]] = [
        ("Inboxes", found.get("inboxes", []), _inbox_lines),
        ("Blocked", found["blocked"], _blocked_lines),
        ("Uploading", found["in_flight"], _upload_lines),
        ("Settling", found["settling"], _settling_lines),
        ("Quarantined", found["quarantined"], _quarantined_lines),
        ("Webhooks", found.get("webhooks", ()), _webhook_lines),
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
        f"{_in_flight(counts):,} in flight",
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


def _inbox_lines(inbox: Document, width: int, now: datetime) -> Iterator[Line]:
    _, folder, invitation, waiting, stopped, received, last = _inbox_row(inbox, now)
    numbers = [f"{received} received" + (f" (the last {last} ago)" if last else ""), f"{waiting} waiting"]
    numbers += [f"{stopped} of these stopped"] if inbox["stopped"] else []
    yield from wrapped(clean(f"{inbox['name']}: invitation {invitation} to {folder}"), width, indent=2, hang=4)
    yield from wrapped(", ".join(numbers), width, indent=4)


def _blocked_lines(found: Document, width: int, now: datetime) -> Iterator[Line]:
    what = f"{found['what']} ({found['code']}), for {ago(found['since'], now)}"
    yield from _problem_lines(what, found, width, "yellow")


def _quarantined_lines(found: Document, width: int, now: datetime) -> Iterator[Line]:  # noqa: ARG001 - as the others
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


def _webhook_lines(found: Document, width: int, now: datetime) -> Iterator[Line]:
    style = "red" if found["off_since"] else "yellow" if found["failing_since"] else ""
    text = f"{found['name']} ({found['host']}): {_webhook_words(found, now)}"
    yield from wrapped(clean(text), width, indent=2, hang=4, style=style)


def _webhook_words(found: Document, now: datetime) -> str:
    """Return the state of a webhook, in words."""
    given_up = f", {found['given_up']:,} given up" if found["given_up"] else ""
    if found["off_since"]:
        return f"off for {ago(found['off_since'], now)}: {found['problem'] or 'it answered 410 (gone)'}{given_up}"
    if found["failing_since"]:
        failing = f"failing for {ago(found['failing_since'], now)}: {found['problem']}"
        return f"{found['waiting']:,} waiting, {failing}{given_up}"
    return f"{found['waiting']:,} waiting{given_up}"


def _in_flight(counts: Document) -> int:
    return sum(counts[state] for state in ("uploading", "verified", "linked"))


# --- in a pipe ----------------------------------------------------------------------------------
_WATCH = ("name", "folder", "bucket", "queued", "in flight", "done", "quarantined", "oldest", "next scan", "settles by")
_INBOX = ("name", "folder", "invitation", "waiting", "stopped", "received", "last")
_BLOCKED = ("what", "error", "since", "cause", "fix")
_IN_FLIGHT = ("watch", "path", "sent", "of", "rate", "left")
_SETTLING = ("watch", "path", "since", "why")
_QUARANTINED = ("watch", "path", "error", "cause", "fix")
_WEBHOOK = ("name", "host", "waiting", "given up", "oldest", "failing for", "off for", "problem")


def _watch_row(watch: Document, now: datetime) -> list[str]:
    counts = watch["counts"]
    folder = watch["path"] + (" (its folder is away)" if watch["lost"] else "")
    return [
        watch["name"],
        folder,
        watch["bucket"],
        str(counts["queued"]),
        str(_in_flight(counts)),
        str(counts["finished"]),
        str(counts["quarantined"]),
        ago(watch["oldest_queued_at"], now),
        until(watch["next_scan"], now),
        watch["writer_check"],
    ]


def _inbox_row(inbox: Document, now: datetime) -> list[str]:
    numbers = [f"{inbox[name]:,}" for name in ("waiting", "stopped", "received")]
    return [inbox["name"], inbox["path"], inbox["invitation"], *numbers, ago(inbox["last_at"], now)]


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


def _quarantined_row(found: Document) -> list[str]:
    error = found["error"] or {"code": "", "cause": "", "fix": ""}
    return [found["watch"], found["path"], error["code"], error["cause"], error["fix"]]


def _webhook_row(found: Document, now: datetime) -> list[str]:
    numbers = [str(found["waiting"]), str(found["given_up"])]
    times = [ago(found[name], now) for name in ("oldest", "failing_since", "off_since")]
    return [found["name"], found["host"], *numbers, *times, found["problem"]]


# --- one file -----------------------------------------------------------------------------------
def print_path(found: Document) -> None:
    """Print where one file stands: a name and a value on each line."""
    show.table("", ("", ""), _path_rows(found, utcnow()))


def path_lines(found: Document, width: int, now: datetime) -> list[Line]:
    """Lay out where one file stands for a terminal ``width`` cells wide."""
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
    if ends := version["link_expires_at"]:
        yield ["link expires", f"{ends} (in {until(ends, now)})"]
    elif kind := version.get("link"):
        yield ["link expires", "never, unless it is revoked"] if kind == "stable" else ["link", "its folder's"]


# --- --follow -----------------------------------------------------------------------------------
async def follow(
    request: Document,
    config: Path | None,
    *,
    lines_of: Callable[[Document], Sequence[Line]] | None,
    print_one: Callable[[Document], None],
) -> NoReturn:
    """Show each answer to ``request`` until interrupted; raise ``Unavailable`` when no daemon runs at the start.

    On a terminal ``lines_of`` lays out each answer. In a pipe, and where ``lines_of`` is None, ``print_one``
    prints each answer that differs from the one before.
    """
    async with asking(config) as asker:
        if not isinstance(asker, Remote):
            raise Unavailable("status --follow: no daemon is running", fix="start it, or leave out --follow")
        async with contextlib.AsyncExitStack() as stack:
            update = _changes(print_one)
            if lines_of and sys.stdout.isatty():
                stack.enter_context(loop.cleaning_up_on_sigterm())
                update = stack.enter_context(_screen(lines_of))
            update(await last_answer(asker, request))
            while True:
                await asyncio.sleep(FOLLOW_SECONDS)
                found: Document | None = None
                with contextlib.suppress(PresigndError):
                    found = await last_answer(asker, request)
                update(found)


def _changes(print_one: Callable[[Document], None]) -> Callable[[Document | None], None]:
    """Return a function that prints an answer if it differs from the last one; None means that no daemon answers."""
    last: list[Document | None] = []

    def update(found: Document | None) -> None:
        if last != [found]:
            last[:] = [found]
            if found is None:
                show.say(f"presignd: {AWAY}")
            else:
                print_one(found)

    return update


@contextlib.contextmanager
def _screen(lines_of: Callable[[Document], Sequence[Line]]) -> Iterator[Callable[[Document | None], None]]:
    """Draw on the terminal's alternate screen, and leave the last state on the main one."""
    from rich.console import Console, Group  # noqa: PLC0415 - only on a terminal
    from rich.live import Live  # noqa: PLC0415 - as above

    last: Sequence[Line] = ()
    with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:

        def update(found: Document | None) -> None:
            nonlocal last
            last = [Line(AWAY, "yellow"), Line(""), *last] if found is None else lines_of(found)
            shown = fitting(last, shutil.get_terminal_size().lines)
            texts = [show.text_of(line) for line in shown]
            for text in texts:
                text.no_wrap, text.overflow = True, "ellipsis"
            live.update(Group(*texts), refresh=True)

        try:
            yield update
        finally:
            live.stop()
            show.lines(last)


def fitting(lines: Sequence[Line], height: int) -> Sequence[Line]:
    """Return the lines that a terminal of ``height`` lines shows; the last one counts those left out."""
    room = max(1, height - 1)
    if len(lines) <= room:
        return lines
    more = len(lines) - room + 1
    return [*lines[: room - 1], Line(f"and {more} more lines: presignd status", "dim")]
