"""The folders of all watches, each open once: a second descriptor's lock would meet the first one's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Self

from presignd.config import WatchConfig
from presignd.pipeline.files.folder import Folder, root_of


class Folders:
    """Opens what watches need, keeps what is open already, and closes all that is left at the end."""

    def __init__(self) -> None:
        self._open: dict[bytes, Folder] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(())

    def open(self, watches: Sequence[WatchConfig], *, lock: bool = False) -> dict[str, Folder]:
        """Return the folder of each watch, by name; ``lock`` keeps other daemons off them.

        Raises ``UsageError`` for one that can't be opened and ``Unavailable`` for one that another daemon
        has; then nothing more is open than before.
        """
        before = set(self._open.values())
        try:
            return {watch.name: self._one(watch, lock=lock) for watch in watches}
        except BaseException:
            self.keep(before)
            raise

    def _one(self, watch: WatchConfig, *, lock: bool) -> Folder:
        root = root_of(watch)
        if root not in self._open:
            self._open[root] = Folder(watch)
        folder = self._open[root]
        if lock:
            folder.lock()
        return folder

    def keep(self, used: Collection[Folder]) -> None:
        """Close every other one."""
        for root, folder in list(self._open.items()):
            if folder not in used:
                del self._open[root]
                folder.close()
