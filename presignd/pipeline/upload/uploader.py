"""The upload stage, uploading → verified: run one transfer, and record its receipt or its fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from presignd.config import UploadConfig
from presignd.errors import Fault
from presignd.ledger import Ledger
from presignd.model import FileVersion
from presignd.pipeline.announce import Announcer
from presignd.pipeline.faults import UploadFaults
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.put import PutRequests
from presignd.pipeline.upload.bucket import Bucket
from presignd.pipeline.upload.content import Slots
from presignd.pipeline.upload.transfer import Progress, Receipt, Transfer, Vanished, Writing
from presignd.states import Event
from presignd.system.clock import utcnow

WRITER_PAUSE = timedelta(milliseconds=500)


class Uploader:
    """Uploads claimed versions under one configuration. ``now`` is the presigner's clock, which dates links."""

    def __init__(
        self,
        buckets: Mapping[str, Bucket],
        folders: Mapping[str, Folder],
        upload: UploadConfig,
        ledger: Ledger,
        *,
        puts: PutRequests,
        slots: Slots,
        host: str,
        announcer: Announcer,
        faults: UploadFaults,
        now: Callable[[], datetime],
    ) -> None:
        self._buckets, self._folders, self._upload, self._ledger = buckets, folders, upload, ledger
        self._puts, self._slots, self._host = puts, slots, host
        self._announcer, self._faults, self._now = announcer, faults, now

    async def upload(self, version: FileVersion, progress: Progress) -> FileVersion:
        """Upload a claimed version; return it verified, else as it is recorded after the fault."""
        transfer = Transfer(
            # A version goes to the bucket it was queued for, even if its watch has another bucket now.
            self._buckets[version.watch].for_bucket(version.bucket),
            self._folders[version.watch],
            version,
            self._ledger,
            self._upload,
            slots=self._slots,
            host=self._host,
            put=self._puts.get(version.file_id),
            progress=progress,
        )
        try:
            receipt = await transfer.run()
        except Vanished:
            return await self._end_vanished(version)
        except Writing:
            return await self._ledger.apply(version, Event.RETRY, not_before=utcnow() + WRITER_PAUSE)
        except Fault as problem:
            return await self._faults.handle(version, problem)
        return await self._ledger.apply(receipt.version, Event.VERIFY, **self._changes(receipt))

    async def _end_vanished(self, version: FileVersion) -> FileVersion:
        ended = await self._ledger.apply(version, Event.VANISH, done_at=utcnow())
        self._announcer.done([ended])
        return ended

    def _changes(self, receipt: Receipt) -> dict[str, Any]:
        """Return the columns that the receipt changes: only a few after a first attempt."""
        verified = {
            "fingerprint": receipt.fingerprint,
            "checksum": receipt.checksum,
            "part_size": receipt.part_size,
            "upload_id": "",
            "etag": receipt.etag,
            "version_id": receipt.version_id,
            "adopted": receipt.adopted,
            "signed_at": self._now(),
            "error_code": "",
            "error": "",
        }
        return {name: value for name, value in verified.items() if getattr(receipt.version, name) != value}
