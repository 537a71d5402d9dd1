"""The store's client against servers that misbehave below S3: each failure has its code and its limit."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import resource
import socket
import ssl
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
import trustme

from presignd.config import PresignConfig, UploadConfig
from presignd.connection import proxy_for
from presignd.errors import Fault
from presignd.presign import Grant
from presignd.s3.responses import Response
from presignd.store.body import LEAST_SENDFILE as LEAST
from presignd.store.body import PIECE
from presignd.store.client import KEPT_BODY, Slice, StoreClient
from tests.faulty_s3 import BUCKET, FOREVER, FaultyS3, Object
from tests.raw_servers import OK, read_request, says, server

QUERY = f"X-Amz-Date={datetime.now(UTC):%Y%m%dT%H%M%SZ}&X-Amz-Expires=3600&X-Amz-SignedHeaders=host"
SIGNED = f"{QUERY}&X-Amz-Signature={'ab' * 32}"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speak to the servers of the test themselves, whatever the machine's environment says."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


def grant_for(endpoint: str, size: int = 0, method: str = "PUT") -> Grant:
    now = datetime.now(UTC)
    headers = {"Content-Length": str(size)} if method == "PUT" else {}
    return Grant(method, f"{endpoint}/{BUCKET}/key?{SIGNED}", headers, now + timedelta(hours=1), now)


@asynccontextmanager
async def client(endpoint: str, *, timeout: float = 5.0, **presign: object) -> AsyncIterator[StoreClient]:
    config = PresignConfig.model_validate({"endpoint": endpoint, **presign})
    made = StoreClient(config, UploadConfig(timeout=timeout))
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture(params=[b"body", bytes(PIECE + 1)], ids=["lean", "session"])
def body(request: pytest.FixtureRequest) -> bytes:
    """Return a body that is sent without aiohttp's session, and one that is sent by it."""
    return cast("bytes", request.param)


async def fault_at(endpoint: str, body: bytes, *, timeout: float = 5.0, **presign: object) -> Fault:
    """Send ``body`` there and return what goes wrong, with no address in it but the host's."""
    async with client(endpoint, timeout=timeout, **presign) as store:
        with pytest.raises(Fault) as met:
            await store.send(grant_for(endpoint, len(body)), body)
    for told in (str(met.value), repr(met.value), met.value.message):
        assert "X-Amz" not in told
    assert met.value.__cause__ is None
    assert met.value.__suppress_context__ or met.value.__context__ is None
    return met.value


@contextmanager
def file_of(content: bytes) -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.fileno()


# --- no connection ----------------------------------------------------------------------------------


async def test_nothing_listens(faulty_s3: FaultyS3, body: bytes) -> None:
    faulty_s3.stop()
    problem = await fault_at(faulty_s3.endpoint, body)
    assert problem.code == "connection_refused"
    assert problem.detail == faulty_s3.endpoint.removeprefix("http://")


async def test_a_name_that_is_none(body: bytes) -> None:
    problem = await fault_at("http://store.invalid:9000", body)
    assert (problem.code, problem.detail) == ("dns", "store.invalid")


async def test_an_address_without_a_route(body: bytes) -> None:
    """The kernel refuses a connection to the broadcast address by itself."""
    assert (await fault_at("http://255.255.255.255:9000", body)).code == "no_route"


async def test_a_proxy_that_is_not_there(faulty_s3: FaultyS3, body: bytes) -> None:
    assert (await fault_at(faulty_s3.endpoint, body, proxy="http://127.0.0.1:9")).code == "proxy"


def test_the_configured_proxy_wins_over_the_environments() -> None:
    environ = {"https": "http://env:1"}
    assert proxy_for("https://store/b", "http://own:1", environ) == "http://own:1"
    assert proxy_for("https://store/b", "", environ) == "http://env:1"
    assert proxy_for("http://store/b", "", environ) is None
    assert proxy_for("https://store/b", "", {"https": "proxy:3128"}) == "http://proxy:3128"
    assert proxy_for("https://store/b", "", {**environ, "no": "10.0.0.0/8,store"}) is None


