"""The unusual ends of one file: each is recorded, and logged once."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from presignd.app.assembly import open_pipeline
from presignd.config import Config
from presignd.errors import Fault, Refused, fault
from presignd.ledger import open_ledger
from presignd.ledger.changes import Change
from presignd.model import FileVersion, Fingerprint, State
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.finish import finisher
from presignd.pipeline.finish.link import Linker
from presignd.pipeline.finish.remove import Finished, FinishOutcome, keep_move_or_delete
from presignd.pipeline.in_effect import InEffect
from presignd.pipeline.stage import Item
from presignd.pipeline.upload.transfer import MAX_KEY_ATTEMPTS, Transfer
from presignd.pipeline.upload.uploader import Uploader
from presignd.presign import Grant, GrantRequest
from presignd.states import Event
from tests.faulty_s3 import BUCKET, FaultyS3, Object
from tests.running import Running, config, running, watch
from tests.versions import LATER, MARK, claim, linking, new


def theirs(store: FaultyS3, key: str = "a") -> None:
    store.objects[BUCKET, key] = Object(b"theirs", f'"{hashlib.md5(b"theirs").hexdigest()}"', {}, store.now())


def stored(store: FaultyS3) -> dict[str, bytes]:
    return {key: found.body for (_, key), found in store.objects.items()}


async def queued(configured: Config, path: bytes, fingerprint: Fingerprint) -> None:
    """Record a version, as a daemon did that is gone."""
    ledger = await open_ledger(configured.ledger.path)
    await ledger.enqueue([new(path, fingerprint=fingerprint, bucket=BUCKET, key="a")])
    await ledger.close(clean=True)


@pytest.fixture
def probed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each bucket turn out to be another store's while its files are read ahead."""
    read = Uploader.read

    async def read_and_probe(self: Uploader, versions: Sequence[FileVersion]) -> list[Item]:
        items = await read(self, versions)
        bucket = self._bucket(versions[0])
        if bucket.known_support:
            other = replace(bucket.known_support, checksum="sha256", proven=True)
            bucket._support[False] = other
        return items

    monkeypatch.setattr(Uploader, "read", read_and_probe)


async def test_an_error_that_several_senders_meet_ends_the_work_as_one(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_: Uploader) -> None:
        raise fault("disk_full")

    monkeypatch.setattr(Uploader, "run", fails)
    async with open_pipeline(config(tmp_path, faulty_s3)) as pipeline:
        with pytest.raises(Fault, match="disk is full"):
            await pipeline.in_effect.work.run()


# --- before it is sent --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"a", b"/elsewhere/a"], ids=["its path is gone", "put from elsewhere"])
async def test_a_queued_version_without_a_file_ends_as_vanished(
    faulty_s3: FaultyS3, tmp_path: Path, path: bytes
) -> None:
    """A put from elsewhere is read from what its client handed over, and that is gone with the daemon."""
    configured = config(tmp_path, faulty_s3)
    await queued(configured, path, Fingerprint(1, 5, 1, 1))
    async with running(configured) as daemon:
        [done] = await daemon.said_by_now("file.done")
        assert done["status"] == "vanished"
    assert stored(faulty_s3) == {}


