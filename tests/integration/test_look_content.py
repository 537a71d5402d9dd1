"""A look that reads a tiny file keeps only what the file held throughout; its sender reads it otherwise."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from presignd.config import WatchConfig
from presignd.errors import fault
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.hash import Read, read_at
from presignd.pipeline.files.ignore import Unfinished
from presignd.pipeline.files.lease import WriterCheck
from presignd.pipeline.settle.decide import Look
from presignd.pipeline.settle.looker import Looker


def not_cached(fd: int, length: int, offset: int) -> bytes:
    raise BlockingIOError


def changed(fd: int, length: int, offset: int) -> bytes:
    content = read_at(fd, length, offset)
    os.utime(f"/proc/self/fd/{fd}", (1, 1))
    return content


class Unreadable(Folder):
    """A folder in which no file can be opened, and one can't even be looked at now."""

    def open(self, path: bytes) -> int:  # noqa: ARG002 - as the folder's
        raise fault("unreadable")

    def stat(self, path: bytes) -> os.stat_result:
        if path == b"now":
            raise fault("too_many_files")
        return super().stat(path)


def looker_of(kind: type[Folder], path: Path) -> Looker:
    folder = kind(WatchConfig(name="drop", path=path, bucket="test-bucket"))
    check = WriterCheck("quiet", "")
    return Looker(folder, check, "", unfinished=Unfinished(), monotonic=time.monotonic, time_ns=time.time_ns)


@pytest.mark.parametrize(("read", "kept"), [(read_at, b"content"), (not_cached, None), (changed, None)])
def test_only_content_that_did_not_change_is_kept(tmp_path: Path, read: Read, kept: bytes | None) -> None:
    (tmp_path / "a").write_bytes(b"content")
    looker = looker_of(Folder, tmp_path)
    [look] = looker.look([b"a"], lambda *_: ["md5"], read)
    assert (look.content.data if look.content else None) == kept


def test_a_disk_that_fails_during_a_look_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")

    def broken(_: bytes, __: Look) -> Collection[str]:
        raise fault("read_error")

    [look] = looker_of(Folder, tmp_path).look([b"a"], broken)
    assert look.fingerprint is None
    assert look.fault is not None
    assert look.fault.code == "read_error"


def test_what_can_not_be_looked_at_now_is_not_taken_for_unreadable(tmp_path: Path) -> None:
    (tmp_path / "later").write_bytes(b"content")
    later, now, gone = looker_of(Unreadable, tmp_path).look([b"later", b"now", b"gone"])
    assert later.fingerprint is not None
    codes = [look.fault.code if look.fault else "" for look in (later, now, gone)]
    assert codes == ["unreadable", "too_many_files", ""]
