"""The presigner that asks a broker: this process holds no storage key.

What one turn of the loop asks for goes in one request, and what is asked for while a request is under way
goes in the next: as many grants at a time as there happens to be work, none before it is needed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, StringConstraints, ValidationError

from presignd.config import PresignConfig
from presignd.errors import CODES, Fault, PresignerFault, StoreFault, WatchFault, fault
from presignd.presign import ON_AN_UPLOAD, Grant, GrantRequest, Operation
from presignd.presign.broker_client import (
    FORBIDDEN,
    LEAST_BODY,
    OK,
    TOO_LARGE,
    BrokerClient,
    BrokerResponse,
    refusal_of,
    said,
)
from presignd.presign.expected import Expected, checked, expect
from presignd.presign.local import count
from presignd.runtime.heartbeat import holding, resting
from presignd.s3.limits import CHECK_NAME, MAX_KEY, key_problem
from presignd.telemetry import metrics

MOST = 1000
"""Grants in one request (contract §7)."""

LONGEST_GRANT = 16 << 10
"""Bytes of an answer for each grant: a key of 1024 bytes, percent-encoded, with its headers, takes a third."""

PATIENCE, LEAST_PAUSE = 10.0, 0.1
"""Seconds that a broker's Retry-After is waited out here, all of them since the last grant; and each at least."""

_THEIRS = {
    "outside_bucket": "not_allowed",
    "operation_refused": "not_allowed",
    "header_refused": "not_allowed",
    "date_refused": "clock_skew",
}
"""A broker's words for what concerns a whole watch, or this machine's clock, by ours."""

_LOST = "upload_refused"
"""A broker's word for an upload that it takes for another's: it can't be gone on with, so it begins anew."""

_OF_ONE_FILE = ("outside_prefix", "too_large", "key_refused", "grant_refused")
"""Codes of a refusal that concern one file alone. A broker may not choose any other class than to wait."""


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("is no time") from None


class Me(BaseModel):
    """What ``GET /v1/me`` tells of the token: where it may write, what it may do, and until when (UTC).

    A broker is believed nothing: names are what tokens are called, for these get into what people read.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{0,64}$")] = ""
    bucket: Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]{0,63}$")] = ""
    prefix: Annotated[str, StringConstraints(max_length=MAX_KEY)] = ""
    operations: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z.]{1,32}$")], ...] | None = None
    max_size: int | None = None
    versions: bool = False
    valid_until: Annotated[AwareDatetime, AfterValidator(_in_utc)] | None = None

    def lacks(self, operation: Operation) -> bool:
        """Tell whether the token does not allow ``operation``; one that tells none is not asked."""
        return self.operations is not None and operation.partition(".")[0] not in self.operations


class _TooMuch(Exception):
    """The broker takes fewer grants at a time (413)."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    expected: Expected
    granted: asyncio.Future[Grant | Exception]


