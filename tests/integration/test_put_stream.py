"""``put -`` in a whole daemon: a stream of unknown length arrives whole and once, or leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from presignd.control.documents import of_in_flight
from presignd.control.peer import Peer
from presignd.control.requests import Responder
from presignd.control.view import InFlightView
from presignd.errors import Fault, PresigndError, Refused, Unavailable, UsageError
from presignd.ledger.rows import as_recorded
from presignd.pipeline import put
from presignd.s3.checksums import checksum_of
from presignd.system.filesystem import close_quietly
from tests.faulty_etags import ETAGS
from tests.faulty_s3 import BUCKET, FOREVER, FaultyS3, Object
from tests.integration.test_faults_parts import COMPLETE, CREATE, ONE_PART, PART, etag_in_parts, in_parts, none_left
from tests.running import Running, running, watch
from tests.versions import new

SMALL = random.Random(1).randbytes(PART - 1)
LARGE = random.Random(2).randbytes(3 * PART + 5)
NAME = "a"


class Client:
    """What ``presignd put -`` is to the daemon: a socket that it sends frames over, and the answers it gets."""

    def __init__(self, daemon: Running, *, patience: float = 5.0, **request: Any) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        responder = Responder(daemon.view, patience=patience)
        asked = {"op": "put_stream", "name": NAME, **request}
        self.answers: list[dict[str, Any]] = []
        self.link = asyncio.create_task(self._ask(responder, asked))

    async def _ask(self, responder: Responder, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            async for answer in responder.answer(asked, Peer.me(), [self._theirs.fileno()]):
                self.answers.append(answer)
        finally:
            self._theirs.close()
            self._ours.close()
        link: dict[str, Any] = self.answers[-1]["link"]
        return link

    async def write(self, data: bytes) -> None:
        """Send bytes in frames of an odd size; more than the daemon has room for waits."""
        loop = asyncio.get_running_loop()
        for at in range(0, len(data), 100_003):
            piece = data[at : at + 100_003]
            await loop.sock_sendall(self._ours, len(piece).to_bytes(4, "big") + piece)

    async def end(self) -> None:
        await asyncio.get_running_loop().sock_sendall(self._ours, bytes(4))

    async def send(self, data: bytes) -> dict[str, Any]:
        """Send all of ``data`` and its end; return the link."""
        writing = asyncio.create_task(self._write_all(data))
        try:
            return await self.link
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write_all(self, data: bytes) -> None:
        await self.write(data)
        await self.end()

    def hang_up(self) -> None:
        self._ours.close()

    async def interrupt(self) -> None:
        self.link.cancel()
        await asyncio.gather(self.link, return_exceptions=True)


@asynccontextmanager
async def daemon_on(folder: Path, store: FaultyS3, **watched: Any) -> AsyncIterator[Running]:
    async with running(in_parts(folder, store, watch(folder, **watched))) as daemon:
        yield daemon


def stored(store: FaultyS3) -> dict[str, bytes]:
    return {key: found.body for (_, key), found in store.objects.items() if not key.startswith(".")}


async def put_of(daemon: Running, data: bytes, **request: Any) -> dict[str, Any]:
    return await Client(daemon, **request).send(data)


async def nothing_left(daemon: Running, store: FaultyS3) -> None:
    """No object, no upload, no descriptor, and a ledger where the version has ended."""
    await none_left(daemon, store)
    assert stored(store) == {}
    await daemon.until(lambda: not daemon.pipeline.in_effect.at_work(), "end of its work")
    [event] = await daemon.said_by_now("file.done")
    assert event["status"] == "vanished"


@pytest.mark.parametrize("data", [b"", b"x", SMALL], ids=["empty", "one byte", "all but a part"])
async def test_a_small_stream_is_one_put(tmp_path: Path, faulty_s3: FaultyS3, data: bytes) -> None:
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        link = await put_of(daemon, data)
    assert stored(faulty_s3) == {NAME: data}
    assert (link["key"], link["size"], link["path"]) == (NAME, len(data), f"/dev/stdin/{NAME}")
    assert link["checksum"] == checksum_of(data, "md5")
    assert not faulty_s3.seen("POST", NAME)


@pytest.mark.parametrize("data", [LARGE[:PART], LARGE[: 2 * PART], LARGE], ids=["a part", "two parts", "3 and a bit"])
async def test_a_larger_one_goes_in_parts(tmp_path: Path, faulty_s3: FaultyS3, data: bytes) -> None:
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        link = await put_of(daemon, data)
        [event] = daemon.events("file.done")
        await none_left(daemon, faulty_s3)
    assert stored(faulty_s3) == {NAME: data}
    assert (link["size"], link["checksum"]) == (len(data), "md5:" + etag_in_parts(data).strip('"'))
    assert (event["status"], event["size"]) == ("linked", len(data))
    assert daemon.links() == [NAME]


async def test_parts_go_while_the_writer_still_writes_and_no_more_than_the_room_is_read(
    tmp_path: Path, faulty_s3: FaultyS3
) -> None:
    """Two parts in flight and one more: 4 MiB can't be written while the store keeps the first parts waiting."""
    data = random.Random(3).randbytes(8 * PART)
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        client = Client(daemon)
        await client.write(data[:PART])
        await daemon.until(lambda: [s for s in faulty_s3.seen("PUT", NAME) if "partNumber" in s.query], "a part")
        await daemon.until(lambda: client.answers, "an answer")
        assert client.answers[0]["size"] is None
        faulty_s3.fault("PUT", NAME, status=503, code="SlowDown", times=FOREVER)
        writing = asyncio.create_task(client.write(data[PART:]))
        await daemon.said_by_now("upload.retry", 2)
        assert not writing.done()
        faulty_s3.heal()
        await writing
        await client.end()
        await client.link
    assert stored(faulty_s3) == {NAME: data}


