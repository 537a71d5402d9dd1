"""What ``presignd.store.lean`` uses of aiohttp, with the lowest and the newest version: it acts as the session does.

Tests send by the session ("session") and without it ("lean"), on both event loops.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal

import aiohttp
import pytest
import trustme
from aiohttp.payload import BytesPayload
from yarl import URL

from presignd.connection import HttpResponse
from presignd.store.lean import LeanSession, _LeanRequest
from tests.raw_servers import OK, on_both_loops, read_request, says, server

Way = Literal["lean", "session"]
both_ways = pytest.mark.parametrize("way", ["lean", "session"])

TARGET = "/bucket/a%20key/../%C3%A4?X-Amz-Signature=abc&x=%2F"


class Client:
    """A session, and its requests in two ways."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self._lean = LeanSession(session, lambda _: None)

    def send(
        self, way: Way, url: str, method: str = "PUT", body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[HttpResponse]:
        """Return the request: any ``Payload`` goes by the session."""
        sized = {"Content-Length": str(len(body))} if method == "PUT" else {}
        data = BytesPayload(body) if way == "session" and body else body or None
        if way == "session" and not body:
            return _by_session(self.session, url, method, {**sized, **(headers or {})})
        return self._lean.request(method, url, {**sized, **(headers or {})}, data)


def _by_session(
    session: aiohttp.ClientSession, url: str, method: str, headers: Mapping[str, str]
) -> AbstractAsyncContextManager[HttpResponse]:
    address, skip = URL(url, encoded=True), ["Content-Type"]
    return session.request(method, address, headers=headers, skip_auto_headers=skip, allow_redirects=False)


@asynccontextmanager
async def client(tls: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(limit=4, ssl=tls or True)
    headers = {"User-Agent": "presignd/test", "Accept-Encoding": "identity"}
    jar = aiohttp.DummyCookieJar()
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    async with (
        asyncio.timeout(20),
        aiohttp.ClientSession(
            connector=connector, headers=headers, cookie_jar=jar, timeout=timeout, auto_decompress=False
        ) as session,
    ):
        yield Client(session)


class Recorder:
    """A server that gives each request its answer, and counts connections.

    An empty answer ends the connection instead. ``ended`` is set when a client ends one.
    """

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[bytes, bytes]] = []
        self.connections = 0
        self.ended = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.requests.append(await read_request(reader))
                answer = self.answers.pop(0) if self.answers else OK
                writer.write(answer)
                if not answer:
                    return
        finally:
            self.ended.set()


async def read(answer: HttpResponse) -> bytes:
    return await answer.content.read()


def lines(head: bytes) -> tuple[bytes, list[bytes]]:
    """Return the request line, and the headers in the order of their names."""
    first, *rest = head.split(b"\r\n")
    return first, sorted(rest, key=bytes.lower)


# --- what is sent -----------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize(
    ("method", "body", "headers"),
    [
        ("PUT", b"content", {"Content-Type": "text/plain", "If-None-Match": "*", "x-amz-meta-n": "gr\u00fc\u00dfe\tb"}),
        ("PUT", b"", {}),
        ("POST", b"<x/>", {}),
        ("POST", b"", {}),
        ("GET", b"", {"x-amz-tagging": "a=b"}),
        ("HEAD", b"", {}),
        ("DELETE", b"", {}),
        ("GET", b"", {"accept": "text/xml", "USER-AGENT": "own", "Host": "virtual.example.org"}),
    ],
)
async def test_both_ways_send_the_same(method: str, body: bytes, headers: Mapping[str, str]) -> None:
    recorder = Recorder()
    async with server(recorder) as endpoint, client() as ours:
        for way in ("lean", "session"):
            async with ours.send(way, endpoint + TARGET, method, body, headers) as answer:
                assert (answer.status, await read(answer)) == (200, b"")
    lean, session = recorder.requests
    assert (lines(lean[0]), lean[1]) == (lines(session[0]), session[1])
    assert lean[1] == body
    assert recorder.connections == 1, "both use the same connections"


