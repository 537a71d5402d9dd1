"""Check the presigner: the source of its credentials, what a broker's token may do, and the clocks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta

from presignd.checks.base import CheckResult, Context, fail, failed, ok, warn
from presignd.config import Config, WatchConfig
from presignd.errors import CODES, Fault
from presignd.pipeline.intake import check_key
from presignd.presign import GrantRequest, Operation, Presigner
from presignd.presign.local import LocalPresigner
from presignd.presign.remote import BrokerPresigner, Me
from presignd.s3.limits import MAX_EXPIRES
from presignd.system.clock import utcnow
from presignd.units import format_duration

ANY_STATUS = range(100, 600)

FAILING_OFFSET, WARNING_OFFSET = 300.0, 30.0
"""Seconds. Some servers refuse any signature from the future, and all refuse one that is 15 minutes old."""

RENEW_WITHIN = timedelta(days=14)
"""A token that expires sooner is a warning."""

NEEDED = (Operation.PUT, Operation.HEAD, Operation.GET)
"""Operations without which no file gets a link."""


async def check_credentials(context: Context) -> AsyncIterator[CheckResult]:
    """Report the source and the expiry of the signing credentials, or what a broker's token may do."""
    presigner = context.store.presigner
    if isinstance(presigner, BrokerPresigner):
        for result in judge_token(context.config, await presigner.me(), utcnow()):
            yield result
        for watch in context.config.watches[:1]:
            yield await judge_link(presigner, watch)
        return
    assert isinstance(presigner, LocalPresigner)
    found = await presigner.credentials.get()
    ends = f", good until {found.expires_at:%Y-%m-%d %H:%M} UTC" if found.expires_at else ""
    yield ok("credentials", f"from {found.source}{ends}")


# --- the clocks -------------------------------------------------------------------------------------


async def check_clock(context: Context) -> AsyncIterator[CheckResult]:
    """Compare the signer's clock with the store's Date, which refusals have, too; and ours with a broker's.

    Without a watch there is no bucket for a request: a broker signs what an inbox fetches.
    """
    for watch in context.config.watches[:1]:
        probe = await context.bucket(watch).new_probe()
        await probe.read(Operation.HEAD, accept=ANY_STATUS)
    presigner, store_offset = context.store.presigner, context.store.client.clock_offset
    if isinstance(presigner, BrokerPresigner):
        yield judge_clock(presigner.clock_offset, there="the broker")
        if context.config.watches:
            yield judge_clock(store_offset, here="the broker")
    else:
        yield judge_clock(store_offset)


def judge_clock(offset: float | None, *, here: str = "this machine", there: str = "the store") -> CheckResult:
    """Judge ``offset``, the clock there minus the clock here in seconds; None: unknown. Pure."""
    if offset is None:
        return warn("clock", f"the answer of {there} has no Date: the clocks can't be compared")
    if abs(offset) <= WARNING_OFFSET:
        return ok("clock", f"{'' if here == 'this machine' else here + ' is '}within {abs(offset):.0f} s of {there}'s")
    detail = f"{here} is {abs(offset):.0f} s {'behind' if offset > 0 else 'ahead of'} {there}"
    where = "here" if here == "this machine" else f"at {here}"
    judge = fail if abs(offset) > FAILING_OFFSET else warn
    return judge("clock", detail, f"{CODES['clock_skew'].fix}, {where} or at {there}", code="clock_skew")


# --- a broker's token -------------------------------------------------------------------------------


def judge_token(config: Config, me: Me, now: datetime) -> Iterator[CheckResult]:
    """Compare a broker's answer about its token with what the watches need. Pure; ``now`` is UTC."""
    yield _token(config.presign.url, me, now)
    if not config.watches:
        return  # inboxes have a check of their own
    if lacking := [operation for operation in NEEDED if me.lacks(operation)]:
        yield fail("operations", f"the token lacks {', '.join(lacking)}", CODES["not_allowed"].fix, code="not_allowed")
    elif me.lacks(Operation.MULTIPART_CREATE):
        detail = f"the token lacks multipart: files above {config.upload.multipart_threshold} bytes can't go"
        yield warn("operations", detail, "have multipart added to the token at the broker", code="not_allowed")
    elif me.operations is not None:
        yield ok("operations", ", ".join(me.operations))
    for watch in config.watches:
        yield from _watch(watch, me)
        yield _kind_of_links(watch, me)


async def judge_link(presigner: Presigner, watch: WatchConfig) -> CheckResult:
    """Request a link's grant as the daemon does: for the public endpoint, with a date. Raises ``PresignerFault``."""
    key, date = check_key(watch, await presigner.prefix()), presigner.now()
    [grant] = await presigner.grant([GrantRequest(Operation.GET, watch.bucket, key, 60, date=date, public=True)])
    if isinstance(grant, Fault):
        return failed("links", grant)
    return ok("links", "the broker signs them")


def _token(url: str, me: Me, now: datetime) -> CheckResult:
    detail = f"{url} knows the token{me.name and ' ' + me.name}"
    if me.valid_until is None:
        return ok("broker", detail)
    detail += f", good until {me.valid_until:%Y-%m-%d %H:%M} UTC"
    if me.valid_until - now < RENEW_WITHIN:
        return warn("broker", detail, "have a new token made: presignd broker token create")
    return ok("broker", detail)


def _kind_of_links(watch: WatchConfig, me: Me) -> CheckResult:
    part = f"links of {watch.name}"
    if watch.links != "presigned" and me.links_root:
        most = "" if me.max_stable_link is None else f", {format_duration(me.max_stable_link)} at most"
        return ok(part, f"stable, at {me.links_root}{most}")
    if watch.links == "stable":
        return fail(part, CODES["no_stable_links"].cause, CODES["no_stable_links"].fix, code="no_stable_links")
    if watch.link_expires is not None and watch.link_expires > MAX_EXPIRES:
        return warn(part, "presigned: they end after 7d, not after link_expires", CODES["no_stable_links"].fix)
    return ok(part, "presigned")


def _watch(watch: WatchConfig, me: Me) -> Iterator[CheckResult]:
    if me.bucket and watch.bucket != me.bucket:
        detail = f"its bucket is {watch.bucket}, the token's is {me.bucket}"
        yield fail(f"watch {watch.name}", detail, CODES["not_allowed"].fix, code="not_allowed")
    if not check_key(watch, me.prefix).startswith(me.prefix):
        detail = f"its keys do not begin with the token's prefix {me.prefix!r}"
        yield fail(f"watch {watch.name}", detail, CODES["outside_prefix"].fix, code="outside_prefix")
