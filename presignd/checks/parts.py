"""An object in two parts, as large files go: whether it works, and what the store's ETags are."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass

from presignd.checks.base import CheckResult, ok, warn
from presignd.errors import Fault, fault
from presignd.pipeline.upload.bucket import Bucket
from presignd.presign import Operation
from presignd.s3.multipart import complete_body, etag_of_parts
from presignd.store.probe import TRIES

PARTS = (bytes(5 << 20), b"presignd wrote this in two parts to see what becomes of it; it can go.\n")
"""The least that a part before the last may be (S3 user guide, "Amazon S3 multipart upload limits"); a short one."""


@dataclass(frozen=True, slots=True)
class InTwo:
    """What was seen: whether the ETag is made of MD5s (of the parts, or of the whole), and whether there is one."""

    tells: bool
    etag: bool


async def check_parts(bucket: Bucket) -> CheckResult:
    """Try an object in two parts; say what an ETag tells here."""
    name = f"parts {bucket.watch.bucket}"
    try:
        seen = await store_in_two(bucket)
    except Fault as problem:
        told = f"an object in two parts, as files above upload.multipart_threshold go, failed: {problem.message}"
        return warn(name, told, problem.fix, code=problem.code)
    if seen.tells:
        return ok(name, "an object in two parts went through; its ETag is made of MD5s")
    if seen.etag:
        said = "its ETag tells nothing of its content, so an upload whose end is unclear is read back"
    else:
        said = "it has no ETag, so an object is read back before it is replaced, and where an upload's end is unclear"
    return ok(name, f"an object in two parts went through; {said}")


async def store_in_two(bucket: Bucket) -> InTwo:
    """Store the check object in two parts, look at it, and remove it; raise ``Fault``."""
    key = await bucket.check_key()
    for _ in range(TRIES):
        version_id = await _store(bucket, key)
        found = await bucket.find(key, denied_is_absent=False)
        with suppress(Fault):  # where it may not be removed, ``check`` says so anyway
            await bucket.send(bucket.request(Operation.DELETE, key, version_id=version_id), accept=(404,))
        if found and found.size == sum(map(len, PARTS)):
            whole = hashlib.md5(b"".join(PARTS), usedforsecurity=False).hexdigest()
            made = (whole, etag_of_parts([md5_hex(part) for part in PARTS]))
            return InTwo(not found.opaque and found.etag.lower() in made, bool(found.etag))
    raise fault("missing_object", key)


async def _store(bucket: Bucket, key: str) -> str:
    """Store it, and return its version's id, where the bucket has versions."""
    create = bucket.request(Operation.MULTIPART_CREATE, key, content_type="text/plain", headers=bucket.watch.headers)
    upload_id = (await bucket.send(create)).element("UploadId")
    if not upload_id:
        raise fault("bad_response", "no UploadId")
    try:
        etags = [await _part(bucket, key, upload_id, number) for number in range(1, len(PARTS) + 1)]
        body = complete_body(list(enumerate(etags, start=1)))
        complete = bucket.request(
            Operation.MULTIPART_COMPLETE,
            key,
            size=len(body),
            content_type="application/xml",
            upload_id=upload_id,
        )
        answer = await bucket.send(complete, body)
        if answer.code:  # S3 answers 200 with an <Error>, too
            raise fault("server_error", answer.code)
    except Fault:
        with suppress(Fault):
            await bucket.send(bucket.request(Operation.MULTIPART_ABORT, key, upload_id=upload_id), accept=(404,))
        raise
    return answer.headers.get("x-amz-version-id", "")


async def _part(bucket: Bucket, key: str, upload_id: str, number: int) -> str:
    body = PARTS[number - 1]
    request = bucket.request(
        Operation.MULTIPART_PART,
        key,
        size=len(body),
        checksum=f"md5:{md5_hex(body)}",
        upload_id=upload_id,
        part_number=number,
    )
    return (await bucket.send(request, body)).etag or md5_hex(body)


def md5_hex(body: bytes) -> str:
    """Return the MD5 in hex."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()
