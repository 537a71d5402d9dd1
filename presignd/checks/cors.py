"""Whether a store lets the pages of invitations send files to it from a browser (CORS; Fetch standard, 3.2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from presignd.checks.base import CheckResult, fail, ok, warn
from presignd.errors import Fault
from presignd.presign import Grant, GrantRequest, Operation
from presignd.s3.checksums import checksum_of
from presignd.s3.limits import CHECK_NAME
from presignd.s3.responses import Response
from presignd.store.signed import SignedStore

BODY = b"presignd"
METHODS = ("PUT", "POST", "DELETE")
"""What guests send beside GET: a file or a part, the begin and the end of an upload in parts, its abort."""
EXPIRES = 300
_ANY_STATUS = range(300, 600)


async def cors_result(store: SignedStore, bucket: str, prefix: str, origin: str) -> CheckResult:
    """Send the preflights and the PUT that a page at ``origin`` would send, and remove the object again."""
    name, key = f"CORS {bucket}/{prefix}", f"{prefix}{CHECK_NAME}"
    checksum = checksum_of(BODY, "md5")
    asked = GrantRequest(
        Operation.PUT, bucket, key, EXPIRES, len(BODY), "application/octet-stream", checksum, public=True
    )
    try:
        grant = await store.grant(asked)
        problems = [problem for method in METHODS for problem in await _preflight(store, grant, method, origin)]
        sent = replace(grant, headers={**grant.headers, "Origin": origin})
        problems += answer_problems(await store.deliver(sent, BODY), origin)
        await store.send(GrantRequest(Operation.DELETE, bucket, key, EXPIRES), accept=(403, 404))
    except Fault as fault:
        return warn(name, f"can't be tried: {fault.message}", fault.fix)
    if not problems:
        return ok(name, f"pages of {origin} may send files")
    return fail(name, f"browsers can't send files from {origin}: {problems[0]}", cors_fix(bucket, origin))


async def _preflight(store: SignedStore, grant: Grant, method: str, origin: str) -> list[str]:
    """Ask as a browser does before it sends ``method`` with the grant's headers."""
    needed = sorted(name.lower() for name in (*grant.headers, "If-None-Match") if name != "Content-Length")
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    asked["Access-Control-Request-Headers"] = ",".join(needed)
    response = await store.deliver(replace(grant, method="OPTIONS", headers=asked), accept=_ANY_STATUS)
    return preflight_problems(response, method, needed, origin)


def preflight_problems(response: Response, method: str, needed: list[str], origin: str) -> list[str]:
    """Return what a browser misses in the answer to its preflight."""
    if response.status // 100 != 2:  # noqa: PLR2004 - 2xx
        return [f"the preflight for {method} was answered with {response.status}"]
    problems = _origin_problems(response.headers, origin)
    if not _lists(response, "access-control-allow-methods", method):
        problems.append(f"Access-Control-Allow-Methods lacks {method}")
    missing = [name for name in needed if not _lists(response, "access-control-allow-headers", name)]
    if missing:
        problems.append(f"Access-Control-Allow-Headers lacks {', '.join(missing)}")
    return problems


def answer_problems(response: Response, origin: str) -> list[str]:
    """Return what a browser misses in the answer to a PUT: a page can read only exposed headers."""
    problems = _origin_problems(response.headers, origin)
    if not _lists(response, "access-control-expose-headers", "etag"):
        problems.append("Access-Control-Expose-Headers lacks ETag, without which no upload in parts can be ended")
    return problems


def _origin_problems(headers: Mapping[str, str], origin: str) -> list[str]:
    allowed = headers.get("access-control-allow-origin", "")
    if allowed in ("*", origin):
        return []
    return [
        f"Access-Control-Allow-Origin is {allowed[:100]!r}" if allowed else "Access-Control-Allow-Origin is missing"
    ]


def _lists(response: Response, header: str, value: str) -> bool:
    listed = {each.strip().lower() for each in response.headers.get(header, "").split(",")}
    return bool(listed & {"*", value.lower()})


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