@pytest.mark.usefixtures("probed_anew")
async def test_a_bucket_that_is_probed_anew_while_files_are_read_stops_nothing(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    async with running(config(tmp_path, faulty_s3)) as daemon:
        for count, name in enumerate("ab", 1):  # "a" is sent without being read ahead, as nothing is probed yet
            daemon.drop(name)
            await daemon.done(count)


@pytest.mark.parametrize("call", ["_open_and_send", "_require_unchanged"], ids=["opened", "compared"])
async def test_a_folder_that_hangs_holds_up_only_itself(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Its files are read and compared by their senders alone."""
    real, hangs = getattr(Transfer, call), asyncio.Event()

    async def hang(self: Transfer) -> object:
        if self._watch.name == "network":
            hangs.set()
            await asyncio.Event().wait()
        return await real(self)

    limit = property(lambda self: 0 if self.root.endswith(b"network") else 8, lambda _self, _found: None)
    monkeypatch.setattr(Folder, "inline_limit", limit, raising=False)
    async with running(config(tmp_path, faulty_s3, watch(tmp_path, "network"), watch(tmp_path))) as daemon:
        daemon.drop("first", watch="network")
        daemon.drop("first")
        await daemon.done(2)
        monkeypatch.setattr(Transfer, call, hang)
        daemon.drop("a", watch="network")
        await asyncio.wait_for(hangs.wait(), 20)
        daemon.drop("b")
        await daemon.done(3)


async def test_what_is_not_in_the_page_cache_is_read_in_a_thread(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread, readers = os.pread, set[int]()

    def lacks(*_: object) -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def read(fd: int, length: int, offset: int) -> bytes:
        readers.add(threading.get_ident())
        return pread(fd, length, offset)

    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a")
        await daemon.done()
        monkeypatch.setattr(os, "preadv", lacks)
        monkeypatch.setattr(os, "pread", read)
        daemon.drop("b")
        await daemon.done(2)
        assert readers
        assert threading.get_ident() not in readers


async def test_a_queued_version_with_a_writer_waits_for_him(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    configured = config(tmp_path, faulty_s3)
    path = tmp_path / "drop" / "a"
    path.write_bytes(b"content")
    await queued(configured, b"a", Fingerprint.of(path.stat()))
    with path.open("ab"):
        async with running(configured) as daemon:
            await daemon.until(lambda: daemon.work.dispatcher.at_work, "the first try")
            await daemon.until(lambda: not daemon.work.dispatcher.at_work, "its end")
            assert daemon.events("file.done", "upload.retry") == []
    async with running(configured) as daemon:
        [done] = await daemon.done()
        assert done["status"] == "linked"


async def test_a_file_that_grew_after_it_was_queued_goes_as_what_it_is_now(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    configured = config(tmp_path, faulty_s3)
    path = tmp_path / "drop" / "a"
    path.write_bytes(b"content")
    await queued(configured, b"a", Fingerprint.of(path.stat()))
    path.write_bytes(b"more content")
    async with running(configured) as daemon:
        await daemon.done()
        assert [event["status"] for event in daemon.events("file.done")] == ["superseded", "linked"]
    assert stored(faulty_s3) == {"a": b"more content"}


# --- under its key ------------------------------------------------------------------------------------


async def test_somebody_elses_object_keeps_its_key(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    theirs(faulty_s3)
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a")
        await daemon.done()
        assert daemon.links() == ["a~2"]
    assert stored(faulty_s3) == {"a": b"theirs", "a~2": b"content"}


async def test_where_collisions_are_refused_the_file_is_quarantined(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    theirs(faulty_s3)
    async with running(config(tmp_path, faulty_s3, watch(tmp_path, collision="refuse"))) as daemon:
        daemon.drop("a")
        await daemon.said_by_now("file.quarantined")
        assert daemon.codes("file.quarantined") == ["exists"]
    assert stored(faulty_s3) == {"a": b"theirs"}


async def test_a_key_that_changes_hands_all_the_time_is_tried_again_later(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    faulty_s3.fault(method="PUT", key="a", times=MAX_KEY_ATTEMPTS, status=412, code="PreconditionFailed")
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a")
        await daemon.done()
        assert daemon.codes("upload.retry") == ["precondition_failed"]


async def test_a_bucket_that_is_gone_is_no_changed_object(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """Both are 404 to a PUT that is to replace what is there."""
    async with running(config(tmp_path, faulty_s3)) as daemon:
        path = daemon.drop("a")
        await daemon.done()
        faulty_s3.fault(method="PUT", key="a", status=404, code="NoSuchBucket")
        path.write_bytes(b"newer")
        await daemon.done(2)
        assert daemon.codes("upload.retry") == ["no_such_bucket"]
    assert stored(faulty_s3) == {"a": b"newer"}


async def test_an_etag_that_tells_nothing_of_the_content_is_no_fault(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """Under SSE-KMS it has the shape of an MD5, and is none; the store has checked the one it was sent."""
    faulty_s3.fault(method="PUT", key="a", etag=f'"{"0" * 32}"', headers={"x-amz-server-side-encryption": "aws:kms"})
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a")
        [done] = await daemon.done()
        assert (done["attempt"], daemon.events("upload.retry")) == (1, [])


async def test_an_older_object_under_the_key_does_not_pass_for_what_was_sent(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    theirs(faulty_s3)
    faulty_s3.fault(method="PUT", key="a", etag=None, lose=True)
    async with running(config(tmp_path, faulty_s3, watch(tmp_path, collision="overwrite"))) as daemon:
        daemon.drop("a")
        await daemon.done()
        assert daemon.codes("upload.retry") == ["bad_digest"]
    assert stored(faulty_s3) == {"a": b"content"}


async def test_a_store_that_removes_nothing_hinders_nothing(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """The check key stays then."""
    faulty_s3.fault(method="DELETE", times=10, status=500, code="InternalError")
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a")
        await daemon.done()
        assert daemon.events("upload.retry", "watch.blocked", "store.unreachable") == []
    assert set(stored(faulty_s3)) > {"a"}


# --- from verified to finished ------------------------------------------------------------------------


async def test_a_verified_version_is_linked_after_a_stop_and_not_sent_again(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured, reached = config(tmp_path, faulty_s3), asyncio.Event()

    async def hang(*_: object, **__: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(Linker, "_write", hang)
        async with running(configured) as daemon:
            daemon.drop("a")
            async with asyncio.timeout(20):
                await reached.wait()
    async with running(configured) as daemon:
        await daemon.done()
        assert daemon.links() == ["a"]
    assert len(faulty_s3.seen("PUT", "a")) == 1


@pytest.mark.parametrize(
    ("error", "code"), [(fault("grant_refused"), "grant_refused"), (ZeroDivisionError(), "internal_error")]
)
async def test_a_link_that_can_not_be_made_stops_its_file_alone(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    real = InEffect.grant

    async def refusing(self: InEffect, requests: Sequence[GrantRequest]) -> list[Grant | Exception]:
        granted = await real(self, requests)
        return [error if asked.key == "a" else grant for asked, grant in zip(requests, granted, strict=True)]

    monkeypatch.setattr(InEffect, "grant", refusing)
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a")
        daemon.drop("b")
        [stopped] = await daemon.said_by_now("file.quarantined")
        await daemon.done()
        assert (stopped["key"], stopped["error_code"]) == ("a", code)
        assert daemon.links() == ["b"]


async def test_a_link_file_that_can_not_be_written_is_told_and_the_link_stands(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    async with running(config(tmp_path, faulty_s3, watch(tmp_path, link_file="{name}.link.txt"))) as daemon:
        daemon.drop("a.link.txt", b"somebody's notes")
        daemon.drop("a")
        await daemon.done()
        assert daemon.codes("link_file.failed") == ["finish_failed"]
        assert daemon.links() == ["a"]
        assert (tmp_path / "drop" / "a.link.txt").read_bytes() == b"somebody's notes"


@pytest.mark.parametrize("after", ["keep", "delete"])
@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EMFILE, "too_many_files")])
async def test_a_link_file_is_tried_again_when_the_disk_was_full_or_descriptors_ran_out(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, number: int, code: str, after: str
) -> None:
    """Told once; meanwhile the file goes where it is to go, which may be what makes room."""
    real, tries = os.fsync, iter(range(3))
    gone: list[bool] = []

    def full(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().suffix == ".link" and next(tries, None) is not None:
            gone.append(not (tmp_path / "drop" / "a").exists())
            raise OSError(number, os.strerror(number))
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    leaving = watch(tmp_path, link_file="{name}.link.txt", after=after)
    async with running(config(tmp_path, faulty_s3, leaving)) as daemon:
        daemon.drop("a")
        await daemon.done()
        assert daemon.codes("link_file.failed") == [code]
        assert (tmp_path / "drop" / "a.link.txt").read_text("ascii").startswith(faulty_s3.endpoint)
        assert gone == [False, after == "delete", after == "delete"]
        assert daemon.links() == ["a"]


async def test_a_link_file_that_found_no_room_is_left_by_the_next_start(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = config(tmp_path, faulty_s3, watch(tmp_path, link_file="{name}.link.txt", after="delete"))

    def full(*_: object) -> None:
        raise fault("disk_full")

    with monkeypatch.context() as patched:
        patched.setattr(finisher, "write_link_file", full)
        async with running(configured) as daemon:
            daemon.drop("a")
            await daemon.said_by_now("link_file.failed")
            await daemon.until(lambda: not (tmp_path / "drop" / "a").exists(), "an end of the file")
            assert daemon.events("file.done") == []
    async with running(configured) as daemon:
        await daemon.done()
        assert (tmp_path / "drop" / "a.link.txt").exists()
        assert daemon.links() == ["a"]


async def test_a_finished_file_that_waits_for_descriptors_says_so_once(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = iter(range(3))

    def short(*args: Any) -> Finished:
        waits = Finished(FinishOutcome.BUSY, b"a", fault("too_many_files"))
        return waits if next(tries, None) is not None else keep_move_or_delete(*args)

    monkeypatch.setattr(finisher, "keep_move_or_delete", short)
    async with running(config(tmp_path, faulty_s3, watch(tmp_path, after="delete"))) as daemon:
        daemon.drop("a")
        await daemon.done()
        (told,) = daemon.events("finish.retry")
        assert (told["key"], told["error_code"], told["level"]) == ("a", "too_many_files", "warning")
        assert told["fix"]


async def test_a_file_that_can_not_be_moved_is_quarantined_and_its_link_stands(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise fault("finish_failed", "Read-only file system")

    monkeypatch.setattr(finisher, "keep_move_or_delete", failing)
    moving = watch(tmp_path, after="move", move_to=tmp_path / "done")
    async with running(config(tmp_path, faulty_s3, moving)) as daemon:
        path = daemon.drop("a")
        await daemon.said_by_now("file.quarantined")
        assert daemon.codes("file.quarantined") == ["finish_failed"]
        assert daemon.links() == ["a"]
        assert path.exists()


async def test_a_linked_file_that_waits_for_a_person_does_so_when_the_links_were_copied_elsewhere(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another disk: the ledger's mark knows the file no more, so every line is read back; this one it knows of."""

    def failing(*_: object) -> None:
        raise fault("finish_failed", "Read-only file system")

    monkeypatch.setattr(finisher, "keep_move_or_delete", failing)
    moving = config(tmp_path, faulty_s3, watch(tmp_path, after="move", move_to=tmp_path / "done"))
    async with running(moving) as daemon:
        daemon.drop("a")
        await daemon.said_by_now("file.quarantined")
    links = tmp_path / "links.jsonl"
    shutil.copy(links, tmp_path / "copied")
    (tmp_path / "copied").replace(links)
    async with running(moving) as daemon:
        await daemon.rescan()
        assert daemon.events("file.done", "file.queued", "ledger.rebuilt") == []
        assert daemon.links() == ["a"]


def before_it_is_finished(patched: pytest.MonkeyPatch, *acts: Callable[[], object]) -> list[Finished]:
    """Have each of these happen before one more try to finish a file; return what came of the tries."""
    waiting, tried = list(acts), list[Finished]()

    def finishing(*args: Any) -> Finished:
        if waiting:
            waiting.pop(0)()
        tried.append(keep_move_or_delete(*args))
        return tried[-1]

    patched.setattr(finisher, "keep_move_or_delete", finishing)
    return tried


class Writer:
    """Somebody who opens the file again once it is uploaded."""

    def __init__(self, path: Path) -> None:
        self._path, self._fd = path, -1

    def open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND)

    def close(self) -> None:
        os.close(self._fd)

    def write_and_close(self) -> None:
        os.write(self._fd, b" and more")
        self.close()


def deleting(folder: Path, store: FaultyS3, **more: Any) -> tuple[Config, Writer]:
    return config(folder, store, watch(folder, after="delete", **more)), Writer(folder / "drop" / "a")


def nothing() -> None:
    """Let one try pass."""


async def test_a_folder_that_hangs_finishes_no_file_but_holds_up_no_other_watch_s(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hangs(folder: Folder, *args: Any) -> Finished:
        if folder.root.endswith(b"network"):
            released.wait(60)
        return keep_move_or_delete(folder, *args)

    monkeypatch.setattr(finisher, "keep_move_or_delete", hangs)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64))  # as the daemon's own
    watches = [watch(tmp_path, name, after="delete") for name in ("network", "drop")]
    async with running(config(tmp_path, faulty_s3, *watches)) as daemon:
        for number in range(2 * finisher.WORKERS):
            daemon.drop(f"{number}", watch="network")
        await daemon.until(lambda: len(daemon.links()) == 2 * finisher.WORKERS, "links")
        daemon.drop("a")
        await daemon.done()
        released.set()
        await daemon.done(2 * finisher.WORKERS + 1)


