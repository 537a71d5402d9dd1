"""Slow clients and too many clients, with limits that a test can reach; the broker's parts run in this process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from presignd.broker import tokens
from presignd.broker.access import Rejected
from presignd.broker.limits import ConcurrencyLimit, Limits
from presignd.broker.load import load
from presignd.broker.service import Broker
from presignd.demo.seaweedfs import LOOPBACK, free_ports

SECRET, OTHER = tokens.new_token(), tokens.new_token()
ASKED = {"operation": "get", "bucket": "bucket", "key": "two/a", "expires": 60}


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def connections() -> int:
    return 3


@pytest.fixture(autouse=True)
async def broker(port: int, connections: int, tmp_path: Path) -> AsyncIterator[Broker]:
    """Serve with few connections, little patience, and two tokens."""
    limits = Limits(connections=connections, idle=2.0, body=0.5, wait=0.25)
    file = tmp_path / "broker.toml"
    file.write_text(
        f"""
[broker]
listen = "{LOOPBACK}:{port}"
token_files = ["tokens.d/*.toml"]
[store]
access_key = "a"
secret_key = "secret-key"
region = "r"
[[token]]
name = "one"
hash = "{tokens.hash_of(SECRET)}"
bucket = "bucket"
[[token]]
name = "two"
hash = "{tokens.hash_of(OTHER)}"
bucket = "bucket"
""",
        encoding="utf-8",
    )
    file.chmod(0o600)
    (tmp_path / "tokens.d").mkdir()
    broker = Broker(load(file, environ={}), lambda: load(file, environ={}), limits)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(broker.signer.close)
        await broker.open(stack)
        yield broker


def head(length: int, secret: str = SECRET) -> bytes:
    lines = ["POST /v1/grants HTTP/1.1", "Host: x", f"Authorization: Bearer {secret}"]
    lines += ["Content-Type: application/json", f"Content-Length: {length}", "", ""]
    return "\r\n".join(lines).encode()


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    """Read until the other side ends it, whichever way."""
    answer = b""
    async with asyncio.timeout(30):
        try:
            while chunk := await reader.read(65536):
                answer += chunk
        except ConnectionError:
            pass
    return answer


async def test_the_head_of_a_request_that_takes_too_long_is_cut_off(port: int) -> None:
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    writer.write(b"GET /v1/me HTTP/1.1\r\nHost: x\r\n")
    assert await until_closed(reader) == b""
    writer.close()


async def test_a_body_that_takes_too_long_is_cut_off_and_told(port: int) -> None:
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    writer.write(head(1000) + b"{")
    assert (await until_closed(reader)).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_an_idle_connection_is_closed(port: int) -> None:
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await until_closed(reader)).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_an_answer_that_nobody_takes_is_cut_off(broker: Broker, port: int) -> None:
    """Eight answers of half a megabyte each are more than the kernel holds for who reads nothing."""
    asked = {"operation": "get", "bucket": "bucket", "key": "one/" + "x" * 1000, "expires": 60}
    body = json.dumps({"grants": [asked] * 1000}).encode()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((LOOPBACK, port))
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError):
                for _ in range(8):
                    await loop.sock_sendall(sock, head(len(body)) + body)
            while any(server.connection_count for server in broker.servers):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.02)


async def test_strangers_with_idle_connections_keep_no_token_and_no_probe_out(port: int) -> None:
    held = [await asyncio.open_connection(LOOPBACK, port) for _ in range(30)]
    for _, writer in held:
        writer.write(b"GET /healthz HTTP/1.1\r\n")
    for _ in range(10):
        assert (await asked_of(port, SECRET)).startswith(b"HTTP/1.1 200 ")
    for _, writer in held:
        writer.close()


async def test_a_quiet_connection_with_a_token_outlives_those_of_strangers(port: int) -> None:
    """An uploader keeps its connection between two files."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)

    async def me() -> bytes:
        writer.write(f"GET /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\n\r\n".encode())
        async with asyncio.timeout(30):
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(answer.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]))
        return answer

    assert (await me()).startswith(b"HTTP/1.1 200 ")
    held = [await asyncio.open_connection(LOOPBACK, port) for _ in range(10)]
    for stranger, _ in held[:-3]:
        assert await until_closed(stranger) == b""
    assert (await me()).startswith(b"HTTP/1.1 200 ")
    for each in (writer, *(writer for _, writer in held)):
        each.close()


