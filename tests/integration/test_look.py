"""Looks at real files: the content compared, and what a look returns."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from presignd.config import WatchConfig
from presignd.model import FileVersion, Fingerprint, State
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.ignore import Unfinished
from presignd.pipeline.files.lease import WriterCheck, ignore_sigio
from presignd.pipeline.settle.decide import Look
from presignd.pipeline.settle.looker import Looker
from presignd.pipeline.watch.scan import Scan
from tests.finishing import failing
from tests.ignoring import ignoring
from tests.versions import in_state

CONTENT = os.urandom(3_000_000)
PART = 1 << 20


def md5(data: bytes) -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)


def parts() -> str:
    digests = [md5(CONTENT[at : at + PART]).digest() for at in range(0, len(CONTENT), PART)]
    return f"md5:{md5(b''.join(digests)).hexdigest()}-{len(digests)}"


CHECKSUMS = {
    "md5": "md5:" + md5(CONTENT).hexdigest(),
    "sha256": "sha256:" + hashlib.sha256(CONTENT).hexdigest(),
    "parts": parts(),
}


class Place:
    def __init__(self, root: Path, ready_marker: str = "") -> None:
        ignore_sigio()
        self.root = root
        watch = WatchConfig(name="drop", path=root, bucket="test-bucket", ready_marker=ready_marker)
        self.folder = Folder(watch)
        self.unfinished = Unfinished()
        check = WriterCheck("lease", "")
        self.looker = Looker(watch, self.folder, check, unfinished=self.unfinished, ahead=lambda _: None)

    def look(self, *paths: bytes) -> list[Look]:
        return self.looker.look([(path, None) for path in paths])

    def fingerprint(self) -> Fingerprint:
        return Fingerprint.of((self.root / "a").stat())

    def known(self, checksum: str) -> FileVersion:
        return in_state(State.FINISHED, b"a", fingerprint=self.fingerprint(), checksum=checksum, part_size=PART)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "a").write_bytes(CONTENT)
    made = Place(tmp_path)
    yield made
    made.folder.close()


@pytest.mark.parametrize("kind", CHECKSUMS)
def test_content_is_compared_in_the_form_its_checksum_has(place: Place, kind: str) -> None:
    known = place.known(CHECKSUMS[kind])
    assert place.looker.same_content(b"a", place.fingerprint(), known, threading.Event()) is True
    (place.root / "a").write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    assert place.looker.same_content(b"a", place.fingerprint(), known, threading.Event()) is False


def test_parts_of_unknown_size_are_other_content(place: Place) -> None:
    known = place.known(CHECKSUMS["parts"])._replace(part_size=0)
    assert place.looker.same_content(b"a", place.fingerprint(), known, threading.Event()) is False


def test_a_comparison_of_a_file_that_changed_is_none(place: Place) -> None:
    before = place.fingerprint()
    (place.root / "a").chmod(0o600)
    assert place.looker.same_content(b"a", before, place.known(CHECKSUMS["md5"]), threading.Event()) is None


def test_a_comparison_that_was_stopped_or_finds_nothing_is_none(place: Place) -> None:
    known, fingerprint, stopped = place.known(CHECKSUMS["md5"]), place.fingerprint(), threading.Event()
    stopped.set()
    assert place.looker.same_content(b"a", fingerprint, known, stopped) is None
    (place.root / "a").unlink()
    assert place.looker.same_content(b"a", fingerprint, known, threading.Event()) is None


def test_a_comparison_of_a_file_that_can_not_be_read_is_none(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails in the middle says nothing of the content: it must not go up as a new version."""
    known, fingerprint = place.known(CHECKSUMS["md5"]), place.fingerprint()
    monkeypatch.setattr(os, "preadv", failing(errno.EIO))
    assert place.looker.same_content(b"a", fingerprint, known, threading.Event()) is None


def test_a_look_takes_its_clocks_before_the_fingerprint(place: Place) -> None:
    """What is written after the look at the writer has a ctime past ``read_ns``: it can't pass for old."""
    before, (look,), after = time.time_ns(), place.look(b"a"), time.time_ns()
    assert look.fingerprint == place.fingerprint()
    assert look.writer is False
    assert before <= look.read_ns <= after


def test_a_look_at_nothing_and_at_no_file_finds_none(place: Place) -> None:
    (place.root / "dir").mkdir()
    (place.root / "link").symlink_to("a")
    assert [look.fingerprint for look in place.look(b"missing", b"dir", b"link")] == [None, None, None]


def test_a_look_names_the_marker_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    place = Place(tmp_path, "{name}.ok")
    assert place.look(b"a")[0].missing == "a.ok"
    (tmp_path / "a.ok").touch()
    assert place.look(b"a")[0].missing == ""
    place.folder.close()


@pytest.mark.parametrize(
    "beside", ["a.part", "a.part.minio", "a.crdownload", "a.aria2", "a.download", "a.k3Jd81-x.part"]
)
def test_an_empty_file_waits_for_the_unfinished_download_beside_it_however_old(tmp_path: Path, beside: str) -> None:
    """A browser's placeholder: what there is of the file is in the other one."""
    (tmp_path / "a").touch()
    place = Place(tmp_path)
    (tmp_path / beside).mkdir() if beside == "a.download" else (tmp_path / beside).write_bytes(b"half")
    os.utime(tmp_path / beside, (0, 0))
    assert len([*Scan(place.folder, ignoring(), unfinished=place.unfinished).batches()]) == 1
    assert place.look(b"a")[0].download == beside
    place.folder.close()


def test_a_file_that_is_not_empty_waits_for_a_download_that_goes_on_and_for_what_fills_the_file_itself(
    place: Place,
) -> None:
    for name, expected in (("a.part", ["a.part", ""]), ("a.aria2", ["a.aria2", "a.aria2"])):
        (place.root / name).write_bytes(b"half")
        found = []
        for age in (60, 7200):
            os.utime(place.root / name, (time.time() - age,) * 2)
            place.unfinished.note(name.encode())
            found.append(place.look(b"a")[0].download)
        assert found == expected
        (place.root / name).unlink()
        assert place.look(b"a")[0].download == ""


def test_a_download_under_a_name_that_the_watch_does_not_ignore_is_a_file_like_any_other(place: Place) -> None:
    (place.root / "a.part").write_bytes(b"half")
    (batch,) = Scan(place.folder, ignoring("!*.part"), unfinished=place.unfinished).batches()
    assert len(batch) == 2
    assert place.look(b"a")[0].download == ""
