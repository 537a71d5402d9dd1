"""What a store does with the requests that uploads are made of, proven with real ones on the check key.

One probe for the daemon, ``check`` and ``broker check``: ``Probe`` sends, and what it returns is what was seen.
Another daemon may use the same check key and remove it in between: only so many misses in a row (``TRIES``) count.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from presignd.errors import Fault, fault
from presignd.presign import Grant, GrantRequest, Operation
from presignd.s3.multipart import complete_body, etag_of_parts
from presignd.s3.responses import Response, bare

BODY = b"presignd wrote this to see whether it may; it can go.\n"
OTHER = bytes(len(BODY))
"""As long as ``BODY``: only the checksum tells them apart."""

EXPIRES = 300
TRIES = 3
OK, NOT_FOUND, CONFLICT, PRECONDITION_FAILED = 200, 404, 409, 412
NOT_HELD = (NOT_FOUND, CONFLICT, PRECONDITION_FAILED)
"""Answers to a condition that doesn't hold. An If-Match without an object is 404 on S3; 409 is a race with another."""

NOT_TAKEN = (400, 405, 501)
"""Answers to a condition that a store doesn't know: Swift's are 501 to a PUT and 400 to a Complete."""

MISMATCH = (400, 422, 500)
"""Answers to a checksum that doesn't fit; 500 is no refusal to rely on, and nothing that an upload has to wait for."""

NO_ETAG = "0" * 32
CUSTOMER_KEY = "x-amz-server-side-encryption-customer-"


class Heed(Enum):
    """What a store makes of a condition: it holds to it, takes no notice, or refuses a request that has it."""

    HONOURED = "honours"
    IGNORED = "ignores"
    REFUSED = "refuses"


@dataclass(frozen=True, slots=True)
class Conditions:
    """What one way of writing (a PUT, or the end of an upload in parts) makes of ``If-None-Match: *`` and If-Match."""

    if_none_match: Heed
    if_match: Heed


