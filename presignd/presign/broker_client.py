"""The HTTP client for a broker: sends one document, returns one, and raises ``PresignerFault`` for every failure.

A broker is not trusted: redirects are not followed, the length and time of its responses are limited, and its text
appears only in the detail of a fault, cut and redacted.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import aiohttp
from pydantic_core import from_json
from yarl import URL

from presignd.config import PresignConfig
from presignd.connection import client_session, connection_fault, proxy_for, read_at_most, tls_context
from presignd.errors import CODES, Fault, PresignerFault, StoreFault, WatchFault, fault
from presignd.presign import ON_AN_UPLOAD, Operation
from presignd.redaction import redact
from presignd.redaction.echoes import Echoes, long_enough
from presignd.s3.responses import Response

TIMEOUT = 15.0
"""Seconds for one exchange, connecting included: signing takes milliseconds."""

LEAST_BODY = 64 << 10
"""Limit on the bytes read of a response; it is higher if many grants were requested."""

CONNECTIONS = 4
_SHOWN = 200

OK, NO_CONTENT, UNAUTHORIZED, FORBIDDEN, TOO_LARGE, TOO_MANY = 200, 204, 401, 403, 413, 429

_THEIRS = {
    "outside_bucket": "not_allowed",
    "operation_refused": "not_allowed",
    "header_refused": "not_allowed",
    "date_refused": "clock_skew",
}
"""Our codes for a broker's codes about a whole watch, or about this machine's clock."""

_LOST = "upload_refused"
"""A broker's code for an upload that it assigns to another token or key. The upload starts again."""

_OF_ONE_FILE = ("outside_prefix", "too_large", "key_refused", "grant_refused")
"""Codes that a broker may use to quarantine one file. Its other codes can only make the daemon wait."""


@dataclass(frozen=True, slots=True)
class BrokerResponse:
    """A broker's response: status, JSON (None if it is none), Date in UTC, Retry-After in seconds.

    ``s3_code`` is the code of an S3 error: then presign.url is the address of a store.
    """

    status: int
    document: Any = field(repr=False)
    date: datetime | None
    retry_after: float | None
    s3_code: str = ""


