"""The verify stage, uploading → verified: compare files that were read ahead with what was sent; record the receipts.

All other files were compared by their senders, so one that is large, or in a folder that hangs, holds up only itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from presignd.errors import Fault, fault
from presignd.ledger import Ledger
from presignd.ledger.changes import Change
from presignd.model import Fingerprint
from presignd.pipeline.faults import UploadFaults
from presignd.pipeline.files.folder import Folder, Gone, NotRegular
from presignd.pipeline.files.hash import checksum_like, fingerprint_of
from presignd.pipeline.put import PutRequests
from presignd.pipeline.stage import Item, Queue, Receipt, apply_each, outcomes
from presignd.presign.stable import new_link_id
from presignd.runtime.heartbeat import alive
from presignd.states import Event
from presignd.system.filesystem import close_quietly


class Verifier:
    """Verifies what was uploaded under one configuration. ``verified`` takes the items whose receipt is recorded.

    ``now`` is the presigner's clock, which dates links. ``gives_stable_links`` returns whether a watch's files get
    stable links, or raises a ``Fault`` if the presigner fails: the versions wait as they do for a grant.
    """

    def __init__(
        self,
        folders: Mapping[str, Folder],
        ledger: Ledger,
        *,
        puts: PutRequests,
        faults: UploadFaults,
        now: Callable[[], datetime],
        gives_stable_links: Callable[[str], Awaitable[bool]],
        verified: Callable[[Sequence[Item]], None],
    ) -> None:
        self._folders, self._ledger, self._puts = folders, ledger, puts
        self._faults, self._now, self._verified = faults, now, verified
        self._gives_stable_links = gives_stable_links
        self.queue: Queue[Item] = Queue()

    async def run(self) -> None:
        """Verify the items that wait, until cancelled."""
        with alive("verifier") as heart:
            while True:
                with heart.resting():
                    items = await self.queue.take()
                await self._verify(items)

    async def _verify(self, items: Sequence[Item]) -> None:
        watches = {item.version.watch for item in items}
        inline = len(items) <= min(self._folders[watch].inline_limit for watch in watches)
        found = await outcomes(self._recheck, items, inline=inline)
        stable, away = dict[str, bool](), dict[str, Fault]()
        for watch in watches:
            try:
                stable[watch] = await self._gives_stable_links(watch)
            except Fault as problem:
                away[watch] = problem
        proven: list[tuple[Item, Change]] = []
        signed_at = self._now()
        for item, fingerprint in zip(items, found, strict=True):
            watch = item.version.watch
            if isinstance(fingerprint, Exception):
                await self._faults.handle(item, fingerprint)
            elif watch in away:
                await self._faults.handle(item, away[watch])
            else:
                proven.append((item, _verify(item, fingerprint, signed_at, new_link_id() if stable[watch] else "")))
        if proven:
            await self._record(proven)

    def _recheck(self, item: Item) -> Fingerprint:
        """Compare a file with what was sent, by its path; return its fingerprint. Blocking.

        If the path is gone, the object holds the file's last content, which was read in full. If only inode or ctime
        changed (chmod, another link), the content is hashed again.
        """
        receipt, version = item.receipt, item.version
        assert receipt is not None, "only what was uploaded is verified"
        if receipt.compared or version.file_id in self._puts or version.path.startswith(b"/"):
            return receipt.fingerprint
        folder = self._folders[version.watch]
        try:
            there = Fingerprint.of(folder.stat(version.path))
        except (Gone, NotRegular):
            return receipt.fingerprint
        if there != receipt.fingerprint and not self._same_content(folder, version.path, receipt, there):
            raise fault("changed_while_uploading", "another file took its place, or its content changed")
        return there

    def _same_content(self, folder: Folder, path: bytes, receipt: Receipt, there: Fingerprint) -> bool:
        if not there.same_data(receipt.fingerprint):
            return False
        try:
            fd = folder.open(path)
        except (Gone, NotRegular):
            return True
        try:
            checksum = checksum_like(fd, receipt.checksum, there.size, receipt.part_size)
            return checksum == receipt.checksum and fingerprint_of(fd) == there
        finally:
            close_quietly(fd)

    async def _record(self, proven: Sequence[tuple[Item, Change]]) -> None:
        """Commit the receipts, each with the kind and the id of its link: a crash from here on makes no second one."""
        changes = [change for _, change in proven]
        verified = []
        for (item, _), recorded in zip(proven, await apply_each(self._ledger, changes), strict=True):
            if isinstance(recorded, Exception):
                await self._faults.handle(item, recorded)
            else:
                item.version = recorded
                verified.append(item)
        self._verified(verified)


def _verify(item: Item, fingerprint: Fingerprint, signed_at: datetime, link_id: str) -> Change:
    """Return the change to verified, with only the columns that the receipt changes: few after a first attempt."""
    receipt, before = item.receipt, item.version
    assert receipt is not None
    verified: dict[str, Any] = {
        "fingerprint": fingerprint,
        "checksum": receipt.checksum,
        "part_size": receipt.part_size,
        "upload_id": "",
        "etag": receipt.etag,
        "version_id": receipt.version_id,
        "adopted": receipt.adopted,
        "signed_at": signed_at,
        "link_id": link_id,
        "error_code": "",
        "error": "",
    }
    changed = {name: value for name, value in verified.items() if value != getattr(before, name)}
    return Change(before, (Event.VERIFY,), changed)