@on_both_loops
async def test_a_request_is_these_bytes() -> None:
    recorder = Recorder()
    async with (
        server(recorder) as endpoint,
        client() as ours,
        ours.send("lean", endpoint + TARGET, "PUT", b"body", {"If-None-Match": "*"}),
    ):
        pass
    host = endpoint.removeprefix("http://").encode()
    assert recorder.requests == [
        (
            b"PUT " + TARGET.encode() + b" HTTP/1.1\r\n"
            b"Host: " + host + b"\r\n"
            b"User-Agent: presignd/test\r\n"
            b"Accept-Encoding: identity\r\n"
            b"Accept: */*\r\n"
            b"Content-Length: 4\r\n"
            b"If-None-Match: *\r\n"
            b"\r\n",
            b"body",
        )
    ]


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/k", {"x-amz-meta-a": "secret\r\nX-Injected: 1"}),
        ("/k", {"x-amz-meta-a\nX-Injected": "secret"}),
        ("/k", {"x-amz-meta-a": "secret\x00"}),
        ("/k?secret HTTP/1.1\r\nX-Injected: 1\r\n\r\n", {}),
        ("/k?secret HTTP/1.1", {}),
        ("/k?secret#fragment", {}),
        ("/k?secret", {"Content-Length": "3"}),
        ("/k?secret", {"content-length": "14"}),
    ],
)
async def test_what_would_be_another_request_is_refused(target: str, headers: Mapping[str, str]) -> None:
    async with client() as ours:
        with pytest.raises(ValueError, match=r"header|Content-Length") as met:
            ours.send("lean", f"http://127.0.0.1:9{target}", "PUT", b"body", headers)
    assert "secret" not in str(met.value)


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("http://user:pass@{}/k", b"\r\nAuthorization: Basic "),
        ("http://{}?list", b"PUT /?list HTTP/1.1"),
        ("HTTP://{}/k", b"PUT /k HTTP/1.1"),
    ],
)
async def test_an_unusual_url_is_left_to_the_session(form: str, line: bytes) -> None:
    recorder = Recorder()
    async with (
        server(recorder) as endpoint,
        client() as ours,
        ours.send("lean", form.format(endpoint.removeprefix("http://"))) as got,
    ):
        assert not isinstance(got, _LeanRequest)
    assert line in recorder.requests[0][0]


async def test_a_request_through_a_proxy_is_left_to_the_session() -> None:
    recorder = Recorder()
    async with server(recorder) as proxy, client() as ours:
        through = LeanSession(ours.session, lambda _: proxy.replace("//", "//user:pass@"))
        async with through.request("PUT", "http://store.invalid/k?x", {"Content-Length": "4"}, b"body") as got:
            assert got.status == 200
    head, body = recorder.requests[0]
    assert head.startswith(b"PUT http://store.invalid/k?x HTTP/1.1\r\nHost: store.invalid\r\n")
    assert b"\r\nProxy-Authorization: Basic " in head
    assert body == b"body"


# --- what comes back ------------------------------------------------------------------------------------------


@on_both_loops
@both_ways
@pytest.mark.parametrize(
    ("answer", "body", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", b"body", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbod\r\n1\r\ny\r\n0\r\n\r\n", b"body", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK, b"", True),
        (b"HTTP/1.1 301 Moved\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n", b"", True),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nbody", b"body", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody", b"body", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody", b"body", False),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", None, False),
        (OK + OK, b"", False),
    ],
    ids=["length", "chunked", "204", "1xx", "redirect", "gzip", "close", "1.0", "101", "two answers"],
)
async def test_an_answer_is_read_and_its_connection_is_kept_only_if_it_can_be(
    way: Way, answer: bytes, body: bytes | None, *, kept: bool
) -> None:
    recorder = Recorder(answer)
    async with server(recorder) as endpoint, client() as ours:
        async with ours.send(way, f"{endpoint}/k", body=b"first") as got:
            assert got.status == int(answer.split(b"HTTP/1.")[-1 if b" 100 " in answer else 1].split()[1])
            if body is not None:
                assert await read(got) == body
        async with ours.send(way, f"{endpoint}/k", body=b"second") as got:
            assert (got.status, await read(got)) == (200, b"")
    assert recorder.connections == (1 if kept else 2)
    assert [body for _, body in recorder.requests] == [b"first", b"second"]


@on_both_loops
@both_ways
async def test_a_head_has_no_body_whatever_its_length_says(way: Way) -> None:
    recorder = Recorder(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nETag: x\r\n\r\n")
    async with server(recorder) as endpoint, client() as ours:
        async with ours.send(way, f"{endpoint}/k", "HEAD") as got:
            assert (got.headers["etag"], await read(got)) == ("x", b"")
        async with ours.send(way, f"{endpoint}/k", "HEAD"):
            pass
    assert recorder.connections == 1


@on_both_loops
@both_ways
async def test_a_body_without_length_ends_with_its_connection(way: Way) -> None:
    async with (
        server(says(b"HTTP/1.1 200 OK\r\n\r\nall of it")) as endpoint,
        client() as ours,
        ours.send(way, f"{endpoint}/k", body=b"body") as got,
    ):
        assert await read(got) == b"all of it"


@on_both_loops
@both_ways
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nha",
    ],
    ids=["length", "chunked"],
)
async def test_a_body_that_breaks_off_is_an_error(way: Way, answer: bytes) -> None:
    async with (
        server(says(answer)) as endpoint,
        client() as ours,
        ours.send(way, f"{endpoint}/k", body=b"body") as got,
    ):
        with pytest.raises(aiohttp.ClientPayloadError):
            await read(got)


@on_both_loops
@both_ways
@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 9000 + b"\r\n\r\n",
    ],
    ids=["ssh", "length", "long"],
)
async def test_what_is_not_http_is_an_error_and_is_not_asked_for_twice(way: Way, answer: bytes) -> None:
    recorder = Recorder(answer)
    async with server(recorder) as endpoint, client() as ours:
        with pytest.raises(aiohttp.ClientResponseError):
            await ours.send(way, f"{endpoint}/k?secret", body=b"body").__aenter__()
        await asyncio.wait_for(recorder.ended.wait(), 10)
    assert len(recorder.requests) == 1