@pytest.mark.parametrize("moment", ["before", "during", "after"])
async def test_a_connection_that_breaks(faulty_s3: FaultyS3, moment: str, body: bytes) -> None:
    faulty_s3.fault(times=FOREVER, reset=moment)
    assert (await fault_at(faulty_s3.endpoint, body)).code == "connection_reset"


async def test_a_connection_that_ends_without_a_word(body: bytes) -> None:
    async with server(says(b"")) as endpoint:
        assert (await fault_at(endpoint, body)).code == "connection_reset"


async def test_an_answer_that_breaks_off_in_its_body(body: bytes) -> None:
    async with server(says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")) as endpoint:
        assert (await fault_at(endpoint, body)).code == "connection_reset"


# --- TLS --------------------------------------------------------------------------------------------


@contextmanager
def tls_store(certificate: trustme.LeafCert) -> Iterator[FaultyS3]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    store = FaultyS3(tls=context)
    store.start()
    try:
        yield store
    finally:
        store.stop()


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(ca: trustme.CA, tmp_path: Path) -> Path:
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tmp_path / "ca.pem"


async def test_a_plain_port_spoken_to_by_https(faulty_s3: FaultyS3, body: bytes) -> None:
    problem = await fault_at(faulty_s3.endpoint.replace("http:", "https:"), body)
    assert problem.code == "tls"
    assert "http://" in problem.fix


async def test_a_tls_port_spoken_to_by_http(ca: trustme.CA, body: bytes) -> None:
    with tls_store(ca.issue_cert("127.0.0.1")) as store:
        problem = await fault_at(store.endpoint.replace("https:", "http:"), body)
    assert problem.code in ("bad_response", "connection_reset")


async def test_an_unknown_ca(ca: trustme.CA, body: bytes) -> None:
    with tls_store(ca.issue_cert("127.0.0.1")) as store:
        problem = await fault_at(store.endpoint, body)
    assert problem.code == "tls"
    assert "unable to get local issuer certificate" in problem.message


async def test_an_expired_certificate(ca: trustme.CA, ca_file: Path, body: bytes) -> None:
    ended = datetime.now(UTC) - timedelta(days=1)
    with tls_store(ca.issue_cert("127.0.0.1", not_after=ended, not_before=ended - timedelta(days=1))) as store:
        problem = await fault_at(store.endpoint, body, ca_file=ca_file)
    assert problem.code == "tls"
    assert "expired" in problem.message


async def test_a_certificate_of_another_host(ca: trustme.CA, ca_file: Path, body: bytes) -> None:
    with tls_store(ca.issue_cert("other.example.org")) as store:
        problem = await fault_at(store.endpoint, body, ca_file=ca_file)
    assert problem.code == "tls"
    assert "mismatch" in problem.message


async def test_a_certificate_of_the_given_ca_passes(ca: trustme.CA, ca_file: Path, body: bytes) -> None:
    with tls_store(ca.issue_cert("127.0.0.1")) as store:
        async with client(store.endpoint, ca_file=ca_file) as ours:
            assert (await ours.send(grant_for(store.endpoint, len(body)), body)).status == 200


# --- answers that are none ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02F",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
    ids=["ssh", "a TLS alert", "no status", "no length", "a header without end"],
)
async def test_what_is_not_http_is_told_as_that(answer: bytes, body: bytes) -> None:
    async with server(says(answer)) as endpoint:
        problem = await fault_at(endpoint, body)
    assert problem.code == "bad_response"
    assert "TLS port" in problem.message


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(faulty_s3: FaultyS3, status: int, body: bytes) -> None:
    other = FaultyS3()
    other.start()
    try:
        faulty_s3.fault(status=status, headers={"Location": f"{other.endpoint}/{BUCKET}/key?{SIGNED}"})
        assert (await fault_at(faulty_s3.endpoint, body)).code == "redirected"
    finally:
        other.stop()
    assert other.requests == []


