"""The disk for the power-loss tests loses exactly what was not synced; otherwise those tests would prove nothing."""

from __future__ import annotations

import random
import stat

import pytest

from tests.power.disk import PAGE, Cut, Disk

FILE = stat.S_IFREG | 0o644
FOLDER = stat.S_IFDIR | 0o755


@pytest.fixture
def disk() -> Disk:
    return Disk(now_ns=1)


def write(disk: Disk, path: str, content: bytes, *, synced: bool = True) -> None:
    inode = disk.create(path, FILE, 0, 0)
    disk.write(inode, content, 0)
    if synced:
        disk.sync(inode)


def sync(disk: Disk, *paths: str) -> None:
    for path in paths:
        disk.sync(disk.at(path))


def cut(disk: Disk, how: Cut = Cut.NOTHING, seed: int = 0) -> dict[str, bytes]:
    """Cut the power and return what is in the root then."""
    disk.cut(how, random.Random(seed))
    return {name: bytes(disk.by_number(number).data) for name, number in disk.at("/").entries.items()}


def test_a_file_is_there_once_it_and_its_name_are_synced(disk: Disk) -> None:
    write(disk, "/a", b"content")
    sync(disk, "/")
    assert cut(disk) == {"a": b"content"}


def test_a_file_whose_directory_was_not_synced_is_gone(disk: Disk) -> None:
    write(disk, "/a", b"content")
    assert cut(disk) == {}


def test_a_file_that_was_not_synced_is_empty_and_one_that_was_written_since_is_as_it_was(disk: Disk) -> None:
    write(disk, "/a", b"content", synced=False)
    write(disk, "/b", b"content")
    sync(disk, "/")
    disk.write(disk.at("/b"), b"CONTENT and more", 0)
    disk.now_ns = 2
    assert cut(disk) == {"a": b"", "b": b"content"}
    assert disk.at("/b").meta.mtime_ns == 1


def test_a_removal_that_was_not_synced_is_undone(disk: Disk) -> None:
    write(disk, "/a", b"content")
    sync(disk, "/")
    disk.remove("/a")
    assert cut(disk) == {"a": b"content"}


@pytest.mark.parametrize("synced", ["/from", "/to"])
def test_a_rename_is_there_in_both_directories_or_in_none(disk: Disk, synced: str) -> None:
    for folder in ("/from", "/to"):
        disk.create(folder, FOLDER, 0, 0)
    write(disk, "/from/a", b"content")
    sync(disk, "/", "/from")
    disk.rename("/from/a", "/to/b")
    disk.cut(Cut.NOTHING, random.Random(0))
    assert (set(disk.at("/from").entries), set(disk.at("/to").entries)) == ({"a"}, set())
    disk.rename("/from/a", "/to/b")
    sync(disk, synced)
    disk.cut(Cut.NOTHING, random.Random(0))
    assert (set(disk.at("/from").entries), set(disk.at("/to").entries)) == (set(), {"b"})


def test_a_directory_that_was_not_synced_is_gone_with_all_that_was_synced_in_it(disk: Disk) -> None:
    disk.create("/new", FOLDER, 0, 0)
    write(disk, "/new/a", b"content")
    sync(disk, "/new")
    assert cut(disk) == {}


def test_some_of_what_was_not_synced_may_come_through_in_pages_and_in_any_order() -> None:
    seen = set()
    for seed in range(50):
        disk = Disk(now_ns=1)
        write(disk, "/a", b"")
        sync(disk, "/")
        disk.write(disk.at("/a"), b"1" * PAGE + b"2" * PAGE + b"3" * PAGE, 0)
        seen.add(cut(disk, Cut.SOME, seed)["a"][::PAGE])
    assert {b"", b"1", b"\0" + b"2", b"123"} <= seen


def test_a_clean_unmount_loses_nothing(disk: Disk) -> None:
    write(disk, "/a", b"content", synced=False)
    disk.sync_all()
    assert cut(disk) == {"a": b"content"}
