"""The buckets, with real presigned requests: rights, content, signatures, headers, conditions, checksums, parts.

``store.probe`` finds out the facts; this module describes them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from presignd.checks.base import CheckResult, Context, Outcome, fail, failed, ok, untried, warn
from presignd.config import WatchConfig
from presignd.errors import Fault, fault
from presignd.pipeline.intake import check_key
from presignd.presign import Operation
from presignd.s3.checksums import native
from presignd.s3.kept import locked_until, lost
from presignd.s3.responses import Response
from presignd.store.probe import AUTO, BODY, NOT_FOUND, OK, OTHER, TRIES, Probe, md5_of
from presignd.store.support import Conditions, EtagKind


async def check_buckets(context: Context) -> AsyncIterator[CheckResult]:
    """Write, read and delete the check key of each bucket, and find out what its store supports."""
    for watch in distinct(context.config.watches):
        probe = await context.bucket(watch).new_probe()
        check = _BucketCheck(watch, probe, context.config.upload.checksum)
        result = await check.round_trip()
        yield result
        if result.outcome is Outcome.OK:
            yield await check.signatures()
            yield await check.headers()
            yield await check.conditions()
            yield await check.checksums()
            if not check.locked:  # a locked bucket would keep these 5 MiB
                yield await check_parts(watch.bucket, probe)
            yield await check.delete()


def distinct(watches: Sequence[WatchConfig]) -> list[WatchConfig]:
    """Return the first watch for each bucket, check key and set of headers, in order."""
    found = {(each.bucket, check_key(each), *sorted(each.headers.items())): each for each in reversed(watches)}
    return list(reversed(found.values()))


class _BucketCheck:
    """The checks of one watch's bucket, one result each. ``checksum`` is ``upload.checksum``."""

    def __init__(self, watch: WatchConfig, probe: Probe, checksum: str) -> None:
        self._watch, self._probe, self._checksum = watch, probe, checksum
        self._there: Response | None = None
        self._in_parts: Response | Fault | None = None

    def _name(self, what: str) -> str:
        return f"{what} {self._watch.bucket}"

    @property
    def locked(self) -> str:
        """The end of the lock that the bucket sets on objects; "" if it sets none."""
        return locked_until(self._there) if self._there else ""

    async def round_trip(self) -> CheckResult:
        """Write the check key as an upload would, and read it back as a link would."""
        name, doing, probe = self._name("bucket"), Operation.PUT, self._probe
        try:
            for _ in range(TRIES):
                doing = Operation.PUT
                await probe.write()
                doing = Operation.HEAD
                self._there = await probe.read(doing, accept=(NOT_FOUND,))
                doing = Operation.GET
                response = await probe.read(doing, accept=(NOT_FOUND,))
                if self._there.status == response.status == OK:
                    return self._compared(name, response)
            raise fault("missing_object")
        except Fault as problem:
            if doing is Operation.PUT:
                problem = await probe.blame(problem)
            return failed(name, problem, doing=f"{doing.upper()} {probe.key}")

    def _compared(self, name: str, response: Response) -> CheckResult:
        if response.body == BODY:
            return ok(name, f"PUT, HEAD and GET of {self._probe.key} went through")
        detail = f"GET {self._probe.key}: the bytes read are not those stored"
        return fail(name, detail, "look for a cache or proxy between here and the store", code="bad_digest")

    async def signatures(self) -> CheckResult:
        """Send one HEAD with a wrong signature."""
        name = self._name("signatures")
        try:
            checked = await self._probe.checks_signatures()
        except Fault as problem:
            return untried(name, problem)
        return ok(name, "a wrong one is refused") if checked else fail(name, UNSIGNED, UNSIGNED_FIX)

    async def headers(self) -> CheckResult:
        """Compare the headers of uploads, whole and in parts, with those of the stored objects."""
        assert self._there is not None
        sent = {"Content-Type": "text/plain", **self._watch.headers}
        try:
            self._in_parts = await self._probe.write_parts_and_find()
        except Fault as problem:
            self._in_parts = problem
        return judge_headers(self._name("headers"), sent, self._there, self._in_parts)

    async def conditions(self) -> CheckResult:
        """Try If-None-Match and If-Match, on a PUT and at the end of an upload in parts."""
        name = self._name("conditional writes")
        in_parts: Conditions | Fault
        try:
            put = await self._probe.put_conditions()
        except Fault as problem:
            return untried(name, problem)
        if isinstance(self._in_parts, Fault):
            return judge_conditions(name, put, self._in_parts)
        try:
            in_parts = await self._probe.complete_conditions()
        except Fault as problem:
            in_parts = problem
        return judge_conditions(name, put, in_parts)

    async def checksums(self) -> CheckResult:
        """Send bytes with the checksum of other bytes: the store must refuse them."""
        name, chosen = self._name("checksum"), self._checksum
        try:
            used, checked = await self._probe.choose(chosen, in_parts=False)
            md5 = checked or await self._probe.refuses(md5_of(OTHER))
            proven = md5 or await self._probe.has_md5_etags(in_parts=False)
        except Fault as problem:
            return untried(name, problem)
        if checked or (md5 and used == "md5"):
            return ok(name, f"a wrong {used} is refused{_why_no_crc(chosen, used)}")
        if md5:
            return warn(
                name, f"a wrong {used} is stored, so Content-MD5 goes with it", 'upload.checksum = "md5" saves a hash'
            )
        consequence = ": only the ETag shows a corrupted transfer" if proven else UNPROVEN
        return warn(name, f"a wrong Content-MD5 is stored{consequence}", MD5_FIX)

    async def delete(self) -> CheckResult:
        """Remove the check object. presignd works without this right."""
        name, key = self._name("delete"), self._probe.key
        locked = self.locked
        remains = await self._probe.remove()
        if not remains.versions:
            return ok(name, f"{key} was removed")
        if locked:
            detail = f"the bucket locks what is stored in it: {_versions(remains.versions)} of {key} until {locked}"
            return warn(name, f"{detail}, and one more with each later probe", LOCKED_FIX)
        detail = f"refused, so {_versions(remains.versions)} of {key} stays there ({remains.reason})"
        return warn(name, detail, DELETE_FIX)


