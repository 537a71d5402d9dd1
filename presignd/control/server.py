"""The control socket's protocol, both ends: a request of one JSON line (with descriptors), answers of JSON lines, EOF.

A client may be slow, malicious or gone: a request is bounded in size and time, connections in number, an answer that is
not read is abandoned, and every descriptor that came in is closed in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import json
import os
import select
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from presignd.control.peer import Peer
from presignd.errors import ExitCode, PresigndError, Unavailable, UsageError, reason_of
from presignd.runtime.clients import Quota
from presignd.runtime.unix_socket import listening
from presignd.system.filesystem import close_quietly
from presignd.telemetry.log import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    Request = Mapping[str, Any]
    Documents = AsyncGenerator[dict[str, Any], None]
    Answering = Callable[[Request, Peer, Sequence[int]], Documents]

LARGEST_REQUEST = 1 << 20
CONNECTIONS = 64
RESERVED = 16
"""Places of these reserved for root and the daemon's own user, so that others can't lock them out."""
EACH = 16
"""Most connections of each other user."""
REQUEST_TIMEOUT = 5.0
"""Seconds a client has for its whole request."""
ANSWER_TIMEOUT = 30.0
"""Seconds a client has to read one answer."""
MOST_DESCRIPTORS = 1
CHUNK = 64 << 10

log = get_logger()


class Answered(PresigndError):
    """A failure in a daemon's answer, with the daemon's code, message and exit code."""

    def __init__(self, code: str, message: str, *, fix: str, exit_code: int, problems: tuple[str, ...]) -> None:
        super().__init__(message, fix=fix)
        self.code = code
        self.exit_code = exit_code
        self.problems = problems


class _ClientGoneError(Exception):
    """The client disconnected, or does not read its answer."""


def encode(document: Mapping[str, Any]) -> bytes:
    """Render one line of the protocol; a name that is not UTF-8 is sent with surrogates."""
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def failure(error: PresigndError) -> dict[str, Any]:
    """Render a failure: ``{"error": {"code", "message", "fix", "exit", "problems"}}``."""
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "fix": error.fix,
            "exit": error.exit_code,
            "problems": list(getattr(error, "problems", ())),
        }
    }


def raised(answer: Mapping[str, Any]) -> Answered | None:
    """Return the failure in ``answer``, None if it holds none."""
    found = answer.get("error")
    if not isinstance(found, dict):
        return None
    return Answered(
        str(found.get("code", "unavailable")),
        str(found.get("message", "")),
        fix=str(found.get("fix", "")),
        exit_code=int(found.get("exit", ExitCode.UNAVAILABLE)),
        problems=tuple(map(str, found.get("problems", ()))),
    )


@contextlib.asynccontextmanager
async def serve(
    path: Path,
    group: str,
    answering: Answering,
    *,
    request_timeout: float = REQUEST_TIMEOUT,
    answer_timeout: float = ANSWER_TIMEOUT,
) -> AsyncIterator[None]:
    """Answer at ``path`` (0660, of ``group``) while the context lasts; then remove the file.

    Raises what ``unix_socket.listening`` raises; a bug in the server ends the context. A ``PresigndError`` of
    ``answering`` is sent to the client.
    """
    with listening(path, "control.socket", group=group) as listener:
        async with asyncio.TaskGroup() as tasks:
            server = _Server(listener, answering, request_timeout, answer_timeout)
            running = tasks.create_task(server.run(), name="control socket")
            try:
                yield
            finally:
                running.cancel()


@dataclass
class _Server:
    """Accepts connections, and runs each exchange in a task of its own."""

    listener: socket.socket
    answering: Answering
    request_timeout: float
    answer_timeout: float
    exchanges: set[asyncio.Task[None]] = field(default_factory=set)
    accepts: bool = True
    quota: Quota = field(default_factory=lambda: Quota(CONNECTIONS, RESERVED, EACH))

    async def run(self) -> None:
        """Accept connections until cancelled; then cancel the exchanges, too."""
        try:
            while True:
                await self._accept()
        finally:
            for task in self.exchanges:
                task.cancel()
            await asyncio.gather(*self.exchanges, return_exceptions=True)

    async def _accept(self) -> None:
        try:
            sock, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        except OSError as error:
            # Out of descriptors or memory: running exchanges will free some.
            if self.accepts:
                log.warning("control.accept_failed", error=os.strerror(error.errno or 0))
            self.accepts = False
            await asyncio.sleep(0.2)
            return
        self.accepts = True
        try:
            peer = Peer.of(sock)
        except OSError:
            sock.close()
            return
        if not self.quota.take(peer.uid, privileged=peer.is_privileged):
            _turn_away(sock)
            return
        task = asyncio.create_task(self._exchange(sock, peer))
        self.exchanges.add(task)
        task.add_done_callback(functools.partial(self._over, peer))

    def _over(self, peer: Peer, task: asyncio.Task[None]) -> None:
        self.exchanges.discard(task)
        self.quota.give_back(peer.uid, privileged=peer.is_privileged)

    async def _exchange(self, sock: socket.socket, peer: Peer) -> None:
        fds: list[int] = []
        with sock, contextlib.suppress(OSError, TimeoutError, _ClientGoneError):
            try:
                sock.setblocking(False)
                async with asyncio.timeout(self.request_timeout):
                    request = await _receive(sock, fds)
                if request is not None:
                    await _unless_gone(sock, self._answer(sock, request, peer, fds))
            except PresigndError as error:
                await self._send(sock, failure(error))
            finally:
                _close_all(fds)

    async def _answer(self, sock: socket.socket, request: Request, peer: Peer, fds: list[int]) -> None:
        try:
            async with contextlib.aclosing(self.answering(request, peer, fds)) as answers:
                async for answer in answers:
                    await self._send(sock, answer)
        except PresigndError as error:
            await self._send(sock, failure(error))
        except OSError as error:
            await self._send(sock, failure(_refused_by_the_machine(error)))
        except _ClientGoneError:
            raise
        except Exception as error:
            log.exception("control.internal_error", by_uid=peer.uid, op=str(request.get("op", "")))
            await self._send(sock, _bug(error))

    async def _send(self, sock: socket.socket, answer: Mapping[str, Any]) -> None:
        """Send one line; raise ``_ClientGoneError`` where the client does not read it."""
        try:
            async with asyncio.timeout(self.answer_timeout):
                await asyncio.get_running_loop().sock_sendall(sock, encode(answer))
        except (OSError, TimeoutError):
            raise _ClientGoneError from None


def _bug(error: Exception) -> dict[str, Any]:
    """Render a bug without its text, which could hold a secret; the daemon's log has it, redacted."""
    message = f"a bug in the daemon ({type(error).__name__})"
    fix = "report it with the traceback in the daemon's log"
    return {"error": {"code": "internal_error", "message": message, "fix": fix, "exit": ExitCode.BUG, "problems": []}}


