"""Links and links files for tests."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from presignd.config import LinksConfig
from presignd.links import Cursor, LinksFile, encode, read
from presignd.model import Link, LinksMark

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


def whole_lines(file: Path) -> list[bytes]:
    """Return the complete lines of a growing file, without a last line that is still being written."""
    return file.read_bytes().rpartition(b"\n")[0].splitlines() if file.exists() else []


def link(number: int) -> Link:
    return Link(
        time=NOW,
        file_id=f"id-{number:06}",
        watch="drop",
        path=f"/srv/drop/{number}.txt",
        bucket="b",
        key=f"{number}.txt",
        size=number,
        content_type="text/plain",
        etag="e",
        checksum="md5:c",
        expires_at=NOW + timedelta(hours=1),
        url=f"https://s3.example/b/{number}.txt?X-Amz-Signature=fake",
    )


def batch(*numbers: int) -> list[Link]:
    return [link(number) for number in numbers]


LINE = len(encode(link(1)))


@pytest.fixture
def config(tmp_path: Path) -> LinksConfig:
    return LinksConfig(file=tmp_path / "links" / "links.jsonl")


@contextlib.contextmanager
def opened(config: LinksConfig, mark: LinksMark | None = None) -> Iterator[LinksFile]:
    links, past = LinksFile.open(config, mark)
    list(past)
    try:
        yield links
    finally:
        links.close()


def numbers(config: LinksConfig, after: Cursor | None = None) -> list[int]:
    return [document["size"] for document, _ in read(config.file, after)]
