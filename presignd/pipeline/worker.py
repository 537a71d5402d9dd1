"""Take one claimed version through upload, link and finish.

Each stage checks whether its effect was done, does it, and commits. A crash in between leaves the earlier state, and
the same stage runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from presignd.config import Config, WatchConfig
from presignd.errors import Fault
from presignd.ledger import Ledger
from presignd.model import FileVersion, Link, State
from presignd.pipeline.announce import Announcer
from presignd.pipeline.faults import Quarantine
from presignd.pipeline.finish.finisher import Finisher
from presignd.pipeline.finish.link import Linker
from presignd.pipeline.put import PutRequests
from presignd.pipeline.upload.transfer import Progress
from presignd.pipeline.upload.uploader import Uploader
from presignd.runtime.heartbeat import alive


class Worker:
    """Runs versions through the stages, many concurrently. ``running`` has the progress of each, by file_id."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        *,
        uploader: Uploader,
        linker: Linker,
        finisher: Finisher,
        quarantine: Quarantine,
        announcer: Announcer,
        puts: PutRequests,
        on_link: Callable[[Link], None],
    ) -> None:
        self._expires = config.presign.get_expires
        self._watches: Mapping[str, WatchConfig] = {watch.name: watch for watch in config.watches}
        self._ledger, self._uploader, self._linker, self._finisher = ledger, uploader, linker, finisher
        self._quarantine, self._announcer, self._puts, self._on_link = quarantine, announcer, puts, on_link
        self.running: dict[str, Progress] = {}

    @property
    def at_work(self) -> set[str]:
        """The file_ids of the versions that are worked on or wait to be finished."""
        return {*self.running, *self._finisher.waiting}

    async def process(self, version: FileVersion) -> None:
        """Take ``version`` from its state as far as possible; an unexpected exception quarantines only it."""
        progress = self.running[version.file_id] = Progress(version)
        with alive(f"worker of {version.file_id}"):
            try:
                await self._advance(version, progress)
            except Fault as problem:
                await self._quarantine.record(await self._ledger.by_id(version.file_id) or version, problem)
            except Exception as bug:  # noqa: BLE001 - guarantee 8: a bug in one file's work quarantines that file
                await self._quarantine.record_bug(version, bug)
            finally:
                del self.running[version.file_id]

    async def _advance(self, version: FileVersion, progress: Progress) -> None:
        link = None  # stays None if an earlier run linked the version
        if version.state is State.UPLOADING:
            version = await self._uploader.upload(version, progress)
        if version.state is State.VERIFIED:
            version, link = await self._link(version)
        if version.state is State.LINKED:
            await self._finisher.finish(version, link)

    async def _link(self, version: FileVersion) -> tuple[FileVersion, Link]:
        """Link the version; if nothing is to be done with its file, the same commit finishes it."""
        version, link = await self._linker.link(
            version, self._lifetime(version), finish=not self._finisher.has_work(version)
        )
        self._on_link(link)
        if version.state is State.FINISHED:
            self._announcer.done([version])
        return version, link

    def _lifetime(self, version: FileVersion) -> int:
        """Return the seconds that a link is valid: those of its ``put``, else of its watch, else the default."""
        put = self._puts.get(version.file_id)
        asked = put.expires if put else None
        return asked or self._watches[version.watch].link_expires or self._expires
