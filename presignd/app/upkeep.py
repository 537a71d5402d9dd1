"""Keep the ledger up to date: record files that disappeared without an event, and forget files that are long gone."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from presignd.ledger import Ledger
from presignd.model import FileVersion, State
from presignd.pipeline.files.folder import Folder
from presignd.runtime.heartbeat import alive, beat
from presignd.system.clock import utcnow

EVERY = 6 * 3600.0
"""Seconds between two comparisons of the whole ledger with the folders; the first is at the start, for what was deleted
while the daemon was down."""

LOOK_SECONDS, LOOK_SHARE = 60.0, 1000
"""Seconds between two checks of the quarantined files (at least 1000 times the duration of one). A deletion on
a network folder causes no event, and one while the file was in flight had its event too early. A person who deletes
such a file looks at ``status``."""

PAGE = 1000


async def upkeep(
    ledger: Ledger,
    folders: Mapping[str, Folder],
    keep: float,
    on_vanished: Callable[[Sequence[FileVersion]], None],
    *,
    look_seconds: float = LOOK_SECONDS,
    look_share: float = LOOK_SHARE,
) -> None:
    """Run until cancelled: record files that are gone, and forget those gone for ``keep`` seconds."""
    due = 0.0
    with alive("upkeep") as heart:
        while True:
            if time.monotonic() >= due:
                for watch, folder in folders.items():
                    await note_gone(ledger, watch, folder, on_vanished)
                await ledger.prune(utcnow() - timedelta(seconds=keep))
                due = time.monotonic() + EVERY
            began = time.monotonic()
            await note_quarantined_gone(ledger, folders, on_vanished)
            with heart.resting():
                await asyncio.sleep(max(look_seconds, look_share * (time.monotonic() - began)))


async def note_quarantined_gone(
    ledger: Ledger, folders: Mapping[str, Folder], on_vanished: Callable[[Sequence[FileVersion]], None]
) -> None:
    """End quarantined versions as vanished if their files are gone."""
    quarantined = [version for version in await ledger.in_state(State.QUARANTINED) if not _may_be_elsewhere(version)]
    for watch, folder in folders.items():
        paths = [version.path for version in quarantined if version.watch == watch]
        for start in range(0, len(paths), PAGE):
            beat()
            looked_at = utcnow()
            if gone := await asyncio.to_thread(_missing, folder, paths[start : start + PAGE]):
                await asyncio.shield(_record_gone(ledger, watch, gone, looked_at, on_vanished))


async def note_gone(
    ledger: Ledger, watch: str, folder: Folder, on_vanished: Callable[[Sequence[FileVersion]], None]
) -> None:
    """Record the paths of one watch that are in the ledger but no longer in its folder, page by page."""
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

    A file that could not be finished may lie aside, under a name of presignd's own. A put from outside the watch that
    is not finished reads from its descriptor.
    """
    if version.path.startswith(b"/"):
        return version.state is not State.FINISHED
    return version.state is State.QUARANTINED and version.error_code == "finish_failed"


async def _record_gone(
    ledger: Ledger,
    watch: str,
    gone: Sequence[bytes],
    looked_at: datetime,
    on_vanished: Callable[[Sequence[FileVersion]], None],
) -> None:
    """Record files as gone and announce it. Callers shield this: both happen, even if they are cancelled."""
    on_vanished(await ledger.record_gone(watch, gone, looked_at))


def _missing(folder: Folder, paths: Sequence[bytes]) -> list[bytes]:
    """Return those of ``paths`` at which there is nothing; [] if the folder is away (unmounted, renamed). Blocking.

    Return [] also if another folder took the root's place during the check.
    """
    root = folder.identity
    missing = folder.missing(path for path in paths if not path.startswith(b"/"))
    missing += [path for path in paths if path.startswith(b"/") and _is_gone(path)]
    return missing if folder.still_there() and folder.identity == root else []


def _is_gone(path: bytes) -> bool:
    """Return whether there is nothing at ``path``, the absolute path of a put from outside the watch."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # a folder that can't be searched: the file counts as existing
        return False
    return False
