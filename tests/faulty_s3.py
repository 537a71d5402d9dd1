"""FaultyS3: a real HTTP server on loopback that is a small correct S3, and fails on demand.

Correct: objects in memory, MD5 ETags, Content-MD5 and the ``checksums`` it knows checked, and these told to a HEAD that
asks; If-None-Match and If-Match honoured, a presigned query demanded, its expiry and its signed headers judged,
multipart uploads (``tests/faulty_uploads.py``). It runs in a thread, so that blocking tests and daemons in other
processes can use it. On order::

    faulty_s3.fault(method="PUT", status=503, code="SlowDown", headers={"Retry-After": "1"})
    faulty_s3.fault(method="PUT", key="a", times=3, reset="during")
    faulty_s3.fault(key="b", times=FOREVER, hang="after")

Faults are taken in the order they were asked for, each ``times`` often.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import re
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape

import pytest
from aiohttp import web

from presignd.demo.seaweedfs import LOOPBACK, free_ports
from presignd.s3.checksums import checksum_of, header_of
from tests.faulty_etags import Etags
from tests.faulty_uploads import Uploads

if TYPE_CHECKING:
    import ssl

FOREVER = math.inf
T = TypeVar("T")
BUCKET = "test-bucket"
_CHUNK = bytes(64 << 10)
CUSTOMER_KEY = "x-amz-server-side-encryption-customer-key-MD5"
CUSTOMER_ALGORITHM = "x-amz-server-side-encryption-customer-algorithm"

Moment = Literal["", "before", "during", "after"]
"""When: as the headers are in, after some of the body, or after all of it was taken and stored."""


@dataclass(frozen=True)
class Seen:
    """One request as it came. ``body`` is what was read of it, ``status`` what was answered (0: nothing)."""

    method: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    status: int
    at: datetime


@dataclass
class Object:
    """One stored object; ``headers`` are those that come back."""

    body: bytes
    etag: str | None
    headers: dict[str, str]
    modified: datetime
    checksums: dict[str, str] = field(default_factory=dict)


@dataclass
class Order:
    """How to misbehave, and for which requests: see ``FaultyS3.fault``."""

    method: str = ""
    key: str | None = None
    bucket: str | None = None
    when: Callable[[str, str], bool] | None = None
    times: float = 1
    status: int = 0
    code: str = ""
    message: str = "on order"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    body_size: float = 0
    reset: Moment = ""
    hang: Moment = ""
    etag: str | None = ""
    lose: bool = False
    early: bool = False
    late: bool = False
    asks: str = ""
    echo: bool = False

    def meets(self, method: str, bucket: str, key: str, query: Collection[str]) -> bool:
        return (
            self.times > 0
            and self.method in {"", method}
            and self.key in {None, key}
            and self.bucket in {None, bucket}
            and (self.when is None or self.when(method, key))
            and (not self.asks or self.asks in query)
        )


class Refusal(Exception):
    """An S3 error to answer with."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message


