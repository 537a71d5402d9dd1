"""The probe of a store: which parts of S3 it supports, found out with real requests on the check key.

The daemon, ``presignd check`` and ``presignd broker check`` all use it. Each fact has one method of ``Probe``; the
callers choose the facts and describe them. Another daemon may use the same check key and remove the object in between,
so a missing object counts only after ``TRIES`` in a row.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from presignd.errors import Fault, fault
from presignd.presign import GrantRequest, Operation, signs_checksum_fields
from presignd.s3.checksums import algorithm_of, checksum_of, native
from presignd.s3.limits import CHECK_NAME, LEAST_PART
from presignd.s3.multipart import complete_body, etag_of_parts
from presignd.s3.responses import Response, bare
from presignd.store.signed import SignedStore
from presignd.store.support import Conditions, EtagKind, Handling, Remains, Support, Unsigned

BODY = b"presignd wrote this to see whether it may; it can go.\n"
OTHER = bytes(len(BODY))
"""Other bytes of the same length: only the checksum differs."""

TWO_PARTS = (bytes(LEAST_PART), b"presignd wrote this in two parts to see what becomes of it; it can go.\n")
"""An object in two parts: the smallest first part that S3 allows, and a short last one."""

EXPIRES = 300
TIMEOUT = 15.0
"""Seconds without progress. A probe that hangs must not delay its result by a whole ``upload.timeout``."""

TRIES = 3
MOST_VERSIONS = 8
OK, NOT_FOUND, CONFLICT, PRECONDITION_FAILED = 200, 404, 409, 412
REFUSALS, FAILURES = range(400, 500), range(400, 600)

NOT_HELD = (NOT_FOUND, CONFLICT, PRECONDITION_FAILED)
"""Statuses for a condition that does not hold. S3 answers If-Match with 404 if there is no object; 409 is a race."""

NOT_TAKEN = (400, 405, 501)
"""Statuses for a condition that the store does not know. Swift answers 501 to a PUT and 400 to a Complete."""

MISMATCH = (400, 422, 500)
"""Statuses for a wrong checksum. A 500 doesn't prove a check, but is no reason for uploads to wait."""

MAYBE_HEADERS = ("not_implemented", "rejected")
"""Codes of refusals that one of the watch's headers may cause."""

UNCHECKED = (
    *("access_denied", "bad_digest", "bad_response", "grant_refused", "not_implemented", "rejected", "server_error"),
    "signature_mismatch",
)
"""Codes of refusals of a right checksum: the store doesn't know the header, or a proxy drops it."""

AUTO = "crc64nvme"
"""The algorithm that upload.checksum = "auto" prefers: S3's own default, and far faster than MD5."""

CHECKSUM_MODE = "ENABLED"
"""With this x-amz-checksum-mode, a HEAD returns the object's checksum."""

NO_ETAG = "0" * 32
CUSTOMER_KEY = "x-amz-server-side-encryption-customer-"

Write = Callable[[bool, str], Awaitable[Response]]
"""Writes the check object with ``If-None-Match: *`` (if true) and If-Match (if not "")."""


