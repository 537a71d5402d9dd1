"""Refusals of the kernel to an inotify source are reported with the limit. The kernel is not called here."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from presignd.config import WatchConfig
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.ignore import Ignore
from presignd.pipeline.watch import inotify
from presignd.pipeline.watch.source import INSTANCES, WATCHES, Hints, SourceEnded
from presignd.system import syscalls
from tests.finishing import failing
from tests.ignoring import ignoring


class Kernel:
    """Stands in for libc: refuses instances or watches with these numbers (0: gives one), gives watches after them."""

    def __init__(self, *, instance: int = 0, watches: tuple[int, ...] = ()) -> None:
        self._instance, self._watches = instance, list(watches)
        self.watched = self.asked = 0

    def inotify_init1(self, _flags: int) -> int:
        if self._instance:
            ctypes.set_errno(self._instance)
            return -1
        return os.memfd_create("inotify")

    def inotify_add_watch(self, _fd: int, _path: bytes, _mask: int) -> int:
        self.asked += 1
        if self._watches and (number := self._watches.pop(0)):
            ctypes.set_errno(number)
            return -1
        self.watched += 1
        return self.watched

    def inotify_rm_watch(self, _fd: int, _number: int) -> int:
        return 0


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    (tmp_path / "a" / "b").mkdir(parents=True)
    made = Folder(WatchConfig(name="drop", path=tmp_path, bucket="test-bucket"))
    yield made
    made.close()


def tree(
    folder: Folder, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, ignore: Ignore | None = None
) -> inotify._Tree:
    monkeypatch.setattr(syscalls, "libc", lambda: kernel)
    return inotify._Tree(folder, ignore or ignoring(), recursive=True)


@pytest.mark.parametrize(("number", "limit"), [(errno.EMFILE, INSTANCES), (errno.ENFILE, INSTANCES), (errno.EPERM, "")])
def test_an_instance_that_is_refused_names_its_limit(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, number: int, limit: str
) -> None:
    with pytest.raises(SourceEnded) as ended:
        tree(folder, Kernel(instance=number), monkeypatch)
    assert ended.value.limit == limit
    assert ended.value.message


def test_an_instance_that_no_descriptor_is_left_for_names_no_limit_of_instances(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is over as soon as files are closed: ten minutes of polling would be too many."""
    monkeypatch.setattr(os, "dup", failing(errno.EMFILE))
    with pytest.raises(SourceEnded, match="Too many open files") as ended:
        tree(folder, Kernel(instance=errno.EMFILE), monkeypatch)
    assert not ended.value.limit


def test_a_root_without_a_watch_ends_the_source_and_names_the_limit(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    watches = tree(folder, Kernel(watches=(errno.ENOSPC,)), monkeypatch)
    try:
        with pytest.raises(SourceEnded, match="no inotify watches are left") as ended:
            watches.add(b"")
    finally:
        os.close(watches.fd)
    assert ended.value.limit == WATCHES


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EACCES])
def test_a_folder_whose_root_cannot_be_watched_ends_the_source_and_nothing_below_is_walked(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Else no event of the root would ever come, and each try would walk through all of it."""
    kernel = Kernel(watches=(number,))
    watches = tree(folder, kernel, monkeypatch)
    try:
        with pytest.raises(SourceEnded, match="can't be watched") as ended:
            watches.add(b"")
    finally:
        os.close(watches.fd)
    assert (ended.value.limit, kernel.asked) == ("", 1)


def test_a_directory_that_can_not_be_watched_costs_no_other_its_watch(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any other reason than the limit: what is below it is watched all the same."""
    kernel = Kernel(watches=(0, errno.EACCES))
    watches = tree(folder, kernel, monkeypatch)
    try:
        watches.add(b"")
    finally:
        os.close(watches.fd)
    assert sorted(watches._paths.values()) == [b"", b"a/b"]


def test_a_directory_that_was_moved_away_loses_its_watches_and_those_below_it(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the watch of one that came to its path since: the event that follows adds that again."""
    watches = tree(folder, Kernel(), monkeypatch)
    try:
        watches._paths = {1: b"", 2: b"a", 3: b"a/b", 4: b"ab", 5: b"a"}
        watches._unwatch(b"a")
        assert watches._paths == {1: b"", 4: b"ab"}
    finally:
        os.close(watches.fd)


async def test_an_ignored_directory_is_not_watched_and_what_has_no_name_is_no_hint(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of a watched directory's own attributes comes without a name: its parent's watch tells of it."""
    for name in ("skip", "take"):
        (tmp_path / name).mkdir()
    ignore = Ignore(WatchConfig(name="drop", path=tmp_path, bucket="test-bucket", ignore=["skip/"]))
    watches = tree(folder, Kernel(), monkeypatch, ignore)
    try:
        watches._paths[100] = b""
        made = inotify._CREATE | inotify._ISDIR
        told = [(inotify._ATTRIB | inotify._ISDIR, b""), (made, b"skip"), (made, b"take")]
        data = b"".join(inotify._EVENT_HEAD.pack(100, mask, 0, len(name)) + name for mask, name in told)
        os.pwrite(watches.fd, data, 0)
        hints = await watches.read()
        assert hints == Hints({b"skip", b"take"})
        assert sorted(watches._paths.values()) == [b"", b"take"]
    finally:
        os.close(watches.fd)
