"""Links on stdout, from a thread of their own: a reader that stalls or went away holds up no upload."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from presignd.cli import streams
from presignd.cli.guard import UNAWAITED
from presignd.errors import Unavailable
from presignd.model import Link
from presignd.telemetry.log import get_logger

ROOM = 10_000
"""Links that wait for a slow reader; those beyond are left out, and stand in the links file."""

LAST_SECONDS = 2.0
"""What a reader has at the end to take the last links."""


class Printer:
    """Hands each link it is called with to ``show``; a context manager, at whose end all are out or given up."""

    def __init__(self, show: Callable[[Link], None], room: int = ROOM) -> None:
        self._show = show
        self._links: queue.Queue[Link | None] = queue.Queue(room)
        self._lost = ""
        self._thread = threading.Thread(target=self._run, name="presignd-printer", daemon=True)
        self._thread.start()

    def __call__(self, link: Link) -> None:
        """Show ``link``, soon; never blocks and never raises."""
        if self._lost == "gone":
            return
        try:
            self._links.put_nowait(link)
        except queue.Full:
            self._lose("slow")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Wait a moment for the last links; a thread that is stuck in a write is left behind, with stdout's lock."""
        with suppress(queue.Full):
            self._links.put(None, timeout=LAST_SECONDS)
            self._thread.join(LAST_SECONDS)
        if self._thread.is_alive():
            UNAWAITED.set()

    def _run(self) -> None:
        try:
            while (link := self._links.get()) is not None:
                self._show(link)
        except (OSError, ValueError, Unavailable):
            self._lose("gone")
            streams.mute(sys.stdout)

    def _lose(self, why: str) -> None:
        if self._lost != why:
            self._lost = why
            get_logger().warning("stdout.lost", reason=f"its reader is {why}", fix="presignd links has every link")
