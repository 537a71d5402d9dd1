"""Large bodies by sendfile(2): what arrives, and each way in which sending can end early."""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from presignd.config import PresignConfig, UploadConfig
from presignd.errors import Fault
from presignd.presign import Grant
from presignd.s3.responses import Response
from presignd.store.body import LEAST_SENDFILE as LEAST
from presignd.store.body import PIECE
from presignd.store.client import Slice, StoreClient
from presignd.system.filesystem import read_cached
from presignd.system.threads import BACKGROUND, MOST_THREADS
from tests.descriptors import open_descriptors
from tests.faulty_s3 import BUCKET, FaultyS3
from tests.raw_servers import OK, Talk, on_both_loops, server

SIZE = 2 * LEAST + 12345
READ_AHEAD = 16 << 10
SIGNED = (
    f"X-Amz-Date={datetime.now(UTC):%Y%m%dT%H%M%SZ}&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature="
    + "ab" * 32
)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


class Seen:
    """What was sent by sendfile(2), call by call."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.real = os.sendfile

    def __call__(self, out: int, file: int, offset: int, count: int) -> int:
        self.sent.append(sent := self.real(out, file, offset, count))
        return sent


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    watched = Seen()
    monkeypatch.setattr(os, "sendfile", watched)
    return watched


@pytest.fixture
def file() -> Iterator[int]:
    with tempfile.TemporaryFile() as made:
        made.write(os.urandom(SIZE))
        made.flush()
        yield made.fileno()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


def grant_for(endpoint: str, size: int) -> Grant:
    now = datetime.now(UTC)
    headers = {"Content-Length": str(size)}
    return Grant("PUT", f"{endpoint}/{BUCKET}/key?{SIGNED}", headers, now + timedelta(hours=1), now)


@asynccontextmanager
async def client(endpoint: str, *, timeout: float = 10.0, **config: object) -> AsyncIterator[StoreClient]:
    upload = UploadConfig.model_validate({"timeout": timeout, "max_rate": config.pop("max_rate", None)})
    made = StoreClient(PresignConfig.model_validate({"endpoint": endpoint, **config}), upload)
    try:
        yield made
    finally:
        await made.close()


async def send(store: StoreClient, endpoint: str, of: Slice) -> Response:
    return await store.send(grant_for(endpoint, of.size), of)


async def fault_by(talk: Talk, file: int, *, timeout: float = 10.0, then: Callable[[], object] = bool) -> Fault:
    """Send the file to a server that does so; return what goes wrong, with no descriptor left behind.

    ``then`` has a server that holds its end let go.
    """
    async with server(talk, receive=READ_AHEAD) as endpoint:
        before = open_descriptors()
        async with client(endpoint, timeout=timeout) as store:
            with pytest.raises(Fault) as met:
                await send(store, endpoint, Slice(file, 0, SIZE, whole=True))
        then()
        await until(lambda: open_descriptors() <= before)
    return met.value


# --- through --------------------------------------------------------------------------------------------


@on_both_loops
async def test_just_the_slices_bytes_arrive_and_the_connection_is_used_again(file: int, seen: Seen) -> None:
    came, connections = list[bytes](), list[Talk]()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(take)
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            came.append(await reader.readexactly(size))
            writer.write(OK)

    slices = [Slice(file, 7, LEAST + 1, whole=False), Slice(file, LEAST, SIZE - LEAST, whole=True)]
    async with server(take, receive=READ_AHEAD) as endpoint, client(endpoint) as store:
        for one in slices:
            assert (await send(store, endpoint, one)).status == 200
    assert came == [os.pread(file, one.size, one.offset) for one in slices]
    assert len(connections) == 1
    assert sum(seen.sent) == sum(one.size - PIECE for one in slices), "another way was taken: the test shows nothing"


@on_both_loops
async def test_a_limited_body_goes_in_pieces_that_are_paid_for(faulty_s3: FaultyS3, file: int, seen: Seen) -> None:
    """A turn never sends more than a tenth of a second's bytes, so files take turns as finely as ever."""
    async with client(faulty_s3.endpoint, max_rate=20_000_000) as store:
        await send(store, faulty_s3.endpoint, Slice(file, 0, SIZE, whole=True))
    assert sum(seen.sent) == SIZE - PIECE
    assert max(seen.sent) <= 2_000_000


