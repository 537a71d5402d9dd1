"""The store with real presigned requests: credentials, clock, rights, bytes, conditional writes, checksums."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

from presignd.answers import Answer
from presignd.checks.base import CheckResult, Context, fail, failed, ok, warn
from presignd.checks.broker import judge_link, judge_token
from presignd.config import WatchConfig
from presignd.errors import CODES, Fault, fault
from presignd.pipeline.bucket import PROBE_TIMEOUT, Bucket
from presignd.pipeline.keys import check_key
from presignd.presign import Operation
from presignd.presign.broker import BrokerPresigner

BODY = b"presignd check\n"
OTHER = b"other bytes 15\n"
"""As long as ``BODY``: only the checksum tells them apart."""

ANY_STATUS = range(100, 600)
OK, NOT_FOUND, PRECONDITION_FAILED, NOT_IMPLEMENTED = 200, 404, 412, 501
TRIES = 3
"""A running daemon's own probe deletes the check key: only so many misses in a row mean it isn't there."""

FAILING_OFFSET, WARNING_OFFSET = 300.0, 30.0
"""Seconds. Some servers refuse a signature from the future at once, all refuse one 15 minutes old."""


async def check_credentials(context: Context) -> AsyncIterator[CheckResult]:
    """Tell where the signing credentials come from, and when they end; of a broker, what its token may do."""
    if isinstance(context.presigner, BrokerPresigner):
        for result in judge_token(context.config, await context.presigner.me(), datetime.now(UTC)):
            yield result
        yield await judge_link(context.presigner, context.config.watches[0])
        return
    assert context.credentials is not None
    found = await context.credentials.get()
    ends = f", good until {found.expires_at:%Y-%m-%d %H:%M} UTC" if found.expires_at else ""
    yield ok("credentials", f"from {found.source}{ends}")


async def check_clock(context: Context) -> AsyncIterator[CheckResult]:
    """Compare the signer's clock with the store's Date: any answer has one, a refusal too. And ours with a broker's."""
    probe = await _Probe.of(context, context.config.watches[0])
    await probe.ask(Operation.HEAD, accept=ANY_STATUS)
    if isinstance(context.presigner, BrokerPresigner):
        yield judge_clock(context.presigner.clock_offset, there="the broker")
        yield judge_clock(context.store.clock_offset, here="the broker")
    else:
        yield judge_clock(context.store.clock_offset)


def judge_clock(offset: float | None, *, here: str = "this machine", there: str = "the store") -> CheckResult:
    """Judge ``offset``, the clock there less the one here, in seconds; None: unknown."""
    if offset is None:
        return warn("clock", f"the answer of {there} has no Date: the clocks can't be compared")
    if abs(offset) <= WARNING_OFFSET:
        return ok("clock", f"{'' if here == 'this machine' else here + ' is '}within {abs(offset):.0f} s of {there}'s")
    told = f"{here} is {abs(offset):.0f} s {'behind' if offset > 0 else 'ahead of'} {there}"
    where = "here" if here == "this machine" else f"at {here}"
    judge = fail if abs(offset) > FAILING_OFFSET else warn
    return judge("clock", told, f"{CODES['clock_skew'].fix}, {where} or at {there}", code="clock_skew")


async def check_buckets(context: Context) -> AsyncIterator[CheckResult]:
    """PUT, HEAD, GET and DELETE the check key of each bucket, and learn what the store honours."""
    for watch in distinct(context.config.watches):
        probe = await _Probe.of(context, watch)
        result = await probe.round_trip()
        yield result
        if result.outcome == "ok":
            yield await probe.conditional()
            yield await probe.checksums()
            yield await probe.delete()


def distinct(watches: Sequence[WatchConfig]) -> list[WatchConfig]:
    """Return one watch for each bucket, check key and set of headers, in the order they stand."""
    found = {(each.bucket, check_key(each), *sorted(each.headers.items())): each for each in reversed(watches)}
    return list(reversed(found.values()))


