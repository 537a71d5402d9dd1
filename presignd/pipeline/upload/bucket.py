"""The bucket of one watch: its requests, what its store supports, and the probes of the circuit breakers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from presignd.config import PresignConfig, UploadConfig, WatchConfig
from presignd.errors import Fault, GrantFault, PresignerFault, WatchFault, fault
from presignd.pipeline.intake import check_key, needs_prefix
from presignd.presign import GrantRequest, Operation, signs_checksum_fields
from presignd.runtime.heartbeat import holding
from presignd.s3.limits import MAX_PARTS
from presignd.store.probe import CHECKSUM_MODE, MAYBE_HEADERS, TIMEOUT, Probe, customer_key
from presignd.store.signed import SignedStore
from presignd.store.support import Support

OTHER_EXPIRES = 300
"""Lifetime in seconds of a grant for any request but a PUT."""

REFUSED_AS = {"access_denied": "access_denied", "outside_prefix": "not_allowed"}
"""The code that the watch gets for each refusal of the check key: all its keys are refused in the same way."""


class StoredObject(NamedTuple):
    """An object in the store: its size in bytes, ETag without quotes, version, Last-Modified, and its own checksums.

    ``opaque``: the ETag is not made of MD5s. ``checksums`` have the form of a receipt's: ``sha256:…``; only a HEAD in
    checksum mode returns them.
    """

    size: int
    etag: str
    version_id: str = ""
    opaque: bool = False
    modified: str = ""
    checksums: tuple[str, ...] = ()


class Bucket:
    """Makes the requests of one watch, which ``store`` sends, each with a grant of its own."""

    def __init__(self, watch: WatchConfig, presign: PresignConfig, upload: UploadConfig, store: SignedStore) -> None:
        self.watch = watch
        self.max_parts = MAX_PARTS
        self.store = store
        self._configs = presign, upload
        self._put_expires = presign.put_expires
        self._by_name = {watch.bucket: self}
        self._customer_key = customer_key(watch.headers)
        self._probe_timeout = min(TIMEOUT, upload.timeout)
        self._probing = asyncio.Lock()
        self._support: dict[bool, Support] = {}
        self._refusals: dict[bool, Fault] = {}
        self._found_header: tuple[str, Fault] | None = None
        self._reads_versions: bool | None = None

    def for_bucket(self, name: str) -> Bucket:
        """Return the ``Bucket`` for bucket ``name`` and this watch: itself, or another with its own probe results."""
        if name not in self._by_name:
            self._by_name[name] = Bucket(self.watch.model_copy(update={"bucket": name}), *self._configs, self.store)
        return self._by_name[name]

    @property
    def limited(self) -> bool:
        """Whether a rate limit applies to bodies."""
        return self.store.client.limited

    async def prefix(self) -> str:
        """Return the prefix that the presigner requires of the watch's keys; raise ``PresignerFault``."""
        return await self.store.presigner.prefix() if needs_prefix(self.watch.key) else ""

    async def check_key(self) -> str:
        """Return the key that probes write; raise ``PresignerFault``."""
        return check_key(self.watch, await self.prefix())

    # --- requests ---------------------------------------------------------------------------------
    def request(self, operation: Operation, key: str, **more: object) -> GrantRequest:
        """Make a request on this bucket, with the fields ``more``.

        A PUT's grant lives ``put_expires``, any other ``OTHER_EXPIRES`` seconds. The headers of a customer's key
        (SSE-C) are sent with parts, HEADs and GETs too: S3 refuses these without.
        """
        expires = self._put_expires if operation is Operation.PUT else OTHER_EXPIRES
        if self._customer_key and operation in (Operation.MULTIPART_PART, Operation.HEAD, Operation.GET):
            more = {"headers": self._customer_key, **more}
        return GrantRequest(operation, self.watch.bucket, key, expires, **more)  # type: ignore[arg-type] # fields by name

    async def find(self, key: str, *, denied_is_absent: bool, with_checksums: bool = False) -> StoredObject | None:
        """HEAD a key; return None if there is no object.

        ``with_checksums`` requests its checksums, too; for an object encrypted with KMS, this needs the right to
        decrypt.

        S3 answers 403 for a missing key if s3:ListBucket is not granted. ``denied_is_absent`` reads that as absence,
        which is safe only if a conditional write follows.
        """
        accept = (403, 404) if denied_is_absent else (404,)
        signed = with_checksums and signs_checksum_fields(await self.store.presigner.checksums())
        mode = CHECKSUM_MODE if signed else ""
        response = await self.store.send(self.request(Operation.HEAD, key, checksum_mode=mode), accept=accept)
        if response.status != 200:  # noqa: PLR2004
            return None
        size = int(response.headers.get("content-length", "-1"))
        version_id, modified = (response.headers.get(name, "") for name in ("x-amz-version-id", "last-modified"))
        return StoredObject(size, response.etag, version_id, response.opaque_etag, modified, response.checksums)

    async def read(self, key: str, take: Callable[[bytes], Awaitable[None]]) -> bool:
        """GET an object piece by piece, whatever its size; return False if there is none."""
        response = await self.store.send(self.request(Operation.GET, key), accept=(404,), into=take)
        return response.status != 404  # noqa: PLR2004

    async def reads_versions(self, key: str, version_id: str) -> bool:
        """Return whether versions can be read by their id; found out once.

        s3:GetObjectVersion is a separate permission. With s3:GetObject alone, a link that names a version fails.
        """
        if self._reads_versions is None:
            request = self.request(Operation.HEAD, key, version_id=version_id)
            try:
                response = await self.store.send(request, accept=range(400, 600), timeout=self._probe_timeout)
            except Fault:
                return False  # the store is unreachable; links can be made without a version
            if response.status in (200, 403, 405, 501):
                self._reads_versions = response.status == 200  # noqa: PLR2004
        return self._reads_versions or False

    # --- what the store supports ------------------------------------------------------------------
    async def support(self, *, in_parts: bool = False) -> Support:
        """Return what the bucket supports for a PUT, or for an upload in parts; raise a ``Fault``.

        This is probed once, on the check key; for parts only when a file needs it, so that small uploads don't wait.
        All callers that wait for a probe get its fault, so an unreachable store is probed once for all of them.
        """
        before = self._refusals.get(in_parts)
        while in_parts not in self._support:
            async with holding(self._probing):
                if in_parts in self._support:
                    break
                if (refusal := self._refusals.get(in_parts)) is not before and refusal:
                    raise refusal
                try:
                    self._support[in_parts] = await self._probe_support(in_parts=in_parts)
                except Fault as refused:
                    self._refusals[in_parts] = refused
                    raise
        return self._support[in_parts]

    @property
    def known_support(self) -> Support | None:
        """What the bucket supports for a PUT, None before that is probed."""
        return self._support.get(False)

    async def _probe_support(self, *, in_parts: bool) -> Support:
        _, upload = self._configs
        async with self._probing_with() as probe:
            return await probe.support(in_parts=in_parts, checksum=upload.checksum)

    def forget_support(self) -> None:
        """Forget what was probed, for the watch's other buckets, too; the next upload probes again."""
        for bucket in self._by_name.values():
            bucket._support.clear()  # noqa: SLF001 - another Bucket

    # --- the circuit breakers' probes -------------------------------------------------------------
    async def new_probe(self) -> Probe:
        """Return a probe of the check key with the watch's headers; raise ``PresignerFault``."""
        key = await self.check_key()
        return Probe(self.store, self.watch.bucket, key, self.watch.headers, timeout=self._probe_timeout)

    async def probe(self) -> Fault | None:
        """Write the check object and HEAD it; return the fault, None if there is none."""
        try:
            async with self._probing_with() as probe:
                await self._write_and_find(probe)
        except Fault as problem:
            if isinstance(problem, WatchFault):
                self.store.presigner.look_again(self.watch.bucket)  # keys may be rotated, or the bucket moved
            return problem
        return None

    async def _write_and_find(self, probe: Probe) -> None:
        """Write and HEAD the check object. If a header of the watch may cause a refusal, find out once which one."""
        try:
            await probe.write_and_find()
        except Fault as problem:
            if problem.code not in MAYBE_HEADERS:
                raise
            if self._found_header is None or self._found_header[0] != problem.detail:
                self._found_header = problem.detail, await probe.blame(problem)
            raise self._found_header[1] from None

    @asynccontextmanager
    async def _probing_with(self) -> AsyncIterator[Probe]:
        """Yield a probe, name its key in refusals, and delete what it wrote.

        After a fault the object stays, and the next probe overwrites it; if the bucket keeps versions, it is deleted.
        """
        probe = await self.new_probe()
        try:
            yield probe
        except Fault as problem:
            if probe.wrote_versions:
                await probe.remove()
            if problem.code not in REFUSED_AS:
                raise
            # If a policy allows only other keys, that looks like wrong credentials.
            raise fault(REFUSED_AS[problem.code], ": ".join(filter(None, (probe.key, problem.detail)))) from None
        await probe.remove()

    async def probe_grant(self) -> Fault | None:
        """Request a grant; return the fault, None if the presigner works."""
        try:
            await self.store.grant(self.request(Operation.HEAD, await self.check_key()))
        except (PresignerFault, GrantFault) as problem:
            return problem
        except Fault:
            return None  # the presigner responded; the fault is the store's or this request's
        return None
