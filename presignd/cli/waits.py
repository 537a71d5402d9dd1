"""Waiting for many files: requests of a bounded size under one timeout."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from presignd.cli.ask import asking
from presignd.errors import PresigndError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from presignd.cli.ask import Asker

    Results = list[dict[str, Any]]

REQUEST_BYTES = 256 << 10
"""Of path text in one request; JSON may make a byte six, and the daemon takes a little over 1 MiB."""
ESCAPED = 6


async def wait_for(paths: Sequence[str], timeout: float, config: Path | None) -> tuple[Results, PresigndError | None]:
    """Wait for ``paths`` for ``timeout`` seconds in all; return each path's answer, and why some are pending."""
    results: Results = []
    failure: PresigndError | None = None
    end = asyncio.get_running_loop().time() + timeout
    async with asking(config) as asker:
        for some in batches(paths):
            left = max(0.0, end - asyncio.get_running_loop().time())
            failure = await _wait(asker, some, left, results) or failure
    return results, failure


async def _wait(asker: Asker, paths: Sequence[str], timeout: float, results: Results) -> PresigndError | None:
    """Add the answers to ``results``; what is still pending is told by an error, which is returned."""
    before = len(results)
    try:
        async for found in asker.ask({"op": "wait", "paths": list(paths), "timeout": timeout}):
            results.append(found)
    except PresigndError as error:
        if not any(found["outcome"] == "pending" for found in results[before:]):
            raise
        return error
    return None


def batches(paths: Sequence[str]) -> Iterator[list[str]]:
    """Split ``paths`` so that each request stays within the daemon's bound."""
    batch: list[str] = []
    room = REQUEST_BYTES // ESCAPED * ESCAPED
    for path in paths:
        if batch and room < len(path):
            yield batch
            batch, room = [], REQUEST_BYTES
        batch.append(path)
        room -= len(path)
    if batch:
        yield batch
