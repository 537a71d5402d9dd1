"""FakeBroker: a broker on loopback that signs by ``presign.local``, and fails on demand.

It keeps the broker's HTTP API (docs/broker.md) and no policy but one token::

    broker.fault(status=429, headers={"Retry-After": "1"})
    broker.fault(hang=True)
    broker.fault(change=lambda grants: grants[:-1])
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

from presignd.broker.wire import read_batch
from presignd.config import PresignConfig
from presignd.demo.seaweedfs import LOOPBACK, free_ports
from presignd.presign import Grant, GrantRequest
from presignd.presign.credentials import CredentialSource
from presignd.presign.local import LocalPresigner
from tests.faulty_s3 import ServerThread

if TYPE_CHECKING:
    import ssl

    from tests.faulty_s3 import FaultyS3
    from tests.stores import Store

TOKEN = "broker-token-canary-0123456789"
Grants = list[dict[str, Any]]


@dataclass
class Asked:
    """One request as it came: its path, its headers in lower case, the grants it asks for."""

    path: str
    headers: dict[str, str]
    grants: Grants


@dataclass
class Order:
    """How to misbehave: see ``FakeBroker.fault``."""

    path: str = "/v1/grants"
    times: float = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    endless: bool = False
    hang: bool = False
    reset: bool = False
    change: Callable[[Grants], Any] | None = None


class FakeBroker:
    """See the module. ``me`` is what it tells of its token; ``skew`` moves its clock."""

    def __init__(self, store: FaultyS3 | Store, *, prefix: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.token = TOKEN
        self.me: dict[str, Any] = {"name": "tests", "prefix": prefix, "operations": ["put", "multipart", "head", "get"]}
        self.asked: list[Asked] = []
        self.skew = timedelta()
        self.sign = PresignConfig(endpoint=store.endpoint, access_key=store.access_key, secret_key=store.secret_key)
        self._orders: list[Order] = []
        self._tls = tls
        (self._port,) = free_ports(1)
        self._thread: ServerThread | None = None

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT`` (https with ``tls``), the same after every start."""
        return f"{'https' if self._tls else 'http'}://{LOOPBACK}:{self._port}"

    def start(self) -> None:
        """Start to listen; return once it listens."""
        self._thread = ServerThread(self._answer, self._port, self._tls)

    def stop(self) -> None:
        """Cut every connection and stop listening."""
        if self._thread is not None:
            self._thread.end()
            self._thread = None

    def fault(self, **how: Any) -> Order:
        """Order a fault for the next ``times`` requests to ``path``.

        One of: ``status`` with ``headers`` and ``body``; a body that is ``endless``; ``hang``; ``reset``; or
        ``change``, which is given the list of answers and returns what stands under "grants" instead.
        """
        order = Order(**how)
        self._orders.append(order)
        return order

    def heal(self) -> None:
        """Cancel all ordered faults."""
        self._orders.clear()

    def now(self) -> datetime:
        """Return the broker's time."""
        return datetime.now(UTC) + self.skew

    def posts(self) -> list[Asked]:
        """Return the requests for grants."""
        return [asked for asked in self.asked if asked.path == "/v1/grants"]

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        document = await request.json() if request.method == "POST" else {"grants": []}
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append(Asked(request.path, headers, document["grants"]))
        order = self._take_order(request.path)
        if order.hang:
            await asyncio.Event().wait()
        if order.reset and request.transport is not None:
            connection = request.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            asyncio.get_running_loop().call_soon(request.transport.abort)
            raise asyncio.CancelledError
        if order.endless:
            return await _without_end(request)
        if order.status:
            return web.Response(status=order.status, headers={**self._date(), **order.headers}, body=order.body)
        if headers.get("authorization") != f"Bearer {self.token}":
            document = {"error": {"code": "unauthorized", "message": "no valid token"}}
            return web.json_response(document, status=401, headers=self._date())
        return await self._serve(request.path, document["grants"], order)

    async def _serve(self, path: str, asked: Grants, order: Order) -> web.Response:
        if path == "/v1/me":
            return web.json_response(self.me, headers=self._date())
        answers: Any = await self._granted(asked)
        if order.change:
            answers = order.change(answers)
        return web.json_response({"grants": answers}, headers=self._date())

    async def _granted(self, asked: Grants) -> Grants:
        async def region(_: str) -> str:
            return "us-east-1"

        credentials = CredentialSource(self.sign, clock=self.now)
        signer = LocalPresigner(self.sign, region_of=region, credentials=credentials, clock=self.now)
        requests = read_batch(json.dumps({"grants": asked}).encode()).grants
        answers = zip(requests, await signer.grant(requests), strict=True)
        return [self._told(request, answer) for request, answer in answers]

    def _told(self, request: GrantRequest, answer: Grant | Exception) -> dict[str, Any]:
        if request.date and request.date > self.now() + timedelta(minutes=5):
            return {"error": {"code": "date_refused", "message": "the date lies ahead of the broker's clock"}}
        refused = {"error": {"code": "grant_refused", "message": "no"}}
        return answer.to_json() if isinstance(answer, Grant) else refused

    def _take_order(self, path: str) -> Order:
        for order in self._orders:
            if order.path == path and order.times > 0:
                order.times -= 1
                return order
        return Order()

    def _date(self) -> dict[str, str]:
        return {"Date": format_datetime(self.now(), usegmt=True)}


async def _without_end(request: web.BaseRequest) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    while True:
        await answer.write(bytes(64 << 10))


@contextmanager
def fake_broker(store: FaultyS3 | Store, **how: Any) -> Iterator[FakeBroker]:
    """Run a fake broker that signs for ``store``."""
    broker = FakeBroker(store, **how)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


FOREVER = math.inf