class BrokerPresigner:
    """Asks for grants, and takes none but those it asked for; a ``presignd.presign.Presigner``."""

    def __init__(
        self,
        config: PresignConfig,
        client: BrokerClient,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._config, self._client, self._sleep = config, client, sleep
        self._waiting: list[_Wanted] = []
        self._sending: asyncio.Task[None] | None = None
        self._most = MOST
        self._waited = 0.0
        self._asking = asyncio.Lock()
        self._me: Me | None = None

    @property
    def clock_offset(self) -> float | None:
        """The broker's clock less ours in seconds; None before its first answer."""
        return self._client.clock_offset

    async def grant(self, requests: Sequence[GrantRequest]) -> list[Grant | Exception]:
        """Ask for ``requests``; raise ``PresignerFault`` when the broker gives no answer that can be used."""
        if any(each.version_id for each in requests) and not (await self.me()).versions:
            # An older broker refuses what has a field that it does not know, some even the whole batch.
            requests = [replace(each, version_id="") for each in requests]
        asked = [self._ask(each) for each in requests]
        with resting():  # each exchange has its deadline
            answers = await asyncio.gather(*asked)
        count(requests, answers)
        return answers

    def _ask(self, request: GrantRequest) -> asyncio.Future[Grant | Exception]:
        """Have the request in the next batch; one that can't be signed is refused here."""
        granted: asyncio.Future[Grant | Exception] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.append(_Wanted(expect(request, self._config), granted))
        except Fault as refused:
            granted.set_result(refused)
        if self._waiting and self._sending is None:
            self._sending = asyncio.create_task(self._send(), name="grants")
        return granted

    async def _send(self) -> None:
        """Send what waits, a batch at a time, until nothing does."""
        try:
            while batch := self._next_batch():
                await self._serve(batch)
        finally:
            self._sending = None

    def _next_batch(self) -> list[_Wanted]:
        """Take what still is wanted: whoever was cancelled wants nothing."""
        wanted = [each for each in self._waiting if not each.granted.done()]
        self._waiting = wanted[self._most :]
        return wanted[: self._most]

    async def _serve(self, batch: list[_Wanted]) -> None:
        """Get a batch answered. One that is too much for now goes back, and those to come are smaller."""
        try:
            answers = await self._granted([wanted.expected for wanted in batch])
        except asyncio.CancelledError:
            self._waiting += batch  # ``close`` tells whoever waits
            raise
        except Exception as problem:  # noqa: BLE001 - whoever waits must hear of it, a bug too
            await self._failed(batch, problem)
            return
        self._most, self._waited = min(MOST, 2 * self._most), 0.0
        for wanted, answer in zip(batch, answers, strict=True):
            if not wanted.granted.done():
                wanted.granted.set_result(answer)

    async def _failed(self, batch: list[_Wanted], problem: Exception) -> None:
        """Tell whoever waits; a short Retry-After is waited out first, for a rate that is met is no outage."""
        pause = _pause(problem)
        self._waited += pause
        if isinstance(problem, _TooMuch) or self._waited <= PATIENCE:
            self._waiting = batch + self._waiting
            self._most = max(1, len(batch) // 2)
            await self._sleep(pause)
            return
        self._waited = 0.0
        for wanted in batch:
            if not wanted.granted.done():
                wanted.granted.set_exception(problem)

    async def _granted(self, batch: Sequence[Expected]) -> list[Grant | Exception]:
        document = {"grants": [expected.request.to_json() for expected in batch]}
        told = await self._client.ask("/v1/grants", document, most=LEAST_BODY + LONGEST_GRANT * len(batch))
        if told.status == TOO_LARGE:
            if len(batch) > 1:
                raise _TooMuch
            return [fault("grant_refused", "the request is too large for the broker")]
        answers = _list_in(told.document, len(batch))
        if answers is None:
            raise _unusable(told)
        now = told.date or self._client.now()
        return [_judged(expected, answer, now) for expected, answer in zip(batch, answers, strict=True)]

    async def me(self) -> Me:
        """Return what the broker tells of the token, asked for once; raise ``PresignerFault``."""
        async with holding(self._asking):
            if self._me is None:
                self._me = await self._ask_me()
        return self._me

    async def _ask_me(self) -> Me:
        with resting():  # it has its deadline
            told = await self._client.ask("/v1/me")
        if told.status != OK or not isinstance(told.document, dict):
            raise _unusable(told)
        try:
            me = Me.model_validate(told.document)
        except ValidationError:
            raise fault("bad_broker", "what it tells of the token can't be read") from None
        if problem := key_problem(me.prefix + CHECK_NAME):
            raise fault("bad_broker", f"its token's prefix begins no key: {problem}")
        metrics.CREDENTIAL_EXPIRY.set(me.valid_until.timestamp() if me.valid_until else math.inf)
        return me

    def now(self) -> datetime:
        """Return the broker's time (UTC), by its last answer; ours before the first."""
        return self._client.now()

    async def prefix(self) -> str:
        """Return what each key must begin with."""
        return (await self.me()).prefix

    async def credential_expiry(self) -> datetime | None:
        """Return when the token ends (UTC), None for one that doesn't."""
        return (await self.me()).valid_until

    def look_again(self, bucket: str) -> None:  # noqa: ARG002 - a token has one
        """Ask anew what the token may do."""
        self._me = None

    async def close(self) -> None:
        """Give up what is under way, and close every connection."""
        if self._sending is not None:
            sending = self._sending
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        for wanted in self._waiting:
            wanted.granted.cancel()
        await self._client.close()


def _pause(problem: Exception) -> float:
    """Return how many seconds to wait before the same is asked again; infinity where it is not to be."""
    if isinstance(problem, _TooMuch):
        return 0.0
    if isinstance(problem, PresignerFault) and problem.code == "presigner_busy" and problem.retry_after is not None:
        return max(problem.retry_after, LEAST_PAUSE)
    return math.inf


def _list_in(document: Any, count: int) -> list[Any] | None:
    """Return the answers where there is one for each request, else None."""
    answers = document.get("grants") if isinstance(document, dict) else None
    return answers if isinstance(answers, list) and len(answers) == count else None


def _unusable(told: BrokerResponse) -> Fault:
    if told.status == FORBIDDEN:
        return refusal_of(told)
    return fault("bad_broker", "its answer is not one to what it was asked")


def _judged(expected: Expected, answer: Any, now: datetime) -> Grant | Exception:
    if not isinstance(answer, dict):
        return fault("wrong_grant", "neither a grant nor a refusal")
    if "error" in answer:
        return refusal(expected.request.operation, answer)
    try:
        return checked(expected, answer, now)
    except Fault as wrong:
        return wrong


def refusal(operation: Operation, answer: dict[str, Any]) -> Fault:
    """Return what a broker's refusal of one request means here.

    A code of ours that has a store, a watch or the presigner wait is taken as it is, and one of the few
    that quarantine one file; any other word is ``grant_refused``. What is refused of a large file's parts
    is refused of large files alone: their watch goes on.
    """
    error = answer["error"]
    told = error.get("code") if isinstance(error, dict) else None
    if told == _LOST and operation in ON_AN_UPLOAD:
        return fault("upload_lost", said(answer))
    code = _THEIRS.get(told, told) if isinstance(told, str) else ""
    known = CODES.get(code)
    waits = known is not None and issubclass(known.kind, (StoreFault, WatchFault, PresignerFault))
    if code == "not_allowed" and operation.startswith("multipart"):
        waits = False
    return fault(code if waits or code in _OF_ONE_FILE else "grant_refused", said(answer))