def _why_no_crc(chosen: str, used: str) -> str:
    """Return why ``checksum = "auto"`` means MD5 here; "" if it doesn't."""
    if chosen != "auto" or used == AUTO:
        return ""
    if native(AUTO) is None:
        return f"; {AUTO} would be faster, but the Python package awscrt is not installed"
    return f"; {AUTO} would be faster, but this store does not verify it, or the broker does not sign it"


def _versions(count: int) -> str:
    return f"{count} version{'s' * (count > 1)}"


MD5_FIX = "look for a proxy that drops Content-MD5, or use a store that checks it"
UNPROVEN = ", and the ETag is not an MD5: each upload is read back, or stays unproven if the signer may not GET"
UNSIGNED = "a request with a wrong signature is taken: whoever reaches the store can read and write everything"
UNSIGNED_FIX = (
    "give the store its keys (SeaweedFS: -s3.config, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY when it starts); "
    "a mock server that checks no signature is for tests only"
)
DELETE_FIX = (
    "none needed: presignd deletes nothing else in the store; with s3:DeleteObject and s3:DeleteObjectVersion on this "
    "key it would be removed"
)
LOCKED_FIX = "none needed; a bucket without a default retention does not keep the check objects"


def judge_headers(name: str, sent: Mapping[str, str], there: Response, in_parts: Response | Fault) -> CheckResult:
    """Judge the headers that the store kept, of an object (``there``: a HEAD) and of one in parts. Pure."""
    whole = lost(sent, there)
    parts = lost(sent, in_parts) if isinstance(in_parts, Response) and in_parts.status == OK else []
    problems = [f"not kept: {', '.join(whole)}"] if whole else []
    if more := [each for each in parts if each not in whole]:
        problems.append(f"not kept of an upload in parts: {', '.join(more)}")
    if not problems:
        return ok(name, f"{', '.join(sent)}: the store keeps all of them")
    return warn(name, "; ".join(problems), "remove them from the watch's headers, or use a store that keeps them")


def judge_conditions(name: str, put: Conditions, in_parts: Conditions | Fault) -> CheckResult:
    """Judge how the store handles both conditions, of a PUT and at the end of an upload in parts. Pure."""
    of_put = f"a PUT {put}"
    if isinstance(in_parts, Fault):
        return warn(name, f"{of_put}; an upload in parts could not be tried: {in_parts.message}", in_parts.fix)
    if put.honoured and in_parts.honoured:
        return ok(name, "honoured, of a PUT and of an upload in parts: no other writer's object is overwritten")
    risk = "without a condition, presignd looks just before a write: what another host writes in between is overwritten"
    detail = f"{of_put}; the end of an upload in parts {in_parts}; {risk}"
    return warn(name, detail, 'give each host keys of its own, e.g. key = "{host}/{path}"')


async def check_parts(bucket: str, probe: Probe) -> CheckResult:
    """Store an object in two parts, as large files are, and judge its ETag."""
    name = f"parts {bucket}"
    try:
        etag = await probe.two_part_etag()
        proven = etag is EtagKind.MD5 or await probe.refuses(md5_of(OTHER), in_parts=True)
    except Fault as problem:
        detail = f"an object in two parts, as files above upload.multipart_threshold go, failed: {problem.message}"
        return warn(name, detail, problem.fix, code=problem.code)
    stored = "an object in two parts went through"
    if etag is EtagKind.MD5:
        return ok(name, f"{stored}; its ETag is made of MD5s")
    if not proven:
        reason = "its ETag does not show its content, and a wrong Content-MD5 of a part is stored"
        fix = f"{MD5_FIX}; a signer that may not GET cannot prove uploads"
        return warn(name, f"{stored}; {reason}: each such upload is read back", fix)
    if etag is EtagKind.OPAQUE:
        reason = "its ETag does not show its content, so an upload with an unclear end is read back"
    else:
        reason = "it has no ETag, so an object is read back before it is replaced, and after an unclear end"
    return ok(name, f"{stored}; {reason}")
