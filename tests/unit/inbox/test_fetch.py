"""Downloads of an inbox: resumed, compared in every form, and each fault with its code."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from presignd.errors import Fault, fault
from presignd.inbox import fetch
from presignd.inbox.fetch import WRITTEN, Fetcher
from presignd.inbox.folder import InboxFolder
from presignd.ledger import NewArrival
from presignd.presign import Grant, GrantRequest, Operation
from presignd.s3.checksums import checksum_of
from presignd.s3.multipart import etag_of_parts
from presignd.s3.responses import Response

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
REF = "Ab-_EfGhIjKlMnOp"
BODY = random.Random(1).randbytes(2 * WRITTEN + 5)


class Store:
    """A store that holds one object; it may cut an answer after some bytes, or take no notice of Range."""

    def __init__(self, body: bytes = BODY) -> None:
        self.body, self.cut_at, self.ranges = body, len(body) + 1, True
        self.status, self.code = 200, ""
        self.asked: list[tuple[GrantRequest, str]] = []
        self.client = SimpleNamespace(send=self.send)

    async def grant(self, request: GrantRequest) -> Grant:
        self.asked.append((request, ""))
        return Grant("GET", "http://store/x", {"Host": "store"}, NOW + timedelta(hours=1), NOW)

    async def send(
        self, grant: Grant, *, accept: Collection[int], into: Callable[[bytes], Awaitable[None]]
    ) -> Response:
        wanted = grant.headers.get("Range", "")
        self.asked[-1] = (self.asked[-1][0], wanted)
        if self.status in accept:
            return Response(self.status, {}, f"<Error><Code>{self.code}</Code></Error>".encode())
        start = int(wanted[6:-1]) if wanted and self.ranges else 0
        sent = self.body[start : self.cut_at]
        for place in range(0, len(sent), 64 << 10):
            await into(sent[place : place + (64 << 10)])
        if start + len(sent) < len(self.body) and self.cut_at <= len(self.body):
            raise fault("connection_reset")
        return Response(206 if wanted else 200, {}, b"")


@pytest.fixture
def folder(tmp_path: Path) -> InboxFolder:
    return InboxFolder("scans", tmp_path)


def new(**changes: Any) -> NewArrival:
    given = NewArrival(REF, "bucket", "in/a", "a", len(BODY), checksum_of(BODY, "md5"), 0, NOW)
    return given._replace(**changes)


def downloaded(folder: InboxFolder) -> Path:
    return folder.path / f".presignd-inbox-scans-{REF}"


async def fetched(folder: InboxFolder, store: Store, arrival: NewArrival) -> None:
    await Fetcher(folder, lambda: store).fetch(arrival)  # type: ignore[arg-type, return-value] # in its place


async def code_of(folder: InboxFolder, store: Store, arrival: NewArrival) -> str:
    with pytest.raises(Fault) as met:
        await fetched(folder, store, arrival)
    return met.value.code


def of_parts(size: int) -> str:
    parts = [BODY[start : start + size] for start in range(0, len(BODY), size)]
    return f"md5:{etag_of_parts([hashlib.md5(part, usedforsecurity=False).hexdigest() for part in parts])}"


@pytest.mark.parametrize(
    ("checksum", "part_size"),
    [
        *((checksum_of(BODY, algorithm), 0) for algorithm in ("md5", "sha256", "crc64nvme", "crc32c")),
        (of_parts(WRITTEN), WRITTEN),
    ],
)
async def test_each_form_of_a_checksum_is_compared(folder: InboxFolder, checksum: str, part_size: int) -> None:
    arrival = new(checksum=checksum, part_size=part_size)
    await fetched(folder, Store(), arrival)
    assert downloaded(folder).read_bytes() == BODY
    downloaded(folder).unlink()
    other = bytearray(BODY)
    other[WRITTEN] ^= 1
    assert await code_of(folder, Store(bytes(other)), arrival) == "wrong_bytes"
    assert downloaded(folder).stat().st_size == 0, "the next try begins anew"


@pytest.mark.parametrize(("checksum", "part_size"), [("", 0), ("md5:00-2", 0), ("sha1:00", 0), ("crc32c:00-2", 5)])
async def test_without_a_checksum_that_can_be_computed_the_size_is_compared(
    folder: InboxFolder, checksum: str, part_size: int
) -> None:
    await fetched(folder, Store(), new(checksum=checksum, part_size=part_size))
    assert downloaded(folder).read_bytes() == BODY


async def test_a_download_goes_on_where_it_was_cut(folder: InboxFolder) -> None:
    store = Store()
    store.cut_at = WRITTEN + 7
    assert await code_of(folder, store, new()) == "connection_reset"
    assert downloaded(folder).stat().st_size == WRITTEN + 7
    store.cut_at = len(BODY) + 1
    await fetched(folder, store, new())
    assert downloaded(folder).read_bytes() == BODY
    (first, whole), (second, rest) = store.asked
    assert first == second == GrantRequest(Operation.GET, "bucket", "in/a", fetch.EXPIRES)
    assert (whole, rest) == ("", f"bytes={WRITTEN + 7}-")
    await fetched(folder, store, new())
    assert len(store.asked) == 2, "what is whole is not asked for again"


async def test_a_store_that_knows_no_range_sends_the_whole_again(folder: InboxFolder) -> None:
    store = Store()
    downloaded(folder).write_bytes(b"half")
    store.ranges = False
    await fetched(folder, store, new())
    assert downloaded(folder).read_bytes() == BODY
    assert [wanted for _, wanted in store.asked] == ["bytes=4-", ""]


async def test_an_empty_file_needs_no_request(folder: InboxFolder) -> None:
    store = Store(b"")
    await fetched(folder, store, new(size=0, checksum=checksum_of(b"", "md5")))
    assert downloaded(folder).read_bytes() == b""
    assert store.asked == []


async def test_a_file_of_another_size_is_not_brought_in(folder: InboxFolder) -> None:
    assert await code_of(folder, Store(BODY + b"x"), new()) == "wrong_bytes"
    downloaded(folder).unlink()
    assert await code_of(folder, Store(BODY[:-1]), new()) == "wrong_bytes"
    downloaded(folder).write_bytes(BODY + b"more")
    await fetched(folder, Store(), new())
    assert downloaded(folder).read_bytes() == BODY


@pytest.mark.parametrize(("code", "ours"), [("NoSuchKey", "missing_object"), ("NoSuchBucket", "no_such_bucket")])
async def test_an_object_that_is_gone_is_told(folder: InboxFolder, code: str, ours: str) -> None:
    store = Store()
    store.status, store.code = 404, code
    assert await code_of(folder, store, new()) == ours


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EROFS, "inbox_failed")])
async def test_a_disk_that_takes_nothing_is_a_fault_of_the_folder(
    folder: InboxFolder, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fetch, "write_all", fail)
    assert await code_of(folder, Store(), new()) == code


async def test_a_planted_file_is_not_written_to(folder: InboxFolder, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    os.link(tmp_path / "mine", downloaded(folder))
    await fetched(folder, Store(), new())
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert downloaded(folder).read_bytes() == BODY
    downloaded(folder).unlink()
    downloaded(folder).symlink_to(tmp_path / "mine")
    assert await code_of(folder, Store(), new()) == "inbox_failed"
    downloaded(folder).unlink()
    os.mkfifo(downloaded(folder))
    async with asyncio.timeout(60):
        await fetched(folder, Store(), new())
    assert downloaded(folder).is_file()
