"""A look that reads a tiny file keeps only what the file held throughout; its sender reads it otherwise."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from presignd.config import WatchConfig
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.hash import read_at
from presignd.pipeline.files.lease import WriterCheck
from presignd.pipeline.files.prepared import Read
from presignd.pipeline.files.unfinished import Unfinished
from presignd.pipeline.settle.looker import Looker


def not_cached(fd: int, length: int, offset: int) -> bytes:
    raise BlockingIOError


def changed(fd: int, length: int, offset: int) -> bytes:
    content = read_at(fd, length, offset)
    os.utime(f"/proc/self/fd/{fd}", (1, 1))
    return content


@pytest.mark.parametrize(("read", "kept"), [(read_at, b"content"), (not_cached, None), (changed, None)])
def test_only_content_that_did_not_change_is_kept(tmp_path: Path, read: Read, kept: bytes | None) -> None:
    (tmp_path / "a").write_bytes(b"content")
    folder = Folder(WatchConfig(name="drop", path=str(tmp_path), bucket="test-bucket"))
    check = WriterCheck("quiet", "")
    looker = Looker(folder, check, "", unfinished=Unfinished(), monotonic=time.monotonic, time_ns=time.time_ns)
    [look] = looker.look([b"a"], lambda *_: ["md5"], read)
    assert (look.content.data if look.content else None) == kept
    folder.close()
