"""Hints from watchfiles, and what a batch of any source's means: look there; nothing more is believed."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import sys
import time
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import anyio.to_thread
from watchfiles import awatch

from presignd.errors import Fault, FileFault, lacks_descriptors
from presignd.pipeline.files.folder import Folder, Gone, NotRegular
from presignd.pipeline.files.ignore import marked
from presignd.pipeline.watch.source import INSTANCES, WATCHES, SourceEnded
from presignd.system import filesystem
from presignd.system.syscalls import inotify_add_watch, inotify_init
from presignd.telemetry import metrics

__all__ = ["INSTANCES", "WATCHES", "SourceEnded"]

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator

    from watchfiles import Change

    from presignd.config import WatchConfig
    from presignd.pipeline.files.ignore import Ignore
    from presignd.pipeline.settle.partners import Unfinished

QUEUE = "fs.inotify.max_queued_events"

BURST = 1000
EVENTS_A_CHANGE = 16
"""A batch of so many changes, or of the kernel's queue's length by this, may be what an overflow left."""

_TURN_MS = 1000
_START_LOOK = 0.005

_CALM, _QUICK = (50, 200), (10, 50)
"""Step and debounce in milliseconds. Measured on 2 cores, watchfiles 1.3: the calm pair gives 80 ms (250 ms
at most in a steady stream) for 0.16 % of a core idle, the quick one 15 ms (61 ms) for 0.5 %; watchfiles' own
50/1600 gives 1350 ms in a stream. With a quiet time of a second nobody sees the difference."""

_IN_ATTRIB = 4
"""linux/inotify.h; any event would do."""

_QUICK_SETTLE = 0.5
"""Watches that settle faster than this, in seconds, get the quick pair."""


class Chosen(NamedTuple):
    """Where a folder's hints come from, and why, in words."""

    source: Literal["inotify", "watchfiles", "polling"]
    why: str


def choose(watch: WatchConfig, folder: int) -> Chosen:
    """Choose the event source of a folder (its descriptor): inotify itself on Linux' own filesystems.

    Measured on 2 cores, Linux 6.18: inotify 0.1 ms from a close to its hint and 0.01 % of a core idle, watchfiles
    15 ms and 0.5 %, or 80 ms and 0.16 %. watchfiles serves every other system, and filesystems that nobody knows.
    """
    kind = filesystem.kind(folder)
    if watch.polling == "always":
        return Chosen("polling", 'polling = "always"')
    if watch.polling == "auto" and filesystem.is_network(folder):
        return Chosen("polling", f"{kind} tells of no change made elsewhere")
    if sys.platform != "linux":
        return Chosen("watchfiles", "inotify is Linux' own")
    if watch.events != "auto":
        return Chosen(watch.events, f'events = "{watch.events}"')
    if filesystem.is_local(folder):
        return Chosen("inotify", f"{kind} is local")
    return Chosen("watchfiles", f"{kind} is not known to be local")


async def watchfiles_source(watch: WatchConfig, root: bytes) -> AsyncGenerator[list[bytes], None]:
    """Yield what watchfiles (inotify) tells of."""
    step, debounce = _QUICK if watch.settle is not None and watch.settle < _QUICK_SETTLE else _CALM
    stop = _Stop()
    changes = awatch(
        os.fsdecode(root),
        watch_filter=None,
        step=step,
        debounce=debounce,
        rust_timeout=_TURN_MS,
        yield_on_timeout=True,
        stop_event=stop,
        recursive=watch.recursive,
        force_polling=False,
        ignore_permission_denied=True,
    )
    with _own_thread():
        async with aclosing(_started(changes, stop)) as batches:
            async for batch in batches:
                yield batch


async def _started(changes: AsyncGenerator[set[tuple[Change, str]]], stop: _Stop) -> AsyncGenerator[list[bytes], None]:
    first = asyncio.ensure_future(anext(changes))
    try:
        while not (stop.asked or first.done()):  # noqa: ASYNC110 - asked by another thread, in milliseconds
            await asyncio.sleep(_START_LOOK)
        if not first.done():
            yield []
        yield _paths(await first)
        async for batch in changes:
            yield _paths(batch)
    except Exception as error:  # noqa: BLE001 - whatever ends it, it is started again, with a scan
        raise _ended(error) from None
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await changes.aclose()
    raise SourceEnded("the event source ended")


class _Stop(asyncio.Event):
    """awatch's stop event, which its thread first asks once the watches are set: the only sign of readiness."""

    asked = False

    def is_set(self) -> bool:
        self.asked = True
        return super().is_set()


