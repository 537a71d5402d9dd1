"""Files that lie under a name of our own where no later step looks for them: their folder got another name.

``finish`` renames a file aside, and ``link_file`` writes beside the file; a crash (or a rename of the folder)
in that moment, and the version's path leads there no more. Scans see such names and tell of them here. A file
gets its own name back and is a candidate again, so it is judged anew under its new path; half a link file goes.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
from typing import TYPE_CHECKING

from presignd.errors import PresigndError
from presignd.model import Candidate, Source
from presignd.pipeline.announce import shown_path
from presignd.pipeline.files.rename import rename_to_free
from presignd.runtime.heartbeat import beat
from presignd.states import ENDED
from presignd.system.durable import sync
from presignd.telemetry.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from presignd.ledger import Ledger
    from presignd.model import FileVersion
    from presignd.pipeline.files.folder import Folder

log = get_logger()

PAUSE = 1.0
"""Seconds between two looks at names that somebody still works with."""

_OURS = re.compile(rb"\.presignd-([0-9a-zA-Z-]+)(\.link)?")


class Strays:
    """Takes what scans of one watch found under our own names."""

    def __init__(self, watch: str, folder: Folder, ledger: Ledger, submit: Callable[[list[Candidate]], None]) -> None:
        self._watch, self._folder, self._ledger, self._submit = watch, folder, ledger, submit
        self._paths: set[bytes] = set()
        self._strangers: set[bytes] = set()

    def found(self, paths: Iterable[bytes]) -> None:
        """Take paths (below the root) whose names are ours: most are in use just now, and are left alone."""
        self._paths.update(paths)

    async def run(self) -> None:
        """Look after them until cancelled; what is in use is looked at again."""
        while True:
            beat(within=PAUSE)
            await asyncio.sleep(PAUSE)
            await self.turn()

    async def turn(self) -> None:
        """Look once at what was found."""
        paths, self._paths = self._paths, set()
        self.found([path for path in paths if await self._is_in_use(path)])

    async def _is_in_use(self, path: bytes) -> bool:
        """Put one right, unless its version is still under work (True)."""
        named = _OURS.fullmatch(posixpath.basename(path))
        version = await self._ledger.by_id(named[1].decode()) if named else None
        if version is None or named is None:
            self._tell(path)
            return False
        if version.state not in ENDED:
            return await asyncio.to_thread(self._is_there, path)
        back = await asyncio.to_thread(self._put_right, path, version, is_link=named[2] is not None)
        if back:
            self._submit([Candidate(self._watch, back, Source.EVENT)])
        return False

    def _tell(self, path: bytes) -> None:
        """Say once of a name that nobody knows that it lies there: its version was forgotten, or its ledger lost."""
        if path not in self._strangers:
            self._strangers.add(path)
            told = {"watch": self._watch, "path": shown_path(self._folder.root, path)}
            log.warning("file.left_aside", **told, fix="give it its name back, and it is looked at; or remove it")

    def _is_there(self, path: bytes) -> bool:
        try:
            self._folder.stat(path)
        except PresigndError:
            return False
        return True

    def _put_right(self, path: bytes, version: FileVersion, *, is_link: bool) -> bytes:
        """Return the path of a file that got its name back; b"" where there is nothing to submit. Blocking."""
        parent, name = posixpath.split(path)
        try:
            with self._folder.dir_fd(path) as directory:
                if is_link:
                    os.unlink(name, dir_fd=directory)
                    return b""
                own = rename_to_free(directory, name, directory, posixpath.basename(version.path))
                sync(directory)
        except (OSError, PresigndError):
            return b""  # it went meanwhile, or can't be renamed: the next scan sees
        return posixpath.join(parent, own)
