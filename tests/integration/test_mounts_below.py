"""A mount in a watched folder, or its end, while it is watched: files dropped there are seen at once."""

from __future__ import annotations

import asyncio
import functools
import subprocess
from pathlib import Path

import pytest

from presignd.pipeline.files.folder import Folder
from presignd.system.filesystem import MountTable
from tests.faulty_s3 import FaultyS3
from tests.mounts import bind, tmpfs
from tests.running import config, running, watch

NEVER = 3600.0
"""Seconds between scans: events alone must tell."""


@pytest.mark.parametrize("events", ["inotify", "watchfiles"])
async def test_files_in_what_is_mounted_over_a_folder_below_are_seen_by_events(
    faulty_s3: FaultyS3, tmp_path: Path, events: str
) -> None:
    """No event tells of a mount, and the watches stay with the folder that it hides."""
    other, below = tmp_path / "other", tmp_path / "drop" / "below"
    configured = config(tmp_path, faulty_s3, watch(tmp_path, events=events, rescan=NEVER))
    other.mkdir()
    below.mkdir()
    (other / "before").write_bytes(b"content")
    async with running(configured) as daemon:
        await daemon.said_by_now("watch.started")
        with bind(other, below) as umount:
            await daemon.done(1)
            for count in (2, 3, 4):
                (below / str(count)).write_bytes(b"content")
                await daemon.done(count)
            umount()
            (below / "under").write_bytes(b"content")
            await daemon.done(5)
        assert daemon.links() == ["below/before", "below/2", "below/3", "below/4", "below/under"]


async def test_a_disk_that_is_unmounted_and_another_one_in_its_place_are_seen(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    below = tmp_path / "drop" / "below"
    configured = config(tmp_path, faulty_s3, watch(tmp_path, rescan=NEVER))
    with tmpfs(below, "256k"):
        async with running(configured) as daemon:
            (below / "a").write_bytes(b"content")
            await daemon.done(1)
            for command in (["umount", "--lazy", str(below)], ["mount", "-t", "tmpfs", "tmpfs", str(below)]):
                await asyncio.to_thread(functools.partial(subprocess.run, command, check=True))
            for count in (2, 3):
                (below / str(count)).write_bytes(b"content")
                await daemon.done(count)


def test_only_what_is_mounted_below_is_another_mount(tmp_path: Path) -> None:
    for name in ("drop/below", "beside"):
        (tmp_path / name).mkdir(parents=True)
    folder, table = Folder(watch(tmp_path)), MountTable()
    try:
        assert not table.changed()
        with bind(tmp_path / "beside", tmp_path / "beside"):
            assert table.changed()
            assert not folder.refresh_mounts()
        with bind(tmp_path / "beside", tmp_path / "drop" / "below"):
            assert folder.refresh_mounts()
            assert not folder.refresh_mounts()
        assert folder.refresh_mounts()
    finally:
        folder.close()
        table.close()