async def test_a_linked_file_with_a_writer_goes_once_he_is_through(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured, writer = deleting(tmp_path, faulty_s3)
    tried = before_it_is_finished(monkeypatch, writer.open, nothing, writer.close)
    async with running(configured) as daemon:
        path = daemon.drop("a")
        await daemon.done()
        assert [each.busy for each in tried] == [True, True, False]
        assert not path.exists()


async def test_what_he_wrote_is_another_version(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by who sees it, whatever events and scans do."""
    configured, writer = deleting(tmp_path, faulty_s3, polling="always", poll_interval=3600)
    before_it_is_finished(monkeypatch, writer.open, writer.write_and_close)
    (tmp_path / "drop" / "a").write_bytes(b"content")
    async with running(configured) as daemon:
        await daemon.done(2)
    assert stored(faulty_s3) == {"a": b"content and more"}


async def test_a_writer_outlives_the_daemon_and_the_file_goes_after_the_next_start(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured, writer = deleting(tmp_path, faulty_s3)
    tried = before_it_is_finished(monkeypatch, writer.open)
    async with running(configured) as daemon:
        path = daemon.drop("a")
        await daemon.until(lambda: tried, "the first try")
        assert daemon.events("file.done") == []
    assert path.exists()
    writer.close()
    async with running(configured) as daemon:
        await daemon.done()
        assert not path.exists()
        assert daemon.links() == ["a"]
    assert len(faulty_s3.seen("PUT", "a")) == 1


async def test_work_that_was_replaced_ends_only_when_its_last_writer_is_through(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload closes it then; no worker would finish a file that still waits."""
    configured, writer = deleting(tmp_path, faulty_s3)
    tried = before_it_is_finished(monkeypatch, writer.open)
    async with running(configured) as daemon:
        path = daemon.drop("a")
        await daemon.until(lambda: len(tried) > 1, "two tries")
        ended = asyncio.ensure_future(daemon.work.finisher.wait_for_retries())
        await asyncio.sleep(0)
        assert not ended.done()
        writer.close()
        await ended
        assert not path.exists()


async def test_a_bug_in_a_later_try_quarantines_the_file(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured, writer = deleting(tmp_path, faulty_s3)

    def stumble() -> None:
        writer.close()
        raise ZeroDivisionError

    before_it_is_finished(monkeypatch, writer.open, stumble)
    async with running(configured) as daemon:
        path = daemon.drop("a")
        await daemon.said_by_now("file.quarantined")
        assert daemon.codes("file.quarantined") == ["internal_error"]
        assert path.exists()


# --- put ----------------------------------------------------------------------------------------------


def put(daemon: Running, file: Path, path: bytes, told: list[int]) -> Any:
    fd = os.open(file, os.O_RDONLY)
    return fd, daemon.view.put(fd, path, "drop", key=None, expires=None, by_uid=0, progress=told.append)


async def test_a_put_tells_how_far_it_is_and_gets_its_link(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(3 << 20))
    told: list[int] = []
    async with running(config(tmp_path, faulty_s3)) as daemon:
        fd, uploading = put(daemon, tmp_path / "a", os.fsencode(tmp_path / "a"), told)
        link = await uploading
        os.close(fd)
        assert (link.key, told[-1]) == ("a", 3 << 20)


async def test_a_put_of_another_content_under_a_watched_name_is_a_path_of_its_own(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """Nobody who may use the socket can have a watched path recorded with what it doesn't hold."""
    (tmp_path / "other").write_bytes(b"other")
    async with running(config(tmp_path, faulty_s3)) as daemon:
        fd, uploading = put(daemon, tmp_path / "other", b"not/there", [])
        link = await uploading
        os.close(fd)
        assert link.path == os.fspath(tmp_path / "drop" / "not" / "there")
        assert await daemon.ledger.by_path("drop", b"not/there") is None


async def test_a_put_of_a_watched_file_that_is_deleted_meanwhile_is_told_so(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    held = faulty_s3.fault(method="PUT", key="first", hang="before")
    configured = config(tmp_path, faulty_s3, watch(tmp_path, ignore=["a"]), upload={"concurrency": 1})
    async with running(configured) as daemon:
        daemon.drop("first", bytes(100_000))
        await daemon.until(lambda: held.times == 0, "another upload under way")
        path = daemon.drop("a", bytes(100_000))  # not so small that it is claimed ahead
        fd, uploading = put(daemon, path, b"a", [])
        waiting = asyncio.ensure_future(uploading)
        await daemon.said_by_now("file.queued", 2)
        gone = await daemon.ledger.record_gone("drop", [b"a"], faulty_s3.now())
        daemon.pipeline.shared.announcer.done(gone)
        with pytest.raises(Refused, match="the file is gone"):
            await waiting
        os.close(fd)


async def test_what_ends_while_others_are_taken_up_is_left_to_whoever_works_on_it(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch that comes back by a reload: the work before still links the last of its files."""
    async with open_pipeline(config(tmp_path, faulty_s3)) as pipeline:
        ledger, at_work = pipeline.ledger, pipeline.in_effect.work.dispatcher.at_work
        await ledger.enqueue([new(name, bucket=BUCKET, key=name.decode()) for name in (b"a", b"b")])
        _, other = [await ledger.apply(one, Event.VERIFY) for one in await claim(ledger, "drop", 2, LATER)]
        at_work[other.file_id] = Item(other)
        apply_all = ledger.apply_all

        async def applied(wanted: Sequence[Change]) -> list[FileVersion]:
            await ledger.record_linked([linking(other, done_at=LATER)], MARK)
            del at_work[other.file_id]
            return await apply_all(wanted)

        monkeypatch.setattr(ledger, "apply_all", applied)
        await pipeline.recovery.resume(["drop"])
        assert await ledger.by_id(other.file_id) == other._replace(state=State.FINISHED, done_at=LATER, linked=True)


async def test_a_put_that_no_descriptor_is_left_for_is_tried_again(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"content")
    refusals, dup = [errno.EMFILE], os.dup

    def short(fd: int) -> int:
        if refusals:
            raise OSError(number := refusals.pop(), os.strerror(number))
        return dup(fd)

    async with running(config(tmp_path, faulty_s3)) as daemon:
        monkeypatch.setattr(os, "dup", short)
        fd, uploading = put(daemon, tmp_path / "a", os.fsencode(tmp_path / "a"), [])
        link = await uploading
        os.close(fd)
        assert link.key == "a"
        assert daemon.codes("upload.retry") == ["too_many_files"]
