"""A folder on a filesystem that reports neither changes nor writers: presignd polls it."""

from __future__ import annotations

import random
from pathlib import Path

from tests.mounts import fuse
from tests.stores import Store
from tests.system.harness import Presignd, config_for, fetch

WATCH = 'settle = "500ms"\npoll_interval = "1s"'
PARTS = '[upload]\nmultipart_threshold = "5MiB"\npart_size = "5MiB"'


def test_files_on_fuse_are_found_by_polling_and_settle_by_quiet_time(tmp_path: Path, seaweedfs: Store) -> None:
    """Of any size: sendfile(2), by which large ones go, takes another way through the kernel there."""
    drop, large = tmp_path / "drop", random.Random(1).randbytes(11 << 20)
    with fuse(drop):
        (drop / "before").write_text("there before")
        config = config_for(seaweedfs, tmp_path, seaweedfs.new_bucket(), watch=WATCH, more=PARTS)
        daemon = Presignd(tmp_path, config, secrets=(seaweedfs.secret_key,))
        try:
            daemon.start()
            (started,) = daemon.events("watch.started")
            assert (started["writer_check"], started["events"]) == ("quiet", "polling")
            assert "FUSE" in started["reason"]
            (drop / "a/b").mkdir(parents=True)
            (drop / "a/b/later").write_text("there later")
            (drop / "large").write_bytes(large)
            daemon.until(lambda: len(daemon.links()) == 3, "three links")
            assert daemon.stop() == 0
        finally:
            daemon.end()
    assert {link["key"]: fetch(link["url"]) for link in daemon.links()} == {
        "before": b"there before",
        "a/b/later": b"there later",
        "large": large,
    }
