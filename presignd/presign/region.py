"""A bucket's region, asked of the store when the configuration names none.

A signature names a region, and stores that check it (AWS, MinIO with a region set) refuse another. The
question is GetBucketLocation, signed for us-east-1; a store that wants another region says so while it
refuses. What stays silent doesn't check either, so us-east-1 stands.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from presignd.presign import Grant
from presignd.s3.responses import Response

FALLBACK_REGION = "us-east-1"

ANSWERS = frozenset({*range(300, 500), 501} - {407, 408, 429})
"""Statuses that answer the question too: redirects and refusals name the region. The rest are faults."""

_LIMIT = 64 * 1024
_NOT_FOUND = 404
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
# One tag of one small document from a server that may be hostile: a pattern over a bounded body reads it
# with no entity to expand and no parser to confuse.
_REGION_TAG = re.compile(rb"<Region>\s*([A-Za-z0-9][A-Za-z0-9-]{0,63})\s*</Region>")
_LOCATION_TAG = re.compile(
    rb"<LocationConstraint(?:\s[^<>]{0,200})?(?:/>|>\s*([A-Za-z0-9][A-Za-z0-9-]{0,63})?\s*</LocationConstraint>)"
)
_AWS_HOST = re.compile(r"s3(?:-fips)?[.-](?:dualstack\.)?([a-z]{2}(?:-[a-z]+){1,2}-[0-9])\.amazonaws\.com(?:\.cn)?")
_OLD_NAMES = {"": FALLBACK_REGION, "EU": "eu-west-1", "US": FALLBACK_REGION}


class Send(Protocol):
    """``presignd.store.client.StoreClient.send``, without a body."""

    def __call__(self, grant: Grant, *, accept: Collection[int]) -> Awaitable[Response]:
        """Send ``grant``; raise a ``Fault`` for any status but 2xx and those in ``accept``."""
        ...


class Found(NamedTuple):
    """A region, and whether it may be remembered: a bucket that is not there yet may be made elsewhere."""

    region: str
    lasting: bool


def region_in_host(endpoint: str) -> str:
    """Return the region that an AWS endpoint's name tells, "" for any other."""
    match = _AWS_HOST.fullmatch(urlsplit(endpoint).hostname or "")
    return match[1] if match else ""


def read_region(answer: Response) -> str:
    """Return the region an answer tells, ``FALLBACK_REGION`` when it tells none."""
    named = answer.headers.get("x-amz-bucket-region", "")
    if _NAME.fullmatch(named):
        return named
    body = answer.body[:_LIMIT]
    match = _REGION_TAG.search(body) or _LOCATION_TAG.search(body)
    told = (match[1] or b"").decode("ascii") if match else ""
    return _OLD_NAMES.get(told, told)


async def find_region(bucket: str, sign: Callable[[str], Awaitable[Grant]], send: Send) -> Found:
    """Ask the store for ``bucket``'s region; a store that can't be reached raises its ``Fault``."""
    answer = await send(await sign(bucket), accept=ANSWERS)
    return Found(read_region(answer), lasting=answer.status != _NOT_FOUND)


class RegionFinder:
    """Remembers each bucket's region; callers that ask at the same time share one request.

    ``known`` is the region when it need not be asked for, else "".
    """

    def __init__(self, sign: Callable[[str], Awaitable[Grant]], send: Send, *, known: str = "") -> None:
        self._sign = sign
        self._send = send
        self._known = known
        self._found: dict[str, str] = {}
        self._asking: dict[str, asyncio.Task[str]] = {}

    async def region_of(self, bucket: str) -> str:
        """Return ``bucket``'s region; raises the ``Fault`` of a store or presigner that fails."""
        known = self._known or self._found.get(bucket)
        if known:
            return known
        task = self._asking.get(bucket)
        if task is None:
            task = self._asking[bucket] = asyncio.create_task(self._ask(bucket), name=f"region of {bucket}")
            task.add_done_callback(_look)
        # A caller that is cancelled must not take the others' answer with it.
        return await asyncio.shield(task)

    def forget(self, bucket: str) -> None:
        """Ask again next time: the store refused the region (``wrong_region``)."""
        self._found.pop(bucket, None)

    async def _ask(self, bucket: str) -> str:
        try:
            found = await find_region(bucket, self._sign, self._send)
        finally:
            del self._asking[bucket]
        if found.lasting:
            self._found[bucket] = found.region
        return found.region


def _look(task: asyncio.Task[str]) -> None:
    """Take note of the outcome, so that asyncio doesn't complain of one that no caller waited for."""
    if not task.cancelled():
        task.exception()