def in_words(conditions: Conditions) -> str:
    """Say what one way of writing makes of them: "honours If-None-Match and ignores If-Match"."""
    first, second = conditions.if_none_match, conditions.if_match
    between = "and" if first is second else f"and {second.value}"
    return f"{first.value} If-None-Match {between} If-Match"


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of the check object: how many versions, and why."""

    versions: int = 0
    reason: str = ""


class Sender(Protocol):
    """Who has requests signed and sends them: the bucket of a watch, or a broker for itself."""

    async def grant(self, request: GrantRequest) -> Grant:
        """Have a request signed; raise its ``Fault``."""
        ...

    async def deliver(self, grant: Grant, body: bytes | None = None, *, accept: Collection[int] = ()) -> Response:
        """Send a granted request; raise a ``Fault`` for all but 2xx and ``accept``."""
        ...


Way = Callable[[bool, str], Awaitable[Response]]
"""Writes the check object under ``If-None-Match: *`` (where true) and If-Match (where not "")."""


class Probe:
    """The requests on one check key, with the headers that uploads bind."""

    def __init__(self, sender: Sender, bucket: str, key: str, headers: Mapping[str, str]) -> None:
        self._sender, self._bucket, self.key, self._headers = sender, bucket, key, headers
        self._customer_key = {name: value for name, value in headers.items() if name.lower().startswith(CUSTOMER_KEY)}
        self._versions: list[str] = []

    # --- requests ---------------------------------------------------------------------------------
    async def write(
        self,
        *,
        accept: Collection[int] = (),
        checksum: str = "",
        headers: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        if_match: str = "",
    ) -> Response:
        """PUT the check object, whose MD5 goes with it unless another ``checksum`` is given."""
        request = self._request(
            Operation.PUT,
            size=len(BODY),
            content_type="text/plain",
            checksum=checksum or md5_of(BODY),
            headers=self._headers if headers is None else headers,
            if_none_match=if_none_match,
            if_match=if_match,
        )
        return self._wrote(await self._send(request, BODY, accept))

    async def ask(self, operation: Operation, accept: Collection[int] = ()) -> Response:
        """HEAD or GET the check object."""
        return await self._send(self._request(operation, headers=self._customer_key), None, accept)

    async def write_kept(self) -> Response:
        """PUT and find it, and return the HEAD's answer: what takes everything and keeps nothing is no store.

        A HEAD that is refused tells nothing.
        """
        return await self._kept(self.write)

    async def write_in_parts(self, parts: Sequence[bytes] = (BODY,)) -> Response:
        """Store the check object by an upload in parts, and return the HEAD's answer."""
        return await self._kept(lambda: self._in_parts(parts))

    async def _kept(self, way: Callable[[], Awaitable[Response]]) -> Response:
        for _ in range(TRIES):
            await way()
            answer = await self.ask(Operation.HEAD, accept=(403, NOT_FOUND))
            if answer.status != NOT_FOUND:
                return answer
        raise fault("missing_object", self.key)

    # --- proofs -----------------------------------------------------------------------------------
    async def put_conditions(self) -> Conditions:
        """Try both conditions on a PUT."""

        async def put(if_none_match: bool, if_match: str) -> Response:
            return await self.write(accept=(*NOT_HELD, *NOT_TAKEN), if_none_match=if_none_match, if_match=if_match)

        return await self._conditions(put)

    async def complete_conditions(self) -> Conditions:
        """Try both conditions as an upload in parts completes; each costs an upload of one small part."""

        async def complete(if_none_match: bool, if_match: str) -> Response:
            return await self._in_parts(if_none_match=if_none_match, if_match=if_match)

        return await self._conditions(complete)

    async def _conditions(self, way: Way) -> Conditions:
        return Conditions(await self._if_none_match(way), await self._if_match(way))

    async def _if_none_match(self, way: Way) -> Heed:
        for _ in range(TRIES):
            await self.write()
            answer = await way(True, "")
            if answer.status in NOT_HELD:
                return Heed.HONOURED
            if answer.status in NOT_TAKEN:
                return Heed.REFUSED
        return Heed.IGNORED

    async def _if_match(self, way: Way) -> Heed:
        """Try a wrong ETag, which must be refused, and the right one, which must pass: a store may want it quoted."""
        for _ in range(TRIES):
            etag = (await self.write()).etag
            wrong = await way(False, NO_ETAG)
            if wrong.status not in NOT_HELD:
                return Heed.REFUSED if wrong.status in NOT_TAKEN else Heed.IGNORED
            if etag and (await way(False, etag)).status == OK:
                return Heed.HONOURED
        return Heed.REFUSED

    async def refuses(self, wrong: str, *, in_parts: bool = False) -> bool:
        """Tell whether ``wrong``, a checksum of other bytes and the one thing this request has wrong, is refused.

        The request is a PUT, or one of a part.
        """
        sent = self._in_parts(wrong=wrong) if in_parts else self.write(accept=MISMATCH, checksum=wrong)
        return 400 <= (await sent).status < 500  # noqa: PLR2004 - 4xx

    async def has_md5_etags(self, *, in_parts: bool) -> bool:
        """Tell whether a PUT is answered with its MD5; or whether an object in parts is named by the MD5s of these.

        By the upload's own answer, and a HEAD where that tells any: the object may be another daemon's by then.
        Ceph's end of an upload in parts tells none.
        """
        md5 = md5_hex(BODY)
        answer = await (self._in_parts() if in_parts else self.write())
        told = bare(answer.element("ETag")) if in_parts else answer.etag
        there = await self.ask(Operation.HEAD, accept=(403, NOT_FOUND))
        made = (md5, etag_of_parts([md5])) if in_parts else (md5,)
        return (told or there.etag).lower() in made and not there.opaque_etag and there.etag.lower() in (*made, "")

    async def verifies_signatures(self) -> bool:
        """Tell whether a HEAD of the check object is refused when its signature is wrong."""
        for _ in range(TRIES):
            await self.write()
            grant = await self._sender.grant(self._request(Operation.HEAD, headers=self._customer_key))
            wrong = re.sub(r"(?<=X-Amz-Signature=)[0-9a-f]+", 64 * "0", grant.url)
            answer = await self._sender.deliver(replace(grant, url=wrong), accept=range(400, 500))
            if answer.status != NOT_FOUND:
                return answer.status // 100 != 2  # noqa: PLR2004 - 2xx
        return True

    async def blame(self, problem: Fault) -> Fault:
        """Name in ``problem``, a refusal of the check object, the header without which it is taken."""
        for name in self._headers:
            rest = {other: value for other, value in self._headers.items() if other != name}
            with suppress(Fault):
                await self.write(headers=rest)
                return fault(problem.code, f"{name}: {problem.detail}")
        return problem

    # --- the end ----------------------------------------------------------------------------------
    @property
    def wrote_versions(self) -> bool:
        """Whether it wrote in a bucket with versions, where each stays until it is removed."""
        return bool(self._versions)

    async def forget(self) -> Remains:
        """Remove the check object, in a bucket with versions each that was written; say what stays.

        Where versions stay a plain DELETE hides them. Where that is refused the object stays: the next probe
        writes over it.
        """
        reasons = [await self._remove(version) for version in dict.fromkeys(self._versions)]
        kept = [reason for reason in reasons if reason]
        if not reasons or kept:
            refused = await self._remove("")
            return Remains(len(kept), kept[0]) if kept else Remains(1 if refused else 0, refused)
        return Remains()

    async def _remove(self, version_id: str) -> str:
        """Delete, and return why not; "" when it is gone."""
        try:
            await self._send(self._request(Operation.DELETE, version_id=version_id), None, (NOT_FOUND,))
        except Fault as problem:
            return problem.message
        return ""

    # --- an upload in parts -----------------------------------------------------------------------
    async def _in_parts(
        self, parts: Sequence[bytes] = (BODY,), *, wrong: str = "", if_none_match: bool = False, if_match: str = ""
    ) -> Response:
        """Upload in parts, and return the answer to its end; with a ``wrong`` checksum, that to its first part."""
        create = self._request(Operation.MULTIPART_CREATE, content_type="text/plain", headers=self._headers)
        upload_id = (await self._send(create, None)).element("UploadId")
        if not upload_id:
            raise fault("bad_response", "no UploadId")
        done = False
        try:
            if wrong:
                return await self._part(upload_id, 1, parts[0], wrong)
            sent = [(number, body, await self._part(upload_id, number, body)) for number, body in enumerate(parts, 1)]
            etags = [(number, answer.etag or md5_hex(body)) for number, body, answer in sent]
            answer = await self._complete(upload_id, etags, if_none_match=if_none_match, if_match=if_match)
            done = answer.status == OK
        finally:
            if not done:
                with suppress(Fault):
                    await self._send(self._request(Operation.MULTIPART_ABORT, upload_id=upload_id), None, (NOT_FOUND,))
        return answer

    async def _part(self, upload_id: str, number: int, body: bytes, wrong: str = "") -> Response:
        part = self._request(
            Operation.MULTIPART_PART,
            size=len(body),
            checksum=wrong or md5_of(body),
            headers=self._customer_key,
            upload_id=upload_id,
            part_number=number,
        )
        return await self._send(part, body, MISMATCH if wrong else ())

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
        answer = await self._send(complete, body, (*NOT_HELD, *NOT_TAKEN) if conditional else ())
        if answer.status == OK and answer.code:  # S3 answers 200 with an <Error>, too
            if not conditional:
                raise fault("server_error", answer.code)
            return Response(PRECONDITION_FAILED if answer.code == "PreconditionFailed" else 500, answer.headers)
        return self._wrote(answer)

    def _request(self, operation: Operation, **more: object) -> GrantRequest:
        return GrantRequest(operation, self._bucket, self.key, EXPIRES, **more)  # type: ignore[arg-type] # fields by name

    async def _send(self, request: GrantRequest, body: bytes | None, accept: Collection[int] = ()) -> Response:
        return await self._sender.deliver(await self._sender.grant(request), body, accept=accept)

    def _wrote(self, answer: Response) -> Response:
        if answer.status == OK and (version := answer.headers.get("x-amz-version-id", "")):
            self._versions.append(version)
        return answer