class FaultyS3:
    """See the module. ``objects`` is keyed by (bucket, key); ``requests`` is every request, in order.

    ``clock_skew`` moves the server's clock: its ``Date`` and its judgement of expiry. With
    ``conditions`` off, If-Match and If-None-Match are ignored, as the JuiceFS gateway does; with
    ``conditions_at_the_end`` off, as an upload in parts completes, as Ceph's does; with ``refuses_conditions``
    on, a PUT that has one is answered 501, and a Complete 400, as Swift does. A PUT with ``refuses_header``
    is answered ``refusal``. With ``signatures`` off, a wrong one is taken, as mock servers do; with
    ``digests`` off, checksums are neither looked at nor kept. ``checksums`` are the algorithms of x-amz-checksum-… that
    it knows. ``etags`` is what it makes of ETags (``tests/faulty_etags.py``).
    ``busiest`` is the most requests it ever had at a time.
    """

    access_key = "faulty-access"
    secret_key = "faulty-secret-0123456789"
    bucket = BUCKET

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.buckets = {BUCKET}
        self.objects: dict[tuple[str, str], Object] = {}
        self.requests: list[Seen] = []
        self.clock_skew = timedelta()
        self.signatures = True
        self.conditions = True
        self.conditions_at_the_end = True
        self.refuses_conditions = False
        self.refuses_header, self.refusal = "", 501
        self.digests = True
        self.checksums = {"sha256"}
        self.region = "us-east-1"
        self.busy = self.busiest = 0
        self.uploads = Uploads()
        self._orders: list[Order] = []
        self._tls = tls
        (self._port,) = free_ports(1)
        self._thread: ServerThread | None = None

    @property
    def etags(self) -> Etags:
        """What it names objects and parts by."""
        return self.uploads.etags

    @etags.setter
    def etags(self, etags: Etags) -> None:
        self.uploads.etags = etags

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:PORT`` (https with ``tls``), the same after every start."""
        return f"{'https' if self._tls else 'http'}://{LOOPBACK}:{self._port}"

    def start(self) -> None:
        """Start to listen; return once it listens."""
        self._thread = ServerThread(_Handler(self), self._port, self._tls)

    def stop(self) -> None:
        """Cut every connection and stop listening: from now on connections are refused."""
        if self._thread is not None:
            self._thread.end()
            self._thread = None

    def fault(self, method: str = "", key: str | None = None, **how: object) -> Order:
        """Order a fault for the next ``times`` requests with this method and key (any, when not given).

        ``bucket``, ``when(method, key)`` and ``asks`` (a parameter of the query) narrow it further. Then one
        of: ``status`` with ``code``, ``message``, ``headers`` and ``body`` (raw, else S3's XML) or
        ``body_size`` bytes (FOREVER: never ends) or ``echo`` (the caller's own signed URL in every coat),
        ``early`` for before the body was read, ``late`` for after it was done; ``reset`` or ``hang`` before,
        during or after the body; ``etag`` in place of the true one (None: no ETag); ``lose``: answer 200 and
        store nothing. A redirect is ``status=307, headers={"Location": …}``. In ``code``, ``message``, ``body``,
        ``etag`` and ``headers`` SIGNATURE and CREDENTIAL stand for the request's own.
        """
        order = Order(method=method, key=key, **how)  # type: ignore[arg-type] # checked by the dataclass
        self._orders.append(order)
        return order

    def heal(self) -> None:
        """Cancel all ordered faults."""
        self._orders.clear()

    def seen(self, method: str, key: str | None = None) -> list[Seen]:
        """Return the requests with this method (and key)."""
        return [seen for seen in self.requests if seen.method == method and key in {None, seen.key}]

    def now(self) -> datetime:
        """Return the server's time."""
        return datetime.now(UTC) + self.clock_skew

    def take_order(self, method: str, bucket: str, key: str, query: Collection[str]) -> Order:
        """Return the ordered fault for a request, or an empty order; count it as used."""
        for order in self._orders:
            if order.meets(method, bucket, key, query):
                order.times -= 1
                return order
        return Order()


Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ServerThread:
    """An aiohttp server with a loop and a thread of its own."""

    def __init__(self, handler: Handler, port: int, tls: ssl.SSLContext | None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="FaultyS3", daemon=True)
        self._thread.start()
        self._runner = self._do(_listen(handler, port, tls))

    async def _close(self) -> None:
        await self._runner.cleanup()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def end(self) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _listen(handler: Handler, port: int, tls: ssl.SSLContext | None) -> web.ServerRunner:
    runner = web.ServerRunner(web.Server(handler, access_log=None), shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, port, ssl_context=tls).start()
    return runner


class _Handler:
    """Answers one request: reads it, carries out the order for it, else does what S3 does."""

    def __init__(self, store: FaultyS3) -> None:
        self._store = store

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        bucket, key, query = _target(request)
        order = _filled(self._store.take_order(request.method, bucket, key, query), query)
        body = bytearray()
        answer: web.Response | None = None
        status = 0
        self._store.busy += 1
        self._store.busiest = max(self._store.busiest, self._store.busy)
        try:
            await self._mishap(order, "before", request)
            if not order.early:
                await self._take(request, order, body)
            if not order.status or order.late:
                answer = self._serve(request, (bucket, key), query, bytes(body), order)
                await self._mishap(order, "after", request)
            if order.late:
                answer = None
            status = order.status if answer is None else answer.status
        finally:  # before anything is answered: whoever has the answer finds the request remembered
            headers = {name.lower(): value for name, value in request.headers.items()}
            seen = Seen(request.method, bucket, key, query, headers, bytes(body), status, datetime.now(UTC))
            self._store.requests.append(seen)
            self._store.busy -= 1
        return await self._ordered(order, request) if answer is None else answer

    async def _take(self, request: web.BaseRequest, order: Order, body: bytearray) -> None:
        async for chunk in request.content.iter_any():
            body += chunk
            await self._mishap(order, "during", request)
        await self._mishap(order, "during", request)

    async def _mishap(self, order: Order, moment: Moment, request: web.BaseRequest) -> None:
        if order.hang == moment:
            await asyncio.Event().wait()
        if order.reset == moment and request.transport is not None:
            connection = request.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            asyncio.get_running_loop().call_soon(request.transport.abort)  # once it is remembered
            raise asyncio.CancelledError

    async def _ordered(self, order: Order, request: web.BaseRequest) -> web.StreamResponse:
        """Answer with the status, headers and body that were ordered."""
        headers = {"Content-Type": "application/xml", **self._common(), **order.headers}
        if not order.body_size:
            body = _error_xml(order.code, order.message) if order.body is None else order.body
            if order.echo:
                body = _echo(order.code, f"{self._store.endpoint}{request.raw_path}")
            return web.Response(status=order.status, headers=headers, body=_none_for(request, body))
        answer = web.StreamResponse(status=order.status, headers=headers)
        await answer.prepare(request)
        left = order.body_size
        while left > 0:
            await answer.write(_CHUNK[: int(min(left, len(_CHUNK)))])
            left -= len(_CHUNK)
        return answer

    def _serve(
        self,
        request: web.BaseRequest,
        where: tuple[str, str],
        query: dict[str, str],
        body: bytes,
        order: Order,
    ) -> web.Response:
        """Do what S3 does."""
        try:
            self._authorize(request, query)
            self._demand_bucket(where[0])
            if not where[1]:
                return self._bucket(query)
            if {"uploads", "uploadId"} & set(query):
                return self._upload(request, where, query, body, order)
            return self._object(request, where, body, order)
        except Refusal as refusal:
            xml = _error_xml(refusal.code, refusal.message)
            headers = {"Content-Type": "application/xml", **self._common()}
            return web.Response(status=refusal.status, headers=headers, body=_none_for(request, xml))

    def _authorize(self, request: web.BaseRequest, query: dict[str, str]) -> None:
        """Demand a presigned query that is alive and covers the headers S3 wants covered.

        The signature itself is left to the real servers, but for one of zeros; requests signed by header pass.
        """
        if request.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256 "):
            return
        if not re.fullmatch(r"[0-9a-f]{64}", query.get("X-Amz-Signature", "")):
            raise Refusal(403, "AccessDenied", "no presigned query")
        if self._store.signatures and query["X-Amz-Signature"] == 64 * "0":
            raise Refusal(403, "SignatureDoesNotMatch")
        signed_at = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if self._store.now() > signed_at + timedelta(seconds=int(query["X-Amz-Expires"])):
            raise Refusal(403, "AccessDenied", "Request has expired")
        if signed_at > self._store.now() + timedelta(minutes=15):
            raise Refusal(403, "RequestTimeTooSkewed", "the request is not valid yet")
        signed = set(query["X-Amz-SignedHeaders"].split(";"))
        sent = {name.lower() for name in request.headers}
        if not signed <= sent or {name for name in sent if name.startswith("x-amz-")} - signed:
            raise Refusal(403, "SignatureDoesNotMatch", "signed headers and sent headers differ")

    def _demand_bucket(self, bucket: str) -> None:
        if bucket not in self._store.buckets:
            raise Refusal(404, "NoSuchBucket")

    def _bucket(self, query: dict[str, str]) -> web.Response:
        xml = f"<LocationConstraint>{self._store.region}</LocationConstraint>" if "location" in query else ""
        headers = {"x-amz-bucket-region": self._store.region, **self._common()}
        return web.Response(headers=headers, body=xml.encode())

    def _object(self, request: web.BaseRequest, where: tuple[str, str], body: bytes, order: Order) -> web.Response:
        if request.method == "PUT":
            return self._put(request, where, body, order)
        if request.method == "DELETE":
            self._store.objects.pop(where, None)
            return web.Response(status=204, headers=self._common())
        found = self._store.objects.get(where)
        if found is None:
            raise Refusal(404, "NoSuchKey")
        _demand_customer_key(request, found.headers.get(CUSTOMER_KEY, ""))
        headers = {
            **self._common(),
            **found.headers,
            **_etag(order, found.etag if self._store.etags.looks else None),
            "Last-Modified": format_datetime(found.modified, usegmt=True),
        }
        if request.headers.get("x-amz-checksum-mode") == "ENABLED":
            headers |= found.checksums
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(found.body))})
        return web.Response(headers=headers, body=found.body)

    def _upload(
        self,
        request: web.BaseRequest,
        where: tuple[str, str],
        query: dict[str, str],
        body: bytes,
        order: Order,
    ) -> web.Response:
        """Do what S3 does with a multipart upload."""
        uploads, upload_id, headers = self._store.uploads, query.get("uploadId", ""), self._common()
        try:
            match request.method:
                case "PUT":
                    told = self._checked(request, body)
                    _demand_customer_key(request, uploads.customer_key.get(upload_id, ""))
                    etag = uploads.part(upload_id, int(query["partNumber"]), body, lose=order.lose)
                    return web.Response(headers={**headers, **self._store.etags.headers, **told, **_etag(order, etag)})
                case "GET":
                    after = int(query.get("part-number-marker", "0"))
                    return web.Response(headers=headers, body=uploads.listed(upload_id, after))
                case "DELETE":
                    uploads.abort(upload_id)
                    return web.Response(status=204, headers=headers)
                case _ if "uploads" in query:
                    algorithm = request.headers.get("x-amz-checksum-algorithm", "").lower()
                    if algorithm and request.headers.get("x-amz-checksum-type") != "FULL_OBJECT":
                        raise Refusal(501, "NotImplemented", "COMPOSITE")
                    kept = algorithm if self._store.digests and algorithm in self._store.checksums else ""
                    begun = uploads.create(request.headers.get(CUSTOMER_KEY, ""), kept)
                    return web.Response(headers=headers, body=begun)
        except KeyError:
            raise Refusal(404, "NoSuchUpload") from None
        except ValueError as refused:
            raise Refusal(400, "InvalidArgument", str(refused)) from None
        return self._complete(request, where, upload_id, body, order)

    def _complete(
        self, request: web.BaseRequest, where: tuple[str, str], upload_id: str, body: bytes, order: Order
    ) -> web.Response:
        if upload_id not in self._store.uploads.under_way:
            raise Refusal(404, "NoSuchUpload")
        self._check_conditions(request, where, Refusal(400, "InvalidRequest"), self._store.conditions_at_the_end)
        try:
            content, etag = self._store.uploads.complete(upload_id, body)
        except ValueError:
            raise Refusal(400, "InvalidPart") from None
        kept = {**self._store.etags.headers, **order.headers}
        if customer_key := self._store.uploads.customer_key[upload_id]:
            kept |= {CUSTOMER_KEY: customer_key, CUSTOMER_ALGORITHM: "AES256"}
            etag = f'"{hashlib.md5((etag or "").encode()).hexdigest()}"'  # no MD5 of the content, as S3 says
        told = _checksum_header(self._store.uploads.algorithm[upload_id], content)
        if not order.lose:
            self._store.objects[where] = Object(content, order.etag or etag, kept, self._store.now(), told)
        rows = [f"<ETag>{escape(etag or '')}</ETag>"]
        for name, value in told.items():
            element = f"Checksum{name.rpartition('-')[2].upper()}"
            rows.append(f"<{element}>{value}</{element}>")
        xml = f"<CompleteMultipartUploadResult>{''.join(rows)}</CompleteMultipartUploadResult>"
        return web.Response(headers=self._common(), body=xml.encode())

    def _put(self, request: web.BaseRequest, where: tuple[str, str], body: bytes, order: Order) -> web.Response:
        if self._store.refuses_header and self._store.refuses_header in request.headers:
            raise Refusal(
                self._store.refusal, "NotImplemented" if self._store.refusal == 501 else "InvalidStorageClass"
            )
        if "Content-Length" not in request.headers:
            raise Refusal(411, "MissingContentLength")
        told = self._checked(request, body)
        self._check_conditions(request, where, Refusal(501, "NotImplemented", "Conditional PUTs are not supported."))
        name = self._store.etags.whole(body) if self._store.etags.whole else None
        etag, more = name and f'"{name}"', {**self._store.etags.headers, **order.headers}
        if not order.lose:
            kept = {**_kept(request), **more}
            self._store.objects[where] = Object(body, etag, kept, self._store.now(), told)
        return web.Response(headers={**self._common(), **more, **told, **_etag(order, etag)})

    def _checked(self, request: web.BaseRequest, body: bytes) -> dict[str, str]:
        """Refuse a body that is not that of its checksums; return those that are kept and told."""
        if not self._store.digests:
            return {}
        if request.headers.get("Content-MD5", "") not in {"", base64.b64encode(hashlib.md5(body).digest()).decode()}:
            raise Refusal(400, "BadDigest", "Content-MD5 differs")
        told = {name: value for each in self._store.checksums for name, value in _checksum_header(each, body).items()}
        kept = {name: value for name, value in told.items() if name in request.headers}
        for name, value in kept.items():
            if request.headers[name] != value:
                raise Refusal(400, "BadDigest", f"{name} differs")
        return kept

    def _check_conditions(
        self, request: web.BaseRequest, where: tuple[str, str], unknown: Refusal, honoured: bool = True
    ) -> None:
        if self._store.refuses_conditions and {"If-None-Match", "If-Match"} & set(request.headers):
            raise unknown
        if self._store.conditions and honoured:
            _check_conditions(request, self._store.objects.get(where))

    def _common(self) -> dict[str, str]:
        date = format_datetime(self._store.now(), usegmt=True)
        return {"Date": date, "x-amz-request-id": f"{len(self._store.requests):016X}"}


