"""The life of a long-running program, the daemon or the broker: signals, reload, drain, and systemd's notifications.

SIGTERM and SIGINT request a drain, a second one ends it. SIGHUP requests a reload; one that arrived while the program
was still being imported (``signals.py``) takes effect as soon as there is something to reload.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

import presignd
from presignd.errors import PresigndError
from presignd.runtime import heartbeat
from presignd.runtime.signals import was_hung_up
from presignd.runtime.systemd import Notifier, Systemd
from presignd.runtime.tasks import looping, unless
from presignd.telemetry.log import get_logger, install_loop_handler

_T = TypeVar("_T")

GRACE_SECONDS = 10.0
"""Longest time that the end takes beyond the drain; systemd gets the sum."""

log = get_logger()


class Stop:
    """The request to end: called once, drain; called again, end now."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.forced = asyncio.Event()

    def __call__(self) -> None:
        """Request the end, or request it again."""
        if self.requested.is_set():
            self.forced.set()
        self.requested.set()


class Service:
    """One run of a program, whose events begin with its ``name``.

    ``stop`` and ``reload`` are what signals set. Without a ``notifier``, nothing is sent to systemd.
    """

    def __init__(self, name: Literal["daemon", "broker"], notifier: Notifier | None = None) -> None:
        self.name = name
        self.stop = Stop()
        self.reload = asyncio.Event()
        self._log = get_logger()
        self.systemd = Systemd(notifier or Notifier(), overdue=heartbeat.overdue, on_overdue=self._wedged)

    @asynccontextmanager
    async def running(self, *, reloads: bool = True) -> AsyncIterator[None]:
        """Handle signals and notify systemd until the body ends; raise its expected error without a group around it.

        A program that never ``reloads`` treats SIGHUP as SIGTERM.
        """
        loop = asyncio.get_running_loop()
        install_loop_handler(loop)
        hang_up = self.reload.set if reloads else self.stop
        for number, obey in ((signal.SIGTERM, self.stop), (signal.SIGINT, self.stop), (signal.SIGHUP, hang_up)):
            loop.add_signal_handler(number, obey)
        if was_hung_up():
            hang_up()
        self._log.info(f"{self.name}.started", version=presignd.__version__, pid=os.getpid())
        self.systemd.show("starting")
        try:
            async with looping() as loops:
                loops.start("systemd", self.systemd.run())
                yield
        except BaseExceptionGroup as group:
            expected, bugs = group.split(PresigndError)
            if bugs or expected is None:
                raise
            raise _first(expected) from None
        self._log.info(f"{self.name}.stopped")

    async def reload_when_asked(
        self, read: Callable[[], Awaitable[_T]], switch: Callable[[_T], Awaitable[None]]
    ) -> None:
        """Read the configuration and switch to it at each request, until cancelled.

        ``read`` does everything that may fail: if it raises, even by a bug, the old configuration stays in effect.
        """
        while True:
            await self.reload.wait()
            self.reload.clear()
            self.systemd.reloading()
            try:
                found = await read()
            except Exception as refused:
                problems, fix = getattr(refused, "problems", ()), getattr(refused, "fix", "")
                log.error("config.refused", exc_info=refused, problems=list(problems), fix=fix)  # noqa: TRY400 - as told
            else:
                await switch(found)
            self.systemd.ready()

    async def drain(self, work: Coroutine[Any, Any, object], *, seconds: float, in_flight: int) -> bool:
        """Finish what is in flight by ``work``, in ``seconds``; return False if a second signal ended it."""
        self.systemd.stopping(seconds + GRACE_SECONDS)
        self._log.info(f"{self.name}.draining", in_flight=in_flight, timeout=seconds)
        return await unless(self.stop.forced, work)

    def _wedged(self, names: list[str]) -> None:
        fix = "systemd starts it again; report what hangs, if it is no dead disk"
        self._log.critical(f"{self.name}.wedged", loops=names, fix=fix)


def log_reloaded(restart: Sequence[str], **changes: object) -> None:
    """Log that another configuration is in effect, and the options that need a ``restart``."""
    if restart:
        log.warning("config.reloaded", **changes, restart_needed=restart, fix="these options take a restart")
    else:
        log.info("config.reloaded", **changes)


def _first(group: BaseExceptionGroup[PresigndError]) -> PresigndError:
    """Return the first expected error of a group: the user reads one line, not a tree."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
