"""``verify`` at a daemon: each way in which a file and its object can differ, on two real stores."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from presignd.control.peer import Peer
from presignd.control.requests import Responder
from presignd.errors import PresigndError
from tests.faulty_s3 import FaultyS3
from tests.forged import forged
from tests.running import Running, config, running, watch
from tests.stores import Store

CONTENT = os.urandom(999) + b"."
PART = 5 << 20
LARGE = os.urandom(2 * PART + 77)

Document = dict[str, Any]


async def asked(daemon: Running, fds: tuple[int, ...] = (), **request: Any) -> list[Document]:
    answers = Responder(daemon.view).answer({"op": "verify", "list_equal": True, **request}, Peer.me(), fds)
    return [answer async for answer in answers]


async def verified(daemon: Running, *names: str, **request: Any) -> dict[str, Document]:
    """Return the result of each file by its name; of all without names."""
    paths = [str(daemon.folder / "drop" / name) for name in names]
    answers = await asked(daemon, **({"paths": paths} if names else {"all": True}), **request)
    return {Path(answer["file"]["path"]).name: answer["file"] for answer in answers if "file" in answer}


async def summary(daemon: Running, **request: Any) -> Document:
    found: Document = (await asked(daemon, **{"all": True, **request}))[-1]["summary"]
    return found


def told(found: Document) -> tuple[str, str | None, str | None]:
    return found["outcome"], found["by"], found["against"]


@asynccontextmanager
async def uploaded(
    folder: Path, store: FaultyS3 | Store, bucket: str, files: dict[str, bytes], **more: Any
) -> AsyncIterator[Running]:
    """Run a daemon that has uploaded these."""
    upload = {"multipart_threshold": PART, "part_size": PART, **more.pop("upload", {})}
    configured = config(folder, store, watch(folder, bucket=bucket, **more), upload=upload)
    async with running(configured, debug=False) as daemon:
        for name, content in files.items():
            daemon.drop(name, content)
        await daemon.until(lambda: len(daemon.events("file.done")) == len(files), "all linked", 120)
        yield daemon


async def test_equal_files_are_proved_without_a_download(store: Store, tmp_path: Path) -> None:
    bucket = store.new_bucket()
    async with uploaded(tmp_path, store, bucket, {"small": CONTENT, "empty": b"", "large": LARGE}) as daemon:
        found = await verified(daemon)
        assert {name: one["outcome"] for name, one in found.items()} == dict.fromkeys(found, "equal")
        assert {one["by"] for one in found.values()} <= {"checksum", "etag"}
        assert set(found) == {"small", "empty", "large"}
        by_bytes = await verified(daemon, download=True)
        assert {told(one) for one in by_bytes.values()} == {("equal", "download", "file")}
        assert (await summary(daemon))["exit"] == 0


async def test_where_the_store_tells_nothing_objects_are_downloaded(juicefs_plain: Store, tmp_path: Path) -> None:
    bucket = juicefs_plain.new_bucket()
    async with uploaded(tmp_path, juicefs_plain, bucket, {"same": CONTENT, "large": LARGE, "other": CONTENT}) as daemon:
        juicefs_plain.write(bucket, "other", CONTENT[:-1] + b"!")
        found = await verified(daemon)
        assert told(found["same"]) == told(found["large"]) == ("equal", "download", "file")
        assert told(found["other"]) == ("differs", "download", "file")
        assert found["other"]["why"].endswith(f"they differ from byte {len(CONTENT) - 1} on")


async def test_the_objects_own_checksum_is_compared_if_it_has_one(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    pytest.importorskip("awscrt", reason="CRCs need awscrt")
    faulty_s3.checksums = {"crc64nvme"}
    upload = {"checksum": "crc64nvme"}
    async with uploaded(tmp_path, faulty_s3, faulty_s3.bucket, {"a": CONTENT, "b": LARGE}, upload=upload) as daemon:
        assert {told(one) for one in (await verified(daemon)).values()} == {("equal", "checksum", "file")}
        kept = faulty_s3.objects[faulty_s3.bucket, "a"]
        kept.body, kept.etag = forged(CONTENT), f'"{hashlib.md5(forged(CONTENT)).hexdigest()}"'
        assert told((await verified(daemon, "a"))["a"]) == ("differs", "download", "file"), "a CRC is easily forged"
        (daemon.folder / "drop" / "b").unlink()
        assert told((await verified(daemon, "b"))["b"]) == ("equal", "checksum", "receipt")


async def test_each_difference_is_told(store: Store, tmp_path: Path) -> None:
    bucket = store.new_bucket()
    files = dict.fromkeys(["same", "edited", "replaced", "truncated", "gone", "both"], CONTENT) | {"parts": LARGE}
    files = {name: content + name.encode() for name, content in files.items()}
    async with uploaded(tmp_path, store, bucket, files) as daemon:
        drop = daemon.folder / "drop"
        daemon.view.hint = lambda *_: None  # type: ignore[method-assign] # nothing is uploaded anew
        for name in ("edited", "both"):
            changed = drop / name
            daemon.pipeline.ledger.enqueue = _never  # type: ignore[method-assign,assignment] # as on a host whose daemon is down
            changed.write_bytes(files[name][::-1])
        for name in ("replaced", "both"):
            store.write(bucket, name, files[name][:-1] + b"!")
        store.write(bucket, "truncated", files["truncated"][:10])
        store.write(bucket, "parts", LARGE + b"parts")  # the same bytes, as one PUT
        store.delete(bucket, "gone")
        await daemon.until(lambda: not daemon.view.settling(), "quiet")
        found = await verified(daemon, *files)
        outcomes = {name: one["outcome"] for name, one in found.items()}
        assert outcomes == {
            **dict.fromkeys(["edited", "replaced", "truncated", "both"], "differs"),
            "same": "equal",
            "parts": "equal",
            "gone": "missing",
        }
        assert found["edited"]["why"] == "the file changed since it was uploaded"
        assert found["replaced"]["why"].startswith("the object was replaced on ")
        assert found["truncated"]["why"].endswith(f"the object has 10 bytes, not {len(files['truncated'])}")
        assert found["truncated"]["by"] == "size"
        assert "the file changed since it was uploaded; the object was replaced" in found["both"]["why"]
        assert found["gone"]["why"] == "the object is gone"
        assert (await summary(daemon))["exit"] == 4


async def _never(*_: Any) -> Any:
    return []


async def test_the_files_of_a_folder_and_those_never_uploaded(store: Store, tmp_path: Path) -> None:
    bucket = store.new_bucket()
    (tmp_path / "drop" / "sub" / "deep").mkdir(parents=True)
    files = {"a": b"a", "sub/b": b"b", "sub/deep/c": b"c", "sub0": b"no file of sub"}
    async with uploaded(tmp_path, store, bucket, files, max_size=2000) as daemon:
        assert set(await verified(daemon, "sub")) == {"b", "c"}
        assert set(await verified(daemon, "")) == {"a", "b", "c", "sub0"}
        daemon.drop("sub/huge", b"x" * 3000)
        await daemon.said_by_now("file.quarantined")
        daemon.pipeline.ledger.enqueue = _never  # type: ignore[method-assign,assignment] # as on a host whose daemon is down
        daemon.drop("sub/new", b"new")
        daemon.drop("sub/ignored.part", b"new")
        await daemon.until(lambda: not daemon.view.settling(), "quiet")
        found = await verified(daemon, "sub")
        assert {name: one["outcome"] for name, one in found.items()} == {
            "b": "equal",
            "c": "equal",
            "huge": "missing",
            "new": "missing",
        }
        assert "never uploaded" in found["new"]["why"]
        assert "max_size" in found["huge"]["why"] or "larger" in found["huge"]["why"]
        assert (await verified(daemon, "sub/ignored.part"))["ignored.part"]["error"]["exit"] == 4
        assert (await verified(daemon, "absent"))["absent"]["outcome"] == "unchecked"
        (daemon.folder / "drop" / "sub" / "b").unlink()
        (daemon.folder / "drop" / "sub" / "deep" / "c").unlink()
        (daemon.folder / "drop" / "sub" / "deep").rmdir()
        gone = (await verified(daemon, "sub/deep"))["c"]
        assert (gone["outcome"], gone["against"]) == ("equal", "receipt"), "the folder is gone"


@pytest.mark.parametrize("inside", [True, False])
async def test_a_file_that_was_moved_is_compared_where_it_is_now(
    faulty_s3: FaultyS3, tmp_path: Path, inside: bool
) -> None:
    moved = tmp_path / "drop" / "done" if inside else tmp_path / "done"
    (tmp_path / "drop").mkdir()
    moved.mkdir()
    (moved / "a").write_bytes(b"an older file of that name")
    files = {"a": CONTENT, "b": CONTENT + b"b"}
    async with uploaded(tmp_path, faulty_s3, faulty_s3.bucket, files, after="move", move_to=moved) as daemon:
        assert {told(one) for one in (await verified(daemon)).values()} == {("equal", "etag", "moved")}
        (moved / "b").write_bytes(b"b" + CONTENT)
        (by_new_name,) = [a["file"] for a in await asked(daemon, paths=[str(moved / "b")]) if "file" in a]
        assert told(by_new_name) == ("differs", "etag", "moved")
        assert {Path(a["file"]["path"]).name for a in await asked(daemon, paths=[str(moved)]) if "file" in a} == {*"ab"}
        (moved / "a~2").unlink()
        assert told((await verified(daemon, "a"))["a"]) == ("equal", "etag", "receipt")


async def test_of_a_deleted_file_the_receipt_is_compared_and_counted(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with uploaded(tmp_path, faulty_s3, faulty_s3.bucket, {"a": CONTENT, "b": LARGE}, after="delete") as daemon:
        found = await summary(daemon)
        assert (found["equal"], found["against"], found["exit"]) == (2, {"receipt": 2}, 0)
        assert {told(one) for one in (await verified(daemon, download=True)).values()} == {
            ("equal", "download", "receipt")
        }
        where = (faulty_s3.bucket, "a")
        faulty_s3.objects[where].body = CONTENT[::-1]
        assert told((await verified(daemon, "a", download=True))["a"]) == ("differs", "download", "receipt")


async def test_bytes_that_rot_under_their_etag_are_seen_by_a_download_alone(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    async with uploaded(tmp_path, faulty_s3, faulty_s3.bucket, {"a": CONTENT}) as daemon:
        kept = faulty_s3.objects[faulty_s3.bucket, "a"]
        kept.body = CONTENT[:700] + bytes([CONTENT[700] ^ 1]) + CONTENT[701:]
        assert (await verified(daemon, "a"))["a"]["outcome"] == "equal"
        found = (await verified(daemon, "a", download=True))["a"]
        assert told(found) == ("differs", "download", "file")
        assert found["why"].endswith("they differ from byte 700 on")


async def test_an_object_that_goes_between_head_and_get_is_missing(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with uploaded(tmp_path, faulty_s3, faulty_s3.bucket, {"a": CONTENT}) as daemon:
        faulty_s3.fault("GET", "a", status=404, code="NoSuchKey")
        assert (await verified(daemon, "a", download=True))["a"]["outcome"] == "missing"


async def test_what_waits_is_not_checked_and_ends_with_5(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with uploaded(tmp_path, faulty_s3, faulty_s3.bucket, {"a": CONTENT}, settle=0.05) as daemon:
        faulty_s3.fault("PUT", status=503, times=math.inf)
        daemon.drop("a", b"newer")
        daemon.drop("b")
        await daemon.until(lambda: len(daemon.events("file.queued")) == 3, "both queued")
        found = await verified(daemon)
        assert {one["outcome"] for one in found.values()} == {"unchecked"}
        assert {one["error"]["code"] for one in found.values()} == {"pending"}
        assert (await summary(daemon))["exit"] == 5
        faulty_s3.heal()
        await daemon.done(3)
        assert (await summary(daemon))["exit"] == 0


async def test_a_store_that_is_away_leaves_the_rest_unchecked_and_ends_with_3(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    files = {f"{number:02}": b"%d" % number for number in range(40)}
    async with uploaded(tmp_path, faulty_s3, faulty_s3.bucket, files) as daemon:
        faulty_s3.stop()
        answers = await asked(daemon, all=True, list_equal=False)
        told_one_by_one = [answer for answer in answers if "file" in answer]
        found = answers[-1]["summary"]
        assert (found["unchecked"], found["exit"]) == (40, 3)
        assert 5 <= len(told_one_by_one) < 40
        assert sum(problem["count"] for problem in found["problems"]) == 40
        assert {problem["code"] for problem in found["problems"]} <= {"connection_refused", "connection_reset"}
        faulty_s3.start()


async def test_a_refusal_is_told_of_each_file_and_ends_with_3(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with uploaded(tmp_path, faulty_s3, faulty_s3.bucket, {"a": b"a", "b": b"b"}) as daemon:
        faulty_s3.fault("HEAD", "a", status=403, code="AccessDenied", times=2)
        found = await verified(daemon)
        assert (found["a"]["error"]["code"], found["b"]["outcome"]) == ("access_denied", "equal")
        assert (await summary(daemon))["exit"] == 3


async def test_a_file_that_changes_while_it_is_compared_is_not_checked(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with uploaded(tmp_path, faulty_s3, faulty_s3.bucket, {"a": CONTENT}) as daemon:
        daemon.pipeline.ledger.enqueue = _never  # type: ignore[method-assign,assignment] # it stays as recorded

        def written(method: str, _key: str) -> bool:
            if method == "HEAD":
                (daemon.folder / "drop" / "a").write_bytes(CONTENT[::-1])
            return False

        faulty_s3.fault(when=written)
        (found,) = (await verified(daemon, "a")).values()
        assert (found["outcome"], found["error"]["code"]) == ("unchecked", "changed_while_uploading")


async def test_a_folder_that_is_away_is_not_checked(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with uploaded(tmp_path, faulty_s3, faulty_s3.bucket, {"a": CONTENT}) as daemon:
        (tmp_path / "drop").rename(tmp_path / "away")
        found = await summary(daemon)
        assert (found["unchecked"], found["exit"]) == (1, 3)
        assert "make the folder" in found["problems"][0]["fix"]


async def test_the_reason_for_a_path_in_no_watch_does_not_repeat_the_path(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with uploaded(tmp_path, faulty_s3, faulty_s3.bucket, {}) as daemon:
        (found,) = (await verified(daemon, str(tmp_path / "elsewhere"))).values()
    assert (found["outcome"], found["why"]) == ("unchecked", "it is in no watched folder")


async def test_a_file_that_was_put_from_elsewhere_is_its_clients_to_open(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with uploaded(tmp_path, faulty_s3, faulty_s3.bucket, {}) as daemon:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_bytes(CONTENT)
        path, fd = str(elsewhere), os.open(elsewhere, os.O_RDONLY)
        try:
            put = daemon.view.put(
                fd, os.fsencode(elsewhere), "drop", key="k", expires=None, by_uid=0, progress=lambda _: None
            )
            await put
            await daemon.done()
            assert [answer for answer in await asked(daemon, paths=[path]) if "ask" in answer] == [{"ask": path}]
            assert (await asked(daemon, all=True))[-1]["summary"]["equal"] == 0
            (with_file, total) = await asked(daemon, (fd,), paths=[path])
            assert (told(with_file["file"]), total["summary"]["equal"]) == (("equal", "etag", "file"), 1)
            (by_receipt, _) = await asked(daemon, paths=[path], by_receipt=True)
            assert told(by_receipt["file"]) == ("equal", "etag", "receipt")
            elsewhere.write_bytes(CONTENT[::-1])
            (changed, _) = await asked(daemon, (fd,), paths=[path])
            assert told(changed["file"]) == ("differs", "etag", "file")
        finally:
            os.close(fd)


async def test_a_million_rows_are_a_page_at_a_time(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """No more comparisons run than the width, and no more rows are read ahead than a page."""
    files = {f"{number:03}": b"%d" % number for number in range(100)}
    async with uploaded(tmp_path, faulty_s3, faulty_s3.bucket, files) as daemon:
        asked_for: list[int] = []
        current = daemon.ledger.current

        async def counting(watch: str, after: bytes, before: bytes, limit: int) -> list[Any]:
            page = await current(watch, after, before, min(limit, 7))
            asked_for.append(len(page))
            return page

        daemon.ledger.current = counting  # type: ignore[method-assign] # a page of seven
        found = await summary(daemon)
        assert (found["equal"], sum(asked_for), max(asked_for)) == (100, 100, 7)


@pytest.mark.parametrize("request_", [{}, {"paths": []}, {"paths": ["/a", "/b"], "fds": 1}])
async def test_a_request_without_files_or_with_one_descriptor_for_two_is_refused(
    faulty_s3: FaultyS3, tmp_path: Path, request_: dict[str, Any]
) -> None:
    async with uploaded(tmp_path, faulty_s3, faulty_s3.bucket, {}) as daemon:
        fds = (0,) * request_.pop("fds", 0)
        with pytest.raises(PresigndError) as refused:
            await asked(daemon, fds, **request_)
        assert refused.value.exit_code == 2


async def test_a_client_that_leaves_ends_its_comparisons(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with uploaded(tmp_path, faulty_s3, faulty_s3.bucket, {"a": CONTENT}) as daemon:
        faulty_s3.fault("HEAD", "a", hang="before")
        async with aclosing(Responder(daemon.view).answer({"op": "verify", "all": True}, Peer.me(), ())) as answers:
            assert await anext(answers) == {"progress": {"checked": 0, "total": 1}}
            assert comparing()
        assert not comparing()


def comparing() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if "Verification" in repr(task.get_coro())]