def _target(request: web.BaseRequest) -> tuple[str, str, dict[str, str]]:
    """Split the request's target as it was sent: nothing is normalised."""
    path, _, query = request.raw_path.partition("?")
    bucket, _, key = path.lstrip("/").partition("/")
    return unquote(bucket), unquote(key), dict(parse_qsl(query, keep_blank_values=True))


def _etag(order: Order, true: str | None) -> dict[str, str]:
    """Return the ETag header as it was ordered."""
    told = None if order.etag is None else order.etag or true
    return {} if told is None else {"ETag": told}


def _none_for(request: web.BaseRequest, body: bytes) -> bytes | None:
    """Return the body, or none where HTTP has none."""
    return None if request.method == "HEAD" else body


def _kept(request: web.BaseRequest) -> dict[str, str]:
    names = re.compile(
        rf"content-type|cache-control|content-disposition|x-amz-meta-.*|{CUSTOMER_KEY}|{CUSTOMER_ALGORITHM}",
        re.IGNORECASE,
    )
    return {name: value for name, value in request.headers.items() if names.fullmatch(name)}


def _demand_customer_key(request: web.BaseRequest, wanted: str) -> None:
    """Refuse what was begun with a customer's key (SSE-C), of which S3 keeps the MD5, to whoever has another."""
    if request.headers.get(CUSTOMER_KEY, "") != wanted:
        raise Refusal(400, "InvalidRequest", "not the key it was stored with")


