"""Quarantine: stop work on a version until a person decides, and announce why."""

from __future__ import annotations

from presignd.errors import Fault, fault
from presignd.ledger import Ledger
from presignd.model import FileVersion
from presignd.pipeline.announce import Announcer
from presignd.states import Event
from presignd.telemetry.log import render_exception


class Quarantine:
    """Records a version as quarantined, then logs ``file.quarantined``."""

    def __init__(self, ledger: Ledger, announcer: Announcer) -> None:
        self._ledger, self._announcer = ledger, announcer

    async def put(self, version: FileVersion, problem: Fault, exception: str = "") -> None:
        """Quarantine ``version``, which is as the ledger has it, for ``problem``."""
        stopped = await self._ledger.apply(
            version, Event.QUARANTINE, error_code=problem.code, error=problem.message, not_before=None
        )
        self._announcer.quarantined(stopped, fix=problem.fix, exception=exception)

    async def put_for_bug(self, version: FileVersion, bug: Exception) -> None:
        """Quarantine ``version`` for an unexpected exception, in whatever state the ledger has it now."""
        now = await self._ledger.by_id(version.file_id) or version
        await self.put(now, fault("internal_error", type(bug).__name__), render_exception(bug))
