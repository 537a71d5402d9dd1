"""Fills a ledger as the first upload of a folder would, without uploading, through the ledger's own bulk calls.

``python -m benchmarks.filled CONFIG LISTING`` for the one watch of CONFIG, whose daemon uploaded some files of a byte
and is stopped. Each other file there gets a version with its real fingerprint, that goes through queued, uploading,
verified and linked to finished. LISTING names all objects, for ``benchmarks.sink --objects``. Left out are the lines
of ``links.jsonl``, of which a start reads none before the ledger's mark.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from presignd.config import WatchConfig, load
from presignd.ledger import Ledger, open_ledger
from presignd.ledger.changes import Change, Claim
from presignd.model import FileVersion, Fingerprint, LinksMark, Listed, Source
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.ignore import Ignore
from presignd.pipeline.intake import make_version
from presignd.pipeline.watch.scan import Scan
from presignd.states import Event

MD5 = hashlib.md5(b"x", usedforsecurity=False).hexdigest()


async def fill(config: Path, listing: Path) -> None:
    """Record all files that are not recorded yet as uploaded, and list all."""
    loaded = load(config).config
    (watch,) = loaded.watches
    ledger = await open_ledger(loaded.ledger.path)
    mark = await ledger.links_mark()
    assert mark is not None, "the daemon before uploaded something"
    with listing.open("w", encoding="utf-8") as lines:
        for batch in Scan(Folder(watch), Ignore(watch)).batches():
            lines.writelines(f"{size}\t{mtime_ns}\t{path.decode()}\n" for path, _, size, mtime_ns, _ in batch)
            await _record(ledger, watch, await ledger.differing(watch.name, batch), mark)
    await ledger.close(clean=True)


async def _record(ledger: Ledger, watch: WatchConfig, files: Sequence[Listed], mark: LinksMark) -> None:
    """Take new files through all states, with the columns that an upload of each fills."""
    new = [make_version(watch, path, Fingerprint(*rest), Source.EVENT) for path, *rest in files]
    queued = [done.version for done in await ledger.enqueue(new)]
    claimed = [found.version for found in await ledger.claim([Claim(version) for version in queued]) if found]
    at = datetime.now(UTC)
    verified = await asyncio.gather(*(_verified(ledger, version, at) for version in claimed))
    end = {"expires_at": at + timedelta(minutes=15), "done_at": at}
    linked = await ledger.record_linked([Change(one, (Event.LINK, Event.FINISH), end) for one in verified], mark)
    await ledger.record_announced([version.file_id for version in linked])


async def _verified(ledger: Ledger, version: FileVersion, at: datetime) -> FileVersion:
    return await ledger.apply(
        version, Event.VERIFY, fingerprint=version.fingerprint, checksum=f"md5:{MD5}", part_size=0, upload_id="",
        etag=MD5, version_id="", adopted=False, signed_at=at.replace(microsecond=0), error_code="", error="",
    )  # fmt: skip


if __name__ == "__main__":
    asyncio.run(fill(Path(sys.argv[1]), Path(sys.argv[2])))
