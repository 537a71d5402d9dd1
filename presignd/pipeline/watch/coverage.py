"""Track whether events reach all of a watch. While they do not, scans must find what changed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from presignd.pipeline.watch.source import WATCHES, limit_value, watches_left

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from presignd.config import WatchConfig
    from presignd.pipeline.files.folder import Folder


class Coverage:
    """What one watch's events cover. ``events``: whether there are any. ``lost``: the root is away.

    ``outdated``: the source must be restarted to cover all that is there now.
    """

    def __init__(self, config: WatchConfig, folder: Folder, log: FilteringBoundLogger) -> None:
        self.events = True
        self.lost = False
        self.outdated = False
        self._config, self._folder, self._log = config, folder, log
        self._short_of_watches = False

    @property
    def is_complete(self) -> bool:
        """Whether events reach every directory."""
        return self.events and not self._short_of_watches

    async def check_mounts(self) -> None:
        """Mark the source as outdated if the mounts below have changed: what is in new ones is not watched yet."""
        if await asyncio.to_thread(self._folder.refresh_mounts):  # "|=" would lose what is noted during the await
            self.outdated = True

    async def check_watches(self, directories: int) -> None:
        """Poll while there are too few inotify watches.

        Once there are enough, restart the source, which sets all of them.
        """
        if not self.events:
            return
        short = not await asyncio.to_thread(watches_left, self._folder.root)
        if short and not self._short_of_watches:
            self.log_limit("no inotify watches are left", WATCHES, f"; this watch has {directories} directories")
        if self._short_of_watches and not short:
            self.outdated = True
        self._short_of_watches = short

    def log_limit(self, reason: str, limit: str, needed: str = "") -> None:
        """Log the system limit that prevents events."""
        self._log.error(
            "watch.overflow",
            reason=f"{reason}: scanned every {self._config.poll_interval:g} s",
            fix=f"raise {limit} (now {limit_value(limit)}{needed})",
        )