AGAIN: dict[str, dict[str, Any]] = {
    "a create that fails": {**CREATE, "status": 500, "code": "InternalError"},
    "a part that fails": {**ONE_PART, "status": 500, "code": "InternalError"},
    "a part of another ETag": {**ONE_PART, "etag": f'"{"0" * 32}"'},
    "a complete that fails": {**COMPLETE, "status": 500, "code": "InternalError"},
}


@pytest.mark.parametrize("how", AGAIN)
async def test_a_fault_sends_what_waits_again(tmp_path: Path, faulty_s3: FaultyS3, how: str) -> None:
    faulty_s3.fault(**AGAIN[how])
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        await put_of(daemon, LARGE)
        assert daemon.events("file.quarantined") == []
    assert stored(faulty_s3) == {NAME: LARGE}
    assert daemon.links() == [NAME]


@pytest.mark.parametrize("order", [ONE_PART, COMPLETE], ids=["part", "complete"])
async def test_an_upload_that_the_store_lost_ends_it(
    tmp_path: Path, faulty_s3: FaultyS3, order: dict[str, Any]
) -> None:
    """After the first part, so that there is something that can't be sent again."""
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        client = Client(daemon)
        await client.write(LARGE[:PART])
        await daemon.until(lambda: _parts(daemon) == 1, "a part")
        faulty_s3.fault(**order, status=404, code="NoSuchUpload", times=FOREVER)
        with pytest.raises(Refused, match="stream_lost"):
            await client.send(LARGE[PART:])
        await nothing_left(daemon, faulty_s3)
    assert daemon.codes("file.quarantined") == ["stream_lost"]


def _parts(daemon: Running) -> int:
    with sqlite3.connect(f"file:{daemon.folder}/state/ledger.sqlite3?mode=ro", uri=True) as ledger:
        return int(ledger.execute("SELECT count(*) FROM part").fetchone()[0])


async def test_its_checksum_is_the_crc_of_the_whole_where_the_store_proves_it(
    tmp_path: Path, faulty_s3: FaultyS3
) -> None:
    faulty_s3.checksums = {"sha256", "crc64nvme", "crc32c"}
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        for data in (SMALL, LARGE):
            assert (await put_of(daemon, data))["checksum"] == checksum_of(data, "crc64nvme")
    assert stored(faulty_s3) == {NAME: LARGE}


@pytest.mark.parametrize("form", ETAGS)
async def test_it_arrives_once_whatever_the_etags_are(tmp_path: Path, faulty_s3: FaultyS3, form: str) -> None:
    faulty_s3.etags = ETAGS[form]
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        for data in (LARGE, LARGE[1:]):
            await put_of(daemon, data)
            assert stored(faulty_s3) == {NAME: data}
        assert daemon.events("upload.retry", "file.quarantined") == []


async def test_an_object_whose_complete_had_no_answer_is_known_as_its_own(tmp_path: Path, faulty_s3: FaultyS3) -> None:
    """Not at once, as the store doesn't tell: by the next attempt, which has no part to send again."""
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        client = Client(daemon)
        await client.write(LARGE)
        await daemon.until(lambda: _parts(daemon) == 3, "three parts")
        faulty_s3.fault(**COMPLETE, reset="after")
        faulty_s3.fault("HEAD", NAME, status=500, code="InternalError", times=2)
        await client.end()
        link = await client.link
        assert daemon.events("upload.retry")
        await none_left(daemon, faulty_s3)
    assert stored(faulty_s3) == {NAME: LARGE}
    assert link["checksum"] == "md5:" + etag_in_parts(LARGE).strip('"')
    assert daemon.links() == [NAME]


