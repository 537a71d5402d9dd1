"""Time limits for requests: each may last as long as bytes are sent or received."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

from presignd.runtime.heartbeat import current_heart
from presignd.store.body import PIECE

LONGEST_RESPONSE = 5
"""Longest time for a response after its first byte, in multiples of the timeout: a drip must not hold a slot."""


class Progress:
    """One request, in a ``with``, which raises ``TimeoutError`` after ``timeout`` seconds without progress.

    It ends the request as ``asyncio.timeout`` would, which takes 1.5 µs more. ``sent`` gets the number of bytes sent
    so far.
    """

    __slots__ = (
        "_cancelling",
        "_deadlines",
        "_expired",
        "_heart",
        "_response_ends",
        "_sent",
        "_task",
        "_time",
        "_timeout",
        "_unread",
        "deadline",
    )

    def __init__(self, deadlines: Deadlines, timeout: float, sent: Callable[[int], None] | None) -> None:
        self._deadlines, self._timeout, self._sent = deadlines, timeout, sent
        self._heart = current_heart()  # looked up once for several beats
        loop = deadlines.loop
        task = asyncio.current_task(loop)
        assert task
        self._task, self._time = task, loop.time
        self._cancelling, self._expired = task.cancelling(), False
        self._response_ends = self.deadline = math.inf
        self._unread = 0

    def __enter__(self) -> Self:
        self._deadlines.requests.add(self)
        self._extend()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._deadlines.requests.discard(self)
        self._heart.beat()
        # If the task was cancelled by others too, it stays cancelled.
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from problem

    def __call__(self, sent: int) -> None:
        """Note bytes of the request."""
        self._extend()
        if self._sent:
            self._sent(sent)

    def answered(self) -> None:
        """Note bytes of a small response: some stores send a space now and then while they complete an upload."""
        if self._response_ends == math.inf:
            self._response_ends = self._time() + LONGEST_RESPONSE * self._timeout
        self._extend(self._response_ends)

    def received(self, size: int) -> None:
        """Note bytes of an object that is read back: ``PIECE`` bytes are progress, single ones are not."""
        self._unread += size
        if self._unread >= PIECE:
            self._unread = 0
            self._extend()

    def _extend(self, most: float = math.inf) -> None:
        self._heart.beat(within=self._timeout)
        self.deadline = min(most, self._time() + self._timeout)
        self._deadlines.note(self.deadline)

    def cancel(self) -> None:
        """End the request: its deadline has passed."""
        self._expired = True
        self._task.cancel()


class Deadlines:
    """The deadlines of all requests of one client. Made inside a running loop.

    One timer serves them all: a timer for each, set again at each progress, took 4 µs of a small PUT. The loop is found
    once, because that makes a system call up to Python 3.11.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.requests: set[Progress] = set()
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def note(self, deadline: float) -> None:
        """Set the timer if a deadline is the first; a later one is found when the timer ends."""
        if deadline < self._due:
            self.stop()
            self._due = deadline
            self._timer = self.loop.call_at(deadline, self._check)

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer:
            self._timer.cancel()
        self._due = math.inf

    def _check(self) -> None:
        self._due, now = math.inf, self.loop.time()
        for request in [each for each in self.requests if each.deadline <= now]:
            self.requests.discard(request)
            request.cancel()
        if self.requests:
            self.note(min(request.deadline for request in self.requests))
