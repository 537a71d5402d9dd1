"""The filesystem's kind decides where locks, leases and inotify are trusted."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from presignd.model import Fingerprint
from presignd.system import filesystem

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


@pytest.mark.parametrize(
    ("release", "kind", "fine"),
    [
        ("6.13.0-generic", 0xEF53, True),
        ("7.0-rc1", 0x01021994, True),
        ("6.12.48+deb13-amd64", 0xEF53, False),
        ("6.18.1", 0x4D44, False),
        ("not Linux", 0xEF53, False),
    ],
)
def test_times_are_fine_from_linux_6_13_on_where_the_filesystem_takes_part(
    monkeypatch: pytest.MonkeyPatch, release: str, kind: int, fine: bool
) -> None:
    monkeypatch.setattr(filesystem, "fs_type", lambda _target: kind)
    assert filesystem.has_fine_times(0, release) is fine


def test_where_times_are_fine_a_change_after_a_look_always_shows(tmp_path: Path) -> None:
    """What settling at once relies on: no two contents of one size with one fingerprint between looks."""
    if not filesystem.has_fine_times(tmp_path):
        pytest.skip("coarse timestamps here")
    file = tmp_path / "file"
    seen = set()
    for number in range(500):
        file.write_bytes(b"%03d" % number)
        seen.add(Fingerprint.of(file.stat()))
    assert len(seen) == 500
