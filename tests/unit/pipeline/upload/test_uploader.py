"""Reading tiny files before their claim: each failure is one file's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from presignd.config import UploadConfig, WatchConfig
from presignd.errors import ChangedFault
from presignd.model import Fingerprint, State
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.lease import ignore_sigio
from presignd.pipeline.put import PutRequests
from presignd.pipeline.stage import Item
from presignd.pipeline.upload.slots import Slots
from presignd.pipeline.upload.uploader import Uploader
from presignd.store.support import Support
from tests.versions import in_state


class Uncached(Folder):
    """A folder in which the page cache lacks one file."""

    def open(self, path: bytes) -> int:
        if path == b"uncached":
            raise BlockingIOError
        return super().open(path)


class ProbedBucket:
    """What reading ahead needs of a bucket."""

    limited = False
    known_support = Support(if_none_match=True, if_match=True)

    def __init__(self, watch: WatchConfig) -> None:
        self.watch = watch

    def for_bucket(self, name: str) -> ProbedBucket:
        assert name == self.watch.bucket
        return self


class Faults:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.met: asyncio.Queue[tuple[bytes, Exception]] = asyncio.Queue()

    async def handle(self, item: Item, problem: Exception) -> None:
        self.met.put_nowait((item.version.path, problem))


def uploader_of(folder: Path, faults: Faults) -> Uploader:
    watch = WatchConfig(name="drop", path=folder, bucket="bucket")
    buckets: Any = {"drop": ProbedBucket(watch)}
    unused: Any = None
    return Uploader(
        buckets,
        {"drop": Uncached(watch)},
        UploadConfig(),
        unused,
        puts=PutRequests(),
        slots=Slots(1),
        faults=faults,  # type: ignore[arg-type] # its one method
        sent=unused,
    )


async def read(uploader: Uploader, folder: Path, names: Sequence[str]) -> list[Item]:
    versions = []
    for name in names:
        (folder / name).write_bytes(b"content")
        found = Fingerprint.of((folder / name).stat())
        versions.append(in_state(State.QUEUED, name.encode(), fingerprint=found))
    (folder / "changed").write_bytes(b"longer content")
    return await uploader.read(versions)


async def test_what_can_not_be_read_ahead_is_left_to_its_sender(tmp_path: Path) -> None:
    ignore_sigio()
    faults = Faults()
    uploader = uploader_of(tmp_path, faults)
    plain, uncached, changed = await read(uploader, tmp_path, ["plain", "uncached", "changed"])
    assert plain.prepared is not None
    assert (plain.prepared.data, plain.intent) == (b"content", plain.prepared.checksums["md5"])
    assert (uncached.prepared, uncached.problem) == (None, None)
    assert isinstance(changed.problem, ChangedFault)
    uploader.queue.put_all([changed])
    sender = asyncio.create_task(uploader.run())
    path, problem = await faults.met.get()
    assert (path, problem) == (b"changed", changed.problem)
    sender.cancel()
    await asyncio.gather(sender, return_exceptions=True)
