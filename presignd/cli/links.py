"""``presignd links``: print the links issued, or run a command for each; once, or as new ones come."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from presignd.cli import loop, show
from presignd.cli.ask import Remote, asking
from presignd.cli.issued import print_issued
from presignd.cli.options import AsJson, ConfigFile
from presignd.errors import PresigndError, Refused, Unavailable, UsageError
from presignd.links import Cursor, load_cursor, save_cursor
from presignd.system.clock import utcnow

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    Document = dict[str, Any]
    Stream = AsyncGenerator[Document, None]

GAP = "links were lost to rotation before they were read here; continuing with the oldest left (raise links.keep)"
AWAY = "no daemon is running; waiting for it"
RETRY_SECONDS = 1.0
LOOK_SECONDS = 5.0
"""How often the ledger is read while no daemon runs; each time holds its lock for a moment."""
LONGEST_PAUSE = 300.0
PAGE = 256
"""Links read at a time while no daemon runs, so that the ledger's lock is free while CMD works on them."""
SAVE_SECONDS = 0.5


def links_command(
    *,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="CMD", help="With --exec: the command and its arguments.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new links as they come, across rotation.")
    ] = False,
    as_json: AsJson = False,
    cursor_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Start after the link recorded in this file, and record the last one there."),
    ] = None,
    run_command: Annotated[
        bool, typer.Option("--exec", help="Run CMD for each link, with the link's JSON on its stdin.")
    ] = False,
    issued: Annotated[
        bool,
        typer.Option("--issued", help="List the stable links of the broker's token: opened how often, and last when."),
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Print the links made so far, one a line, oldest first; with --follow new ones too.

    With --exec it prints nothing: CMD gets each link on stdin, never in its arguments. When CMD fails,
    --follow tries it again (after 1 s, then up to 5 min); without --follow the command ends with 4. The
    cursor moves on only when CMD exits 0, so each link reaches CMD at least once. Everything after --exec
    is CMD. With --issued it lists stable links by their refs, without what opens them.

    Example: presignd links --follow --cursor-file seen --exec sh -c 'cat >> links.jsonl'
    """
    _require_command(command or [], asked=run_command)
    if issued:
        if follow or cursor_file or run_command:
            raise UsageError("links: --issued is a list of its own; only --json and -c go with it")
        loop.run_while_read(print_issued(config, utcnow(), as_json=as_json))
        return
    progress = Progress(cursor_file, durable=run_command)
    take = Command(command or [], follow).take if run_command else _printing(as_json=as_json)
    run = loop.run if run_command else loop.run_while_read
    run(_pass_on(LinkStream(config, progress.cursor, follow=follow).answers(), progress, take))


# Options end where CMD begins: what follows are CMD's own.
links_command.settings = {"context_settings": {"allow_interspersed_args": False}}  # type: ignore[attr-defined]  # read by presignd.cli.load


def _require_command(command: list[str], *, asked: bool) -> None:
    if asked and not command:
        raise UsageError("--exec: no command given", fix="e.g. --exec sh -c 'cat >> links'")
    if command and not asked:
        raise UsageError(f"links: unexpected argument {command[0]!r}", fix="write the command after --exec")
    if command and shutil.which(command[0]) is None:
        raise UsageError(f"--exec: no command {command[0]!r} in PATH that is executable")


async def _pass_on(links: Stream, progress: Progress, take: Callable[[Document], Awaitable[None]]) -> None:
    """Pass each link to ``take``, and move the cursor past the link once ``take`` returns."""
    try:
        async with contextlib.aclosing(links):
            async for answer in links:
                if "link" in answer:
                    await take(answer["link"])
                    progress.move_to(Cursor.from_json(answer["cursor"]))
                elif "gap" in answer:
                    show.say(f"presignd: {GAP}")
    finally:
        progress.save()


# --- where they come from -----------------------------------------------------------------------


class LinkStream:
    """The links, from the daemon or without one, across restarts and broken connections.

    The daemon closes a connection whose answers wait too long (a slow CMD, a pager). So only an ``end`` answer is
    the end; without it, the next request goes on after the last link.
    """

    def __init__(self, config: Path | None, after: Cursor | None, *, follow: bool) -> None:
        self._config, self._after, self._follow = config, after, follow
        self._reached = self._away = False

    async def answers(self) -> Stream:
        """Yield each answer to the ``links`` request; ends after the last link, never with ``follow``."""
        while True:
            moved = ended = False
            async with contextlib.aclosing(self._round()) as answers:
                async for answer in answers:
                    moved, ended = True, "end" in answer
                    self._after = Cursor.from_json(answer["cursor"]) if "cursor" in answer else self._after
                    yield answer
            if ended and not self._follow:
                return
            if ended or not moved:
                await asyncio.sleep(LOOK_SECONDS if ended else RETRY_SECONDS)

    async def _round(self) -> Stream:
        """Send the request once; with ``follow`` a daemon that has stopped is not a failure."""
        try:
            async with contextlib.aclosing(self._ask()) as answers:
                async for answer in answers:
                    yield answer
        except (Unavailable, UsageError) as error:
            # UsageError: without a daemon the configuration is read, and a reader of links may not have one.
            if not (self._follow and self._reached):
                raise
            if not self._away:
                show.say(f"presignd: {AWAY} ({error.message})")
            self._away = True

    async def _ask(self) -> Stream:
        """Get all links from the daemon or, without one, read one page here."""
        async with asking(self._config) as asker:
            self._reached, self._away = True, False
            remote = isinstance(asker, Remote)
            after = self._after.to_json() if self._after else None
            request = {"op": "links", "follow": self._follow and remote, "after": after}
            page: list[Document] = []
            async with contextlib.aclosing(asker.ask(request)) as answers:
                async for answer in answers:
                    if remote:
                        yield answer
                    else:
                        page.append(answer)
                    if len(page) == PAGE:
                        break
        for answer in page:
            yield answer


# --- where they go ------------------------------------------------------------------------------


def _printing(*, as_json: bool) -> Callable[[Document], Awaitable[None]]:
    async def take(link: Document) -> None:
        if as_json:
            show.document(link, indent=None, as_is=True)
        else:
            show.result(link["url"], as_is=True)

    return take


@dataclass(frozen=True, slots=True)
class Command:
    """CMD: run it for one link after the other, with the link's JSON on stdin and nothing of it in the arguments."""

    command: list[str]
    again: bool

    async def take(self, link: Document) -> None:
        """Run CMD for ``link`` until it exits 0; without ``again`` raise ``Refused`` when it fails."""
        line = json.dumps(link).encode() + b"\n"
        for failures in count():
            ended = await self._run(line)
            if not ended:
                return
            message = f"--exec: {self.command[0]} {ended} for {link.get('path')} (file_id {link.get('file_id')})"
            if not self.again:
                raise Refused(message, fix="the links before it are done; the next run starts with this one")
            pause = pause_after(failures)
            show.say(f"presignd: {message}; again in {pause:.0f} s")
            await asyncio.sleep(pause)

    async def _run(self, line: bytes) -> str:
        """Run CMD once; return "" when it exited 0, else how it ended."""
        # Not asyncio.subprocess: under uvloop a CMD that ends without reading its stdin raises RuntimeError.
        try:
            process = subprocess.Popen(self.command, stdin=subprocess.PIPE)  # noqa: S603, ASYNC220 - the user's own CMD; it takes a millisecond to start
        except OSError as error:
            return f"can't be run: {error.strerror}"
        talk = asyncio.create_task(asyncio.to_thread(process.communicate, line))
        try:
            await asyncio.shield(talk)
        except asyncio.CancelledError:
            process.terminate()
            await talk
            raise
        status = process.returncode
        return f"was ended by signal {-status}" if status < 0 else f"exited with {status}" if status else ""


def pause_after(failures: int) -> float:
    """Return the seconds to wait before CMD runs again, after ``failures`` earlier failures."""
    return float(min(2 ** min(failures, 32), LONGEST_PAUSE))


class Progress:
    """The position up to which links were read, kept in the cursor file if there is one.

    With ``durable`` the file is written after every link; otherwise twice a second and at the end, because a link
    printed twice after a crash does no harm.
    """

    def __init__(self, file: Path | None, *, durable: bool) -> None:
        self._file, self._durable = file, durable
        self.cursor = load_cursor(file) if file else None
        self._saved = self.cursor
        self._later: asyncio.TimerHandle | None = None
        if file and not os.access(file.parent, os.W_OK | os.X_OK):
            raise UsageError(f"--cursor-file {file}: its folder can't be written to", fix="name a file elsewhere")

    def move_to(self, cursor: Cursor) -> None:
        """Remember ``cursor``."""
        self.cursor = cursor
        if self._durable:
            self.save()
        elif self._later is None and self._file:
            self._later = asyncio.get_running_loop().call_later(SAVE_SECONDS, self._save_late)

    def save(self) -> None:
        """Write the cursor file if it is out of date; raise ``UsageError`` when it can't be written."""
        if self._file and self.cursor and self.cursor != self._saved:
            save_cursor(self._file, self.cursor)
            self._saved = self.cursor

    def _save_late(self) -> None:
        self._later = None
        with contextlib.suppress(PresigndError):  # the save at the end raises it
            self.save()
