"""The commands with one question and one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from presignd.cli.ask import ask
from presignd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


async def only(request: Mapping[str, Any], config: Path | None) -> dict[str, Any]:
    """Return the last (for most requests the only) answer to ``request``; raises ``PresigndError``."""
    answer: dict[str, Any] | None = None
    async for found in ask(request, config_path=config):
        answer = found
    if answer is None:
        raise Unavailable("the daemon ended without an answer", fix="look at its log")
    return answer
