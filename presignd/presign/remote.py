"""The presigner that requests grants from a broker, so that this process holds no storage keys.

Requests made in one turn of the event loop are sent in one batch, and those made while a batch is under way in the
next. So batches grow with the load, and no grant is requested before it is needed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, StringConstraints, ValidationError

from presignd.config import PresignConfig
from presignd.errors import Fault, PresignerFault, fault
from presignd.presign import FIRST_CHECKSUMS, Grant, GrantRequest, Operation
from presignd.presign.broker_client import (
    LEAST_BODY,
    OK,
    TOO_LARGE,
    BrokerClient,
    error_message,
    refusal,
    unusable,
)
from presignd.presign.broker_links import BrokerLinks
from presignd.presign.expected import Expected, checked, expect
from presignd.presign.local import count
from presignd.presign.stable import in_utc
from presignd.runtime.heartbeat import holding, resting
from presignd.s3.checksums import algorithm_of
from presignd.s3.limits import CHECK_NAME, MAX_KEY, key_problem
from presignd.telemetry import metrics

MOST = 1000
"""Grants in one batch: the broker refuses more."""

LONGEST_GRANT = 16 << 10
"""Bytes of a response for each grant: three times what a percent-encoded key of 1024 bytes and its headers take."""

LINK = "link"
"""The operation of a token that may have stable links."""

PATIENCE, LEAST_PAUSE = 10.0, 0.1
"""Most seconds in total for which Retry-After is obeyed here since the last grant, and the least for each."""


class Me(BaseModel):
    """The answer to ``GET /v1/me``: where the token may write, what it may do, and its expiry (UTC).

    A broker is not trusted, and people read these values, so each must have the form of a token's own.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{0,64}$")] = ""
    bucket: Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]{0,63}$")] = ""
    prefix: Annotated[str, StringConstraints(max_length=MAX_KEY)] = ""
    operations: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z.]{1,32}$")], ...] | None = None
    max_size: int | None = None
    versions: bool = False
    checksums: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{1,32}$")], ...] = FIRST_CHECKSUMS
    valid_until: Annotated[AwareDatetime, AfterValidator(in_utc)] | None = None
    links_url: Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.:\[\]/_~-]{1,255}$")] | None = None
    max_stable_link: int | None = None

    @property
    def links_root(self) -> str:
        """Where the token's stable links are; "" if the broker has none, or none for this token."""
        return (self.links_url or "").rstrip("/") if LINK in (self.operations or ()) else ""

    def lacks(self, operation: Operation) -> bool:
        """Return whether the token lacks ``operation``; False if the broker lists no operations."""
        return self.operations is not None and operation.partition(".")[0] not in self.operations


