"""How content is hashed."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.errors import Fault
from presignd.pipeline.files import hash as digest
from presignd.system.threads import processors


def test_no_more_threads_hash_at_a_time_than_there_are_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight parts hashed at once on one processor would leave the event loop a ninth of it."""
    assert processors() >= 1
    one = threading.Semaphore(1)
    hashed = []

    class Looking:
        def __init__(self, algorithm: str, **_: bool) -> None:
            assert algorithm == "md5"

        def update(self, piece: memoryview) -> None:
            assert not one.acquire(blocking=False), "the turn is this thread's while it hashes"
            hashed.append(len(piece))

        def digest(self) -> bytes:
            return b""

    monkeypatch.setattr(digest, "PROCESSORS", one)
    monkeypatch.setattr(hashlib, "new", Looking)
    file = tmp_path / "file"
    file.write_bytes(bytes(digest.READ + 1))
    fd = os.open(file, os.O_RDONLY)
    try:
        digest.digest(fd, "md5", 0, digest.READ + 1)
    finally:
        os.close(fd)
    assert hashed == [digest.READ, 1]
    assert one.acquire(blocking=False), "and nobody's once it is through"


def test_what_a_disk_does_not_read_is_a_fault_of_the_file(tmp_path: Path) -> None:
    """A folder stands for the file that reads with an error."""
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for read in (digest.read_at, digest.into_one_buffer(1)):
            with pytest.raises(Fault, match="Is a directory") as met:
                read(fd, 1, 0)
            assert met.value.code == "read_error"
    finally:
        os.close(fd)


def test_a_file_whose_filesystem_tells_nothing_of_it_any_more_is_a_fault_of_the_file() -> None:
    """A descriptor that is none stands for the stale one of a file that was deleted on NFS or FUSE."""
    with pytest.raises(Fault, match="Bad file descriptor") as met:
        digest.fingerprint_of(-1)
    assert met.value.code == "read_error"


FORMS = st.sampled_from(["md5:", "sha256:", "md5:-"])


@given(st.binary(max_size=50), st.lists(st.integers(1, 9)), st.integers(1, 20), FORMS)
def test_bytes_have_the_checksum_of_the_file_however_they_come(
    content: bytes, cuts: list[int], part: int, like: str
) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        whole = digest.checksum_like(file.fileno(), like, len(content), part)
    made, left = digest.Digest(like, part), content
    for cut in cuts:
        made.update(left[:cut])
        left = left[cut:]
    made.update(left)
    assert made.checksum == whole
