"""Only what is in the folder (guarantee 11), against a real filesystem."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from presignd.config import WatchConfig
from presignd.errors import Fault, Unavailable, UsageError
from presignd.model import Fingerprint
from presignd.pipeline.files import folder as module
from presignd.pipeline.files.folder import Folder, Gone, NotRegular
from presignd.pipeline.files.hash import TINY, prepare
from presignd.pipeline.watch import scan as scan_module
from presignd.pipeline.watch.scan import BATCH, MAX_BATCH, Scan
from presignd.system import filesystem
from presignd.system.filesystem import read_cached
from tests.descriptors import open_descriptors
from tests.finishing import failing
from tests.ignoring import ignoring
from tests.unprivileged import unprivileged, without_rights, world_readable


def watch(root: Path) -> WatchConfig:
    return WatchConfig(name="drop", path=root, bucket="test-bucket")


@pytest.fixture
def shared() -> Iterator[Path]:
    with world_readable() as root:
        yield root


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    (tmp_path / "drop" / "a" / "b").mkdir(parents=True)
    (tmp_path / "drop" / "a" / "b" / "file").write_text("inside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("outside")
    opened = Folder(watch(tmp_path / "drop"))
    yield opened
    opened.close()


def content(folder: Folder, path: bytes) -> bytes:
    fd = folder.open(path)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


@pytest.fixture(params=["O_PATH", "without"])
def any_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as on Linux, once as on systems that have no O_PATH."""
    if request.param == "without":
        monkeypatch.setattr(module, "_O_PATH", 0)


@pytest.mark.usefixtures("any_system")
def test_a_file_is_opened_for_reading_without_being_inherited(folder: Folder) -> None:
    fd = folder.open(b"a/b/file")
    assert os.read(fd, 100) == b"inside"
    assert not os.get_inheritable(fd)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.write(fd, b"x")
    os.close(fd)


@pytest.mark.usefixtures("any_system")
def test_a_symlink_is_no_file_wherever_it_leads(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "drop" / "out").symlink_to(tmp_path / "outside" / "file")
    (tmp_path / "drop" / "in").symlink_to("a/b/file")
    for path in (b"out", b"in"):
        with pytest.raises(NotRegular):
            folder.open(path)


@pytest.mark.usefixtures("any_system")
def test_a_component_swapped_for_a_symlink_leads_nowhere(folder: Folder, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "drop" / "a")
    (tmp_path / "drop" / "a").symlink_to(tmp_path)
    for ask in (folder.open, folder.stat):
        with pytest.raises(Gone):
            ask(b"a/outside/file")


@pytest.mark.parametrize(
    "path", [b"../outside/file", b"a/../../outside/file", b"/etc/passwd", b"a//b/file", b"./a", b"a\0b"]
)
def test_a_path_that_could_lead_elsewhere_is_none(folder: Folder, path: bytes) -> None:
    with pytest.raises(Gone):
        folder.open(path)


@pytest.mark.usefixtures("any_system")
def test_a_fifo_does_not_block_and_no_special_file_is_opened(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "drop" / "fifo")
    monkeypatch.chdir(tmp_path / "drop")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket")
        for path in (b"fifo", b"socket", b"a"):
            with pytest.raises(NotRegular):
                folder.open(path)


def test_what_is_not_there_is_gone(folder: Folder) -> None:
    for path in (b"missing", b"missing/file", b"a/b/file/below", b"x" * 300):
        with pytest.raises(Gone):
            folder.open(path)
        with pytest.raises(Gone):
            folder.stat(path)


def test_another_fault_of_the_disk_is_the_files_passing_one(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module, "_open_regular", broken)
    with pytest.raises(Fault) as caught:
        folder.open(b"a/b/file")
    assert caught.value.code == "read_error"