class Probe:
    """Requests on one check key, with the headers of the watch's uploads."""

    def __init__(
        self, store: SignedStore, bucket: str, key: str, headers: Mapping[str, str], *, timeout: float = TIMEOUT
    ) -> None:
        self._store, self._bucket, self.key, self._headers = store, bucket, key, headers
        self._timeout = timeout
        self._customer_key = customer_key(headers)
        self._versions: list[str] = []
        self._other_key = f"{key.removesuffix(CHECK_NAME)}copy/{CHECK_NAME}"

    # --- the check object -------------------------------------------------------------------------
    async def write(
        self,
        *,
        accept: Collection[int] = (),
        checksum: str = "",
        headers: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        if_match: str = "",
    ) -> Response:
        """PUT the check object with its MD5, or with another ``checksum``."""
        request = self._request(
            Operation.PUT,
            size=len(BODY),
            content_type="text/plain",
            checksum=checksum or md5_of(BODY),
            headers=self._headers if headers is None else headers,
            if_none_match=if_none_match,
            if_match=if_match,
        )
        return self._noted(await self._send(request, BODY, accept))

    async def read(self, operation: Operation, accept: Collection[int] = (), *, checksum_mode: str = "") -> Response:
        """HEAD or GET the check object."""
        request = self._request(operation, headers=self._customer_key, checksum_mode=checksum_mode)
        return await self._send(request, None, accept)

    async def write_and_find(self) -> Response:
        """PUT the check object and return the answer to a HEAD of it; raise ``missing_object`` if it is not there.

        A server that accepts everything and stores nothing is not a store. A HEAD that is denied proves nothing.
        """
        return await self._found(self.write)

    async def write_parts_and_find(self, parts: Sequence[bytes] = (BODY,)) -> Response:
        """Store the check object by an upload in parts, and return the answer to a HEAD of it."""
        return await self._found(lambda: self._in_parts(parts))

    async def _found(self, write: Callable[[], Awaitable[Response]]) -> Response:
        for _ in range(TRIES):
            await write()
            response = await self.read(Operation.HEAD, accept=(403, NOT_FOUND))
            if response.status != NOT_FOUND:
                return response
        raise fault("missing_object", self.key)

    async def blame(self, problem: Fault) -> Fault:
        """Return ``problem``, a refusal of the check object, with the name of the header that causes it.

        A header causes it if the store accepts the object without that header. The object is removed again.
        """
        if problem.code not in MAYBE_HEADERS:
            return problem
        try:
            for name in self._headers:
                rest = {other: value for other, value in self._headers.items() if other != name}
                with suppress(Fault):
                    await self.write(headers=rest)
                    return fault(problem.code, f"{name}: {problem.detail}")
            return problem
        finally:
            await self.remove()

    # --- facts: uploads ---------------------------------------------------------------------------
    async def support(self, *, in_parts: bool, checksum: str) -> Support:
        """Return what the store supports for uploads. ``checksum`` is ``upload.checksum``.

        A wrong MD5 is tried only if nothing else proves an upload.
        """
        await self.write_and_find()
        conditions = await (self.complete_conditions() if in_parts else self.put_conditions())
        algorithm, proven = await self.choose(checksum, in_parts=in_parts)
        md5_etags = await self.has_md5_etags(in_parts=in_parts)
        return Support(
            conditions.if_none_match is Handling.HONOURED,
            conditions.if_match is Handling.HONOURED,
            algorithm,
            proven,
            md5_etags,
            proves=proven or md5_etags or await self.refuses(md5_of(OTHER), in_parts=in_parts),
        )

    async def choose(self, wanted: str, *, in_parts: bool) -> tuple[str, bool]:
        """Return the algorithm of each body for ``upload.checksum``, and whether the store verifies it.

        A part carries only one, so there MD5 replaces one that the store does not verify. S3 has no SHA-256 of a whole
        object in parts.
        """
        algorithm = AUTO if wanted == "auto" and native(AUTO) else wanted
        signed = await self._store.presigner.checksums()
        if algorithm in ("auto", "md5") or algorithm not in signed or (in_parts and algorithm == "sha256"):
            return "md5", False
        proven = signs_checksum_fields(signed) and await self.verifies(algorithm, in_parts=in_parts)
        return (algorithm, proven) if proven or not (in_parts or wanted == "auto") else ("md5", False)

    async def verifies(self, algorithm: str, *, in_parts: bool) -> bool:
        """Return whether the store refuses a wrong checksum, accepts a right one, and returns it for a HEAD."""
        right = checksum_of(BODY, algorithm)
        try:
            for _ in range(TRIES):
                await (self._in_parts(algorithm=algorithm) if in_parts else self.write(checksum=right))
                there = await self.read(Operation.HEAD, accept=(403, NOT_FOUND), checksum_mode=CHECKSUM_MODE)
                if there.status != NOT_FOUND:
                    return right in there.checksums and await self.refuses(
                        checksum_of(OTHER, algorithm), in_parts=in_parts
                    )
        except Fault as refused:
            if refused.code not in UNCHECKED:
                raise
        return False

    async def put_conditions(self) -> Conditions:
        """Try both conditions on a PUT."""

        async def put(if_none_match: bool, if_match: str) -> Response:
            return await self.write(accept=(*NOT_HELD, *NOT_TAKEN), if_none_match=if_none_match, if_match=if_match)

        return await self._conditions(put)

    async def complete_conditions(self) -> Conditions:
        """Try both conditions at the end of an upload in parts. Each costs an upload of one small part."""

        async def complete(if_none_match: bool, if_match: str) -> Response:
            return await self._in_parts(if_none_match=if_none_match, if_match=if_match)

        return await self._conditions(complete)

    async def _conditions(self, write: Write) -> Conditions:
        return Conditions(await self._if_none_match(write), await self._if_match(write))

    async def _if_none_match(self, write: Write) -> Handling:
        for _ in range(TRIES):
            await self.write()
            response = await write(True, "")
            if response.status in NOT_HELD:
                return Handling.HONOURED
            if response.status in NOT_TAKEN:
                return Handling.REFUSED
        return Handling.IGNORED

    async def _if_match(self, write: Write) -> Handling:
        """Try a wrong ETag, which must be refused, and the right one, which must pass: some stores want it quoted."""
        for _ in range(TRIES):
            etag = (await self.write()).etag
            wrong = await write(False, NO_ETAG)
            if wrong.status not in NOT_HELD:
                return Handling.REFUSED if wrong.status in NOT_TAKEN else Handling.IGNORED
            if etag and (await write(False, etag)).status == OK:
                return Handling.HONOURED
        return Handling.REFUSED

    async def refuses(self, wrong: str, *, in_parts: bool = False) -> bool:
        """Return whether the store refuses a PUT, or a part, with the checksum of other bytes."""
        algorithm = algorithm_of(wrong)
        sent = (
            self._in_parts(wrong=wrong, algorithm=algorithm)
            if in_parts
            else self.write(accept=MISMATCH, checksum=wrong)
        )
        return (await sent).status in REFUSALS

    async def has_md5_etags(self, *, in_parts: bool) -> bool:
        """Return whether the ETag of a PUT is its MD5, or the ETag of an object in parts is made of their MD5s.

        The answer to the upload counts, and the HEAD's if it has an ETag: the object may be another daemon's by
        then. Ceph's answer to the end of an upload in parts has none.
        """
        response = await (self._in_parts() if in_parts else self.write())
        etag = bare(response.element("ETag")) if in_parts else response.etag
        there = await self.read(Operation.HEAD, accept=(403, NOT_FOUND))
        expected = _md5_etags((BODY,)) if in_parts else (md5_hex(BODY),)
        is_md5 = (etag or there.etag).lower() in expected
        return is_md5 and not there.opaque_etag and there.etag.lower() in (*expected, "")

    async def two_part_etag(self) -> EtagKind:
        """Store the check object in two parts and return the kind of its ETag; ``remove`` removes it."""
        for _ in range(TRIES):
            found = await self.write_parts_and_find(TWO_PARTS)
            if found.headers.get("content-length") == str(sum(map(len, TWO_PARTS))):
                if not found.opaque_etag and found.etag.lower() in _md5_etags(TWO_PARTS):
                    return EtagKind.MD5
                return EtagKind.OPAQUE if found.etag else EtagKind.MISSING
        raise fault("missing_object", self.key)

    # --- facts: signatures ------------------------------------------------------------------------
    async def checks_signatures(self) -> bool:
        """Return whether the store refuses a HEAD of the check object with a wrong signature."""
        for _ in range(TRIES):
            await self.write()
            grant = await self._store.grant(self._request(Operation.HEAD, headers=self._customer_key))
            wrong = re.sub(r"(?<=X-Amz-Signature=)[0-9a-f]+", 64 * "0", grant.url)
            sent = replace(grant, url=wrong)
            response = await self._store.client.send(sent, accept=REFUSALS, timeout=self._timeout)
            if response.status != NOT_FOUND:
                return response.status // 100 != 2  # noqa: PLR2004 - 2xx
        return True

    async def obeys_unsigned(self) -> Unsigned:
        """Return which headers beyond the signed ones turn a PUT into a copy, or make its object public.

        In a bucket that anybody can read, the ACL proves nothing, so ``publishes`` is False.
        """
        await self.write()
        copies = await self._put_unsigned({"x-amz-copy-source": f"/{self._bucket}/{self.key}"})
        publishes = (
            not await self._is_public(self.key)
            and await self._put_unsigned({"x-amz-acl": "public-read"})
            and await self._is_public(self._other_key)
        )
        await self._remove_other()
        return Unsigned(copies, publishes)

    async def _put_unsigned(self, headers: Mapping[str, str]) -> bool:
        grant = await self._store.grant(self._other(Operation.PUT, size=len(BODY), checksum=md5_of(BODY)))
        more = replace(grant, headers={**grant.headers, **headers})
        return _is_done(await self._store.client.send(more, BODY, accept=REFUSALS, timeout=self._timeout))

    async def _is_public(self, key: str) -> bool:
        grant = await self._store.grant(replace(self._request(Operation.GET), key=key))
        unsigned = replace(grant, url=grant.url.partition("?")[0])
        return _is_done(await self._store.client.send(unsigned, accept=REFUSALS, timeout=self._timeout))

    async def mixes_uploads(self) -> bool:
        """Return whether an upload begun under one key can be listed or completed under another."""
        upload_id = await self._create()
        part = await self._part(upload_id, 1, BODY, md5_of(BODY))
        listed = await self._send(self._other(Operation.MULTIPART_LIST, upload_id=upload_id), None, FAILURES)
        document = complete_body([(1, part.etag)])
        complete = self._other(Operation.MULTIPART_COMPLETE, size=len(document), upload_id=upload_id)
        completed = await self._send(complete, document, FAILURES)  # Ceph 16 answers 500
        await self._send(self._request(Operation.MULTIPART_ABORT, upload_id=upload_id), None, FAILURES)
        await self._remove_other()
        return _is_done(listed) or _is_done(completed)

    # --- removal ----------------------------------------------------------------------------------
    @property
    def wrote_versions(self) -> bool:
        """Whether the bucket keeps versions: then each write stays until it is removed."""
        return bool(self._versions)

    async def remove(self) -> Remains:
        """Remove the check object, or each version that was written; return what is left.

        Versions that stay are hidden by a plain DELETE. If that is refused too, the object stays, and the next probe
        overwrites it.
        """
        reasons = [await self._delete(version) for version in dict.fromkeys(self._versions)]
        kept = [reason for reason in reasons if reason]
        if not reasons or kept:
            refused = await self._delete("")
            return Remains(len(kept), kept[0]) if kept else Remains(1 if refused else 0, refused)
        return Remains()

    async def _delete(self, version_id: str) -> str:
        """Delete, and return the reason if that fails; "" if the object is gone."""
        try:
            await self._send(self._request(Operation.DELETE, version_id=version_id), None, (NOT_FOUND,))
        except Fault as problem:
            return problem.message
        return ""

    async def _remove_other(self) -> None:
        """Remove the object beside the check object, as far as allowed.

        The answer to a copy names no version, so a HEAD finds each one.
        """
        for _ in range(MOST_VERSIONS):
            there = await self._send(self._other(Operation.HEAD), None, REFUSALS)
            version = there.headers.get("x-amz-version-id", "")
            if not _is_done(there) or not _is_done(
                await self._send(self._other(Operation.DELETE, version_id=version), None, REFUSALS)
            ):
                break

    # --- an upload in parts -----------------------------------------------------------------------
    async def _in_parts(
        self,
        parts: Sequence[bytes] = (BODY,),
        *,
        algorithm: str = "md5",
        wrong: str = "",
        if_none_match: bool = False,
        if_match: str = "",
    ) -> Response:
        """Upload in parts, and return the answer to Complete; with a ``wrong`` checksum, the answer to the part."""
        upload_id = await self._create(algorithm)
        done = False
        try:
            if wrong:
                return await self._part(upload_id, 1, parts[0], wrong, accept=MISMATCH)
            checksums = [checksum_of(body, algorithm) for body in parts]
            sent = [
                (number, body, await self._part(upload_id, number, body, checksum))
                for number, (body, checksum) in enumerate(zip(parts, checksums, strict=True), 1)
            ]
            etags = [(number, response.etag or md5_hex(body)) for number, body, response in sent]
            response = await self._complete(upload_id, etags, if_none_match=if_none_match, if_match=if_match)
            done = response.status == OK
        finally:
            if not done:
                with suppress(Fault):
                    await self._send(self._request(Operation.MULTIPART_ABORT, upload_id=upload_id), None, (NOT_FOUND,))
        return response

    async def _create(self, algorithm: str = "md5") -> str:
        create = self._request(
            Operation.MULTIPART_CREATE, content_type="text/plain", headers=self._headers, **of_whole(algorithm)
        )
        upload_id = (await self._send(create, None)).element("UploadId")
        if not upload_id:
            raise fault("bad_response", "no UploadId")
        return upload_id

    async def _part(
        self, upload_id: str, number: int, body: bytes, checksum: str, accept: Collection[int] = ()
    ) -> Response:
        part = self._request(
            Operation.MULTIPART_PART,
            size=len(body),
            checksum=checksum,
            headers=self._customer_key,
            upload_id=upload_id,
            part_number=number,
        )
        return await self._send(part, body, accept)

    async def _complete(
        self, upload_id: str, etags: Sequence[tuple[int, str]], *, if_none_match: bool, if_match: str
    ) -> Response:
        body = complete_body(etags)
        complete = self._request(
            Operation.MULTIPART_COMPLETE,
            size=len(body),
            content_type="application/xml",
            upload_id=upload_id,
            if_none_match=if_none_match,
            if_match=if_match,
        )
        conditional = if_none_match or if_match
        response = await self._send(complete, body, (*NOT_HELD, *NOT_TAKEN) if conditional else ())
        if response.status == OK and response.code:  # S3 may answer 200 with an <Error>
            if not conditional:
                raise fault("server_error", response.code)
            return Response(PRECONDITION_FAILED if response.code == "PreconditionFailed" else 500, response.headers)
        return self._noted(response)

    # --- requests ---------------------------------------------------------------------------------
    def _request(self, operation: Operation, **more: object) -> GrantRequest:
        return GrantRequest(operation, self._bucket, self.key, EXPIRES, **more)  # type: ignore[arg-type] # fields by name

    def _other(self, operation: Operation, **more: object) -> GrantRequest:
        """Make a request on a key beside the check key, which stands for another uploader's."""
        return replace(self._request(operation, **more), key=self._other_key)

    async def _send(self, request: GrantRequest, body: bytes | None, accept: Collection[int] = ()) -> Response:
        return await self._store.send(request, body, accept=accept, timeout=self._timeout)

    def _noted(self, response: Response) -> Response:
        """Remember the version that a write made, for ``remove``."""
        if response.status == OK and (version := response.headers.get("x-amz-version-id", "")):
            self._versions.append(version)
        return response


def of_whole(algorithm: str) -> dict[str, Any]:
    """Return the fields of a request that creates an upload in parts with one checksum of the whole object."""
    if algorithm == "md5":
        return {}
    return {"checksum_algorithm": algorithm.upper(), "checksum_type": "FULL_OBJECT"}


def customer_key(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a customer's key (SSE-C): parts, HEADs and GETs need them too."""
    return {name: value for name, value in headers.items() if name.lower().startswith(CUSTOMER_KEY)}


def _is_done(response: Response) -> bool:
    """Return whether a request was carried out: S3 may put an error into a 200."""
    return response.status not in FAILURES and not response.code


def _md5_etags(parts: Sequence[bytes]) -> tuple[str, str]:
    """Return the ETags of an object in parts that are made of MD5s: of the whole object, or of its parts."""
    return md5_hex(b"".join(parts)), etag_of_parts([md5_hex(part) for part in parts])


def md5_hex(data: bytes) -> str:
    """Return the MD5 in hex."""
    return md5_of(data).removeprefix("md5:")


def md5_of(data: bytes) -> str:
    """Return ``md5:…`` of ``data``."""
    return checksum_of(data, "md5")
