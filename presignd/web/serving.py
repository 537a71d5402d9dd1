"""Listening for the status page, so that it can't hurt the uploads: bounded, beside them, started again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING

from aiohttp import web

from presignd.config.listen import parse_listen
from presignd.control import socket_file
from presignd.errors import PresigndError, Unavailable
from presignd.redaction import redact
from presignd.runtime.crowd import Crowd
from presignd.telemetry.log import get_logger
from presignd.web import access as rights
from presignd.web.access import Access
from presignd.web.site import LONGEST_STREAM, Site
from presignd.web.snapshots import Pictures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from presignd.config.listen import Listen
    from presignd.control.view import View
    from presignd.model import Link

CONNECTIONS = 40
"""Descriptors and memory for more are the uploads'. For one client more the longest quiet one leaves, a stranger's
first: a probe always finds a place."""
IDLE_SECONDS = 15.0
"""Also the time that a request's headers may take."""
AGAIN_SECONDS = 30.0
"""How long the page stays away after a port was taken, or after a bug."""
SHUTDOWN_SECONDS = 1.0
EVERY = "0.0.0.0"  # noqa: S104 - looked for, not bound

log = get_logger()
# A stranger's malformed request is no event of ours, and its text could be anything.
_silent = logging.getLogger("presignd.web.http")
_silent.disabled = True


class StatusPage:
    """The status page of one daemon; ``run`` never ends by an error."""

    def __init__(self, view: View, longest_stream: float = LONGEST_STREAM) -> None:
        self._view = view
        self._longest_stream = longest_stream
        self._listen = parse_listen(view.config.web.listen)
        self._pictures: Pictures | None = None
        self._access: Access | None = None
        self._url = ""
        self._told = ""

    def hear(self, link: Link) -> None:
        """Count a new link; neither blocks nor raises."""
        if self._pictures is not None:
            self._pictures.hear(link)

    def login_url(self) -> str:
        """Return an address to log in with, once and soon; raise ``Unavailable`` while the page is away."""
        if not self._url or self._access is None:
            raise Unavailable(f"web: the status page is not up: {self._told or 'it is being started'}")
        return f"{self._url}/login?code={self._access.codes.new()}"

    async def run(self) -> None:
        """Serve until cancelled; what goes wrong is told once, and tried again."""
        while True:
            try:
                await self._serve()
            except PresigndError as error:
                self._unavailable("; ".join([error.message, *getattr(error, "problems", ())]), error.fix)
            except OSError as error:
                fix = "end what listens there, or give web.listen another port"
                # A bind's own text repeats the address; a resolver's numbers are below 0.
                number = error.errno or 0
                why = os.strerror(number) if number > 0 else error.strerror
                self._unavailable(f"{self._view.config.web.listen}: {why}", fix)
            except Exception as error:
                log.exception("web.crashed")
                self._told = f"a bug ({type(error).__name__})"
            finally:
                self._url, self._access, self._pictures = "", None, None
            await asyncio.sleep(AGAIN_SECONDS)

    def _unavailable(self, error: str, fix: str) -> None:
        if error != self._told:
            log.warning("web.unavailable", error=error, fix=fix)
        self._told = error

    async def _serve(self) -> None:
        path = self._view.config.web_token
        token = await asyncio.to_thread(rights.load_token, path)
        access = Access(token, None if self._listen.path else self._listen.port)
        for secret in (access.token, access.cookie):
            redact.register(secret)
        pictures, crowd = Pictures(self._view), Crowd()
        site = Site(self._view, access, self._listen, pictures, crowd=crowd, longest_stream=self._longest_stream)
        runner = web.AppRunner(
            site.app(),
            handler_cancellation=True,
            access_log=None,
            logger=_silent,
            keepalive_timeout=IDLE_SECONDS,
            shutdown_timeout=SHUTDOWN_SECONDS,
        )
        await runner.setup()
        try:
            assert runner.server is not None
            async with _listening(self._listen, runner.server, crowd) as place:
                self._access = access
                self._started(place)
                if await asyncio.to_thread(rights.readable_by_others, path):
                    log.warning("web.token_readable", path=str(path), fix=f"chmod o-r {path}")
                self._pictures = pictures
                await pictures.run()
        finally:
            await pictures.close()
            await runner.cleanup()

    def _started(self, place: str) -> None:
        self._told = ""
        # Behind a Unix socket the proxy has the name; for every interface the nearest does.
        name = "localhost" if self._listen.path else place.replace(EVERY, "127.0.0.1").replace("[::]", "[::1]")
        self._url = f"http://{name}"
        exposed = (
            {} if self._listen.is_local else {"fix": "the token travels unencrypted: put a proxy with TLS before it"}
        )
        (log.warning if exposed else log.info)("web.started", listen=place, **exposed)


@contextlib.asynccontextmanager
async def serving(view: View, longest_stream: float = LONGEST_STREAM) -> AsyncIterator[StatusPage]:
    """Run the status page beside the body."""
    page = StatusPage(view, longest_stream)
    running = asyncio.create_task(page.run(), name="status page")
    try:
        yield page
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@contextlib.asynccontextmanager
async def _listening(listen: Listen, server: web.Server, crowd: Crowd) -> AsyncIterator[str]:
    """Accept for ``server``; gives where. Raises ``OSError``, or for a Unix socket as ``socket_file``."""
    loop = asyncio.get_running_loop()

    def connection() -> asyncio.Protocol:
        there = [each for each in server.connections if each.transport and not each.transport.is_closing()]
        if len(there) >= CONNECTIONS:
            leaving = crowd.to_leave(there)
            if leaving is None or not isinstance(leaving.transport, asyncio.Transport):
                return _TurnedAway()
            leaving.transport.abort()
        made = server()
        crowd.came(made)
        return made

    with contextlib.ExitStack() as stack:
        if listen.path is not None:
            sock = stack.enter_context(socket_file.listening(listen.path, "", option="web.listen"))
            listener = await loop.create_unix_server(connection, sock=sock)
            place = f"unix:{listen.path}"
        else:
            listener = await loop.create_server(connection, listen.host, listen.port)
            host = f"[{listen.host}]" if ":" in listen.host else listen.host
            place = f"{host}:{listener.sockets[0].getsockname()[1]}"
        # Not waited for: connections are ended by the runner, after this.
        stack.callback(listener.close)
        yield place


class _TurnedAway(asyncio.Protocol):
    """A client too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        transport.close()
