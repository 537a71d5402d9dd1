"""Slow upkeep of the ledger: note files that went unseen, and forget what is gone for long."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta

from presignd.heartbeat import alive, beat
from presignd.ledger import Ledger
from presignd.model import FileVersion, State
from presignd.pipeline.announce import utcnow
from presignd.pipeline.folder import Folder, Gone

EVERY = 6 * 3600.0
"""Seconds between two rounds; the first comes at the start, for what was deleted while the daemon was down."""

PAGE = 1000


async def upkeep(
    ledger: Ledger,
    folders: Mapping[str, Folder],
    keep: float,
    on_vanished: Callable[[Sequence[FileVersion]], Awaitable[None]],
) -> None:
    """Go round for ever; files gone for ``keep`` seconds are forgotten."""
    with alive("upkeep") as heart:
        while True:
            for watch, folder in folders.items():
                await note_gone(ledger, watch, folder, on_vanished)
            await ledger.prune(utcnow() - timedelta(seconds=keep))
            with heart.resting():
                await asyncio.sleep(EVERY)


async def note_gone(
    ledger: Ledger, watch: str, folder: Folder, on_vanished: Callable[[Sequence[FileVersion]], Awaitable[None]]
) -> None:
    """Compare the ledger's paths of one watch with its folder, page by page."""
    after = b""
    while paths := await ledger.paths(watch, after, PAGE):
        beat()
        if gone := await asyncio.to_thread(_missing, folder, paths):
            known = await ledger.known(watch, [path for path in gone if path.startswith(b"/")])
            # A put that is not through reads from its descriptor, whatever became of its path.
            through = [path for path in gone if path not in known or known[path].state is State.FINISHED]
            await asyncio.shield(_tell_gone(ledger, watch, through, on_vanished))
        after = paths[-1]


async def _tell_gone(
    ledger: Ledger, watch: str, gone: Sequence[bytes], on_vanished: Callable[[Sequence[FileVersion]], Awaitable[None]]
) -> None:
    """Record and tell: whoever is cancelled in between, what is in the ledger is told."""
    await on_vanished(await ledger.gone(watch, gone, utcnow()))


def _missing(folder: Folder, paths: Sequence[bytes]) -> list[bytes]:
    """Return which are not there; none while the folder itself is away (unmounted, renamed). Blocking."""
    missing = [path for path in paths if _is_gone(folder, path)]
    return missing if folder.still_there() else []


def _is_gone(folder: Folder, path: bytes) -> bool:
    """Tell whether nothing is at ``path``, which is absolute for a put from elsewhere."""
    try:
        os.lstat(path) if path.startswith(b"/") else folder.stat(path)
    except (Gone, FileNotFoundError, NotADirectoryError):
        return True
    except Exception:  # noqa: BLE001 - unreadable or special: something is there
        return False
    return False
