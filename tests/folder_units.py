"""Folders that get one link as a whole, for tests: fill one, and read what came of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from presignd.config import WatchConfig
from tests.faulty_s3 import BUCKET, FaultyS3
from tests.links import whole_lines
from tests.running import Running, watch

SHOOT = {"a.jpg": b"first", "raw/b.raw": b"second" * 1000, "empty": b""}


def folders(tmp_path: Path, **more: Any) -> WatchConfig:
    """Configure a watch whose folders get links as a whole."""
    return watch(tmp_path, **{"unit": "folder", "ready_marker": "{name}.ok", **more})


def fill(drop: Path, name: str, files: dict[str, bytes], *, ready: bool = True) -> Path:
    """Write a folder with these files, and its marker."""
    (drop / name).mkdir(exist_ok=True)
    for path, content in files.items():
        place = drop / name / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    if ready:
        mark(drop, name)
    return drop / name


def mark(drop: Path, name: str) -> None:
    """Write a folder's marker, or write it anew: each time with another mtime."""
    marker = drop / f"{name}.ok"
    before = marker.stat().st_mtime_ns if marker.exists() else 0
    marker.touch()
    if marker.stat().st_mtime_ns == before:
        os.utime(marker, ns=(before + 1, before + 1))


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of links.jsonl."""
    return [json.loads(line) for line in whole_lines(folder / "links.jsonl")]


async def linked(daemon: Running, count: int = 1) -> list[dict[str, Any]]:
    """Wait until so many units are finished; return the lines of links.jsonl."""

    def ends() -> int:
        return sum("/MANIFEST" in event.get("key", "") for event in daemon.events("file.done"))

    await daemon.until(lambda: ends() >= count, f"{count} units finished", 60)
    return rows(daemon.folder)


def stored(store: FaultyS3, prefix: str) -> dict[str, bytes]:
    """Return the objects below a prefix, in the order in which they were stored first."""
    return {
        key.removeprefix(prefix): found.body
        for (bucket, key), found in store.objects.items()
        if bucket == BUCKET and key.startswith(prefix)
    }


def manifest_of(store: FaultyS3, name: str) -> dict[str, Any]:
    """Return a unit's manifest as it is stored."""
    found: dict[str, Any] = json.loads(stored(store, f"{name}/")["MANIFEST.json"])
    return found
