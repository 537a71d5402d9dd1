"""Run a page beside a program's work without harm to that: bounded, and started again after a failure."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from presignd.config.addresses import Listen, parse_listen
from presignd.errors import PresigndError, Unavailable, reason_of
from presignd.pages import access as rights
from presignd.pages.access import Access
from presignd.pages.pace import Pace
from presignd.pages.site import Site
from presignd.redaction import redact
from presignd.runtime.clients import Connections
from presignd.runtime.http_server import HttpServer
from presignd.telemetry.log import get_logger

CONNECTIONS = 40
"""Most connections: the program needs the other descriptors and the memory. One more replaces the one idle longest, a
stranger's first, so a probe always gets its answer."""
SHUTDOWN_SECONDS = 1.0
"""How long answers may take when the program ends."""
EVERY = "0.0.0.0"  # noqa: S104 - compared with, not bound


class PageServer(ABC):
    """Serves one page, whose section in the configuration is ``name``; no error ends ``run``."""

    name: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, listen: str, token_file: Path, pace: Pace) -> None:
        self._address, self._token_file, self._pace = listen, token_file, pace
        self._listen = parse_listen(listen)
        self._access: Access | None = None
        self._url = ""
        self._problem = ""
        self._log = get_logger()

    @abstractmethod
    def access(self, token: str, port: int | None) -> Access:
        """Return who may log in."""

    @abstractmethod
    def site(self, access: Access, connections: Connections) -> Site[Any]:
        """Return the site, made anew for each start."""

    @abstractmethod
    async def work(self) -> None:
        """Do the page's own work while it is served, until cancelled."""

    def login_url(self) -> str:
        """Return an address that logs in once, soon; raise ``Unavailable`` while the page does not run."""
        if not self._url or self._access is None:
            raise Unavailable(f"{self.name}: the {self.title} is not up: {self._problem or 'it is being started'}")
        return self._access.login_url(self._url)

    async def run(self) -> None:
        """Serve until cancelled; log each failure once, and start again after it."""
        while True:
            try:
                await self._serve()
            except PresigndError as error:
                self._unavailable("; ".join([error.message, *getattr(error, "problems", ())]), error.fix)
            except OSError as error:  # too many open files, a disk that can't be read
                self._unavailable(reason_of(error), "mend what the error says; the page is started again by itself")
            except Exception as error:  # noqa: BLE001 - logged with its traceback
                self._log.exception(f"{self.name}.crashed")
                self._problem = f"a bug ({type(error).__name__})"
            finally:
                self._url, self._access = "", None
            await asyncio.sleep(self._pace.restart)

    def _unavailable(self, error: str, fix: str) -> None:
        if error != self._problem:
            self._log.warning(f"{self.name}.unavailable", error=error, fix=fix)
        self._problem = error

    async def _serve(self) -> None:
        token = await asyncio.to_thread(rights.load_token, self._token_file, f"{self.name}.token_file")
        access = self.access(token, None if self._listen.path else self._listen.port)
        for secret in (access.token, access.cookie):
            redact.register(secret)
        connections = Connections()
        server = HttpServer(
            self.site(access, connections).app(),
            self._address,
            f"{self.name}.listen",
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
            if await asyncio.to_thread(rights.readable_by_others, self._token_file):
                fix = f"chmod o-r {self._token_file}"
                self._log.warning(f"{self.name}.token_readable", path=str(self._token_file), fix=fix)
            await self.work()
        finally:
            await server.close()

    def _started(self, place: str) -> None:
        self._problem = ""
        self._url = url_of(self._listen, place)
        exposed = (
            {} if self._listen.is_local else {"fix": "the token travels unencrypted: put a proxy with TLS before it"}
        )
        (self._log.warning if exposed else self._log.info)(f"{self.name}.started", listen=place, **exposed)


def url_of(listen: Listen, place: str) -> str:
    """Return the address of a page that is served at ``place`` (host:port), for a browser on this machine."""
    # Behind a Unix socket a proxy knows the name; with every interface, loopback is one.
    name = "localhost" if listen.path else place.replace(EVERY, "127.0.0.1").replace("[::]", "[::1]")
    return f"http://{name}"


P = TypeVar("P", bound=PageServer)


@contextlib.asynccontextmanager
async def running(page: P) -> AsyncIterator[P]:
    """Run a page beside the body."""
    task = asyncio.create_task(page.run(), name=page.title)
    try:
        yield page
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
