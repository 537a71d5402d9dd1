"""The ``links`` request of the control socket, answered from the links files."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from presignd.links.cursor import Cursor
from presignd.links.reader import follow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path


async def links_answers(file: Path, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Answer ``{"op": "links", "follow": bool, "after": cursor | None}``.

    Yields ``{"link": {…}, "cursor": {…}}`` for each link, oldest first, and before it ``{"gap": true}``
    where ``after`` was rotated out: lines may be missing or come again. Behind the last one comes
    ``{"end": true}``, so that a connection given up half way isn't taken for the end; with ``follow`` there
    is none.
    The caller has made sure that the peer may have links. Raises ``UsageError`` for a bad cursor.
    """
    after = None if request.get("after") is None else Cursor.from_json(request["after"])
    gaps: list[dict[str, Any]] = []
    items = follow(file, after, forever=bool(request.get("follow")), on_gap=lambda: gaps.append({"gap": True}))
    async with contextlib.aclosing(items):
        async for link, cursor in items:
            while gaps:
                yield gaps.pop()
            yield {"link": link, "cursor": cursor.to_json()}
    yield {"end": True}
