"""Runs the status page beside the uploads so that it can't hurt them: bounded, and started again after a failure."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from presignd.config.addresses import parse_listen
from presignd.errors import PresigndError, Unavailable, reason_of
from presignd.pages import access as rights
from presignd.pages.access import Access
from presignd.pages.pace import PACE, Pace
from presignd.redaction import redact
from presignd.runtime.clients import Connections
from presignd.runtime.http_server import HttpServer
from presignd.telemetry.log import get_logger
from presignd.web.site import Site
from presignd.web.snapshots import Snapshots

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from presignd.control.view import View
    from presignd.model import Link

CONNECTIONS = 40
"""The most connections: the uploads need the other descriptors and the memory. A new connection then replaces the one
that is idle longest, a stranger's first, so a probe always gets its answer."""
SHUTDOWN_SECONDS = 1.0
"""How long answers may take when the daemon ends."""
EVERY = "0.0.0.0"  # noqa: S104 - compared with, not bound

log = get_logger()


class StatusPage:
    """The status page of one daemon; no error ends ``run``."""

    def __init__(self, view: View, pace: Pace = PACE) -> None:
        self._view, self._pace = view, pace
        self._listen = parse_listen(view.config.web.listen)
        self._snapshots: Snapshots | None = None
        self._access: Access | None = None
        self._url = ""
        self._problem = ""

    def hear(self, link: Link) -> None:
        """Count a new link; neither blocks nor raises."""
        if self._snapshots is not None:
            self._snapshots.hear(link)

    def login_url(self) -> str:
        """Return an address that logs in once, soon; raise ``Unavailable`` while the page does not run."""
        if not self._url or self._access is None:
            raise Unavailable(f"web: the status page is not up: {self._problem or 'it is being started'}")
        return f"{self._url}/login?code={self._access.codes.new()}"

    async def run(self) -> None:
        """Serve until cancelled; log each failure once, and start again after it."""
        while True:
            try:
                await self._serve()
            except PresigndError as error:
                self._unavailable("; ".join([error.message, *getattr(error, "problems", ())]), error.fix)
            except OSError as error:  # too many open files, a disk that can't be read
                self._unavailable(reason_of(error), "mend what the error says; the page is started again by itself")
            except Exception as error:
                log.exception("web.crashed")
                self._problem = f"a bug ({type(error).__name__})"
            finally:
                self._url, self._access, self._snapshots = "", None, None
            await asyncio.sleep(self._pace.restart)

    def _unavailable(self, error: str, fix: str) -> None:
        if error != self._problem:
            log.warning("web.unavailable", error=error, fix=fix)
        self._problem = error

    async def _serve(self) -> None:
        path = self._view.config.web_token
        token = await asyncio.to_thread(rights.load_token, path)
        access = Access(token, None if self._listen.path else self._listen.port)
        for secret in (access.token, access.cookie):
            redact.register(secret)
        snapshots, connections = Snapshots(self._view, self._pace), Connections()
        site = Site(self._view, access, self._listen, snapshots, connections=connections, pace=self._pace)
        server = HttpServer(
            site.app(),
            self._view.config.web.listen,
            "web.listen",
            connections=connections,
            most=lambda: CONNECTIONS,
            idle_seconds=self._pace.idle,
            cut_seconds=SHUTDOWN_SECONDS,
        )
        try:
            await server.open()
            server.serve()
            self._access = access
            self._started(server.place)
            if await asyncio.to_thread(rights.readable_by_others, path):
                log.warning("web.token_readable", path=str(path), fix=f"chmod o-r {path}")
            self._snapshots = snapshots
            await snapshots.run()
        finally:
            await snapshots.close()
            await server.close()

    def _started(self, place: str) -> None:
        self._problem = ""
        # Behind a Unix socket a proxy knows the name; with every interface, loopback is one.
        name = "localhost" if self._listen.path else place.replace(EVERY, "127.0.0.1").replace("[::]", "[::1]")
        self._url = f"http://{name}"
        exposed = (
            {} if self._listen.is_local else {"fix": "the token travels unencrypted: put a proxy with TLS before it"}
        )
        (log.warning if exposed else log.info)("web.started", listen=place, **exposed)


@contextlib.asynccontextmanager
async def serving(view: View, pace: Pace = PACE) -> AsyncIterator[StatusPage]:
    """Run the status page beside the body."""
    page = StatusPage(view, pace)
    running = asyncio.create_task(page.run(), name="status page")
    try:
        yield page
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
