"""A look that reads a tiny file keeps only what the file held throughout; its sender reads it otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

from presignd.config import WatchConfig
from presignd.errors import fault
from presignd.model import Fingerprint
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.hash import TINY, Read, read_at
from presignd.pipeline.files.ignore import Unfinished
from presignd.pipeline.files.lease import WriterCheck, ignore_sigio
from presignd.pipeline.settle import looker
from presignd.pipeline.settle.decide import Look
from presignd.pipeline.settle.looker import Looker
from presignd.pipeline.stage import Ahead


def not_cached(fd: int, length: int, offset: int) -> bytes:
    raise BlockingIOError


def changed(fd: int, length: int, offset: int) -> bytes:
    content = read_at(fd, length, offset)
    os.utime(f"/proc/self/fd/{fd}", (1, 1))
    return content


def shorter(fd: int, length: int, offset: int) -> bytes:
    return read_at(fd, length - 2, offset)


def broken(*_: object) -> NoReturn:
    raise fault("read_error")


class Unreadable(Folder):
    """A folder in which no file can be opened, and one can't even be looked at now."""

    def open_with_stat(self, path: bytes) -> tuple[int, os.stat_result]:  # noqa: ARG002 - as the folder's
        raise fault("unreadable")

    def stat(self, path: bytes) -> os.stat_result:
        if path == b"now":
            raise fault("too_many_files")
        return super().stat(path)


def looker_of(kind: type[Folder], path: Path) -> Looker:
    ignore_sigio()
    watch = WatchConfig(name="drop", path=path, bucket="test-bucket", settle=0.0)
    check = WriterCheck("lease", "")
    return Looker(watch, kind(watch), check, unfinished=Unfinished(), ahead=lambda _: Ahead(TINY, ["md5"]))


def looks(made: Looker, *paths: bytes, read: Read = read_at) -> list[Look]:
    return made.look([(path, None) for path in paths], read)


@pytest.mark.parametrize(
    ("read", "kept"), [(read_at, b"content"), (not_cached, None), (changed, None), (shorter, None), (broken, None)]
)
def test_only_content_that_did_not_change_is_kept(
    tmp_path: Path, read: Read, kept: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looker, "has_fine_times", lambda _folder: True)  # else the new file is too young
    (tmp_path / "a").write_bytes(b"content")
    [look] = looks(looker_of(Folder, tmp_path), b"a", read=read)
    assert look.wait is None
    assert (look.content.data if look.content else None) == kept


def test_what_is_written_after_a_file_was_opened_shows_in_its_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looker, "has_fine_times", lambda _folder: True)
    (tmp_path / "a").write_bytes(b"content")
    made = looker_of(Folder, tmp_path)
    [before] = looks(made, b"a")
    assert before.content is not None

    def no_more(_fd: int) -> bool:
        (tmp_path / "a").write_bytes(b"written")
        return False

    monkeypatch.setattr(looker, "has_writer", no_more)
    [look] = made.look([(b"a", before)])
    assert look.fingerprint == Fingerprint.of((tmp_path / "a").stat())
    assert (look.since, look.looks, look.content) == (look.seen_at, 0, None)


def test_a_disk_that_fails_during_a_look_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"content")
    monkeypatch.setattr(looker, "fingerprint_of", broken)
    [look] = looks(looker_of(Folder, tmp_path), b"a")
    assert look.wait is not None
    assert look.fault is not None
    assert look.fault.code == "read_error"


def test_what_can_not_be_looked_at_now_is_not_taken_for_unreadable(tmp_path: Path) -> None:
    (tmp_path / "later").write_bytes(b"content")
    found = looks(looker_of(Unreadable, tmp_path), b"later", b"now", b"gone")
    assert found[0].fingerprint is not None
    assert [look.fault.code if look.fault else "" for look in found] == ["unreadable", "too_many_files", ""]
