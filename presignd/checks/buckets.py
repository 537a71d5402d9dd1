"""The store with real presigned requests: rights, clock, bytes, signatures, headers, conditions, checksums.

``presignd.store.probe`` proves, here it is only put into words.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from presignd.checks.base import CheckResult, Context, Outcome, fail, failed, ok, warn
from presignd.checks.parts import check_parts
from presignd.checks.presigner import judge_link, judge_token
from presignd.config import WatchConfig
from presignd.errors import CODES, Fault, fault
from presignd.pipeline.key_template import check_key
from presignd.pipeline.upload.bucket import MAYBE_HEADERS, Bucket
from presignd.presign import Operation
from presignd.presign.remote import BrokerPresigner
from presignd.s3.responses import Response
from presignd.store.probe import (
    BODY,
    NOT_FOUND,
    OK,
    OTHER,
    TRIES,
    Conditions,
    Heed,
    Probe,
    in_words,
    locked_until,
    lost,
    md5_of,
    sha256_of,
)
from presignd.system.clock import utcnow

ANY_STATUS = range(100, 600)

FAILING_OFFSET, WARNING_OFFSET = 300.0, 30.0
"""Seconds. Some servers refuse a signature from the future at once, all refuse one 15 minutes old."""


async def check_credentials(context: Context) -> AsyncIterator[CheckResult]:
    """Tell where the signing credentials come from, and when they end; of a broker, what its token may do."""
    if isinstance(context.presigner, BrokerPresigner):
        for result in judge_token(context.config, await context.presigner.me(), utcnow()):
            yield result
        yield await judge_link(context.presigner, context.config.watches[0])
        return
    assert context.credentials is not None
    found = await context.credentials.get()
    ends = f", good until {found.expires_at:%Y-%m-%d %H:%M} UTC" if found.expires_at else ""
    yield ok("credentials", f"from {found.source}{ends}")


async def check_clock(context: Context) -> AsyncIterator[CheckResult]:
    """Compare the signer's clock with the store's Date: any answer has one, a refusal too. And ours with a broker's."""
    probe = await _bucket_of(context, context.config.watches[0]).proving()
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
    """Write, read and delete the check key of each bucket, and learn what the store makes of requests there."""
    for watch in distinct(context.config.watches):
        probe = await _bucket_of(context, watch).proving()
        told = _Lines(watch, probe, context.config.upload.checksum)
        result = await told.round_trip()
        yield result
        if result.outcome is Outcome.OK:
            yield await told.signatures()
            yield await told.headers()
            yield await told.conditions()
            yield await told.checksums()
            if not told.locked:  # what is written there stays, and this is 5 MiB
                yield await check_parts(watch.bucket, probe)
            yield await told.delete()


def _bucket_of(context: Context, watch: WatchConfig) -> Bucket:
    config = context.config
    return Bucket(watch, config.presign, config.upload, context.presigner, context.store)


def distinct(watches: Sequence[WatchConfig]) -> list[WatchConfig]:
    """Return one watch for each bucket, check key and set of headers, in the order they stand."""
    found = {(each.bucket, check_key(each), *sorted(each.headers.items())): each for each in reversed(watches)}
    return list(reversed(found.values()))