def md5_hex(data: bytes) -> str:
    """Return the MD5 in hex."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def md5_of(data: bytes) -> str:
    """Return ``md5:…`` of ``data``."""
    return f"md5:{md5_hex(data)}"


def sha256_of(data: bytes) -> str:
    """Return ``sha256:…`` of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


_COMES_BACK = re.compile(
    r"cache-control|content-(disposition|encoding|language|type)|expires|x-amz-meta-.+|x-amz-storage-class"
    r"|x-amz-website-redirect-location|x-amz-server-side-encryption(-customer-(algorithm|key-md5))?",
    re.IGNORECASE,
)
"""Headers of a PUT that a HEAD tells again as they were (S3 API, HeadObject)."""


def lost(sent: Mapping[str, str], answer: Response) -> list[str]:
    """Say which headers of an upload a HEAD of its object doesn't tell, or tells otherwise. Pure.

    S3 names no storage class where it is STANDARD, and only the number of tags; ACLs and the like it never tells.
    """
    return [told for name, value in sent.items() if (told := _lost(name, value.strip(), answer.headers))]


def _lost(name: str, value: str, there: Mapping[str, str]) -> str:
    lower = name.lower()
    if lower == "x-amz-tagging":
        count, wanted = there.get("x-amz-tagging-count"), value.count("&") + 1
        return "" if count == str(wanted) else f"{name} ({count or 'none told'} of {wanted} tags)"
    found = there.get(lower, "STANDARD" if lower == "x-amz-storage-class" else "").strip()
    if not _COMES_BACK.fullmatch(name) or found == value:
        return ""
    return f"{name} ({found} instead)" if found else name


def locked_until(answer: Response) -> str:
    """Return until when an object is locked (object lock), by a HEAD of it; "" where it isn't, or isn't told."""
    held = answer.headers.get("x-amz-object-lock-legal-hold", "").upper() == "ON"
    return "its legal hold ends" if held else answer.headers.get("x-amz-object-lock-retain-until-date", "")