@on_both_loops
async def test_a_reader_that_dawdles_is_no_timeout_while_bytes_move(file: int, seen: Seen) -> None:
    """It takes longer than the timeout in all, and is never quiet for that long."""

    async def dawdle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(10):
            await reader.readexactly(SIZE // 10)
            await asyncio.sleep(0.15)
        await reader.readexactly(SIZE % 10)
        writer.write(OK)

    async with server(dawdle, receive=READ_AHEAD) as endpoint, client(endpoint, timeout=1) as store:
        assert (await send(store, endpoint, Slice(file, 0, SIZE, whole=True))).status == 200
    assert sum(seen.sent) == SIZE - PIECE


@on_both_loops
async def test_a_body_goes_while_all_threads_hash(faulty_s3: FaultyS3, file: int, seen: Seen) -> None:
    """The parts of many large files may hash for a minute: what is on its way must not time out meanwhile."""
    through = threading.Event()
    hashing = [BACKGROUND.submit(through.wait) for _ in range(MOST_THREADS)]
    try:
        async with client(faulty_s3.endpoint) as store:
            await send(store, faulty_s3.endpoint, Slice(file, 0, SIZE, whole=True))
    finally:
        through.set()
    assert all(job.result() for job in hashing)
    assert sum(seen.sent) == SIZE - PIECE


# --- the store ends it ------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("hang_up", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize(("status", "code"), [(403, "access_denied"), (507, "store_full")])
async def test_an_answer_before_the_bodys_end_is_told_at_once(
    file: int, status: int, code: str, *, hang_up: bool
) -> None:
    """Whether the store then leaves the rest unread, or hangs up on it, by which the sender's way breaks first."""
    hold = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(LEAST // 2)
        writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)
        await writer.drain()
        if not hang_up:
            await hold.wait()

    assert (await fault_by(refuse, file, then=hold.set)).code == code


@on_both_loops
async def test_an_answer_is_read_though_the_connection_takes_no_more(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread may meet the broken pipe before the loop has read why."""
    loop, broken = asyncio.get_running_loop(), asyncio.Event()

    def broken_pipe(*_: int) -> int:
        loop.call_soon_threadsafe(broken.set)
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await broken.wait()
        await asyncio.sleep(0.05)
        writer.write(b"HTTP/1.1 507 No\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    monkeypatch.setattr(os, "sendfile", broken_pipe)
    assert (await fault_by(refuse, file)).code == "store_full"


@on_both_loops
@pytest.mark.parametrize("how", ["reset", "half-closed", "closed"])
async def test_a_connection_that_ends_under_way_is_told_as_that(file: int, how: str) -> None:
    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(LEAST // 2)
        if how == "reset":
            writer.transport.abort()
        elif how == "half-closed":
            writer.write_eof()
            await reader.read()

    assert (await fault_by(end, file)).code == "connection_reset"


@on_both_loops
async def test_a_store_that_stops_reading_is_a_timeout(file: int) -> None:
    hold = asyncio.Event()

    async def stop(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readexactly(LEAST // 2)
        await hold.wait()

    assert (await fault_by(stop, file, timeout=0.5, then=hold.set)).code == "timeout"


@on_both_loops
async def test_a_cancelled_body_ends_its_connection_and_leaves_no_descriptor(file: int) -> None:
    """Also while its thread waits for a store that reads nothing."""
    stuck, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stop(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readexactly(LEAST // 2)
        stuck.set()
        await go_on.wait()
        while await reader.read(1 << 20):
            pass
        ended.set()

    async with server(stop, receive=READ_AHEAD) as endpoint:
        before = open_descriptors()
        async with client(endpoint, timeout=60) as store:
            sending = asyncio.create_task(send(store, endpoint, Slice(file, 0, SIZE, whole=True)))
            await stuck.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            go_on.set()
            await asyncio.wait_for(ended.wait(), 10)
        await until(lambda: open_descriptors() <= before)


# --- the file -------------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("found", [SIZE - 1, SIZE + 1, 0], ids=["shorter", "longer", "empty"])
async def test_a_file_that_is_not_as_long_as_it_was_leaves_no_object(
    faulty_s3: FaultyS3, file: int, found: int
) -> None:
    os.truncate(file, found)
    async with client(faulty_s3.endpoint) as store:
        with pytest.raises(Fault) as met:
            await send(store, faulty_s3.endpoint, Slice(file, 0, SIZE, whole=True))
    assert met.value.code == "changed_while_uploading"
    assert faulty_s3.objects == {}


@on_both_loops
@pytest.mark.parametrize("size", [LEAST, SIZE + LEAST], ids=["cut", "grown"])
async def test_a_file_whose_length_changes_under_way_is_never_whole_at_the_store(file: int, size: int) -> None:
    came = list[int]()

    async def change(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(64 << 10)
        os.truncate(file, size)
        came.append((64 << 10) + len(await reader.read(-1)))

    assert (await fault_by(change, file)).code == "changed_while_uploading"
    await until(lambda: bool(came))
    assert came[0] < SIZE


@on_both_loops
async def test_a_disk_that_fails_is_told_as_that(
    faulty_s3: FaultyS3, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    pread = os.pread
    monkeypatch.setattr(os, "sendfile", fail)
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, size, at) if at > LEAST else fail())
    async with client(faulty_s3.endpoint) as store:
        with pytest.raises(Fault) as met:
            await send(store, faulty_s3.endpoint, Slice(file, 0, SIZE, whole=True))
    assert met.value.code == "read_error"


# --- no such way ----------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("after", [0, 1], ids=["from the start", "under way"])
async def test_where_sendfile_is_refused_the_rest_is_read(
    faulty_s3: FaultyS3, file: int, seen: Seen, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FUSE file system, or a filter of system calls, may know none."""

    def refuse(out: int, fd: int, offset: int, count: int) -> int:
        if len(seen.sent) >= after:
            raise OSError(errno.EINVAL, "Invalid argument")
        return seen(out, fd, offset, min(count, 100_000))

    monkeypatch.setattr(os, "sendfile", refuse)
    async with client(faulty_s3.endpoint) as store:
        await send(store, faulty_s3.endpoint, Slice(file, 0, SIZE, whole=True))
    assert faulty_s3.objects[BUCKET, "key"].body == os.pread(file, SIZE, 0)
    assert len(seen.sent) == after


@on_both_loops
async def test_without_a_free_descriptor_a_body_is_read(
    faulty_s3: FaultyS3, file: int, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.dup, [1]

    def none_left(fd: int) -> int:
        if not left:
            raise OSError(errno.EMFILE, "Too many open files")
        left.pop()
        return real(fd)

    monkeypatch.setattr(os, "dup", none_left)
    async with client(faulty_s3.endpoint) as store:
        await send(store, faulty_s3.endpoint, Slice(file, 0, SIZE, whole=True))
    assert faulty_s3.objects[BUCKET, "key"].body == os.pread(file, SIZE, 0)
    assert not seen.sent


@pytest.fixture
def over_tls(tmp_path: Path) -> Iterator[FaultyS3]:
    """Serve a store behind TLS; its CA is in ``ca.pem``."""
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    store = FaultyS3(tls=context)
    store.start()
    yield store
    store.stop()


def open_sockets() -> int:
    """Return how many sockets this process has open."""
    count = 0
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            count += str(each.readlink()).startswith("socket:")
    return count


def not_cached(*_: object) -> int:
    raise BlockingIOError


@on_both_loops
@pytest.mark.parametrize("cached", [True, False])
async def test_tls_is_spoken_here_so_a_body_is_read(
    file: int, seen: Seen, over_tls: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, cached: bool
) -> None:
    if not cached:
        monkeypatch.setattr(os, "preadv", not_cached)
    async with client(over_tls.endpoint, ca_file=str(tmp_path / "ca.pem")) as store:
        await send(store, over_tls.endpoint, Slice(file, 0, SIZE, whole=True))
    assert over_tls.objects[BUCKET, "key"].body == os.pread(file, SIZE, 0)
    assert not seen.sent


@on_both_loops
@pytest.mark.parametrize("found", [SIZE - 1, SIZE + 1, 0], ids=["shorter", "longer", "empty"])
async def test_over_tls_a_file_that_is_not_as_long_as_it_was_leaves_no_object(
    over_tls: FaultyS3, file: int, tmp_path: Path, found: int
) -> None:
    os.truncate(file, found)
    before = open_sockets()
    async with client(over_tls.endpoint, ca_file=str(tmp_path / "ca.pem")) as store:
        with pytest.raises(Fault) as met:
            await send(store, over_tls.endpoint, Slice(file, 0, SIZE, whole=True))
    assert met.value.code == "changed_while_uploading"
    await until(lambda: open_sockets() <= before)  # both ends have closed the connection
    assert over_tls.objects == {}


@on_both_loops
async def test_what_the_page_cache_has_is_read_without_a_thread(
    over_tls: FaultyS3, file: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        read_cached(file, 1, 0)
    except BlockingIOError:
        pytest.skip("this filesystem does not tell what it has cached")
    content = os.pread(file, SIZE, 0)
    monkeypatch.setattr(os, "pread", not_cached)
    async with client(over_tls.endpoint, ca_file=str(tmp_path / "ca.pem")) as store:
        await send(store, over_tls.endpoint, Slice(file, 0, SIZE, whole=True))
    assert over_tls.objects[BUCKET, "key"].body == content
