"""An object in two parts, as large files go: whether it works, and what the store's ETags are."""

from __future__ import annotations

from dataclasses import dataclass

from presignd.checks.base import CheckResult, ok, warn
from presignd.errors import Fault, fault
from presignd.s3.multipart import etag_of_parts
from presignd.store.probe import OTHER, TRIES, Probe, md5_hex, md5_of

PARTS = (bytes(5 << 20), b"presignd wrote this in two parts to see what becomes of it; it can go.\n")
"""The least that a part before the last may be (S3 user guide, "Amazon S3 multipart upload limits"); a short one."""


UNPROVEN_FIX = (
    "look for a proxy that drops Content-MD5, or use a store that checks it; a signer that may not GET proves none"
)


@dataclass(frozen=True, slots=True)
class InTwo:
    """What was seen: whether the ETag is made of MD5s (of the parts, or of the whole), and whether there is one."""

    tells: bool
    etag: bool


async def check_parts(bucket: str, probe: Probe) -> CheckResult:
    """Try an object in two parts; say what an ETag tells here."""
    name = f"parts {bucket}"
    try:
        seen = await store_in_two(probe)
        proven = seen.tells or await probe.refuses(md5_of(OTHER), in_parts=True)
    except Fault as problem:
        told = f"an object in two parts, as files above upload.multipart_threshold go, failed: {problem.message}"
        return warn(name, told, problem.fix, code=problem.code)
    if seen.tells:
        return ok(name, "an object in two parts went through; its ETag is made of MD5s")
    if not proven:
        said = "its ETag tells nothing of its content, and a wrong Content-MD5 of a part is stored"
        return warn(name, f"an object in two parts went through; {said}: each such upload is read back", UNPROVEN_FIX)
    if seen.etag:
        said = "its ETag tells nothing of its content, so an upload whose end is unclear is read back"
    else:
        said = "it has no ETag, so an object is read back before it is replaced, and where an upload's end is unclear"
    return ok(name, f"an object in two parts went through; {said}")


async def store_in_two(probe: Probe) -> InTwo:
    """Store the check object in two parts and look at it; raise ``Fault``. It stays until ``forget``."""
    for _ in range(TRIES):
        found = await probe.write_in_parts(PARTS)
        if found.headers.get("content-length") == str(sum(map(len, PARTS))):
            made = (md5_hex(b"".join(PARTS)), etag_of_parts([md5_hex(part) for part in PARTS]))
            return InTwo(not found.opaque_etag and found.etag.lower() in made, bool(found.etag))
    raise fault("missing_object", probe.key)
