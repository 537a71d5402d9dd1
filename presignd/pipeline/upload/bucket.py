"""The store side of one watch: mint a grant and send it, prove the bucket, and what it honours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from presignd.config import PresignConfig, UploadConfig, WatchConfig
from presignd.errors import Fault, FileFault, GrantFault, PresignerFault, WatchFault, fault
from presignd.pipeline.key_template import check_key, needs_prefix
from presignd.presign import Grant, GrantRequest, Operation, Presigner
from presignd.runtime.heartbeat import holding
from presignd.s3.limits import MAX_PARTS
from presignd.s3.responses import Response
from presignd.store.client import Slice, StoreClient
from presignd.store.probe import CUSTOMER_KEY, OTHER, Heed, Probe, md5_of, sha256_of
from presignd.system.clock import since_boot

SHORT = 300
"""Seconds a grant for a HEAD, a DELETE or a probe lives."""

LEAST_LEFT = 30.0
"""Seconds a grant must still have when its request is sent, by the signer's clock."""

PROBE_TIMEOUT = 15.0
"""Seconds a probe may take: one that hangs must not hold up the news for a whole upload.timeout."""

NAMED_KEY = {"access_denied": "access_denied", "outside_prefix": "not_allowed"}
"""Refusals of the check key, and what they mean for the watch: all its keys are refused like this one."""

MAYBE_HEADERS = ("not_implemented", "rejected")
"""Refusals that one of the watch's headers may be the reason for."""


