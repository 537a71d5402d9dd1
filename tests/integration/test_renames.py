"""Renames that never replace a file, also on filesystems and kernels without renameat2's flags."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from presignd.pipeline.files.folder import rename_to_free
from presignd.system import syscalls
from presignd.system.durable import rename_noreplace, sync
from tests.finishing import failing
from tests.unprivileged import without_rights, world_readable


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """Open a folder with the files ``a`` and ``b``, each of which holds its name."""
    for name in "ab":
        (tmp_path / name).write_text(name)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def tree(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture(params=["none", errno.ENOSYS, errno.EINVAL], ids=["no such call", "ENOSYS", "EINVAL"])
def without_renameat2(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be on a C library without the call, on a kernel without it, and on a filesystem without the flag."""

    def refuse(*_args: object) -> int:
        ctypes.set_errno(request.param)
        return -1

    libc = SimpleNamespace() if request.param == "none" else SimpleNamespace(renameat2=refuse)
    monkeypatch.setattr(syscalls, "libc", lambda: libc)


@pytest.mark.usefixtures("without_renameat2")
def test_without_the_call_a_file_is_moved_and_none_replaced(directory: int, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        rename_noreplace(directory, b"a", directory, b"b")
    rename_noreplace(directory, b"a", directory, b"c")
    assert tree(tmp_path) == {"b": "b", "c": "a"}


@pytest.mark.usefixtures("without_renameat2")
def test_a_name_that_can_not_be_given_up_keeps_its_file_alone(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the file had two names, and the next run took the new one for another file."""
    unlink = os.unlink

    def refusing(name: bytes, *, dir_fd: int) -> None:
        if name == b"a":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refusing)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        rename_noreplace(directory, b"a", directory, b"c")
    assert tree(tmp_path) == {"a": "a", "b": "b"}


@pytest.mark.usefixtures("without_renameat2")
def test_a_name_that_was_reserved_in_vain_is_free_again(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    monkeypatch.setattr(os, "rename", failing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        rename_noreplace(directory, b"a", directory, b"c")
    assert tree(tmp_path) == {"a": "a", "b": "b"}


def test_a_name_whose_file_goes_while_it_is_looked_at_counts_as_taken(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever removed it may be about to put another one there."""

    def going(_from: int, _name: bytes, _to: int, to_name: bytes) -> None:
        if to_name != b"b":
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        os.unlink(to_name, dir_fd=directory)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(syscalls, "renameat2_noreplace", going)
    assert rename_to_free(directory, b"a", directory, b"b") == b"b~2"
    assert tree(tmp_path) == {"b~2": "a"}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.EOPNOTSUPP])
def test_a_filesystem_that_syncs_no_directories_is_taken_as_it_is(
    directory: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(number))
    sync(directory)


def test_a_disk_that_can_not_keep_a_name_is_told(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes next trusts that the name is durable."""
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync(directory)


def test_a_folder_that_may_be_written_to_but_not_listed_is_taken_as_it_is() -> None:
    with world_readable() as root:
        (root / "drop").mkdir()
        (root / "drop").chmod(0o333)
        with without_rights():
            directory = os.open(root / "drop", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
            try:
                sync(directory)
            finally:
                os.close(directory)
        (root / "drop").chmod(0o755)