class BrokerClient:
    """The HTTP client for one broker, with its token or a client certificate.

    ``clock_offset`` is the broker's clock minus ours in seconds, by the Date of the last response (whole seconds).
    Raises ``UsageError`` for unusable TLS files.
    """

    def __init__(self, config: PresignConfig, *, clock: Callable[[], datetime], timeout: float = TIMEOUT) -> None:
        self._config, self._clock, self._timeout = config, clock, timeout
        self._tls = tls_context(config) if config.url.startswith("https:") else None
        self._session: aiohttp.ClientSession | None = None
        self._echoes = Echoes(long_enough([config.token.get_secret_value()] if config.token else []))
        self.clock_offset: float | None = None

    def now(self) -> datetime:
        """Return the broker's time; ours until its first response."""
        offset = self.clock_offset or 0.0
        return datetime.fromtimestamp(self._clock().timestamp() + offset, UTC)

    async def ask(
        self,
        path: str,
        document: Mapping[str, Any] | None = None,
        *,
        most: int = LEAST_BODY,
        also: Collection[int] = (),
    ) -> BrokerResponse:
        """GET ``path``, or POST ``document`` to it; return a response of 200, 204, 403, 413 or ``also``.

        ``most`` is the longest body in bytes that is read. Raises ``PresignerFault`` for all else.
        """
        try:
            raw = await self._ask_again(path, document, most)
        except TimeoutError:
            raise fault("presigner_unreachable", f"no answer within {self._timeout:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as problem:
            raise fault("presigner_unreachable", connection_fault(problem).message) from None
        if raw.date is not None:
            self.clock_offset = (raw.date - self._clock()).total_seconds()
        if len(raw.body) >= most:
            raise fault("bad_broker", "its answer has no end")
        # Searching all URLs of a batch would take long. Its other texts are refusals, which ``error_message`` redacts.
        if (document is None or raw.status != OK) and self._echoes.are_in(raw.body.decode("latin-1")):
            raise fault("bad_broker", "its answer says the token again")
        response = BrokerResponse(raw.status, _parsed(raw.body), raw.date, raw.retry_after, _s3_code(raw))
        if response.status not in (OK, NO_CONTENT, FORBIDDEN, TOO_LARGE, *also):
            raise refusal_of(response)
        return response

    async def _ask_again(self, path: str, document: Mapping[str, Any] | None, most: int) -> Response:
        """Send the request, and again if a kept connection was closed: signing twice does no harm."""
        try:
            return await self._exchange(path, document, most)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            return await self._exchange(path, document, most)

    async def _exchange(self, path: str, document: Mapping[str, Any] | None, most: int) -> Response:
        url = URL(self._config.url + path, encoded=True)
        async with (
            asyncio.timeout(self._timeout),
            self._open_session().request(
                "GET" if document is None else "POST",
                url,
                json=document,
                headers=self._headers(),
                allow_redirects=False,
                proxy=proxy_for(self._config.url, self._config.proxy),
            ) as response,
        ):
            body = await read_at_most(response, most)
            return Response(response.status, {name.lower(): value for name, value in response.headers.items()}, body)

    def _headers(self) -> dict[str, str]:
        """Return the headers: the token, and our clock, as the broker's fleet page shows the difference."""
        token, now = self._config.token, self._clock().astimezone(UTC)
        authorization = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        return {"Date": format_datetime(now, usegmt=True), **authorization}

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = client_session(self._tls, connections=CONNECTIONS)
        return self._session

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def _s3_code(raw: Response) -> str:
    return raw.code if re.fullmatch("[A-Za-z]{1,64}", raw.code) else ""


def _parsed(body: bytes) -> Any:
    try:
        return from_json(body)
    except ValueError:
        return None


def refusal_of(response: BrokerResponse) -> Fault:
    """Return the fault for a refused call, by a broker or by another server at its address."""
    detail = f"{response.status} {error_message(response.document)}".strip()
    if response.s3_code:
        return fault("bad_broker", f"an S3 store answers there ({response.status} {response.s3_code})")
    if response.status in (UNAUTHORIZED, FORBIDDEN) and not isinstance(response.document, dict):
        return fault("bad_broker", f"{response.status}, and not in a broker's words")
    if response.status in (UNAUTHORIZED, FORBIDDEN):
        return fault("token_refused", detail, retry_after=response.retry_after)
    if response.status == TOO_MANY:
        return fault("presigner_busy", detail, retry_after=response.retry_after)
    if response.status >= 500:  # noqa: PLR2004 - 5xx
        return fault("presigner_unreachable", detail, retry_after=response.retry_after)
    return fault("bad_broker", f"{response.status}, a redirect" if response.status // 100 == 3 else detail)  # noqa: PLR2004


def unusable(response: BrokerResponse) -> Fault:
    """Return the fault for a response that does not answer the request."""
    if response.status == FORBIDDEN:
        return refusal_of(response)
    return fault("bad_broker", "its answer is not one to what it was asked")


def refusal(operation: Operation, answer: dict[str, Any]) -> Fault:
    """Return the fault for a broker's refusal of one request.

    A code for which a store, a watch or the presigner waits is kept, and so are the few that quarantine one file; any
    other code becomes ``grant_refused``. A refused multipart operation concerns large files only, so it does not block
    the watch.
    """
    error = answer["error"]
    given = error.get("code") if isinstance(error, dict) else None
    if given == _LOST and operation in ON_AN_UPLOAD:
        return fault("upload_lost", error_message(answer))
    code = _THEIRS.get(given, given) if isinstance(given, str) else ""
    known = CODES.get(code)
    waits = known is not None and issubclass(known.kind, (StoreFault, WatchFault, PresignerFault))
    if code == "not_allowed" and operation.startswith("multipart"):
        waits = False
    return fault(code if waits or code in _OF_ONE_FILE else "grant_refused", error_message(answer))


def error_message(document: Any) -> str:
    """Return the message of an error document as one short line without secrets; "" if it has none."""
    error = document.get("error") if isinstance(document, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    if not isinstance(message, str):
        return ""
    line = "".join(char if char.isprintable() else " " for char in message[: 2 * _SHOWN])
    return redact.redact(line)[:_SHOWN]