class _TooMuch(Exception):
    """The broker takes fewer grants at a time (413)."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    expected: Expected
    granted: asyncio.Future[Grant | Exception]


class BrokerPresigner:
    """The ``Presigner`` that requests grants from a broker, and accepts only those that it requested."""

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
        self.links = BrokerLinks(client, self.me, self._forget)

    @property
    def clock_offset(self) -> float | None:
        """The broker's clock minus ours in seconds; None before its first response."""
        return self._client.clock_offset

    async def grant(self, requests: Sequence[GrantRequest]) -> list[Grant | Exception]:
        """Request grants; raise ``PresignerFault`` if the broker gives no usable answer."""
        if any(each.version_id for each in requests) and not (await self.me()).versions:
            # An older broker refuses a request with an unknown field, or even the whole batch.
            requests = [replace(each, version_id="") for each in requests]
        asked = [self._ask(each) for each in requests]
        with resting():  # each exchange has its deadline
            answers = await asyncio.gather(*asked)
        count(requests, answers)
        return answers

    def _ask(self, request: GrantRequest) -> asyncio.Future[Grant | Exception]:
        """Add the request to the next batch; refuse one that cannot be signed."""
        granted: asyncio.Future[Grant | Exception] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.append(_Wanted(expect(request, self._config), granted))
        except Fault as refused:
            granted.set_result(refused)
        if self._waiting and self._sending is None:
            self._sending = asyncio.create_task(self._send(), name="grants")
        return granted

    async def _send(self) -> None:
        """Send the waiting requests, a batch at a time, until there are none."""
        try:
            while batch := self._next_batch():
                await self._serve(batch)
        finally:
            self._sending = None

    def _next_batch(self) -> list[_Wanted]:
        """Take the next batch, without requests whose callers were cancelled."""
        wanted = [each for each in self._waiting if not each.granted.done()]
        self._waiting = wanted[self._most :]
        return wanted[: self._most]

    async def _serve(self, batch: list[_Wanted]) -> None:
        """Get a batch answered. If it is too large, its requests go back and later batches are smaller."""
        try:
            answers = await self._granted([wanted.expected for wanted in batch])
        except asyncio.CancelledError:
            self._waiting += batch  # ``close`` cancels the callers
            raise
        except Exception as problem:  # noqa: BLE001 - the callers must get every exception, bugs included
            await self._failed(batch, problem)
            return
        self._most, self._waited = min(MOST, 2 * self._most), 0.0
        for wanted, answer in zip(batch, answers, strict=True):
            if not wanted.granted.done():
                wanted.granted.set_result(answer)

    async def _failed(self, batch: list[_Wanted], problem: Exception) -> None:
        """Fail the callers, or first obey a short Retry-After: a rate limit is not an outage."""
        pause = _pause(problem)
        self._waited += pause
        if isinstance(problem, _TooMuch) or self._waited <= PATIENCE:
            self._waiting = batch + self._waiting
            self._most = max(1, len(batch) // 2)
            await self._sleep(pause)
            return
        self._waited, self._me = 0.0, None  # an older broker, or a newer one, may answer next
        for wanted in batch:
            if not wanted.granted.done():
                wanted.granted.set_exception(problem)

    async def _granted(self, batch: Sequence[Expected]) -> list[Grant | Exception]:
        document = {"grants": [expected.request.to_json() for expected in batch]}
        response = await self._client.ask("/v1/grants", document, most=LEAST_BODY + LONGEST_GRANT * len(batch))
        if response.status == TOO_LARGE:
            if len(batch) > 1:
                raise _TooMuch
            return [fault("grant_refused", "the request is too large for the broker")]
        answers = _list_in(response.document, len(batch))
        if answers is None:
            raise unusable(response)
        now = response.date or self._client.now()
        if any(_is_older(expected, answer) for expected, answer in zip(batch, answers, strict=True)):
            self._me = None
        return [_judged(expected, answer, now) for expected, answer in zip(batch, answers, strict=True)]

    async def me(self) -> Me:
        """Return the answer to ``/v1/me``, requested once; raise ``PresignerFault``."""
        async with holding(self._asking):
            if self._me is None:
                self._me = await self._ask_me()
        return self._me

    async def _ask_me(self) -> Me:
        with resting():  # the exchange has a deadline
            response = await self._client.ask("/v1/me")
        if response.status != OK or not isinstance(response.document, dict):
            raise unusable(response)
        try:
            me = Me.model_validate(response.document)
        except ValidationError:
            raise fault("bad_broker", "its answer about the token can't be read") from None
        if problem := key_problem(me.prefix + CHECK_NAME):
            raise fault("bad_broker", f"its token's prefix begins no key: {problem}")
        metrics.CREDENTIAL_EXPIRY.set(me.valid_until.timestamp() if me.valid_until else math.inf)
        return me

    def now(self) -> datetime:
        """Return the broker's time (UTC), by its last response; ours before the first."""
        return self._client.now()

    async def prefix(self) -> str:
        """Return the token's prefix."""
        return (await self.me()).prefix

    async def checksums(self) -> tuple[str, ...]:
        """Return the algorithms that the broker signs."""
        return (await self.me()).checksums

    async def credential_expiry(self) -> datetime | None:
        """Return when the token expires (UTC), None for never."""
        return (await self.me()).valid_until

    def look_again(self, bucket: str) -> None:  # noqa: ARG002 - a token has one
        """Request ``/v1/me`` again when it is next needed."""
        self._forget()

    def _forget(self) -> None:
        self._me = None

    async def close(self) -> None:
        """Cancel what is under way, and close every connection."""
        if self._sending is not None:
            sending = self._sending
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        for wanted in self._waiting:
            wanted.granted.cancel()
        await self._client.close()


def _pause(problem: Exception) -> float:
    """Return the seconds to wait before the batch is sent again; infinity if it is not."""
    if isinstance(problem, _TooMuch):
        return 0.0
    if isinstance(problem, PresignerFault) and problem.code == "presigner_busy" and problem.retry_after is not None:
        return max(problem.retry_after, LEAST_PAUSE)
    return math.inf


def _list_in(document: Any, count: int) -> list[Any] | None:
    """Return the answers if there is one for each request, else None."""
    answers = document.get("grants") if isinstance(document, dict) else None
    return answers if isinstance(answers, list) and len(answers) == count else None


def _judged(expected: Expected, answer: Any, now: datetime) -> Grant | Exception:
    if not isinstance(answer, dict):
        return fault("wrong_grant", "neither a grant nor a refusal")
    if _is_older(expected, answer):
        lost = expected.request.operation is Operation.MULTIPART_PART  # its algorithm was fixed with the upload
        return fault("upload_lost" if lost else "bad_broker", error_message(answer))
    if "error" in answer:
        return refusal(expected.request.operation, answer)
    try:
        return checked(expected, answer, now)
    except Fault as wrong:
        return wrong


def _is_older(expected: Expected, answer: Any) -> bool:
    """Return whether a broker refuses a checksum that ``/v1/me`` listed: it is older than the one that answered then.

    There are several brokers at one address, or one was downgraded.
    """
    asked = expected.request
    newer = (
        asked.checksum_algorithm or asked.checksum_mode or algorithm_of(asked.checksum) not in ("", *FIRST_CHECKSUMS)
    )
    error = answer.get("error") if isinstance(answer, dict) else None
    return bool(newer) and isinstance(error, dict) and error.get("code") in ("unknown_field", "grant_refused")
