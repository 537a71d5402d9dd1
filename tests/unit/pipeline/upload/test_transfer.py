"""Reading a small file before it is claimed, and telling its object."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from presignd.config import UploadConfig, WatchConfig
from presignd.errors import ChangedFault
from presignd.model import Fingerprint, State
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.hash import Prepared
from presignd.pipeline.files.lease import ignore_sigio
from presignd.pipeline.stage import Item
from presignd.pipeline.upload.bucket import StoredObject
from presignd.pipeline.upload.slots import Slots
from presignd.pipeline.upload.transfer import read_whole
from presignd.pipeline.upload.whole import Whole
from presignd.store.support import Support
from tests.versions import in_state


def test_a_file_that_changes_while_it_is_read_is_not_what_settled(tmp_path: Path) -> None:
    """Its path may be gone by the end of its upload: nothing else would show that the bytes are of two contents."""
    ignore_sigio()
    path = tmp_path / "a"
    path.write_bytes(b"content")
    folder = Folder(WatchConfig(name="drop", path=tmp_path, bucket="bucket"))
    version = in_state(State.QUEUED, b"a", fingerprint=Fingerprint.of(path.stat()))

    def read(fd: int, length: int, offset: int) -> bytes:
        path.chmod(0o600 if offset else 0o640)
        return os.pread(fd, length, offset)

    with pytest.raises(ChangedFault, match="while it was read"):
        read_whole(folder, version, None, {"md5"}, read=read)
    prepared = read_whole(folder, version, None, {"md5"}, read=os.pread)
    assert (prepared.data, prepared.fd) == (b"content", None)


async def whole_of(prepared: Prepared, support: Support) -> Whole:
    class Probed:
        watch = WatchConfig(name="drop", path=Path("/srv/drop"), bucket="bucket")

    probed: Any = Probed()
    unused: Any = None
    item = Item(in_state(State.UPLOADING, b"a", key="a", fingerprint=prepared.fingerprint), prepared=prepared)
    whole = Whole(probed, unused, item, unused, UploadConfig(), slots=Slots(1), put=None)
    whole._support = support
    await whole._read()
    return whole


async def test_an_etag_that_is_another_md5_is_another_object() -> None:
    fingerprint = Fingerprint(1, 7, 1, 1)
    prepared = Prepared(None, fingerprint, {"md5": f"md5:{'a' * 32}"}, b"content")
    whole = await whole_of(prepared, Support(if_none_match=True, if_match=True))
    assert await whole._is_ours(StoredObject(7, "a" * 32))
    assert not await whole._is_ours(StoredObject(7, "b" * 32))


async def test_what_was_read_ahead_is_hashed_again_for_a_bucket_that_was_probed_anew_since() -> None:
    prepared = Prepared(None, Fingerprint(1, 7, 1, 1), {"md5": "md5:9a0364b9e99bb480dd25e1f0284c8555"}, b"content")
    content = await whole_of(prepared, Support(if_none_match=True, if_match=True, checksum="sha256", proven=True))
    assert content.checksum == "sha256:ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
