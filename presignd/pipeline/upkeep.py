"""Slow upkeep of the ledger: record files that disappeared without an event, and forget what is gone for long."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta

from presignd.ledger import Ledger
from presignd.model import FileVersion, State
from presignd.pipeline.files.folder import Folder
from presignd.runtime.heartbeat import alive, beat
from presignd.system.clock import utcnow

EVERY = 6 * 3600.0
"""Seconds between two rounds; the first comes at the start, for what was deleted while the daemon was down."""

SOON, SHARE = 60.0, 1000
"""Seconds between two looks at what is quarantined, or so many times what one takes: a person deletes such a file
and looks at ``status``, and no event tells of it on network folders, or told while it was in flight."""

PAGE = 1000


async def upkeep(
    ledger: Ledger,
    folders: Mapping[str, Folder],
    keep: float,
    on_vanished: Callable[[Sequence[FileVersion]], Awaitable[None]],
) -> None:
    """Go round for ever; files gone for ``keep`` seconds are forgotten."""
    due = 0.0
    with alive("upkeep") as heart:
        while True:
            if time.monotonic() >= due:
                for watch, folder in folders.items():
                    await note_gone(ledger, watch, folder, on_vanished)
                await ledger.prune(utcnow() - timedelta(seconds=keep))
                due = time.monotonic() + EVERY
            began = time.monotonic()
            await note_stopped_gone(ledger, folders, on_vanished)
            with heart.resting():
                await asyncio.sleep(max(SOON, SHARE * (time.monotonic() - began)))


async def note_stopped_gone(
    ledger: Ledger, folders: Mapping[str, Folder], on_vanished: Callable[[Sequence[FileVersion]], Awaitable[None]]
) -> None:
    """Let quarantined versions end whose files are gone from their watches."""
    stopped = [version for version in await ledger.in_state(State.QUARANTINED) if not _may_be_elsewhere(version)]
    for watch, folder in folders.items():
        paths = [version.path for version in stopped if version.watch == watch]
        for start in range(0, len(paths), PAGE):
            beat()
            looked_at = utcnow()
            if gone := await asyncio.to_thread(_missing, folder, paths[start : start + PAGE]):
                await asyncio.shield(_record_gone(ledger, watch, gone, looked_at, on_vanished))


async def note_gone(
    ledger: Ledger, watch: str, folder: Folder, on_vanished: Callable[[Sequence[FileVersion]], Awaitable[None]]
) -> None:
    """Compare the ledger's paths of one watch with its folder, page by page."""
    after = b""
    while paths := await ledger.paths(watch, after, PAGE):
        beat()
        looked_at = utcnow()
        if gone := await asyncio.to_thread(_missing, folder, paths):
            known = await ledger.known(watch, gone)
            gone = [path for path in gone if path in known and not _may_be_elsewhere(known[path])]
            await asyncio.shield(_record_gone(ledger, watch, gone, looked_at, on_vanished))
        after = paths[-1]


def _may_be_elsewhere(version: FileVersion) -> bool:
    """Return whether a version's content may exist, though nothing is at its path.

    What could not be finished may lie aside, under a name of ours; and a put from outside the watch that is not
    finished reads from its descriptor.
    """
    if version.path.startswith(b"/"):
        return version.state is not State.FINISHED
    return version.state is State.QUARANTINED and version.error_code == "finish_failed"


async def _record_gone(
    ledger: Ledger,
    watch: str,
    gone: Sequence[bytes],
    looked_at: datetime,
    on_vanished: Callable[[Sequence[FileVersion]], Awaitable[None]],
) -> None:
    """Record and announce. Callers shield this: what is recorded must be announced, though they are cancelled."""
    await on_vanished(await ledger.gone(watch, gone, looked_at))


def _missing(folder: Folder, paths: Sequence[bytes]) -> list[bytes]:
    """Return which are not there; none while the folder itself is away (unmounted, renamed). Blocking.

    Nor where it came back meanwhile, as another root: they were looked for in the one before.
    """
    root = folder.identity
    missing = folder.missing(path for path in paths if not path.startswith(b"/"))
    missing += [path for path in paths if path.startswith(b"/") and _is_gone(path)]
    return missing if folder.still_there() and folder.identity == root else []


def _is_gone(path: bytes) -> bool:
    """Return whether nothing is at ``path``, an absolute one: of a put from outside the watch."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # a folder that can't be searched: something is there
        return False
    return False
