"""Use watchfiles as an event source, for other systems than Linux and for unknown filesystems.

It loses events silently when the kernel's queue overflows. A batch of at least ``burst_of_queue`` changes may have been
cut by an overflow, so events may be missing after it, and after the first smaller one that follows.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, TypeAlias

from presignd.pipeline.watch.source import INSTANCES, TICK_SECONDS, WATCHES, Hints, SourceEnded, limit_value
from presignd.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from watchfiles import Change

    from presignd.config import WatchConfig

    _Changes: TypeAlias = set[tuple[Change, str]]

QUEUE = "fs.inotify.max_queued_events"

BURST = 1000
EVENTS_A_CHANGE = 16
"""A batch may follow an overflow if it has at least ``BURST`` changes, or the length of the kernel's queue divided by
``EVENTS_A_CHANGE``."""

_READY_POLL_SECONDS = 0.005
"""Seconds between two checks whether the watches are set."""

_CALM, _QUICK = (50, 200), (10, 50)
"""Step and debounce in milliseconds. Measured on 2 cores, watchfiles 1.3: the calm pair gives 80 ms (250 ms at most in
a steady stream) for 0.16 % of a core idle, the quick one 15 ms (61 ms) for 0.5 %; watchfiles' own 50/1600 gives 1350 ms
in a stream. With a quiet time of a second the difference has no effect."""

_QUICK_SETTLE = 0.5
"""Watches that settle faster than this, in seconds, get the quick pair."""


async def watchfiles_source(watch: WatchConfig, root: bytes) -> AsyncGenerator[Hints, None]:
    """Yield the paths that watchfiles reports; those outside ``root``, and ``root`` itself, are left out."""
    from watchfiles import awatch  # noqa: PLC0415 - on Linux few folders need it

    step, debounce = _QUICK if watch.settle is not None and watch.settle < _QUICK_SETTLE else _CALM
    stop = _Stop()
    changes = awatch(
        os.fsdecode(root),
        watch_filter=None,
        step=step,
        debounce=debounce,
        rust_timeout=round(TICK_SECONDS * 1000),
        yield_on_timeout=True,
        stop_event=stop,
        recursive=watch.recursive,
        force_polling=False,
        ignore_permission_denied=True,
    )
    prefix, burst, after_burst = root.rstrip(b"/") + b"/", await asyncio.to_thread(burst_of_queue), False
    with _own_thread():
        async with aclosing(_started(changes, stop)) as batches:
            async for batch in batches:
                # Without their kinds: one unordered set may hold both "deleted" and "added" of a path.
                paths = {os.fsencode(path) for _, path in batch}
                below = {path.removeprefix(prefix) for path in paths if path.startswith(prefix)}
                is_burst = len(paths) >= burst
                if is_burst:
                    metrics.WATCH_OVERFLOWS.labels(watch.name).inc()
                yield Hints(below, incomplete=is_burst or after_burst)
                after_burst = is_burst


async def _started(changes: AsyncGenerator[_Changes, None], stop: _Stop) -> AsyncGenerator[_Changes, None]:
    """Yield an empty batch once the watches are set, then the changes."""
    first = asyncio.ensure_future(anext(changes))
    try:
        while not (stop.asked or first.done()):  # noqa: ASYNC110 - asked by another thread, in milliseconds
            await asyncio.sleep(_READY_POLL_SECONDS)
        if not first.done():
            yield set()
        yield await first
        async for batch in changes:
            yield batch
    except Exception as error:  # noqa: BLE001 - after any error the source is started again, with a scan
        raise _ended(error) from None
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await changes.aclose()
    raise SourceEnded("the event source ended")


class _Stop(asyncio.Event):
    """awatch's stop event. Its thread first reads the event once the watches are set: the only sign of readiness."""

    asked = False

    def is_set(self) -> bool:
        self.asked = True
        return super().is_set()


@contextmanager
def _own_thread() -> Iterator[None]:
    """Raise anyio's limit by one: each awatch holds one of its 40 worker threads for as long as it runs."""
    from anyio import to_thread  # noqa: PLC0415 - as watchfiles, which brings it

    limiter = to_thread.current_default_thread_limiter()
    limiter.total_tokens += 1
    try:
        yield
    finally:
        limiter.total_tokens -= 1


def _ended(error: BaseException) -> SourceEnded:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = str(error)
    if "watch limit" in text or "os error 28" in text:
        return SourceEnded("no inotify watches are left", limit=WATCHES)
    if "os error 24" in text:
        return SourceEnded("no inotify instances are left", limit=INSTANCES)
    return SourceEnded(f"{type(error).__name__}: {text}")


def burst_of_queue() -> int:
    """Return the least number of changes in a batch that may follow an overflow of the kernel's queue."""
    length = limit_value(QUEUE)
    return max(1, min(BURST, int(length) // EVENTS_A_CHANGE)) if length.isdecimal() else BURST
