"""The workload's thread: acts on one folder after the other, and stands still for an audit."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.system.crash.tree import Kept, Taken

PAUSES = (0.0, 0.01, 0.05, 0.2)
"""Seconds between two acts."""


class Workload(threading.Thread):
    """Acts until told to end; ``failed`` is what went wrong in the harness itself."""

    def __init__(self, folders: Sequence[Kept | Taken], rng: random.Random) -> None:
        super().__init__(name="workload", daemon=True)
        self._folders, self._rng = folders, rng
        self._acting = threading.Lock()
        self._ended = threading.Event()
        self.acts = 0
        self.failed: BaseException | None = None

    def run(self) -> None:
        """Act, pause, act."""
        try:
            while not self._ended.is_set():
                with self._acting:
                    self._rng.choice(self._folders).act()
                    self.acts += 1
                self._ended.wait(self._rng.choice(PAUSES))
        except BaseException as error:  # noqa: BLE001 - told to the harness's thread
            self.failed = error

    @contextmanager
    def still(self) -> Iterator[None]:
        """Let nothing change meanwhile; raise what ended the workload."""
        with self._acting:
            if self.failed:
                raise self.failed
            yield

    def end(self) -> None:
        """End after the act under way."""
        self._ended.set()
        self.join(30)