async def test_a_cookie_is_not_kept(body: bytes) -> None:
    seen: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            seen.append((await read_request(reader))[0])
            writer.write(OK.replace(b"OK\r\n", b"OK\r\nSet-Cookie: a=b\r\n"))

    async with server(talk) as endpoint, client(endpoint) as store:
        for _ in range(2):
            await store.send(grant_for(endpoint, len(body)), body)
    assert len(seen) == 2
    assert b"cookie" not in seen[1].lower()


# --- bodies of answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100 << 20, FOREVER], ids=["100 MB", "without end"])
async def test_an_error_body_is_read_to_its_bound_and_costs_its_connection(
    faulty_s3: FaultyS3, size: float, body: bytes
) -> None:
    faulty_s3.fault(status=400, body_size=size)
    tracemalloc.start()
    try:
        async with client(faulty_s3.endpoint) as store:
            answer = await store.send(grant_for(faulty_s3.endpoint, len(body)), body, accept=(400,))
            assert len(answer.body) == KEPT_BODY
            assert (await store.send(grant_for(faulty_s3.endpoint, len(body)), body)).status == 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


async def test_an_answer_that_drips_ends_by_the_timeout(body: bytes) -> None:
    """A byte now and then is progress a few times over: a store that goes on like that holds no slot for good."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.02)

    began = time.monotonic()
    async with server(drip) as endpoint:
        assert (await fault_at(endpoint, body, timeout=0.1)).code == "timeout"
    assert time.monotonic() - began < 2


async def test_a_store_that_sends_white_space_while_it_works_is_waited_for() -> None:
    """CompleteMultipartUpload (S3 API): 200 comes at once, then white space, and what came of it last of all."""
    told = b"<Error><Code>InternalError</Code></Error>"

    async def complete(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (30 + len(told)))
        for _ in range(30):
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)
        writer.write(told)

    async with server(complete) as endpoint, client(endpoint, timeout=0.5) as store:
        answer = await store.send(grant_for(endpoint))
    assert answer.code == "InternalError"


async def test_an_object_is_read_back_in_pieces_whatever_its_size(faulty_s3: FaultyS3) -> None:
    content, read = random.Random(1).randbytes(3 << 20), hashlib.md5()

    async def take(piece: bytes) -> None:
        read.update(piece)

    faulty_s3.objects[BUCKET, "key"] = Object(content, "", {}, faulty_s3.now())
    async with client(faulty_s3.endpoint) as store:
        answer = await store.send(grant_for(faulty_s3.endpoint, method="GET"), into=take)
    assert (answer.status, answer.body) == (200, b"")
    assert read.hexdigest() == hashlib.md5(content).hexdigest()


async def test_an_object_that_drips_ends_by_the_timeout() -> None:
    """It may be of any size, so no number of timeouts bounds it: only whole pieces are progress."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def take(_: bytes) -> None:
        pass

    async with server(drip) as endpoint, client(endpoint, timeout=0.1) as store:
        with pytest.raises(Fault) as caught:
            await store.send(grant_for(endpoint), into=take)
    assert caught.value.code == "timeout"


async def test_an_answer_that_never_comes_ends_by_the_timeout(faulty_s3: FaultyS3, body: bytes) -> None:
    faulty_s3.fault(hang="after")
    assert (await fault_at(faulty_s3.endpoint, body, timeout=0.2)).code == "timeout"


async def test_a_connection_that_is_never_accepted_ends_by_the_timeout(body: bytes) -> None:
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    waiting = [socket.socket() for _ in range(4)]
    for one in waiting:
        one.setblocking(False)
        one.connect_ex(full.getsockname())
    try:
        assert (await fault_at(f"http://127.0.0.1:{full.getsockname()[1]}", body, timeout=0.3)).code == "timeout"
    finally:
        for one in (full, *waiting):
            one.close()


# --- bodies of requests ---------------------------------------------------------------------------------


async def send_slowly(body: Callable[[int], bytes | Slice], size: int, *, timeout: float, rate: int) -> Response:
    """Send to a server that reads ``rate`` bytes a second; return its answer."""

    async def read_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        left = size
        while left:
            left -= len(await reader.read(min(left, 16 << 10)))
            await asyncio.sleep((16 << 10) / rate)
        writer.write(OK)

    with file_of(os.urandom(size)) as fd:
        async with server(read_slowly, receive=16 << 10) as endpoint, client(endpoint, timeout=timeout) as store:
            return await store.send(grant_for(endpoint, size), body(fd))