class _Probe:
    """The requests on one watch's check key, sent as its uploads and links are."""

    def __init__(self, context: Context, watch: WatchConfig, prefix: str) -> None:
        config = context.config
        self._bucket = Bucket(watch, config.presign, config.upload, context.presigner, context.store)
        self._checksum = config.upload.checksum
        self._watch = watch
        self._key = check_key(watch, prefix)

    @classmethod
    async def of(cls, context: Context, watch: WatchConfig) -> _Probe:
        """Make the probe of a watch; raise ``PresignerFault`` where a broker does not tell its prefix."""
        return cls(context, watch, await context.presigner.prefix())

    async def ask(self, operation: Operation, accept: tuple[int, ...] | range = ()) -> Answer:
        """Send a request without a body."""
        request = self._bucket.request(operation, self._key)
        return await self._bucket.send(request, accept=accept, timeout=PROBE_TIMEOUT)

    async def _put(self, checksum: str, *, accept: tuple[int, ...] = (), only_new: bool = False) -> Answer:
        request = self._bucket.request(
            Operation.PUT,
            self._key,
            size=len(BODY),
            content_type="text/plain",
            checksum=checksum,
            headers=self._watch.headers,
            if_none_match=only_new,
        )
        return await self._bucket.send(request, BODY, accept=accept, timeout=PROBE_TIMEOUT)

    def _name(self, what: str) -> str:
        return f"{what} {self._watch.bucket}"

    async def round_trip(self) -> CheckResult:
        """Write the check key as an upload would, and read it back as a link would."""
        name, doing = self._name("bucket"), Operation.PUT
        try:
            for _ in range(TRIES):
                doing = Operation.PUT
                await self._put(_md5(BODY))
                doing = Operation.HEAD
                there = (await self.ask(doing, accept=(NOT_FOUND,))).status != NOT_FOUND
                doing = Operation.GET
                answer = await self.ask(doing, accept=(NOT_FOUND,))
                if there and answer.status == OK:
                    return self._compared(name, answer)
            raise fault("missing_object")
        except Fault as problem:
            return failed(name, problem, doing=f"{doing.upper()} {self._key}")

    def _compared(self, name: str, answer: Answer) -> CheckResult:
        if answer.body == BODY:
            return ok(name, f"PUT, HEAD and GET of {self._key} went through")
        told = f"GET {self._key}: what came back is not what was stored"
        return fail(name, told, "look for a cache or proxy between here and the store", code="bad_digest")

    async def conditional(self) -> CheckResult:
        """Try to write over the check key under If-None-Match: *."""
        name = self._name("conditional writes")
        try:
            honoured = await self._honours_if_none_match()
        except Fault as problem:
            return warn(name, f"could not be tried: {problem.message}", problem.fix, code=problem.code)
        if honoured:
            return ok(name, "honoured: no other writer's object is overwritten")
        return warn(
            name,
            "not honoured: two hosts that write one key at the same moment overwrite each other",
            'give each host keys of its own, e.g. key = "{host}/{path}"',
        )

    async def _honours_if_none_match(self) -> bool:
        accept = (PRECONDITION_FAILED, NOT_IMPLEMENTED)
        for _ in range(TRIES):
            if (await self._put(_md5(BODY), accept=accept, only_new=True)).status == PRECONDITION_FAILED:
                return True
        return False

    async def checksums(self) -> CheckResult:
        """Send bytes under the checksum of others: the store must refuse them."""
        name, chosen = self._name("checksum"), self._checksum
        try:
            md5 = await self._refused(_md5(OTHER))
            used = md5 if chosen == "md5" else await self._refused(_sha256(OTHER))
        except Fault as problem:
            return warn(name, f"could not be tried: {problem.message}", problem.fix, code=problem.code)
        if used:
            return ok(name, f"a wrong {chosen} is refused")
        if md5:
            return warn(
                name, f"a wrong {chosen} is stored, so Content-MD5 goes with it", 'upload.checksum = "md5" saves a hash'
            )
        return warn(
            name,
            "a wrong Content-MD5 is stored: only the ETag tells of a corrupted transfer",
            "look for a proxy that drops Content-MD5, or use a store that checks it",
        )

    async def _refused(self, wrong: str) -> bool:
        """Tell whether ``wrong``, the one thing this request has wrong, gets it refused."""
        try:
            await self._put(wrong)
        except Fault as problem:
            if problem.code in ("bad_digest", "rejected"):
                return True
            raise
        return False

    async def delete(self) -> CheckResult:
        """Remove the check key; presignd does without this right."""
        name = self._name("delete")
        try:
            await self.ask(Operation.DELETE, accept=(NOT_FOUND,))
        except Fault as problem:
            told = f"refused, so {self._key} stays there ({problem.message})"
            return warn(name, told, "none needed: presignd deletes nothing else in the store", code=problem.code)
        return ok(name, f"{self._key} is gone again")


def _md5(data: bytes) -> str:
    return "md5:" + hashlib.md5(data, usedforsecurity=False).hexdigest()


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