class _Lines:
    """What the probe of one watch's bucket saw, a line each. ``checksum`` is ``upload.checksum``."""

    def __init__(self, watch: WatchConfig, probe: Probe, checksum: str) -> None:
        self._watch, self._probe, self._checksum = watch, probe, checksum
        self._there: Response | None = None
        self._in_parts: Response | Fault | None = None

    def _name(self, what: str) -> str:
        return f"{what} {self._watch.bucket}"

    @property
    def locked(self) -> str:
        """Until when the bucket locks what is stored in it; "" where it doesn't."""
        return locked_until(self._there) if self._there else ""

    async def round_trip(self) -> CheckResult:
        """Write the check key as an upload would, and read it back as a link would."""
        name, doing, probe = self._name("bucket"), Operation.PUT, self._probe
        try:
            for _ in range(TRIES):
                doing = Operation.PUT
                await probe.write()
                doing = Operation.HEAD
                self._there = await probe.ask(doing, accept=(NOT_FOUND,))
                doing = Operation.GET
                answer = await probe.ask(doing, accept=(NOT_FOUND,))
                if self._there.status == answer.status == OK:
                    return self._compared(name, answer)
            raise fault("missing_object")
        except Fault as problem:
            if doing is Operation.PUT and problem.code in MAYBE_HEADERS:
                problem = await probe.blame(problem)
                await probe.forget()
            return failed(name, problem, doing=f"{doing.upper()} {probe.key}")

    def _compared(self, name: str, answer: Response) -> CheckResult:
        if answer.body == BODY:
            return ok(name, f"PUT, HEAD and GET of {self._probe.key} went through")
        told = f"GET {self._probe.key}: what came back is not what was stored"
        return fail(name, told, "look for a cache or proxy between here and the store", code="bad_digest")

    async def signatures(self) -> CheckResult:
        """Send one HEAD whose signature is wrong."""
        name = self._name("signatures")
        try:
            verified = await self._probe.verifies_signatures()
        except Fault as problem:
            return _untried(name, problem)
        return ok(name, "a wrong one is refused") if verified else fail(name, UNSIGNED, UNSIGNED_FIX)

    async def headers(self) -> CheckResult:
        """Compare the headers of uploads, whole and in parts, with what the store tells of their objects."""
        assert self._there is not None
        sent = {"Content-Type": "text/plain", **self._watch.headers}
        try:
            self._in_parts = await self._probe.write_in_parts()
        except Fault as problem:
            self._in_parts = problem
        return judge_headers(self._name("headers"), sent, self._there, self._in_parts)

    async def conditions(self) -> CheckResult:
        """Try If-None-Match and If-Match, on a PUT and as an upload in parts completes."""
        name = self._name("conditional writes")
        in_parts: Conditions | Fault
        try:
            put = await self._probe.put_conditions()
        except Fault as problem:
            return _untried(name, problem)
        if isinstance(self._in_parts, Fault):
            return judge_conditions(name, put, self._in_parts)
        try:
            in_parts = await self._probe.complete_conditions()
        except Fault as problem:
            in_parts = problem
        return judge_conditions(name, put, in_parts)

    async def checksums(self) -> CheckResult:
        """Send bytes under the checksum of others: the store must refuse them."""
        name, chosen = self._name("checksum"), self._checksum
        try:
            md5 = await self._probe.refuses(md5_of(OTHER))
            used = md5 if chosen == "md5" else await self._probe.refuses(sha256_of(OTHER))
            told = used or md5 or await self._probe.has_md5_etags(in_parts=False)
        except Fault as problem:
            return _untried(name, problem)
        if used:
            return ok(name, f"a wrong {chosen} is refused")
        if md5:
            return warn(
                name, f"a wrong {chosen} is stored, so Content-MD5 goes with it", 'upload.checksum = "md5" saves a hash'
            )
        return warn(
            name,
            f"a wrong Content-MD5 is stored{': only the ETag tells of a corrupted transfer' if told else UNPROVEN}",
            "look for a proxy that drops Content-MD5, or use a store that checks it",
        )

    async def delete(self) -> CheckResult:
        """Remove what was written under the check key; presignd does without this right."""
        name, key = self._name("delete"), self._probe.key
        locked = self.locked
        remains = await self._probe.forget()
        if not remains.versions:
            return ok(name, f"{key} is gone again")
        if locked:
            told = f"the bucket locks what is stored in it: {_versions(remains.versions)} of {key} until {locked}"
            return warn(name, f"{told}, and one of each probe to come", LOCKED_FIX)
        told = f"refused, so {_versions(remains.versions)} of {key} stays there ({remains.reason})"
        return warn(name, told, DELETE_FIX)


def _versions(count: int) -> str:
    return f"{count} version{'s' * (count > 1)}"


def _untried(name: str, problem: Fault) -> CheckResult:
    return warn(name, f"could not be tried: {problem.message}", problem.fix, code=problem.code)


UNPROVEN = ", and the ETag is no MD5: each upload is read back, or unproven where the signer may not GET"
UNSIGNED = "a request with a wrong signature is taken: whoever reaches the store can read and write all of it"
UNSIGNED_FIX = (
    "give the store its keys (SeaweedFS: -s3.config, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY when it starts); "
    "a mock server that verifies none is for tests alone"
)
DELETE_FIX = (
    "none needed: presignd deletes nothing else in the store; with s3:DeleteObject and s3:DeleteObjectVersion on this "
    "key it would be gone"
)
LOCKED_FIX = "none needed; a bucket without a default retention keeps no probes"


def judge_headers(name: str, sent: Mapping[str, str], there: Response, in_parts: Response | Fault) -> CheckResult:
    """Judge what the store kept of the headers of an upload, whole (``there``: a HEAD) and in parts. Pure."""
    whole = lost(sent, there)
    parts = lost(sent, in_parts) if isinstance(in_parts, Response) and in_parts.status == OK else []
    told = [f"not kept: {', '.join(whole)}"] if whole else []
    if more := [each for each in parts if each not in whole]:
        told.append(f"not kept of an upload in parts: {', '.join(more)}")
    if not told:
        return ok(name, f"{', '.join(sent)}: none is lost")
    return warn(name, "; ".join(told), "take them out of the watch's headers, or use a store that keeps them")


def judge_conditions(name: str, put: Conditions, in_parts: Conditions | Fault) -> CheckResult:
    """Judge what the store makes of conditions, for each way of writing and each of the two. Pure."""
    told = [f"a PUT {in_words(put)}"]
    if isinstance(in_parts, Fault):
        return warn(name, f"{told[0]}; an upload in parts could not be tried: {in_parts.message}", in_parts.fix)
    told.append(f"the end of an upload in parts {in_words(in_parts)}")
    honoured = {put.if_none_match, put.if_match, in_parts.if_none_match, in_parts.if_match} == {Heed.HONOURED}
    if honoured:
        return ok(name, "honoured, of a PUT and of an upload in parts: no other writer's object is overwritten")
    looked = (
        "where it doesn't honour, presignd looks just before: what another host writes in that moment is overwritten"
    )
    return warn(name, "; ".join([*told, looked]), 'give each host keys of its own, e.g. key = "{host}/{path}"')
