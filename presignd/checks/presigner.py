"""The broker: whether it answers, what its token may do, until when, and whose clock is right."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from presignd.checks.base import CheckResult, fail, failed, ok, warn
from presignd.config import Config, WatchConfig
from presignd.errors import CODES, Fault
from presignd.pipeline.key_template import check_key
from presignd.presign import GrantRequest, Operation, Presigner
from presignd.presign.remote import Me

RENEW_WITHIN = timedelta(days=14)
"""A token that ends sooner is a warning."""

NEEDED = (Operation.PUT, Operation.HEAD, Operation.GET)
"""Without one of these no file gets its link."""


def judge_token(config: Config, me: Me, now: datetime) -> Iterator[CheckResult]:
    """Judge what a broker tells of its token, against what the watches want. Pure; ``now`` is UTC."""
    yield _token(config.presign.url, me, now)
    if lacking := [operation for operation in NEEDED if me.lacks(operation)]:
        yield fail("operations", f"the token lacks {', '.join(lacking)}", CODES["not_allowed"].fix, code="not_allowed")
    elif me.lacks(Operation.MULTIPART_CREATE):
        told = f"the token lacks multipart: files above {config.upload.multipart_threshold} bytes can't go"
        yield warn("operations", told, "have multipart added to the token at the broker", code="not_allowed")
    elif me.operations is not None:
        yield ok("operations", ", ".join(me.operations))
    for watch in config.watches:
        yield from _watch(watch, me)


async def judge_link(presigner: Presigner, watch: WatchConfig) -> CheckResult:
    """Have a link signed as it will be: for the public endpoint, dated as links are. Raises ``PresignerFault``."""
    key, date = check_key(watch, await presigner.prefix()), presigner.now()
    [grant] = await presigner.grant([GrantRequest(Operation.GET, watch.bucket, key, 60, date=date, public=True)])
    if isinstance(grant, Fault):
        return failed("links", grant)
    return ok("links", "the broker signs them")


def _token(url: str, me: Me, now: datetime) -> CheckResult:
    told = f"{url} knows the token{me.name and ' ' + me.name}"
    if me.valid_until is None:
        return ok("broker", told)
    told += f", good until {me.valid_until:%Y-%m-%d %H:%M} UTC"
    if me.valid_until - now < RENEW_WITHIN:
        return warn("broker", told, "have a new token made: presignd broker token create")
    return ok("broker", told)


def _watch(watch: WatchConfig, me: Me) -> Iterator[CheckResult]:
    if me.bucket and watch.bucket != me.bucket:
        told = f"its bucket is {watch.bucket}, the token's is {me.bucket}"
        yield fail(f"watch {watch.name}", told, CODES["not_allowed"].fix, code="not_allowed")
    if not check_key(watch, me.prefix).startswith(me.prefix):
        told = f"its keys do not begin with the token's prefix {me.prefix!r}"
        yield fail(f"watch {watch.name}", told, CODES["outside_prefix"].fix, code="outside_prefix")
