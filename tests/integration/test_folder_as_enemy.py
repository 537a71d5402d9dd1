"""A hostile folder (guarantees 1, 2 and 11): a whole daemon against every trick that a folder allows."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from presignd.ledger import Selection
from presignd.store.signed import SignedStore
from tests.faulty_s3 import BUCKET, FOREVER, FaultyS3
from tests.mounts import bind
from tests.running import config, running

OLD, NEW = b"1" * (3 << 20), b"2" * (3 << 20)
"""Of the same size, and streamed: more than a small file's one read."""


def stored(store: FaultyS3) -> dict[str, bytes]:
    """Return every object but the check object."""
    return {key: found.body for (_, key), found in store.objects.items() if not key.endswith(".presignd-check")}


def sent(store: FaultyS3) -> set[bytes]:
    """Return every body that was ever sent, stored or not."""
    return {seen.body for seen in store.requests if seen.method == "PUT" and not seen.key.endswith(".presignd-check")}


# --- files that are written meanwhile -----------------------------------------------------------


async def test_a_file_that_grows_is_sent_once_it_is_whole(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """Sixty pieces, each flushed, by a writer that holds it open: a minute, but for the waiting."""
    async with running(config(tmp_path, faulty_s3)) as daemon:
        with (daemon.folder / "drop" / "log").open("wb", buffering=0) as growing:
            for piece in range(60):
                growing.write(b"%02d" % piece * 500)
                await asyncio.sleep(0.02)
                daemon.view.hint("drop", b"log")
            daemon.drop("other")
            await daemon.done(1)
        await daemon.done(2)
        assert daemon.links() == ["other", "log"]
    assert sent(faulty_s3) == {b"content", b"".join(b"%02d" % piece * 500 for piece in range(60))}


def truncate(path: Path) -> None:
    os.truncate(path, 1000)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replace(path: Path) -> None:
    fresh = path.with_name(".fresh")
    fresh.write_bytes(NEW)
    fresh.rename(path)


def replace_keeping_mtime(path: Path) -> None:
    """``cp -p`` of another file of that size and time, and a rename."""
    fresh, st = path.with_name(".fresh"), path.stat()
    fresh.write_bytes(NEW)
    os.utime(fresh, ns=(st.st_atime_ns, st.st_mtime_ns))
    fresh.rename(path)


def rewrite_keeping_mtime(path: Path) -> None:
    """Write in place, then ``touch -r``."""
    st = path.stat()
    path.write_bytes(NEW)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


def write_through_a_mapping(path: Path) -> None:
    """Write by ``mmap``, which sends no event."""
    import mmap  # noqa: PLC0415 - here alone

    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:] = NEW
        mapped.flush()


CHANGES: dict[str, tuple[Callable[[Path], None], bytes]] = {
    "truncated": (truncate, OLD[:1000]),
    "grown": (grow, OLD + b"more"),
    "replaced by rename": (replace, NEW),
    "replaced by a rename that keeps the mtime": (replace_keeping_mtime, NEW),
    "rewritten with its mtime kept": (rewrite_keeping_mtime, NEW),
    "written through a mapping": (write_through_a_mapping, NEW),
}
changes = pytest.mark.parametrize(("change", "last"), list(CHANGES.values()), ids=list(CHANGES))


@contextmanager
def at_the_first_put(act: Callable[[], None], *, then: bool) -> Iterator[None]:
    """Let ``act`` happen once, when the first file is about to be sent or (``then``) once the store has it."""
    real, acts = SignedStore.send, [act]

    async def send(self: SignedStore, request: Any, *args: Any, **more: Any) -> Any:
        of_a_file = request.operation == "put" and not request.key.endswith(".presignd-check")
        if of_a_file and acts and not then:
            acts.pop()()
        answer = await real(self, request, *args, **more)
        if of_a_file and acts:
            acts.pop()()
        return answer

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SignedStore, "send", send)
        yield


@changes
@pytest.mark.parametrize("then", [False, True], ids=["hashed", "stored"])
async def test_what_changes_during_its_upload_is_not_linked_and_goes_again(
    faulty_s3: FaultyS3, tmp_path: Path, change: Callable[[Path], None], last: bytes, then: bool
) -> None:
    """Between its hashing and its sending, and after the store took it; once, and then no more."""
    async with running(config(tmp_path, faulty_s3)) as daemon:
        path = daemon.folder / "drop" / "a"
        with at_the_first_put(partial(change, path), then=then):
            path.write_bytes(OLD)
            await daemon.until(lambda: stored(faulty_s3) == {"a": last}, "the last content")
            [done] = await daemon.done()
        assert done["size"] == len(last)
        assert daemon.links() == ["a"]
        assert daemon.events("file.quarantined") == []