@contextmanager
def _own_thread() -> Iterator[None]:
    """Make room for one more: each awatch holds one of anyio's 40 worker threads for as long as it lives."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    limiter.total_tokens += 1
    try:
        yield
    finally:
        limiter.total_tokens -= 1


def _paths(changes: set[tuple[Change, str]]) -> list[bytes]:
    """Drop the kinds: one unordered set may hold both "deleted" and "added" of a path, so it is looked at."""
    return list({os.fsencode(path) for _, path in changes})


def _ended(error: BaseException) -> SourceEnded:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = str(error)
    if "watch limit" in text or "os error 28" in text:
        return SourceEnded("no inotify watches are left", limit=WATCHES)
    if "os error 24" in text:
        return SourceEnded("no inotify instances are left", limit=INSTANCES)
    return SourceEnded(f"{type(error).__name__}: {text}")


async def no_events(seconds: float = float("inf")) -> AsyncGenerator[list[bytes], None]:
    """Yield nothing, once a second, for so long: where scans alone must do."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield []
        await asyncio.sleep(_TURN_MS / 1000)


def watches_left(root: bytes) -> bool:
    """Tell whether one more inotify watch can be had; where not, directories may go unwatched.

    watchfiles says nothing of it, neither at start (when it ignores unreadable directories) nor later.
    """
    if sys.platform != "linux":
        return True
    try:
        fd = inotify_init()
    except OSError:
        return True  # out of instances: nothing is known of watches
    try:
        inotify_add_watch(fd, root, _IN_ATTRIB)
    except OSError as error:
        return error.errno != errno.ENOSPC
    finally:
        os.close(fd)
    return True


def burst_of_queue() -> int:
    """Return how many changes in one batch may be what an overflow of the kernel's queue left."""
    length = limit_value(QUEUE)
    return max(1, min(BURST, int(length) // EVENTS_A_CHANGE)) if length.isdecimal() else BURST


class Bursts:
    """Tells after which batches to scan: those that may be what an overflow left, and the one after, when all is there.

    ``least`` is the changes in one of these.
    """

    def __init__(self, least: int = BURST) -> None:
        self._least = least
        self._before = False

    def may_lack(self, watch: str, changes: int) -> bool:
        """Tell it of a watch's next batch, of so many changes."""
        in_burst, before = changes >= self._least, self._before
        self._before = in_burst
        if in_burst:
            metrics.WATCH_OVERFLOWS.labels(watch).inc()
        return in_burst or before


def limit_value(name: str) -> str:
    """Return the value of a sysctl such as ``fs.inotify.max_user_watches``; "?" where it can't be read."""
    with suppress(OSError):
        return Path("/proc/sys", *name.split(".")).read_text(encoding="ascii").strip()
    return "?"


@dataclass(slots=True)
class News:
    """What a batch of hints says: files to settle, directories to scan (True: and all below), paths of nothing.

    ``cut_short``: too many files were open to look at all of them.
    """

    files: set[bytes] = field(default_factory=set)
    directories: dict[bytes, bool] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)
    cut_short: bool = False


def sort_out(
    watch: WatchConfig, folder: Folder, ignore: Ignore, unfinished: Unfinished, hints: Iterable[bytes]
) -> News:
    """Look at each hinted path and say what is to be done; tell ``unfinished`` of downloads. Blocks."""
    news = News()
    for absolute in hints:
        path = folder.relative(absolute)
        if path and (watch.recursive or b"/" not in path):
            _sort_one(watch, folder, ignore, path, news)
            if ignore.directory(path):  # maybe an unfinished download: it may be gone now, so what waits is looked at
                news.files |= {waiting for waiting in unfinished.seen(path) if not ignore.file(waiting)}
    return news


def _sort_one(watch: WatchConfig, folder: Folder, ignore: Ignore, path: bytes, news: News) -> None:
    if ignore.marker(path):
        _sort_marker(watch, ignore, path, news)
        return
    as_file, as_directory = ignore.file(path), ignore.directory(path)
    if as_file and as_directory:
        return
    try:
        mode = folder.stat(path).st_mode
    except Gone:
        news.gone.add(path)
        return
    except (NotRegular, FileFault):
        return
    except Fault as error:
        if lacks_descriptors(error):
            news.cut_short = True
            return
        # Nobody knows: settling waits for it where it is a file, and tells why; a directory is scanned soon.
        is_file = is_directory = True
    else:
        is_file, is_directory = stat.S_ISREG(mode), stat.S_ISDIR(mode)
    if is_file and not as_file:
        news.files.add(path)
    if is_directory and watch.recursive and not as_directory:
        news.directories[path] = True


def _sort_marker(watch: WatchConfig, ignore: Ignore, marker: bytes, news: News) -> None:
    path = marked(watch.ready_marker, marker)
    if path is None:
        news.directories.setdefault(marker.rpartition(b"/")[0], False)
    elif not ignore.file(path):
        news.files.add(path)