async def test_another_object_under_its_key_meanwhile_ends_it(tmp_path: Path, faulty_s3: FaultyS3) -> None:
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        client = Client(daemon)
        await client.write(LARGE[:PART])
        await daemon.until(lambda: _parts(daemon) == 1, "a part")
        faulty_s3.objects[BUCKET, NAME] = Object(b"another's", '"theirs"', {}, faulty_s3.now())
        with pytest.raises(Refused, match="stream_lost"):
            await client.send(LARGE[PART:])
        await none_left(daemon, faulty_s3)
    assert stored(faulty_s3) == {NAME: b"another's"}


async def test_the_next_stream_of_a_name_replaces_its_object_and_no_other(tmp_path: Path, faulty_s3: FaultyS3) -> None:
    faulty_s3.objects[BUCKET, "b"] = Object(b"another's", '"theirs"', {}, faulty_s3.now())
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        for data in (LARGE, LARGE[1:], SMALL, LARGE):
            link = await put_of(daemon, data)
            assert (link["key"], stored(faulty_s3)[NAME]) == (NAME, data)
        assert (await put_of(daemon, LARGE, name="b"))["key"] == "b~2"
    assert stored(faulty_s3)["b"] == b"another's"


async def test_what_is_over_max_size_is_refused(tmp_path: Path, faulty_s3: FaultyS3) -> None:
    async with daemon_on(tmp_path, faulty_s3, max_size=2 * PART) as daemon:
        with pytest.raises(Refused, match="too_large"):
            await put_of(daemon, LARGE)
        await nothing_left(daemon, faulty_s3)
        await put_of(daemon, LARGE[: 2 * PART])
    assert stored(faulty_s3) == {NAME: LARGE[: 2 * PART]}


async def test_what_is_over_max_size_in_its_first_part_is_refused(tmp_path: Path, faulty_s3: FaultyS3) -> None:
    async with daemon_on(tmp_path, faulty_s3, max_size=10) as daemon:
        for data in (SMALL, LARGE):
            with pytest.raises(Fault, match="larger") as caught:
                await put_of(daemon, data)
            assert caught.value.exit_code == 4
    assert stored(faulty_s3) == {}


@pytest.mark.parametrize("part", [0, 1], ids=["in the first part", "after it"])
async def test_a_writer_that_is_gone_without_an_end_completes_nothing(
    tmp_path: Path, faulty_s3: FaultyS3, part: int
) -> None:
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        client = Client(daemon)
        await client.write(LARGE[: part * PART + 7])
        if part:
            await daemon.until(lambda: _parts(daemon) == 1, "a part")
        client.hang_up()
        with pytest.raises((Refused, Fault), match="in the middle"):
            await client.link
        await none_left(daemon, faulty_s3)
    assert stored(faulty_s3) == {}


@pytest.mark.parametrize("part", [0, 1, 2])
async def test_a_command_that_is_interrupted_leaves_nothing(tmp_path: Path, faulty_s3: FaultyS3, part: int) -> None:
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        client = Client(daemon)
        await client.write(LARGE[: part * PART + 7])
        if part:
            await daemon.until(lambda: _parts(daemon) == part, "the parts")
        await client.interrupt()
        await none_left(daemon, faulty_s3)
        await daemon.until(lambda: not daemon.pipeline.in_effect.at_work(), "end of its work")
        assert [event["status"] for event in daemon.events("file.done")] == ["vanished"] * bool(part)
    assert stored(faulty_s3) == {}