@changes
async def test_what_changes_after_its_upload_goes_again(
    faulty_s3: FaultyS3, tmp_path: Path, change: Callable[[Path], None], last: bytes
) -> None:
    """Neither a size nor a time need differ: the content is compared."""
    async with running(config(tmp_path, faulty_s3)) as daemon:
        path = daemon.drop("a", OLD)
        await daemon.done()
        change(path)
        await daemon.rescan()
        await daemon.done(2)
        assert daemon.links() == ["a", "a"]
    assert stored(faulty_s3) == {"a": last}


async def test_a_copy_that_keeps_size_and_mtime_is_a_file_like_any_other(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """``cp -p`` of a file from years ago: its age is no sign that it was there."""
    old = tmp_path / "old"
    old.write_bytes(b"old")
    os.utime(old, (10**9, 10**9))
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("first")
        await daemon.done()
        shutil.copy2(old, daemon.folder / "drop" / "copy")
        await daemon.done(2)
    assert stored(faulty_s3)["copy"] == b"old"


async def test_a_sparse_file_goes_with_its_holes(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(config(tmp_path, faulty_s3)) as daemon:
        with (daemon.folder / "drop" / "sparse").open("wb") as file:
            file.seek(5 << 20)
            file.write(b"middle")
            file.truncate(12 << 20)
        await daemon.done()
    assert stored(faulty_s3)["sparse"] == bytes(5 << 20) + b"middle" + bytes((7 << 20) - 6)


# --- what is no file ------------------------------------------------------------------------------


async def test_nothing_but_regular_files_is_ever_opened_or_sent(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO whose opening would block, a device that acts, a socket, and symlinks in and out of the tree."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    root = tmp_path / "drop"
    root.mkdir()

    def make_all(suffix: str) -> None:
        os.mkfifo(root / f"fifo{suffix}")
        if os.geteuid() == 0:
            os.mknod(root / f"device{suffix}", 0o020666, os.makedev(1, 5))  # /dev/zero: reading it has no end
        (root / f"out{suffix}").symlink_to(outside / "secret")
        (root / f"folder{suffix}").symlink_to(outside)
        (root / f"in{suffix}").symlink_to("real")
        (root / f"nowhere{suffix}").symlink_to("missing")
        (root / f"itself{suffix}").symlink_to(f"itself{suffix}")
        with socket.socket(socket.AF_UNIX) as unix:
            monkeypatch.chdir(root)
            unix.bind(f"socket{suffix}")

    make_all("")
    async with running(config(tmp_path, faulty_s3)) as daemon:
        await daemon.said_by_now("scan.finished")
        make_all("-later")
        daemon.drop("real", b"real")
        await daemon.done()
        await daemon.rescan()
        await daemon.until(lambda: not daemon.view.settling(), "an end of settling")
        assert daemon.links() == ["real"]
        assert daemon.events("file.quarantined") == []
    assert sent(faulty_s3) == {b"real"}


@pytest.mark.parametrize("component", ["a", "a/b"])
async def test_a_directory_swapped_for_a_symlink_after_the_scan_leads_nowhere(
    faulty_s3: FaultyS3, tmp_path: Path, component: str
) -> None:
    """What is queued is opened anew, and another file lies under that path by then, outside."""
    outside = tmp_path / "outside"
    (outside / "b").mkdir(parents=True)
    (outside / "file").write_bytes(b"outside")
    (outside / "b" / "file").write_bytes(b"outside")
    (tmp_path / "drop" / "a" / "b").mkdir(parents=True)
    faulty_s3.fault(times=FOREVER, status=503, code="SlowDown")
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a/b/file", b"inside!")
        await daemon.said_by_now("store.unreachable")
        swapped = daemon.folder / "drop" / component
        swapped.rename(tmp_path / "aside")
        swapped.symlink_to(outside)
        faulty_s3.heal()
        daemon.drop("other")
        await daemon.done()
        await daemon.until(
            lambda: [event for event in daemon.events("file.done") if event["status"] == "vanished"], "it vanished"
        )
        assert daemon.links() == ["other"]
    assert sent(faulty_s3) <= {b"content", b"inside!"}
    assert stored(faulty_s3) == {"other": b"content"}


async def test_a_write_through_one_name_of_a_hard_linked_file_changes_all_of_them(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """Inotify tells of one name only; the scan finds the other."""
    async with running(config(tmp_path, faulty_s3)) as daemon:
        path = daemon.drop("a", b"one")
        (daemon.folder / "drop" / "b").hardlink_to(path)
        await daemon.until(lambda: stored(faulty_s3) == {"a": b"one", "b": b"one"}, "both")
        path.write_bytes(b"two")
        await daemon.rescan()
        await daemon.until(lambda: stored(faulty_s3) == {"a": b"two", "b": b"two"}, "both again")

        def linked() -> set[tuple[str, str]]:
            return {(event["key"], event["etag"]) for event in daemon.events("file.done")}

        both = {(name, hashlib.md5(text).hexdigest()) for name in "ab" for text in (b"one", b"two")}
        await daemon.until(lambda: linked() == both, "both linked again")


# --- names ----------------------------------------------------------------------------------------

NAMES = {
    b"line\nfeed": "",
    b'\n{"time": "2026-01-01T00:00:00Z", "event": "forged"}': "",
    b"\x1b[2J\x1b]0;owned\x07": "key_refused",
    b"carriage\rreturn": "",
    b"\xff\xfe no utf-8": "key_refused",
    b"right-to-left \xe2\x80\xaegpj.exe": "",
    b"%0d%0aX-Injected: 1": "",
    b"a?X-Amz-Signature=forged&b": "",
    b"%2e%2e": "",
    b" ": "",
    b"-rf": "",
}
"""And the code with which those are quarantined that no store keeps under their name."""


async def test_a_name_forges_no_line_no_header_and_no_key(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """Each of them is its own key as it is, or is quarantined alone; the others go on."""
    async with running(config(tmp_path, faulty_s3)) as daemon:
        for name in NAMES:
            (daemon.folder / "drop" / os.fsdecode(name)).write_bytes(name)
        stored_as = {name.decode(): name for name, code in NAMES.items() if not code}
        await daemon.done(len(stored_as))
        await daemon.said_by_now("file.quarantined", len(NAMES) - len(stored_as))
        assert set(daemon.codes("file.quarantined")) == {"key_refused"}
        assert "forged" not in [
            event["event"] for line in daemon.said.text.splitlines() for event in [json.loads(line)]
        ]
        control = [
            c for c in daemon.said.text if (c < " " or "\x7f" <= c < "\xa0" or c in "\u202e\u2066") and c != "\n"
        ]
        assert control == []
    assert stored(faulty_s3) == stored_as
    assert all("x-injected" not in seen.headers for seen in faulty_s3.requests)


# --- the folder itself ------------------------------------------------------------------------------


async def test_a_folder_that_was_unmounted_and_comes_back_is_gone_on_with(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """What was sent is not sent again, and what lies below the mount point is another folder's business."""
    disk = tmp_path / "disk"
    disk.mkdir()
    configured = config(tmp_path, faulty_s3)
    with bind(disk, tmp_path / "drop") as umount:
        async with running(configured) as daemon:
            daemon.drop("before")
            await daemon.done()
            umount()
            await daemon.said_by_now("watch.lost")
            with bind(disk, tmp_path / "drop"):
                (disk / "meanwhile").write_bytes(b"content")
                await daemon.done(2)
                daemon.drop("after")
                await daemon.done(3)
                assert daemon.links() == ["before", "meanwhile", "after"]
                assert [event["status"] for event in daemon.events("file.done")] == ["linked"] * 3


@pytest.mark.parametrize("way", ["deleted", "moved away"])
async def test_a_folder_that_goes_and_is_made_anew_is_watched_again(
    faulty_s3: FaultyS3, tmp_path: Path, way: str
) -> None:
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("before")
        await daemon.done()
        root = daemon.folder / "drop"
        shutil.rmtree(root) if way == "deleted" else root.rename(tmp_path / "elsewhere")
        await daemon.said_by_now("watch.lost")
        root.mkdir()
        daemon.drop("after")
        await daemon.done(2)
        daemon.drop("later")
        await daemon.done(3)
        assert daemon.links() == ["before", "after", "later"]
        assert len(daemon.events("watch.lost")) == 1


async def test_a_folder_that_comes_back_with_its_files_sends_nothing_again(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(config(tmp_path, faulty_s3)) as daemon:
        for name in ("a", "b", "c"):
            daemon.drop(name)
        await daemon.done(3)
        root = daemon.folder / "drop"
        root.rename(tmp_path / "elsewhere")
        await daemon.said_by_now("watch.lost")
        before = len(daemon.events("scan.finished"))
        (tmp_path / "elsewhere").rename(root)
        await daemon.said_by_now("scan.finished", before + 1)
        daemon.drop("d")
        await daemon.done(4)
        await daemon.until(lambda: not daemon.view.settling(), "an end of settling")
        assert sorted(daemon.links()) == ["a", "b", "c", "d"], "each is linked once"
    assert len([seen for seen in faulty_s3.requests if seen.method == "PUT" and seen.key in "abc"]) == 3


async def test_an_unreadable_file_stops_only_itself_and_goes_once_it_may(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a user without rights (``tests/system/test_unprivileged.py`` is one): root reads everything."""
    real = os.open
    closed = True

    def guarded(path: Any, flags: int, *args: Any, **more: Any) -> int:
        fd = real(path, flags, *args, **more)
        if closed and not flags & os.O_PATH and Path(f"/proc/self/fd/{fd}").readlink().match("drop/closed"):
            os.close(fd)
            raise PermissionError(13, "Permission denied")
        return fd

    monkeypatch.setattr(os, "open", guarded)
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("closed")
        daemon.drop("open")
        await daemon.done()
        assert (await daemon.said_by_now("file.quarantined"))[0]["error_code"] == "unreadable"
        closed = False
        await daemon.view.requeue(Selection(error_code="unreadable"))
        await daemon.done(2)
        assert daemon.links() == ["open", "closed"]
    assert (BUCKET, "closed") in faulty_s3.objects