def test_what_is_stale_is_not_taken_for_gone(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS a handle may be stale while the file is there (ESTALE)."""

    def stale(*_: object, **__: object) -> os.stat_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "stat", stale)
    with pytest.raises(Fault) as caught:
        folder.stat(b"a/b/file")
    assert caught.value.code == "read_error"
    assert folder.missing([b"a/b/file"]) == []


def test_a_file_replaced_between_the_look_and_the_opening_is_gone(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without O_PATH the name is opened a second time: another file's content must not pass for the one seen."""
    opened = os.open

    def replacing(path: bytes, flags: int, *, dir_fd: int) -> int:
        if path == b"file":
            (tmp_path / "outside" / "file").replace(tmp_path / "drop" / "a" / "b" / "file")
        return opened(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(module, "_O_PATH", 0)
    monkeypatch.setattr(os, "open", replacing)
    with pytest.raises(Gone, match="replaced"):
        folder.open(b"a/b/file")


def test_without_proc_a_file_is_opened_by_its_name_and_compared(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chroot may have none."""
    opened = os.open

    def without_proc(path: str | bytes, flags: int, *, dir_fd: int | None = None) -> int:
        if isinstance(path, str) and path.startswith("/proc/"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return opened(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", without_proc)
    module._own_descriptors.cache_clear()
    assert content(folder, b"a/b/file") == b"inside"
    (tmp_path / "drop" / "link").symlink_to("a/b/file")
    with pytest.raises(NotRegular):
        folder.open(b"link")


def test_a_fork_opens_files_through_its_own_descriptors(folder: Folder, tmp_path: Path) -> None:
    """/proc/self/fd stays open, but it would be that of the process that opened it."""
    os.close(folder.open(b"a/b/file"))
    others = [os.open(tmp_path / "outside" / "file", os.O_RDONLY) for _ in range(4)]
    if not (child := os.fork()):
        for fd in others:
            os.close(fd)
        os._exit(0 if content(folder, b"a/b/file") == b"inside" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for fd in others:
        os.close(fd)


def test_without_proc_what_can_not_be_compared_is_closed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, before = folder.stat(b"a/b/file"), open_descriptors()
    with folder.dir_fd(b"a/b/file") as parent, monkeypatch.context() as broken:
        broken.setattr(os, "fstat", failing(errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            module._open_compared(parent, b"file", seen)
    assert open_descriptors() == before


@pytest.mark.parametrize("number", [errno.ELOOP, errno.ENXIO])
def test_what_became_a_link_or_a_device_while_it_was_opened_is_no_file(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(module, "_open_regular", failing(number))
    with pytest.raises(NotRegular):
        folder.open(b"a/b/file")


def test_no_descriptor_is_left_open_whatever_comes_of_it(folder: Folder, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "drop" / "fifo")
    os.close(folder.open(b"a/b/file"))  # the first of all opens /proc/self/fd for good
    before = open_descriptors()
    for path in (b"a/b/file", b"a/b/missing", b"a/missing/x", b"fifo", b"a/b"):
        try:
            os.close(folder.open(path))
        except (Gone, NotRegular):
            continue
    with folder.dir_fd(b"a/b/file"):
        pass
    assert open_descriptors() == before


def test_the_directory_of_a_path_is_lent_for_renames(folder: Folder, tmp_path: Path) -> None:
    with folder.dir_fd(b"a/b/file") as directory:
        os.rename("file", "other", src_dir_fd=directory, dst_dir_fd=directory)
    assert (tmp_path / "drop" / "a" / "b" / "other").exists()


def test_a_replaced_root_is_noticed_and_opened_in_place(folder: Folder, tmp_path: Path) -> None:
    number = folder.fd
    (tmp_path / "drop").rename(tmp_path / "old")
    assert not folder.still_there()
    assert not folder.reopen()
    (tmp_path / "drop").mkdir()
    assert not folder.still_there()
    assert folder.reopen()
    assert folder.still_there()
    assert folder.fd == number
    with pytest.raises(Gone):
        folder.open(b"a/b/file")


def test_where_a_look_may_have_to_wait_none_is_taken_at_once(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is mounted in a folder may be a network's, and hang: that would hold up the event loop."""
    table = tmp_path / "mountinfo"
    table.write_text("1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n")
    monkeypatch.setattr(filesystem, "_MOUNTS", table)
    folder.refresh_mounts()
    assert folder.inline_limit > 0
    table.write_text(f"1 0 8:1 / {tmp_path / 'drop' / 'a'} rw shared:1 - nfs4 server:/ rw\n")
    folder.refresh_mounts()
    assert folder.inline_limit == 0
    other = tmp_path / "link"
    other.symlink_to(tmp_path / "drop")
    by_link = Folder(watch(other))
    assert by_link.inline_limit == 0
    by_link.close()


def test_a_filesystem_that_does_not_even_say_what_it_is_is_looked_at_from_threads(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FUSE whose process died: the watch goes on, and finds its root lost."""
    monkeypatch.setattr(filesystem, "is_network", failing(errno.ENOTCONN))
    folder.refresh_mounts()
    assert folder.inline_limit == 0


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(folder: Folder, tmp_path: Path) -> None:
    folder.lock()
    second = Folder(watch(tmp_path / "drop"))
    with pytest.raises(Unavailable, match=rf"is watched by another presignd \(pid {os.getpid()}\)"):
        second.lock()
    second.close()


def test_a_locked_root_that_was_away_is_taken_again_when_it_is_back(folder: Folder, tmp_path: Path) -> None:
    folder.lock()
    root = Path(os.fsdecode(folder.root))
    root.rename(tmp_path / "elsewhere")
    assert not folder.reopen()
    (tmp_path / "elsewhere").rename(root)
    assert folder.reopen()
    assert folder.still_there()


def test_a_lock_survives_the_replacement_of_the_root(folder: Folder, tmp_path: Path) -> None:
    folder.lock()
    (tmp_path / "drop").rename(tmp_path / "old")
    (tmp_path / "drop").mkdir()
    assert folder.reopen()
    second = Folder(watch(tmp_path / "drop"))
    with pytest.raises(Unavailable):
        second.lock()
    second.close()


def test_a_root_that_another_daemon_took_meanwhile_is_left_to_it(folder: Folder, tmp_path: Path) -> None:
    folder.lock()
    (tmp_path / "drop").rename(tmp_path / "old")
    (tmp_path / "drop").mkdir()
    second = Folder(watch(tmp_path / "drop"))
    second.lock()
    assert not folder.reopen()
    assert not folder.still_there()
    second.close()
    assert folder.reopen()


def test_a_root_that_fails_while_it_is_opened_anew_is_away(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network folder comes and goes: the next look tries again."""
    (tmp_path / "drop").rename(tmp_path / "old")
    (tmp_path / "drop").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os, "dup2", failing(errno.EIO))
        assert not folder.reopen()
    assert folder.reopen()


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_root_that_is_none_is_an_error_that_says_what_to_do(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=f"watch drop: .*{kind}") as caught:
        Folder(watch(tmp_path / kind))
    assert caught.value.fix


def test_a_file_without_read_permission_is_unreadable_and_below_a_closed_directory_too(shared: Path) -> None:
    """Run as another user: root reads everything."""
    (shared / "drop" / "closed").mkdir(parents=True)
    (shared / "drop" / "closed" / "file").touch()
    (shared / "drop" / "secret").touch(0o600)
    (shared / "drop" / "secret").chmod(0o600)
    (shared / "drop" / "closed").chmod(0o700)
    assert unprivileged(
        shared,
        """
        from presignd.errors import Fault
        folder = Folder(WatchConfig(name="drop", path=root / "drop", bucket="test-bucket"))
        for path in (b"secret", b"closed/file"):
            try:
                folder.open(path)
            except Fault as fault:
                print(fault.code)
        """,
    ) == ["unreadable", "unreadable"]


# --- scans --------------------------------------------------------------------------------------
def found(scan: Scan) -> list[bytes]:
    return sorted(path for batch in scan.batches() for path, *_ in batch)


def test_a_scan_finds_regular_files_of_any_name_and_nothing_else(folder: Folder, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "drop" / "fifo")
    (tmp_path / "drop" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "drop" / "x.tmp").touch()
    (tmp_path / "drop" / ".hidden").mkdir()
    (tmp_path / "drop" / ".hidden" / "x").touch()
    (tmp_path / "drop" / os.fsdecode(b"\xff\xfe")).touch()
    (tmp_path / "drop" / "line\nfeed").touch()
    scan = Scan(folder, ignoring())
    assert found(scan) == [b"a/b/file", b"line\nfeed", b"\xff\xfe"]
    assert (scan.files, scan.directories, scan.problems) == (3, 3, [])


def test_a_scan_yields_fingerprints_in_batches(folder: Folder, tmp_path: Path) -> None:
    for number in range(BATCH + 1):
        (tmp_path / "drop" / str(number)).touch()
    batches = list(Scan(folder, ignoring()).batches())
    assert [len(batch) for batch in batches] == [BATCH + 1, 1]
    path, *rest = batches[0][0]
    assert Fingerprint(*rest) == Fingerprint.of(folder.stat(path))


def test_a_scan_of_a_part_stays_in_it_and_at_its_top_if_asked(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "drop" / "a" / "top").touch()
    (tmp_path / "drop" / "other").touch()
    assert found(Scan(folder, ignoring(), b"a")) == [b"a/b/file", b"a/top"]
    assert found(Scan(folder, ignoring(), b"a", recursive=False)) == [b"a/top"]
    assert found(Scan(folder, ignoring(), b"missing")) == []


def test_a_scan_ends_when_it_is_told_to(folder: Folder, tmp_path: Path) -> None:
    for number in range(MAX_BATCH + 1):
        (tmp_path / "drop" / str(number)).touch()
    scan = Scan(folder, ignoring())
    batches = scan.batches()
    next(batches)
    scan.stop.set()
    assert sum(len(batch) for batch in batches) == 0


def test_a_directory_that_vanishes_under_a_scan_is_left_out(folder: Folder, tmp_path: Path) -> None:
    for number in range(BATCH):
        (tmp_path / "drop" / str(number)).touch()
    scan = Scan(folder, ignoring())
    batches = scan.batches()
    next(batches)
    shutil.rmtree(tmp_path / "drop" / "a")
    assert list(batches) == []
    assert scan.problems == []


def test_a_file_that_vanishes_under_a_scan_is_left_out(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its name was listed, before it is looked at."""
    monkeypatch.setattr(scan_module, "BATCH", 1)
    monkeypatch.setattr(scan_module, "MAX_BATCH", 1)
    shutil.rmtree(tmp_path / "drop" / "a")
    for number in range(3):
        (tmp_path / "drop" / str(number)).touch()
    scan = Scan(folder, ignoring())
    batches = scan.batches()
    ((first, *_),) = next(batches)
    for number in {0, 1, 2} - {int(first)}:
        (tmp_path / "drop" / str(number)).unlink()
    assert list(batches) == []
    assert (scan.files, scan.problems) == (1, [])


@pytest.mark.parametrize("damage", [1, MAX_BATCH + 1], ids=["first", "later"])
def test_a_directory_that_can_be_listed_in_part_alone_loses_none_of_that_part(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: int
) -> None:
    """A damaged one: readdir fails in its middle, each time."""
    shutil.rmtree(tmp_path / "drop" / "a")
    for number in range(damage + 1):
        (tmp_path / "drop" / str(number)).touch()

    @contextmanager
    def failing_scandir(fd: int) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scandir(fd) as entries:
            yield (next(entries) if number < damage else no_more() for number in range(damage + 1))

    def no_more() -> os.DirEntry[str]:
        raise OSError(errno.EUCLEAN, os.strerror(errno.EUCLEAN))

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", failing_scandir)
    scan = Scan(folder, ignoring())
    assert len(found(scan)) == scan.files == damage
    assert len(scan.problems) == 1


def test_nothing_below_an_ignored_directory_is_scanned_even_when_it_is_asked_for(
    folder: Folder, tmp_path: Path
) -> None:
    (tmp_path / "drop" / ".hidden").mkdir()
    (tmp_path / "drop" / ".hidden" / "x").touch()
    assert found(Scan(folder, ignoring(), b".hidden")) == []


def test_a_scan_names_what_it_cannot_read_and_goes_on(shared: Path) -> None:
    """Run as another user: root reads everything."""
    for name in ("closed", "open"):
        (shared / "drop" / name).mkdir(parents=True)
        (shared / "drop" / name / "file").touch()
    (shared / "drop" / "closed").chmod(0)
    opened = Folder(watch(shared / "drop"))
    scan = Scan(opened, ignoring())
    with without_rights():
        assert found(scan) == [b"open/file"]
    (shared / "drop" / "closed").chmod(0o700)
    opened.close()
    assert scan.problems == ["closed: the file can't be read: Permission denied"]


def test_a_directory_swapped_under_a_walk_cannot_lead_outside(folder: Folder, tmp_path: Path) -> None:
    """A directory is swapped for a symlink again and again while files below it are opened."""
    real, aside, link = (tmp_path / "drop" / "a", tmp_path / "drop" / "aside", tmp_path / "drop" / "link")
    (tmp_path / "outside" / "b").mkdir()
    (tmp_path / "outside" / "b" / "file").write_text("outside")
    link.symlink_to(tmp_path / "outside")
    stop, seen = threading.Event(), set[bytes]()

    def swap() -> None:
        while not stop.is_set():
            real.rename(aside)
            link.rename(real)
            real.rename(link)
            aside.rename(real)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        turns, deadline = 0, time.monotonic() + 60
        while turns < 3000 or (len(seen) < 2 and time.monotonic() < deadline):
            turns += 1
            try:
                seen.add(content(folder, b"a/b/file"))
            except (Gone, NotRegular):
                seen.add(b"")
    finally:
        stop.set()
        swapper.join()
    assert seen == {b"inside", b""}


def test_too_many_open_files_are_no_file_s_own_fault(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_args: Any, **_options: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(Fault) as met:
        folder.open_directory(b"")
    assert met.value.code == "too_many_files"


def test_what_no_cache_can_give_is_read_in_a_thread(folder: Folder) -> None:
    """``read_cached`` says so by one error, whatever the reason: no flag, no filesystem for it, no file."""
    with pytest.raises(BlockingIOError):
        read_cached(folder.fd, 1, 0)


@pytest.mark.parametrize("size", [0, 1, 10_000, TINY])
def test_a_file_that_is_read_piece_by_piece_is_hashed_and_kept_whole(tmp_path: Path, size: int) -> None:
    """The page cache may have only the beginning yet: ``preadv`` then returns less than it was asked for."""
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)

    def short(fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, min(length, 4096), offset)

    with (tmp_path / "file").open("rb") as file:
        prepared = prepare(file.fileno(), size, ("md5", "sha256"), read=short)
    assert prepared.data == content
    assert prepared.checksums == {
        "md5": f"md5:{hashlib.md5(content).hexdigest()}",
        "sha256": f"sha256:{hashlib.sha256(content).hexdigest()}",
    }


@pytest.mark.parametrize("settled", [9_999, 10_001])
def test_a_file_of_another_size_than_was_settled_is_seen_as_it_is_read(tmp_path: Path, settled: int) -> None:
    (tmp_path / "file").write_bytes(bytes(10_000))
    with (tmp_path / "file").open("rb") as file, pytest.raises(Fault, match="size changed"):
        prepare(file.fileno(), settled, ("md5",))