async def test_it_is_interrupted_while_it_waits_for_the_store_too(
    tmp_path: Path, faulty_s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(put, "LET_GO_SECONDS", 0.0)
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        client = Client(daemon)
        await client.write(LARGE[:PART])
        await daemon.until(lambda: _parts(daemon) == 1, "a part")
        faulty_s3.fault(status=503, code="ServiceUnavailable", times=FOREVER)
        await client.write(LARGE[PART:])
        await daemon.said_by_now("store.unreachable")
        await client.interrupt()
        faulty_s3.heal()
        await daemon.said_by_now("store.back")
        daemon.work.sweeper.wake()  # the first try failed, and it waits a minute for the next
        await nothing_left(daemon, faulty_s3)


async def test_a_daemon_that_ends_aborts_it_at_its_next_start(tmp_path: Path, faulty_s3: FaultyS3) -> None:
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        client = Client(daemon)
        await client.write(LARGE[: 2 * PART])
        await daemon.until(lambda: _parts(daemon) == 2, "two parts")
    await client.interrupt()
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        await nothing_left(daemon, faulty_s3)


async def test_a_full_disk_ends_it(tmp_path: Path, faulty_s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    async with daemon_on(tmp_path, faulty_s3) as daemon:
        client = Client(daemon)
        await client.write(LARGE[:PART])
        await daemon.until(lambda: _parts(daemon) == 1, "a part")
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(Refused, match="No space left"):
            await client.send(LARGE[PART:])
        await nothing_left(daemon, faulty_s3)


async def test_a_blocked_store_is_waited_for_longer_once_something_was_sent(
    tmp_path: Path, faulty_s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    away: dict[str, Any] = {"status": 503, "code": "ServiceUnavailable", "times": FOREVER}
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        client = Client(daemon, patience=0.0)
        await client.write(LARGE[:PART])
        await daemon.until(lambda: _parts(daemon) == 1, "a part")
        faulty_s3.fault(**away)
        writing = asyncio.create_task(client.write(LARGE[PART:]))
        await daemon.said_by_now("store.unreachable")
        answers = len(client.answers)
        await daemon.until(lambda: len(client.answers) > answers + 1, "answers while it is blocked")
        faulty_s3.heal()
        await writing
        await client.end()
        await client.link
        faulty_s3.fault(**away)
        with pytest.raises(Unavailable):
            await Client(daemon, patience=0.0, name="b").send(LARGE)
        monkeypatch.setattr("presignd.control.requests.STREAM_PATIENCE", 0.0)
        faulty_s3.heal()
        await daemon.said_by_now("store.back", 2)
        client = Client(daemon, name="c")
        await client.write(LARGE[:PART])
        await daemon.until(lambda: _parts(daemon) == 1, "a part")
        faulty_s3.fault(**away)
        with pytest.raises(Unavailable):
            await client.send(LARGE[PART:])
    assert daemon.links() == [NAME]


REFUSED: dict[str, tuple[dict[str, Any], type[PresigndError], str]] = {
    "no name": ({"name": ""}, UsageError, "names no file"),
    "a folder": ({"name": ".."}, UsageError, "names no file"),
    "a path": ({"name": "a/b"}, UsageError, "slash"),
    "a NUL": ({"name": "a\0b"}, UsageError, "NUL"),
    "a long name": ({"name": "a" * 256}, UsageError, "255"),
    "no UTF-8": ({"name": "\udcff"}, UsageError, "not understood"),
    "a name that no key holds": ({"name": "a\x1bb"}, Refused, "key_refused"),
    "a bad key": ({"key": "/x"}, Fault, "segment"),
    "no such watch": ({"watch": "other"}, UsageError, "no watch"),
}


@pytest.mark.parametrize("how", REFUSED)
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_what_can_not_be_is_refused(tmp_path: Path, faulty_s3: FaultyS3, how: str, data: bytes) -> None:
    request, kind, text = REFUSED[how]
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        with pytest.raises(kind) as caught:
            await put_of(daemon, data, **request)
    assert text in str(caught.value) + str(getattr(caught.value, "problems", ""))
    assert stored(faulty_s3) == {}


async def test_a_key_of_the_hash_is_refused_unless_the_key_is_given(tmp_path: Path, faulty_s3: FaultyS3) -> None:
    async with daemon_on(tmp_path, faulty_s3, key="{sha256}") as daemon:
        for data in (SMALL, LARGE):
            with pytest.raises(UsageError, match="sha256"):
                await put_of(daemon, data)
            assert (await put_of(daemon, data, key="k"))["key"] == "k"
            assert stored(faulty_s3) == {"k": data}


async def test_it_takes_nothing_but_a_socket(tmp_path: Path, faulty_s3: FaultyS3) -> None:
    """Reading a file or a pipe of the client's could hold up the daemon."""
    async with daemon_on(tmp_path, faulty_s3) as daemon:
        responder = Responder(daemon.view)
        for fds in ([], [os.open(tmp_path, os.O_RDONLY)]):
            with pytest.raises(UsageError, match="without a socket"):
                await anext(responder.answer({"op": "put_stream", "name": "a"}, Peer.me(), fds))
            for fd in fds:
                close_quietly(fd)


def test_what_has_no_size_yet_is_shown_as_large_as_what_was_sent() -> None:
    version = as_recorded(new(b"/dev/stdin/a"), "a")
    shown = of_in_flight(InFlightView(version, sent=version.size + 100, rate=10.0), {})
    assert (shown["size"], shown["sent"], shown["seconds_left"]) == (version.size + 100, version.size + 100, 0)
