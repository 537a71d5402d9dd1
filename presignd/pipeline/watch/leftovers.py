"""Leftovers: files under a name of presignd's own that no later step looks for, because their folder was renamed.

``finish`` renames a file aside, and ``link_file`` writes beside the file. If there is a crash, or the folder is
renamed, at that moment, the version's path no longer leads there. Scans find such names and add them here. A file gets
its own name back and is a candidate again, under its new path; a half-written link file is removed.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
from typing import TYPE_CHECKING

from presignd.errors import PresigndError
from presignd.model import Source
from presignd.pipeline.announce import shown_path
from presignd.pipeline.files.folder import rename_to_free
from presignd.pipeline.files.ignore import INBOX_PREFIX, OWN_PREFIX
from presignd.runtime.heartbeat import beat
from presignd.states import ENDED
from presignd.system.durable import sync
from presignd.telemetry.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from presignd.ledger import Ledger
    from presignd.model import FileVersion
    from presignd.pipeline.files.folder import Folder
    from presignd.pipeline.settle.lane import Lane

log = get_logger()

_OURS = re.compile(re.escape(OWN_PREFIX) + rb"([0-9a-zA-Z-]+)(\.link)?")


class Leftovers:
    """Restores or removes what scans of one watch find under presignd's own names."""

    def __init__(self, lane: Lane, folder: Folder, ledger: Ledger, pause: float) -> None:
        self._lane, self._folder, self._ledger, self._pause = lane, folder, ledger, pause
        self._paths: set[bytes] = set()
        self._unknown: set[bytes] = set()

    def add(self, paths: Iterable[bytes]) -> None:
        """Add paths (below the root) with names of presignd's own. Most are in use and are left alone."""
        self._paths.update(path for path in paths if not posixpath.basename(path).startswith(INBOX_PREFIX))

    async def run(self) -> None:
        """Look at the added paths until cancelled, repeatedly at those in use."""
        while True:
            beat(within=self._pause)
            await asyncio.sleep(self._pause)
            await self.turn()

    async def turn(self) -> None:
        """Look at each path once."""
        paths, self._paths = self._paths, set()
        self.add([path for path in paths if await self._handle(path)])

    async def _handle(self, path: bytes) -> bool:
        """Restore or remove the file if its version has ended; return whether to look again."""
        match = _OURS.fullmatch(posixpath.basename(path))
        version = await self._ledger.by_id(match[1].decode()) if match else None
        if version is None or match is None:
            self._log_unknown(path)
            return False
        if version.state not in ENDED:
            return await asyncio.to_thread(self._is_there, path)
        back = await asyncio.to_thread(self._put_right, path, version, is_link=match[2] is not None)
        if back:
            self._lane.submit([back], Source.EVENT)
        return False

    def _log_unknown(self, path: bytes) -> None:
        """Log once a name that the ledger does not know: its version was forgotten, or the ledger lost."""
        if path not in self._unknown:
            self._unknown.add(path)
            log.warning(
                "file.left_aside",
                watch=self._lane.watch,
                path=shown_path(self._folder.root, path),
                fix="give it its name back, and it is looked at; or remove it",
            )

    def _is_there(self, path: bytes) -> bool:
        try:
            self._folder.stat(path)
        except PresigndError:
            return False
        return True

    def _put_right(self, path: bytes, version: FileVersion, *, is_link: bool) -> bytes:
        """Give a file its own name back and return its path; b"" where there is nothing to submit. Blocking."""
        parent, name = posixpath.split(path)
        try:
            with self._folder.dir_fd(path) as directory:
                if is_link:
                    os.unlink(name, dir_fd=directory)
                    return b""
                own = rename_to_free(directory, name, directory, posixpath.basename(version.path))
                sync(directory)
        except (OSError, PresigndError):
            return b""  # it is gone, or can't be renamed: the next scan finds it if it is there
        return posixpath.join(parent, own)
