"""A bucket's region, requested from the store if the configuration names none.

A signature names a region, and stores that check it (AWS, MinIO with a region set) refuse another one. The request is
GetBucketLocation, signed for us-east-1; a store in another region names it in its refusal. A store that names no region
checks none either, so us-east-1 is used.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from presignd.presign import Grant
from presignd.s3.responses import Response

FALLBACK_REGION = "us-east-1"

ANSWERS = frozenset({*range(300, 500), 501} - {407, 408, 429})
"""Statuses that may name the region: redirects and refusals too. All others are faults."""

_LIMIT = 64 * 1024
_NOT_FOUND = 404
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
# A pattern over a bounded body reads one tag of a document that may be hostile: it expands no entities.
_REGION_TAG = re.compile(rb"<Region>\s*([A-Za-z0-9][A-Za-z0-9-]{0,63})\s*</Region>")
_LOCATION_TAG = re.compile(
    rb"<LocationConstraint(?:\s[^<>]{0,200})?(?:/>|>\s*([A-Za-z0-9][A-Za-z0-9-]{0,63})?\s*</LocationConstraint>)"
)
_AWS_HOST = re.compile(r"s3(?:-fips)?[.-](?:dualstack\.)?([a-z]{2}(?:-[a-z]+){1,2}-[0-9])\.amazonaws\.com(?:\.cn)?")
_OLD_NAMES = {"": FALLBACK_REGION, "EU": "eu-west-1", "US": FALLBACK_REGION}


Send = Callable[..., Awaitable[Response]]
"""``store.client.StoreClient.send``, which is a layer above."""


class FoundRegion(NamedTuple):
    """A region, and whether it may be cached. A bucket that does not exist yet may be created in another region."""

    region: str
    lasting: bool


def region_in_host(endpoint: str) -> str:
    """Return the region in the name of an AWS endpoint, "" for any other endpoint."""
    match = _AWS_HOST.fullmatch(urlsplit(endpoint).hostname or "")
    return match[1] if match else ""


def read_region(response: Response) -> str:
    """Return the region that a response names, ``FALLBACK_REGION`` if it names none."""
    named = response.headers.get("x-amz-bucket-region", "")
    if _NAME.fullmatch(named):
        return named
    body = response.body[:_LIMIT]
    match = _REGION_TAG.search(body) or _LOCATION_TAG.search(body)
    region = (match[1] or b"").decode("ascii") if match else ""
    return _OLD_NAMES.get(region, region)


async def find_region(bucket: str, sign: Callable[[str], Awaitable[Grant]], send: Send) -> FoundRegion:
    """Request ``bucket``'s region from the store; raise the ``Fault`` of an unreachable store."""
    response = await send(await sign(bucket), accept=ANSWERS)
    return FoundRegion(read_region(response), lasting=response.status != _NOT_FOUND)


class RegionFinder:
    """Caches each bucket's region. Concurrent callers share one request.

    ``known`` is the region if it is configured, else "".
    """

    def __init__(self, sign: Callable[[str], Awaitable[Grant]], send: Send, *, known: str = "") -> None:
        self._sign = sign
        self._send = send
        self._known = known
        self._found: dict[str, str] = {}
        self._asking: dict[str, asyncio.Task[str]] = {}

    async def region_of(self, bucket: str) -> str:
        """Return ``bucket``'s region; raise the ``Fault`` of the store or the presigner."""
        known = self._known or self._found.get(bucket)
        if known:
            return known
        task = self._asking.get(bucket)
        if task is None:
            task = self._asking[bucket] = asyncio.create_task(self._ask(bucket), name=f"region of {bucket}")
            task.add_done_callback(_retrieve_exception)
        # The task is shared: a cancelled caller must not cancel it for the others.
        return await asyncio.shield(task)

    def forget(self, bucket: str) -> None:
        """Request the region again next time: the store refused it (``wrong_region``)."""
        self._found.pop(bucket, None)

    async def _ask(self, bucket: str) -> str:
        try:
            found = await find_region(bucket, self._sign, self._send)
        finally:
            del self._asking[bucket]
        if found.lasting:
            self._found[bucket] = found.region
        return found.region


def _retrieve_exception(task: asyncio.Task[str]) -> None:
    """Retrieve the task's exception, so that asyncio does not log one that no caller waited for."""
    if not task.cancelled():
        task.exception()
