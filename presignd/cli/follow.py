"""``presignd status --follow``: the status again each second, in place on a terminal, at each change in a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from presignd.cli import show
from presignd.cli.ask import Remote, asking
from presignd.cli.layout import Line
from presignd.errors import PresigndError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Document = dict[str, Any]

EVERY_SECONDS = 1.0
AWAY = "The daemon is away. presignd looks for it each second."


async def follow(
    request: Document,
    config: Path | None,
    *,
    lines_of: Callable[[Document], Sequence[Line]] | None,
    print_one: Callable[[Document], None],
) -> NoReturn:
    """Show each answer to ``request`` until interrupted; raise ``Unavailable`` where no daemon runs at first.

    ``lines_of`` lays one out for a terminal. In a pipe, and where it is None, ``print_one`` prints each answer
    that differs from the one before.
    """
    async with asking(config) as asker:
        if not isinstance(asker, Remote):
            raise Unavailable("status --follow: no daemon is running", fix="start it, or leave --follow out")
        shown = _screen(lines_of) if lines_of and sys.stdout.isatty() else contextlib.nullcontext(_changes(print_one))
        with shown as update:
            update(await _answer(asker, request))
            while True:
                await asyncio.sleep(EVERY_SECONDS)
                found: Document | None = None
                with contextlib.suppress(PresigndError):
                    found = await _answer(asker, request)
                update(found)


async def _answer(asker: Remote, request: Document) -> Document:
    found: Document | None = None
    async for answer in asker.ask(request):
        found = answer
    if found is None:
        raise Unavailable("the daemon ended without an answer", fix="look at its log")
    return found


def _changes(print_one: Callable[[Document], None]) -> Callable[[Document | None], None]:
    """Return what prints an answer where it differs from the last; None says that the daemon is away, once."""
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
    """Draw on the terminal's second screen, and leave the last picture behind on the first."""
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
    """Return as many lines as a terminal of ``height`` lines shows, the last saying how many more there are."""
    room = max(1, height - 1)
    if len(lines) <= room:
        return lines
    more = len(lines) - room + 1
    return [*lines[: room - 1], Line(f"and {more} more lines: presignd status", "dim")]
