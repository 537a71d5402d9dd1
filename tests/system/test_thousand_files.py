"""The main job under all faults together: many unusual files, dropped in every way, on real stores.

``PRESIGND_TEST_FILES`` sets how many (120 by default, so that CI stays short; a thousand is the real thing).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stores import Store
from tests.system.harness import Dropper, Presignd, assert_all_arrived, config_for, contents, names

COUNT = int(os.environ.get("PRESIGND_TEST_FILES", "120"))
OUTAGE = float(os.environ.get("PRESIGND_TEST_OUTAGE", "1"))
"""Seconds the store is away, from when that was noticed."""

pytestmark = [pytest.mark.timeout(1800), pytest.mark.long]


class Drop:
    """A daemon on a bucket of its own, and the files it will be given."""

    def __init__(self, folder: Path, store: Store) -> None:
        rng = random.Random(7)
        self.store, self.bucket = store, store.new_bucket()
        self.files = dict(zip(names(COUNT, rng), contents(COUNT, rng), strict=True))
        secrets = (store.secret_key,)
        self.daemon = Presignd(folder, config_for(store, folder, self.bucket), secrets=secrets)
        self.dropper = Dropper(folder, self.files)

    def done(self) -> int:
        return len({event["key"] for event in self.daemon.events("file.done") if event["status"] == "linked"})

    def until_done(self, count: int) -> None:
        self.daemon.until(lambda: self.done() >= count, f"{count} files done", 900)

    def finish(self) -> None:
        """Wait for every file, end the daemon, and compare all."""
        self.dropper.finish()
        self.until_done(len(self.files))
        assert self.daemon.stop() == 0
        assert_all_arrived(self.daemon, self.store, self.bucket, self.files)


@pytest.fixture
def drop(tmp_path: Path, own_store: Store) -> Iterator[Drop]:
    made = Drop(tmp_path, own_store)
    yield made
    made.daemon.end()


def test_every_file_becomes_its_object_and_a_link(drop: Drop) -> None:
    drop.daemon.start()
    drop.dropper.start()
    drop.finish()


def test_an_absent_store_is_waited_for_and_told_once_each_way(drop: Drop) -> None:
    drop.daemon.start()
    drop.dropper.start()
    drop.until_done(len(drop.files) // 4)
    drop.store.stop()
    drop.daemon.until(lambda: drop.daemon.events("store.unreachable", "watch.blocked"), "a word of it")
    time.sleep(OUTAGE)
    drop.store.start()
    drop.finish()
    # JuiceFS may refuse (403) in the moment it goes down: then the watch is blocked, and that is told once.
    away = [event["event"] for event in drop.daemon.events("store.unreachable", "watch.blocked")]
    back = [event["event"] for event in drop.daemon.events("store.back", "watch.unblocked")]
    assert away
    assert len(set(away)) == len(away) == len(back)


def test_a_changed_key_blocks_the_watch_and_quarantines_nothing(drop: Drop) -> None:
    drop.daemon.start()
    drop.dropper.start()
    drop.until_done(len(drop.files) // 4)
    right = drop.store.secret_key
    restart(drop.store, "another-secret-key-0123456789")
    # JuiceFS may refuse otherwise (403) in the moment it goes down: what it is blocked for in the end is told.
    drop.daemon.until(
        lambda: {one["code"] for one in drop.daemon.status()["blocked"]} == {"signature_mismatch"}, "the refusal"
    )
    time.sleep(OUTAGE)
    restart(drop.store, right)
    drop.finish()
    assert len(drop.daemon.events("watch.blocked")) == 1
    assert len(drop.daemon.events("watch.unblocked")) == 1


def test_sigkill_loses_and_repeats_nothing(drop: Drop) -> None:
    """As many kills as quarantine a version that is in flight at each of them: what is tried alone gets through."""
    drop.daemon.start()
    drop.dropper.start()
    for part in (5, 4, 3, 2):
        drop.until_done(len(drop.files) // part)
        drop.daemon.kill()
        drop.daemon.start()
    drop.finish()


def restart(store: Store, secret_key: str) -> None:
    """Restart a store under another secret key."""
    store.stop()
    store.secret_key = secret_key
    store.start()
