"""Print links on stdout from a thread of its own, so that a slow reader delays no upload."""

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
"""Links that wait for a slow reader; further ones are not printed. The links file has them all."""

LAST_SECONDS = 2.0
"""How long the last links may take at the end."""


class Printer:
    """Passes each link it is called with to ``show``; a context manager that waits for the last ones at its end."""

    def __init__(self, show: Callable[[Link], None], room: int = ROOM) -> None:
        self._show = show
        self._links: queue.Queue[Link | None] = queue.Queue(room)
        self._closed, self._logged = False, ""
        self._thread = threading.Thread(target=self._run, name="presignd-printer", daemon=True)
        self._thread.start()

    def __call__(self, link: Link) -> None:
        """Queue ``link`` to be shown; never blocks and never raises."""
        if self._closed:
            return
        try:
            self._links.put_nowait(link)
        except queue.Full:
            self._log_loss("its reader is slow")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Wait a short time for the last links.

        A thread stuck in a write holds stdout's lock, and the exit must not wait for it.
        """
        with suppress(queue.Full):
            self._links.put(None, timeout=LAST_SECONDS)
            self._thread.join(LAST_SECONDS)
        if self._thread.is_alive():
            UNAWAITED.set()

    def _run(self) -> None:
        try:
            while (link := self._links.get()) is not None:
                self._show(link)
        except (OSError, ValueError, Unavailable) as problem:
            self._closed = True
            self._log_loss(problem.message if isinstance(problem, Unavailable) else "its reader is gone")
            streams.mute(sys.stdout)

    def _log_loss(self, reason: str) -> None:
        """Log that links are not printed, once for each reason in a row."""
        if self._logged != reason:
            self._logged = reason
            get_logger().warning("stdout.lost", reason=reason, fix="presignd links has every link")
