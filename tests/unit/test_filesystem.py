"""The filesystem's kind decides where locks, leases and inotify are trusted."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from presignd import filesystem

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux numbers its filesystems")


@linux
def test_proc_is_recognised_by_its_documented_number_by_path_and_by_descriptor() -> None:
    """PROC_SUPER_MAGIC of linux/magic.h: proves that the field is read where it lies."""
    fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert filesystem.fs_type("/proc") == filesystem.fs_type(fd) == 0x9FA0
    finally:
        os.close(fd)


@linux
def test_a_missing_path_is_an_oserror_that_names_it(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError) as caught:
        filesystem.fs_type(missing)
    assert caught.value.filename == missing


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0x6969, "NFS"),
        (0x517B, "SMB"),
        (0xFF534D42, "CIFS"),
        (0xFE534D42, "SMB2"),
        (0x65735546, "FUSE"),
        (0x01021997, "9P"),
        (0x00C36400, "CephFS"),
    ],
)
def test_network_filesystems_are_told_by_name(monkeypatch: pytest.MonkeyPatch, number: int, name: str) -> None:
    monkeypatch.setattr(filesystem, "fs_type", lambda _target: number)
    assert filesystem.is_network("/x")
    assert not filesystem.is_local("/x")
    assert filesystem.kind("/x") == name


@pytest.mark.parametrize(("number", "name"), [(0xEF53, "ext4"), (0x01021994, "tmpfs"), (0x1234, "type 0x1234")])
def test_all_other_numbers_are_local(monkeypatch: pytest.MonkeyPatch, number: int, name: str) -> None:
    monkeypatch.setattr(filesystem, "fs_type", lambda _target: number)
    assert filesystem.is_local("/x")
    assert not filesystem.is_network("/x")
    assert filesystem.kind("/x") == name


def test_where_the_system_does_not_tell_a_path_is_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert filesystem.fs_type("/") == 0
    assert not filesystem.is_local("/")
    assert not filesystem.is_network("/")
    assert filesystem.kind("/") == "unknown"


def test_no_number_is_in_both_tables() -> None:
    assert not filesystem.NETWORK.keys() & filesystem.LOCAL.keys()