def _checksum_header(algorithm: str, body: bytes) -> dict[str, str]:
    """Return S3's header of a checksum; none for no algorithm."""
    return dict([header_of(checksum_of(body, algorithm))]) if algorithm else {}


def _check_conditions(request: web.BaseRequest, found: Object | None) -> None:
    if request.headers.get("If-None-Match") == "*" and found is not None:
        raise Refusal(412, "PreconditionFailed")
    wanted = request.headers.get("If-Match", "")
    if wanted and (found is None or wanted.strip('"') != (found.etag or "").strip('"')):
        raise Refusal(412, "PreconditionFailed")


def _filled(order: Order, query: dict[str, str]) -> Order:
    """Put this request's own secrets where an order says SIGNATURE or CREDENTIAL."""

    def fill(text: str) -> str:
        signature, credential = query.get("X-Amz-Signature", ""), query.get("X-Amz-Credential", "")
        return text.replace("SIGNATURE", signature).replace("CREDENTIAL", credential)

    return replace(
        order,
        code=fill(order.code),
        message=fill(order.message),
        body=None if order.body is None else fill(order.body.decode("latin-1")).encode("latin-1"),
        etag=order.etag and fill(order.etag),
        headers={name: fill(value) for name, value in order.headers.items()},
    )


def _error_xml(code: str, message: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
    ).encode()


def _echo(code: str, url: str) -> bytes:
    """Repeat the caller's signed URL in every field of an error, in every encoding."""
    quoted, parts = quote(url, safe=""), url.replace("&", "\n")
    coats = (url, quoted, quote(quoted, safe=""), json.dumps(url), json.dumps(json.dumps(url)), repr(url.encode()))
    wrapped = [width.join(url[at : at + 60] for at in range(0, len(url), 60)) for width in ("\n", "\\n", "\r\n    ")]
    told = " | ".join([*coats, *wrapped, parts, url.partition("?")[2]])
    fields = ("Message", "StringToSign", "CanonicalRequest", "SignatureProvided", "Resource", "RequestId", "HostId")
    filled = "".join(f"<{name}>{escape(told)}</{name}>" for name in fields)
    return f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code or escape(url)}</Code>{filled}</Error>'.encode()


@pytest.fixture
def faulty_s3() -> Iterator[FaultyS3]:
    server = FaultyS3()
    server.start()
    try:
        yield server
    finally:
        server.stop()
