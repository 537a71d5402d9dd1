"""Whether a store lets the pages of invitations send files to it from a browser (CORS; Fetch standard, 3.2)."""

from __future__ import annotations

import json
from dataclasses import replace

from presignd.checks.base import CheckResult, fail, ok, warn
from presignd.errors import Fault
from presignd.presign import GrantRequest, Operation
from presignd.s3.checksums import checksum_of
from presignd.s3.limits import CHECK_NAME
from presignd.s3.responses import Response
from presignd.store.preflight import lists, origin_problems, preflight
from presignd.store.signed import SignedStore

BODY = b"presignd"
METHODS = ("PUT", "POST", "DELETE")
"""The methods that guests send besides GET: PUT (a file or a part), POST (create and complete an upload), DELETE (abort
it)."""
EXPIRES = 300
CONDITION = ("If-None-Match",)


async def cors_result(store: SignedStore, bucket: str, prefix: str, origin: str) -> CheckResult:
    """Send the preflights and the PUT that a page at ``origin`` would send, and remove the object again."""
    name, key = f"CORS {bucket}/{prefix}", f"{prefix}{CHECK_NAME}"
    checksum = checksum_of(BODY, "md5")
    asked = GrantRequest(
        Operation.PUT, bucket, key, EXPIRES, len(BODY), "application/octet-stream", checksum, public=True
    )
    try:
        grant = await store.grant(asked)
        problems = [
            problem for method in METHODS for problem in await preflight(store, grant, method, origin, CONDITION)
        ]
        sent = replace(grant, headers={**grant.headers, "Origin": origin})
        problems += answer_problems(await store.client.send(sent, BODY), origin)
        await store.send(GrantRequest(Operation.DELETE, bucket, key, EXPIRES), accept=(403, 404))
    except Fault as fault:
        return warn(name, f"can't be tried: {fault.message}", fault.fix)
    if not problems:
        return ok(name, f"pages of {origin} may send files")
    return fail(name, f"browsers can't send files from {origin}: {problems[0]}", cors_fix(bucket, origin))


def answer_problems(response: Response, origin: str) -> list[str]:
    """Return what the answer to a PUT lacks for a browser: a page can read only exposed headers."""
    problems = origin_problems(response.headers, origin)
    if not lists(response, "access-control-expose-headers", "etag"):
        problems.append("Access-Control-Expose-Headers lacks ETag, without which no upload in parts can be ended")
    return problems


def cors_fix(bucket: str, origin: str) -> str:
    """Return the command that lets pages of ``origin`` send files, for each store."""
    rule = {
        "AllowedOrigins": [origin],
        "AllowedMethods": ["GET", *METHODS],
        "AllowedHeaders": ["*"],
        "ExposeHeaders": ["ETag"],
        "MaxAgeSeconds": 3600,
    }
    rules = json.dumps({"CORSRules": [rule]}, separators=(",", ":"))
    return (
        f"S3, Ceph (with --endpoint-url): aws s3api put-bucket-cors --bucket {bucket} --cors-configuration '{rules}'; "
        f"MinIO: mc admin config set ALIAS api cors_allow_origin={origin}, and restart it; "
        f"SeaweedFS: as S3, or weed s3 -allowedOrigins={origin}"
    )