async def test_a_slow_line_is_no_timeout_while_bytes_move() -> None:
    """From memory and from the file: each takes twice its timeout, and is never quiet for that long."""
    size, began = 900 << 10, time.monotonic()
    slowly = partial(send_slowly, size=size, timeout=1.5, rate=300 << 10)
    answers = await asyncio.gather(
        slowly(lambda fd: os.pread(fd, size, 0)), slowly(lambda fd: Slice(fd, 0, size, whole=True))
    )
    assert [answer.status for answer in answers] == [200, 200]
    assert time.monotonic() - began > 2.5, "the line was not slow: the test shows nothing"


async def test_a_line_that_stops_is_a_timeout_though_much_was_sent() -> None:
    async def stop(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readexactly(100 << 10)
        await asyncio.Event().wait()

    with file_of(bytes(8 << 20)) as fd:
        async with server(stop, receive=16 << 10) as endpoint, client(endpoint, timeout=0.3) as store:
            with pytest.raises(Fault) as met:
                await store.send(grant_for(endpoint, 8 << 20), Slice(fd, 0, 8 << 20, whole=True))
    assert met.value.code == "timeout"


@pytest.mark.parametrize("found", [(3 << 20) - 1, (3 << 20) + 1, 0], ids=["shorter", "longer", "empty"])
async def test_a_file_that_is_not_as_long_as_it_was_leaves_no_object(faulty_s3: FaultyS3, found: int) -> None:
    with file_of(bytes(found)) as fd:
        async with client(faulty_s3.endpoint) as store:
            with pytest.raises(Fault) as met:
                await store.send(grant_for(faulty_s3.endpoint, 3 << 20), Slice(fd, 0, 3 << 20, whole=True))
    assert met.value.code == "changed_while_uploading"
    assert faulty_s3.objects == {}


async def test_progress_is_told_up_to_the_last_byte(faulty_s3: FaultyS3) -> None:
    size, told = LEAST - 5, list[int]()
    with file_of(bytes(size)) as fd:
        async with client(faulty_s3.endpoint) as store:
            await store.send(grant_for(faulty_s3.endpoint, size), Slice(fd, 0, size, whole=True), on_sent=told.append)
    assert told == sorted(told)
    assert told[-1] == size
    assert max(after - before for before, after in pairwise([0, *told])) <= 256 << 10


async def test_a_large_body_takes_no_memory_of_its_size(faulty_s3: FaultyS3) -> None:
    faulty_s3.fault(status=403, code="AccessDenied", early=True)
    before, grant = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, grant_for(faulty_s3.endpoint, 1 << 30)
    with tempfile.TemporaryFile() as file:
        file.truncate(1 << 30)
        async with client(faulty_s3.endpoint) as store:
            with pytest.raises(Fault) as met:
                await store.send(grant, Slice(file.fileno(), 0, 1 << 30, whole=True))
    assert met.value.code in ("access_denied", "connection_reset")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


async def test_the_stores_clock_is_known_by_its_last_date(faulty_s3: FaultyS3, body: bytes) -> None:
    faulty_s3.clock_skew = timedelta(minutes=10)
    async with client(faulty_s3.endpoint) as store:
        assert store.clock_offset is None
        await store.send(grant_for(faulty_s3.endpoint, len(body)), body)
        assert store.clock_offset == pytest.approx(600, abs=2)


@pytest.mark.parametrize("date", ["Fri, 02 Jan 2026 03:04:05 -0000", "yesterday", "Fri, 99 Jan 99999999999999"])
async def test_a_date_of_any_shape_breaks_nothing(date: str, body: bytes) -> None:
    dated = says(OK.replace(b"OK\r\n", f"OK\r\nDate: {date}\r\n".encode()))
    async with server(dated) as endpoint, client(endpoint) as store:
        assert (await store.send(grant_for(endpoint, len(body)), body)).status == 200