@on_both_loops
@both_ways
async def test_a_body_that_is_not_read_costs_its_connection(way: Way) -> None:
    recorder = Recorder(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(100))
    async with server(recorder) as endpoint, client() as ours:
        async with ours.send(way, f"{endpoint}/k", body=b"body"):
            pass
        await asyncio.wait_for(recorder.ended.wait(), 10)


# --- connections ----------------------------------------------------------------------------------------------


@on_both_loops
@both_ways
@pytest.mark.parametrize(("method", "times"), [("PUT", 2), ("GET", 2), ("HEAD", 2), ("DELETE", 2), ("POST", 1)])
async def test_a_connection_that_ends_before_the_answer_is_tried_once_more(way: Way, method: str, times: int) -> None:
    """As after the pause in which the store closed it; what may not be done twice is not sent twice."""
    recorder = Recorder(b"", b"", b"")
    async with server(recorder) as endpoint, client() as ours:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await ours.send(way, f"{endpoint}/k", method).__aenter__()
    assert len(recorder.requests) == times


@on_both_loops
@both_ways
async def test_a_connection_that_ended_in_the_pool_is_replaced(way: Way) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)

    async with server(once) as endpoint, client() as ours:
        for _ in range(5):
            async with ours.send(way, f"{endpoint}/k", body=b"body") as got:
                assert (got.status, await read(got)) == (200, b"")


@on_both_loops
@both_ways
async def test_a_connection_that_ends_as_it_is_used_is_replaced(way: Way) -> None:
    recorder = Recorder(OK, b"", OK)
    async with server(recorder) as endpoint, client() as ours:
        for _ in range(2):
            async with ours.send(way, f"{endpoint}/k", body=b"body") as got:
                assert got.status == 200
    assert (len(recorder.requests), recorder.connections) == (3, 2)


@on_both_loops
@both_ways
@pytest.mark.parametrize("within", ["head", "body"])
async def test_a_cancelled_request_ends_its_connection(way: Way, within: str) -> None:
    recorder = Recorder(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n" + (b"\r\nhalf" if within == "body" else b""))

    async def exchange(url: str, ours: Client) -> None:
        async with ours.send(way, url, body=b"body") as got:
            await read(got)

    async with server(recorder) as endpoint, client() as ours:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(exchange(f"{endpoint}/k", ours), 0.3)
        await asyncio.wait_for(recorder.ended.wait(), 10)


@on_both_loops
@pytest.mark.parametrize("hang_up", [False, True], ids=["open", "closed"])
async def test_an_answer_before_the_requests_end_costs_its_connection(*, hang_up: bool) -> None:
    """The store may leave the rest unread: what would be sent next must not wait behind it."""
    ended = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1000)
        writer.write(b"HTTP/1.1 507 No\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        if not hang_up:
            await reader.read(-1)
        ended.set()

    size = 32 << 20  # more than all buffers hold
    async with server(refuse, receive=16 << 10) as endpoint, client() as ours:
        async with ours.send("lean", f"{endpoint}/k", body=bytes(size)) as got:
            assert got.status == 507
        await asyncio.wait_for(ended.wait(), 10)


@on_both_loops
@both_ways
async def test_a_limit_of_connections_holds(way: Way) -> None:
    open_now = most = 0

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        try:
            while True:
                await read_request(reader)
                await asyncio.sleep(0.01)
                writer.write(OK)
        finally:
            open_now -= 1

    async def send(url: str, ours: Client) -> None:
        async with ours.send(way, url, body=b"body") as got:
            assert got.status == 200

    async with server(slowly) as endpoint, client() as ours:
        await asyncio.gather(*(send(f"{endpoint}/k", ours) for _ in range(20)))
    assert most == 4


# --- no connection ----------------------------------------------------------------------------------------------


@on_both_loops
@both_ways
async def test_what_keeps_from_connecting_has_its_own_error_without_the_url(way: Way) -> None:
    async with client() as ours:
        for endpoint, error in [
            ("http://127.0.0.1:9", aiohttp.ClientConnectorError),
            ("http://store.invalid:9000", aiohttp.ClientConnectorDNSError),
        ]:
            with pytest.raises(error) as met:
                await ours.send(way, f"{endpoint}/k?secret", body=b"body").__aenter__()
            assert met.value.host == endpoint.split("/")[2].partition(":")[0]
            if way == "lean":
                assert "secret" not in f"{met.value!r} {met.value} {met.value.__context__!r}"


@on_both_loops
@both_ways
async def test_tls_is_verified(way: Way) -> None:
    ca, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    ca.configure_trust(trusting)
    recorder = Recorder()
    async with server(recorder, tls=context) as endpoint:
        async with client() as ours:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await ours.send(way, f"{endpoint}/k", body=b"body").__aenter__()
        async with client(trusting) as ours:
            for _ in range(2):
                async with ours.send(way, f"{endpoint}/k", body=b"body") as got:
                    assert got.status == 200
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await ours.send(way, f"{endpoint.replace('127.0.0.1', 'localhost')}/k", body=b"body").__aenter__()
    assert [body for _, body in recorder.requests] == [b"body", b"body"]