def _refused_by_the_machine(error: OSError) -> Unavailable:
    message = f"control socket: the daemon's machine refuses it: {reason_of(error)}"
    return Unavailable(message, fix="correct that, or try again later")


def _turn_away(sock: socket.socket) -> None:
    """Refuse a client, without waiting for it to read the answer."""
    busy = Unavailable("control socket: too many commands are being answered", fix="end some, or try again shortly")
    with sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.send(encode(failure(busy)))


async def _receive(sock: socket.socket, fds: list[int]) -> Request | None:
    """Read the request, and its descriptors into ``fds``; return None where the client disconnected."""
    line = bytearray()
    while not line.endswith(b"\n"):
        await _readable(sock)
        try:
            data, came, flags, _ = socket.recv_fds(sock, CHUNK, MOST_DESCRIPTORS, _CLOEXEC)
        except BlockingIOError:
            continue
        fds.extend(came)
        if not data:
            return None
        if flags & socket.MSG_CTRUNC and not came:  # recvmsg(2): this process has no descriptor left
            raise _refused_by_the_machine(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        if len(fds) > MOST_DESCRIPTORS or flags & socket.MSG_CTRUNC:
            raise UsageError("control socket: more than one descriptor in a request")
        line += data
        if len(line) > LARGEST_REQUEST:
            raise UsageError("control socket: the request is over 1 MiB", fix="ask for fewer paths at once")
    return _parsed(bytes(line))


_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def _parsed(line: bytes) -> Request:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError("control socket: the request is no line of JSON") from None
    if not isinstance(request, dict):
        raise UsageError("control socket: the request is no JSON object")
    return request


async def _readable(sock: socket.socket) -> None:
    """Wait until ``sock`` has bytes to read, or was closed."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _unless_gone(sock: socket.socket, work: Any) -> None:
    """Do ``work``, and cancel it when the client disconnects."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(sock))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watching.cancel()
        if not working.done():
            working.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        with contextlib.suppress(asyncio.CancelledError, _ClientGoneError):
            await working


async def _gone(sock: socket.socket) -> None:
    """Return when the client closed its end, or sent more than its one request.

    A client that only finished writing (a half close) still reads; if it is gone, a send fails.
    """
    await _readable(sock)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0)) or sock.recv(1):
        return
    await asyncio.Event().wait()


def _close_all(fds: list[int]) -> None:
    while fds:
        close_quietly(fds.pop())


async def exchange(sock: socket.socket, request: Request, fds: Sequence[int] = ()) -> Documents:
    """Send a request over a connected ``sock``, which is closed at the end, and yield the answers as they come.

    Raises ``Answered`` for a failure that comes back, ``Unavailable`` where the daemon ends without an answer.
    """
    with sock:
        sock.setblocking(False)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await _ask(sock, encode(request), fds)
        answered = False
        async for answer in _answers(sock):
            answered = True
            if error := raised(answer):
                raise error
            yield answer
        if not answered:
            raise Unavailable("control socket: the daemon ended without an answer", fix="look at its log")


async def _ask(sock: socket.socket, line: bytes, fds: Sequence[int]) -> None:
    sent = socket.send_fds(sock, [line], fds)
    await asyncio.get_running_loop().sock_sendall(sock, line[sent:])


async def _answers(sock: socket.socket) -> Documents:
    loop, pending = asyncio.get_running_loop(), b""
    while data := await _recv(loop, sock):
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = pending + lines[0]
        pending = rest if lines else pending + rest
        for line in lines:
            yield json.loads(line)


async def _recv(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    try:
        return await loop.sock_recv(sock, LARGEST_REQUEST)
    except ConnectionResetError:
        return b""
