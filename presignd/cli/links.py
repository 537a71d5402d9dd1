"""``presignd links``: the links issued, printed or handed to a command, once or as they come."""

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
from presignd.cli.options import AsJson, ConfigFile
from presignd.errors import PresigndError, Refused, Unavailable, UsageError
from presignd.links import Cursor, load_cursor, save_cursor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    Document = dict[str, Any]
    Stream = AsyncGenerator[Document, None]

GAP = "links were rotated out before they were read here; going on with the oldest there is (raise links.keep)"
AWAY = "the daemon is away; waiting for it"
RETRY_SECONDS = 1.0
LOOK_SECONDS = 5.0
"""How often links are looked for while no daemon runs; each time takes the ledger's lock for a moment."""
LONGEST_PAUSE = 300.0
PAGE = 256
"""Links read at a time while no daemon runs: the ledger's lock isn't held while a command works on them."""
SAVE_SECONDS = 0.5


def links_command(
    *,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="CMD", help="With --exec: the command, to the end of the line.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as links come, across rotation.")] = False,
    as_json: AsJson = False,
    cursor_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Go on behind the link this file remembers, and remember.")
    ] = None,
    run_command: Annotated[
        bool, typer.Option("--exec", help="Run CMD for each link, with the link's JSON on its stdin.")
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Print the links issued, one a line, oldest first; with --follow also those to come.

    With --exec nothing is printed: CMD gets each link on stdin, never in its arguments. When CMD fails,
    --follow tries it again (after 1 s, then up to 5 min), otherwise it ends with 4. The cursor moves on
    only when CMD exits 0, so each link reaches it at least once. All that stands behind --exec is CMD.

    Example: presignd links --follow --cursor-file seen --exec sh -c 'cat >> links.jsonl'
    """
    _require_command(command or [], asked=run_command)
    place = Place(cursor_file, durable=run_command)
    take = Command(command or [], follow).take if run_command else _printing(as_json=as_json)
    run = loop.run if run_command else loop.run_while_read
    run(_pass_on(Source(config, place.cursor, follow=follow).answers(), place, take))


# Options end where CMD begins: its own are its own.
links_command.settings = {"context_settings": {"allow_interspersed_args": False}}  # type: ignore[attr-defined]  # read by presignd.cli.load


def _require_command(command: list[str], *, asked: bool) -> None:
    if asked and not command:
        raise UsageError("--exec: no command given", fix="e.g. --exec sh -c 'cat >> links'")
    if command and not asked:
        raise UsageError(f"links: unexpected argument {command[0]!r}", fix="a command goes behind --exec")
    if command and shutil.which(command[0]) is None:
        raise UsageError(f"--exec: no command {command[0]!r} in PATH that may be run")


async def _pass_on(links: Stream, place: Place, take: Callable[[Document], Awaitable[None]]) -> None:
    """Hand each link to ``take`` and remember the place behind it once that is done."""
    try:
        async with contextlib.aclosing(links):
            async for answer in links:
                if "link" in answer:
                    await take(answer["link"])
                    place.moved(Cursor.from_json(answer["cursor"]))
                elif "gap" in answer:
                    show.say(f"presignd: {GAP}")
    finally:
        place.save()


# --- where they come from -----------------------------------------------------------------------


class Source:
    """Whoever has the links, over restarts of the daemon and cut connections.

    The daemon gives a connection up whose answers wait too long (a slow CMD, a pager): so only its ``end``
    is the end, and without it the links go on behind the last one.
    """

    def __init__(self, config: Path | None, after: Cursor | None, *, follow: bool) -> None:
        self._config, self._after, self._follow = config, after, follow
        self._reached = self._away = False

    async def answers(self) -> Stream:
        """Yield each answer to the ``links`` request; ends when all were told, never with ``follow``."""
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
        """Ask once; with ``follow`` a daemon that went away is no failure."""
        try:
            async with contextlib.aclosing(self._ask()) as answers:
                async for answer in answers:
                    yield answer
        except (Unavailable, UsageError) as error:
            # Without a daemon the configuration is asked for, which a mere reader of links may not have.
            if not (self._follow and self._reached):
                raise
            if not self._away:
                show.say(f"presignd: {AWAY} ({error.message})")
            self._away = True

    async def _ask(self) -> Stream:
        """Ask a daemon for all, or this process (no daemon runs) for one page."""
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
    """CMD: run for one link after the other, with its JSON on stdin and nothing of it in its arguments."""

    command: list[str]
    again: bool

    async def take(self, link: Document) -> None:
        """Return when CMD exited 0 for ``link``; raise ``Refused`` when it failed and is not to be tried again."""
        line = json.dumps(link).encode() + b"\n"
        for failures in count():
            ended = await self._run(line)
            if not ended:
                return
            told = f"--exec: {self.command[0]} {ended} for {link.get('path')} (file_id {link.get('file_id')})"
            if not self.again:
                raise Refused(told, fix="the links before it are through; it is the first one next time")
            pause = pause_after(failures)
            show.say(f"presignd: {told}; again in {pause:.0f} s")
            await asyncio.sleep(pause)

    async def _run(self, line: bytes) -> str:
        """Run CMD once; return "" when it exited 0, else how it ended."""
        # Not asyncio's: under uvloop a CMD that ends without reading its stdin raises RuntimeError.
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
    """Return the seconds to wait before CMD is tried again, ``failures`` (from 0) having gone before."""
    return float(min(2 ** min(failures, 32), LONGEST_PAUSE))


class Place:
    """How far the links went, in the cursor file if there is one.

    ``durable``: written behind every link. Otherwise twice a second and at the end: what is printed twice
    after a crash does no harm.
    """

    def __init__(self, file: Path | None, *, durable: bool) -> None:
        self._file, self._durable = file, durable
        self.cursor = load_cursor(file) if file else None
        self._saved = self.cursor
        self._later: asyncio.TimerHandle | None = None
        if file and not os.access(file.parent, os.W_OK | os.X_OK):
            raise UsageError(f"--cursor-file {file}: its folder can't be written to", fix="name a file elsewhere")

    def moved(self, cursor: Cursor) -> None:
        """Remember ``cursor``."""
        self.cursor = cursor
        if self._durable:
            self.save()
        elif self._later is None and self._file:
            self._later = asyncio.get_running_loop().call_later(SAVE_SECONDS, self._save_late)

    def save(self) -> None:
        """Write the cursor file, where it isn't up to date; raise ``UsageError`` when it can't be written."""
        if self._file and self.cursor and self.cursor != self._saved:
            save_cursor(self._file, self.cursor)
            self._saved = self.cursor

    def _save_late(self) -> None:
        self._later = None
        with contextlib.suppress(PresigndError):  # the save at the end tells
            self.save()
