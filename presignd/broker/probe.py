"""What a store does with requests that a broker must not rely on it to refuse: tried on a prefix's check object."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from presignd.presign import Grant, GrantRequest, Operation
from presignd.s3.limits import CHECK_NAME
from presignd.s3.multipart import complete_body
from presignd.store.probe import EXPIRES, md5_of

if TYPE_CHECKING:
    from presignd.broker.service import Signer
    from presignd.s3.responses import Response

BODY = b"presignd broker check\n"
ANY_REFUSAL = range(400, 500)
MOST_VERSIONS = 8
ANY_FAILURE = range(400, 600)
"""Ceph 16 answers 500 to a Complete under another key."""


class Threats:
    """Requests on a prefix's check object, and on one below it that stands for another's. Each raises ``Fault``."""

    def __init__(self, signer: Signer, bucket: str, prefix: str) -> None:
        self._signer, self._bucket = signer, bucket
        self._key, self._other = f"{prefix}{CHECK_NAME}", f"{prefix}copy/{CHECK_NAME}"

    async def begin(self) -> None:
        """Write the check object."""
        await self._put(self._key)

    async def copies_unsigned(self) -> bool:
        """Tell whether a PUT can be given the header that makes it a copy, which the signature doesn't bind."""
        return await self._put(self._other, {"x-amz-copy-source": f"/{self._bucket}/{self._key}"})

    async def publishes_unsigned(self) -> bool:
        """Tell whether a PUT can be given an ACL that the signature doesn't bind, and whether that opens the object.

        Where anybody can read the bucket as it is, nothing is told by that.
        """
        if await self._is_public(self._key) or not await self._put(self._other, {"x-amz-acl": "public-read"}):
            return False
        return await self._is_public(self._other)

    async def mixes_uploads(self) -> bool:
        """Tell whether an upload begun under one key can be listed or completed under another."""
        created = await self._send(Operation.MULTIPART_CREATE, self._key)
        upload: dict[str, Any] = {"upload_id": created.element("UploadId")}
        part = await self._send(
            Operation.MULTIPART_PART, self._key, BODY, part_number=1, size=len(BODY), checksum=md5_of(BODY), **upload
        )
        listed = await self._send(Operation.MULTIPART_LIST, self._other, accept=ANY_FAILURE, **upload)
        document = complete_body([(1, part.etag)])
        completed = await self._send(
            Operation.MULTIPART_COMPLETE, self._other, document, accept=ANY_FAILURE, size=len(document), **upload
        )
        await self._send(Operation.MULTIPART_ABORT, self._key, accept=ANY_FAILURE, **upload)
        return _done(listed) or _done(completed)

    async def forget(self) -> None:
        """Remove both objects, with the versions that were written; where that is refused they stay.

        A copy is answered without its version, so each is asked for.
        """
        for key in (self._key, self._other):
            for _ in range(MOST_VERSIONS):
                there = await self._send(Operation.HEAD, key, accept=ANY_REFUSAL)
                version = there.headers.get("x-amz-version-id", "")
                if not _done(there) or not _done(
                    await self._send(Operation.DELETE, key, accept=ANY_REFUSAL, version_id=version)
                ):
                    break

    async def _put(self, key: str, unsigned: dict[str, str] | None = None) -> bool:
        """PUT ``key``; with headers that aren't signed tell whether that went through."""
        grant = await self._grant(Operation.PUT, key, size=len(BODY), checksum=md5_of(BODY))
        sent = replace(grant, headers={**grant.headers, **(unsigned or {})})
        return _done(await self._signer.send(sent, BODY, accept=ANY_REFUSAL if unsigned else ()))

    async def _is_public(self, key: str) -> bool:
        grant = await self._grant(Operation.GET, key)
        bare = replace(grant, url=grant.url.partition("?")[0])
        return _done(await self._signer.send(bare, accept=ANY_REFUSAL))

    async def _send(
        self, operation: Operation, key: str, body: bytes | None = None, *, accept: range = range(0), **bound: Any
    ) -> Response:
        return await self._signer.send(await self._grant(operation, key, **bound), body, accept=accept)

    async def _grant(self, operation: Operation, key: str, **bound: Any) -> Grant:
        return await self._signer.grant(GrantRequest(operation, self._bucket, key, EXPIRES, **bound))


def _done(answer: Response) -> bool:
    """Tell whether a request was done: S3 may put an error into a 200."""
    return answer.status not in ANY_FAILURE and not answer.code