async def test_a_connection_too_many_for_calls_under_way_is_told_when_to_come_back(broker: Broker, port: int) -> None:
    held = [await asyncio.open_connection(LOOPBACK, port) for _ in range(3)]
    for _, writer in held:
        writer.write(head(1000))
    async with asyncio.timeout(30):
        while broker.api.in_flight < len(held):  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    answer = await until_closed(reader)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1\r\n" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "busy"
    for each in (writer, *(writer for _, writer in held)):
        each.close()


async def asked_of(port: int, secret: str, *asked: dict[str, object]) -> bytes:
    """Ask for grants, one without any given; return the first line of the answer."""
    body = json.dumps({"grants": asked or [ASKED]}).encode()
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    writer.write(head(len(body), secret) + body)
    async with asyncio.timeout(30):
        answer = await reader.readline()
    writer.close()
    return answer


@pytest.mark.parametrize("connections", [100])
async def test_one_token_with_stuck_bodies_does_not_keep_others_out(port: int) -> None:
    stuck = [await asyncio.open_connection(LOOPBACK, port) for _ in range(80)]
    for _, writer in stuck:
        writer.write(head(1000))
    assert (await asked_of(port, OTHER)).startswith(b"HTTP/1.1 200 ")
    told = {(await until_closed(reader))[9:12] for reader, _ in stuck}
    assert told == {b"408", b"503"}, "who is slow is cut off, who waits too long is told"
    assert (await asked_of(port, SECRET)).startswith(b"HTTP/1.1 200 ")
    for _, writer in stuck:
        writer.close()


async def test_calls_that_wait_too_long_for_their_turn_are_told_and_the_places_come_back() -> None:
    room = ConcurrencyLimit(2, 1, 0.05)
    async with room.hold("one"):
        with pytest.raises(Rejected) as refused:
            async with room.hold("one"):
                pass
        async with room.hold("two"):
            with pytest.raises(Rejected):
                async with room.hold("three"):
                    pass
    assert (refused.value.status, refused.value.retry_after) == (503, 1)
    async with room.hold("three"):
        assert list(room._of) == ["three"]


async def test_a_call_of_many_keys_that_take_long_to_judge_lets_others_in_between(port: int) -> None:
    """A millisecond a key in a hundred ways to read it: without turns, whoever else asks waits for a second."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with asyncio.TaskGroup() as tasks:
        other = tasks.create_task(others())
        before = turns
        asked = {**ASKED, "key": "one/" + "\ufdfa%2565\u00e9" * 70}
        assert (await asked_of(port, SECRET, *[asked] * 600)).startswith(b"HTTP/1.1 200 ")
        alone = turns - before
        before = turns
        assert (await asked_of(port, SECRET, *[ASKED] * 1)).startswith(b"HTTP/1.1 200 ")
        assert alone > 5 * (turns - before)
        other.cancel()


async def test_while_a_folder_of_tokens_cannot_be_opened_unknown_tokens_are_not_called_wrong(
    broker: Broker, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be in it. Another broker that can read it may answer: a proxy goes on to it after a 503."""

    def refused(_: Path) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def status(path: str, secret: str) -> bytes:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n\r\n".encode())
        told = (await reader.readline())[9:12]
        writer.close()
        return told

    stranger = tokens.new_token()
    assert [await status("/readyz", ""), await status("/v1/me", stranger)] == [b"200", b"401"]
    with capture_logs() as told, monkeypatch.context() as broken:
        broken.setattr(Path, "iterdir", refused)
        for _ in range(3):
            broker.tokens.refresh()
        assert [await status("/readyz", ""), await status("/v1/me", stranger)] == [b"503", b"503"]
        assert (await status("/v1/me", SECRET)) == b"200"
        assert "not all folders of tokens can be read" in await broker.status()
    broker.tokens.refresh()
    assert [await status("/readyz", ""), await status("/v1/me", stranger)] == [b"200", b"401"]
    assert [event["event"] for event in told if event["event"].startswith("tokens.")] == ["tokens.unlisted"]


async def test_a_reload_during_the_drain_opens_no_listener_again(broker: Broker, port: int) -> None:
    await broker.drain()
    await broker.switch(await broker.read_again())
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(LOOPBACK, port)
    await broker.close()