@dataclass(frozen=True, slots=True)
class Support:
    """What a probe saw the store do for one way of sending: honour its conditions, refuse a wrong SHA-256.

    ``md5_etags``: the ETag of what is sent like this is made of MD5s, so one that differs tells of other bytes.
    ``proves``: an answer proves the bytes, by such an ETag or as a wrong checksum is refused; else they are read back.
    """

    if_none_match: bool
    if_match: bool
    sha256: bool
    md5_etags: bool = True
    proves: bool = True


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that is there: its size in bytes, ETag without quotes (``opaque``: not made of MD5s), version.

    ``modified`` is its Last-Modified as a HEAD told it.
    """

    size: int
    etag: str
    version_id: str = ""
    opaque: bool = False
    modified: str = ""


class Bucket:
    """Sends a watch's requests: each grant is asked for when its request is about to be sent."""

    def __init__(
        self, watch: WatchConfig, presign: PresignConfig, upload: UploadConfig, presigner: Presigner, store: StoreClient
    ) -> None:
        self.watch = watch
        self._named = {watch.bucket: self}
        self._made_of = (presign, upload, presigner, store)
        self._put_expires = presign.put_expires
        self._sha256 = upload.checksum == "sha256"
        self._customer_key = {
            name: value for name, value in watch.headers.items() if name.lower().startswith(CUSTOMER_KEY)
        }
        self._presigner = presigner
        self._store = store
        self._probe_timeout = min(PROBE_TIMEOUT, upload.timeout)
        self._probing = asyncio.Lock()
        self._honours: dict[bool, Support] = {}
        self._refusals: dict[bool, Fault] = {}
        self._blamed: tuple[str, Fault] | None = None
        self.most_parts = MAX_PARTS
        self._opens_versions: bool | None = None

    def named(self, name: str) -> Bucket:
        """Return the same for the bucket ``name``: this one, or one with proofs of its own."""
        if name not in self._named:
            self._named[name] = Bucket(self.watch.model_copy(update={"bucket": name}), *self._made_of)
        return self._named[name]

    @property
    def limited(self) -> bool:
        """Whether bodies are sent under a rate limit."""
        return self._store.limited

    async def prefix(self) -> str:
        """Return what the presigner has the watch's keys begin with; raise ``PresignerFault``."""
        return await self._presigner.prefix() if needs_prefix(self.watch.key) else ""

    async def check_key(self) -> str:
        """Return the key that probes write; raise ``PresignerFault``."""
        return check_key(self.watch, await self.prefix())

    async def grant(self, request: GrantRequest) -> Grant:
        """Mint one grant; raise its refusal, ``PresignerFault``, or ``expired_grant`` for one that is almost dead."""
        asked = since_boot()
        (grant,) = await self._presigner.grant([request])
        if isinstance(grant, Exception):
            raise grant
        left = (grant.expires_at - grant.signer_date).total_seconds() - (since_boot() - asked)
        if left < LEAST_LEFT:
            raise fault("expired_grant", f"{left:.0f} s left when it came")
        return grant

    async def send(
        self,
        request: GrantRequest,
        body: bytes | Slice | None = None,
        *,
        accept: Collection[int] = (),
        on_sent: Callable[[int], None] | None = None,
        timeout: float | None = None,
        into: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> Response:
        """Mint a grant for ``request`` and send it at once; raise a ``Fault`` on anything but success."""
        grant = await self.grant(request)
        return await self._store.send(
            grant, body, accept=accept, on_sent=on_sent, timeout=timeout, file_of=request.key, into=into
        )

    async def deliver(self, grant: Grant, body: bytes | None = None, *, accept: Collection[int] = ()) -> Response:
        """Send a probe's granted request; raise a ``Fault`` on anything but success."""
        return await self._store.send(grant, body, accept=accept, timeout=self._probe_timeout)

    def request(self, operation: Operation, key: str, **more: object) -> GrantRequest:
        """Make a request on this watch's bucket; a PUT lives ``put_expires``, anything else 300 s.

        A customer's key (SSE-C) goes with parts, HEADs and GETs too: S3 refuses them without.
        """
        expires = self._put_expires if operation is Operation.PUT else SHORT
        if operation in (Operation.MULTIPART_PART, Operation.HEAD, Operation.GET):
            more = {"headers": self._customer_key, **more}
        return GrantRequest(operation, self.watch.bucket, key, expires, **more)  # type: ignore[arg-type] # fields by name

    async def find(self, key: str, *, denied_is_absent: bool) -> StoredObject | None:
        """HEAD a key; None when nothing is there.

        S3 answers 403 for a missing key where s3:ListBucket is not granted: ``denied_is_absent`` takes that
        for absence, which is safe only where a conditional write follows.
        """
        accept = (403, 404) if denied_is_absent else (404,)
        answer = await self.send(self.request(Operation.HEAD, key), accept=accept)
        if answer.status != 200:  # noqa: PLR2004
            return None
        size = int(answer.headers.get("content-length", "-1"))
        version_id, modified = (answer.headers.get(name, "") for name in ("x-amz-version-id", "last-modified"))
        return StoredObject(size, answer.etag, version_id, answer.opaque_etag, modified)

    async def read(self, key: str, take: Callable[[bytes], Awaitable[None]]) -> bool:
        """GET an object, piece by piece, whatever its size; False when nothing is there."""
        return (await self.send(self.request(Operation.GET, key), accept=(404,), into=take)).status != 404  # noqa: PLR2004

    async def opens_versions(self, key: str, version_id: str) -> bool:
        """Tell whether a version of an object can be read by its id, seen once.

        s3:GetObjectVersion is a right of its own: a link that needs it is dead where only s3:GetObject is granted.
        """
        if self._opens_versions is None:
            request = self.request(Operation.HEAD, key, version_id=version_id)
            try:
                answer = await self.send(request, accept=range(400, 600), timeout=self._probe_timeout)
            except Fault:
                return False  # the store is away: links are made without it, too
            if answer.status in (200, 403, 405, 501):
                self._opens_versions = answer.status == 200  # noqa: PLR2004
        return self._opens_versions or False

    async def support(self, *, in_parts: bool = False) -> Support:
        """Return what the store honours of a PUT, or of an upload in parts; raise a ``Fault``.

        Proven once, by the check key, and for parts only when a file first needs it: that costs small uploads.
        Whoever waits for a proof that fails has its fault: each for itself would meet a dead store in turn.
        """
        before = self._refusals.get(in_parts)
        while in_parts not in self._honours:
            async with holding(self._probing):
                if in_parts in self._honours:
                    break
                if (refusal := self._refusals.get(in_parts)) is not before and refusal:
                    raise refusal
                try:
                    self._honours[in_parts] = await self._prove(in_parts=in_parts)
                except Fault as refused:
                    self._refusals[in_parts] = refused
                    raise
        return self._honours[in_parts]

    async def _prove(self, *, in_parts: bool) -> Support:
        async with self._probing_with() as probe:
            await probe.write_kept()
            conditions = await (probe.complete_conditions() if in_parts else probe.put_conditions())
            # Parts always carry their MD5.
            sha256 = self._sha256 and not in_parts and await probe.refuses(sha256_of(OTHER))
            md5_etags = await probe.has_md5_etags(in_parts=in_parts)
            proves = md5_etags or sha256 or await probe.refuses(md5_of(OTHER), in_parts=in_parts)
        held = Heed.HONOURED
        return Support(conditions.if_none_match is held, conditions.if_match is held, sha256, md5_etags, proves)

    def prove_again(self) -> None:
        """Forget what was proven: the store answers as one does that honours something else."""
        self._honours.clear()

    async def proving(self) -> Probe:
        """Return a probe on the check key, with the watch's headers; raise ``PresignerFault``."""
        return Probe(self, self.watch.bucket, await self.check_key(), self.watch.headers)

    async def probe(self) -> Fault | None:
        """Write the fixed check key and see it there; return the fault, None when it went through."""
        try:
            async with self._probing_with() as probe:
                await self._kept(probe)
        except Fault as problem:
            if isinstance(problem, WatchFault):
                self._presigner.look_again(self.watch.bucket)  # a rotated key or a moved bucket is found so
            return problem
        return None

    async def _kept(self, probe: Probe) -> None:
        """Write and find the check object; where a header may be why it is refused, look once which one."""
        try:
            await probe.write_kept()
        except Fault as problem:
            if problem.code not in MAYBE_HEADERS:
                raise
            if self._blamed is None or self._blamed[0] != problem.detail:
                self._blamed = problem.detail, await probe.blame(problem)
                await probe.forget()
            raise self._blamed[1] from None

    @asynccontextmanager
    async def _probing_with(self) -> AsyncIterator[Probe]:
        """Lend a probe whose key is named where it is refused, and take away what it wrote.

        Where it fails the object stays for the next one to write over, unless each that is written is a version.
        """
        probe = await self.proving()
        try:
            with self._naming(probe.key):
                yield probe
        except Fault:
            if probe.wrote_versions:
                await probe.forget()
            raise
        await probe.forget()

    @contextmanager
    def _naming(self, key: str) -> Iterator[None]:
        """Name the check key in a refusal: a policy for other keys alone looks like keys that are wrong."""
        try:
            yield
        except (WatchFault, FileFault) as refused:
            if refused.code not in NAMED_KEY:
                raise
            raise fault(NAMED_KEY[refused.code], ": ".join(filter(None, (key, refused.detail)))) from None

    async def probe_grant(self) -> Fault | None:
        """Ask for a grant; return the fault, None when the presigner gives one that can be used."""
        try:
            await self.grant(self.request(Operation.HEAD, await self.check_key()))
        except (PresignerFault, GrantFault) as problem:
            return problem
        except Fault:
            return None  # the presigner is there, and the store or this request is the matter
        return None
