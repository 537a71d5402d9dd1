"""``presignd wait``: wait until files have their links, by requests of a bounded size under one timeout."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from presignd.cli import loop, show
from presignd.cli.ask import asking
from presignd.cli.options import AsJson, ConfigFile, absolute, seconds
from presignd.errors import ExitCode, PresigndError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from presignd.cli.ask import Asker

    Results = list[dict[str, Any]]

REQUEST_BYTES = 256 << 10
"""Bytes of paths in one request: the daemon takes a little over 1 MiB, in which JSON may escape a byte as six."""
ESCAPED = 6


def wait_command(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", readable=False, help="Files in watched folders.")],
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="How long to wait.")] = "60s",
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Wait until files have their links.

    Ends with 0 when each file's current content has its link, 4 when one is quarantined or missing, 5
    when the timeout ran out. Of folders, only those of a watch with unit = "folder" get a link.

    Example: cp report.pdf /srv/drop/ && presignd wait /srv/drop/report.pdf
    """
    limit = seconds("--timeout", timeout)
    results, failure = loop.run(wait_for([absolute(path) for path in paths], limit, config))
    if as_json:
        show.document(results)
    stopped = [found for found in results if found["outcome"] not in {"linked", "pending"}]
    for found in stopped:
        show.say(f"presignd: {found['path']}: {_why(found)}")
    if stopped:
        raise SystemExit(ExitCode.REFUSED)
    if failure:
        raise failure


def _why(found: dict[str, Any]) -> str:
    error = (found["version"] or {}).get("error")
    match found["outcome"]:
        case "quarantined" if error:
            return f"quarantined: {error['cause']} ({error['fix']})"
        case "missing" | "outside" if os.path.isdir(found["path"]):  # noqa: PTH112 - where it may not be looked at: no
            return "it is a folder: name the files in it"
        case "missing":
            is_special = os.path.lexists(found["path"])
            return "not a regular file; symlinks are not followed" if is_special else "there is no such file"
        case "ignored" if found.get("why"):
            return f"ignored: {found['why']} (presignd put uploads it anyway)"
        case "outside" if found.get("why"):
            return f"{found['why']} (presignd status lists the watches; presignd put uploads any file)"
    return "the daemon can't read it" if found["outcome"] == "unreadable" else str(found["outcome"])


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
    """Add the answers to ``results``; return the error that ends them when some are still pending."""
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
