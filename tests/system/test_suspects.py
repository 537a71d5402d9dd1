"""A file whose upload kills the daemon, alone or among others: it stops, and nothing else does."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from presignd.states import UNCLEAN_LIMIT
from tests.stores import Store
from tests.system.harness import Presignd, config_for
from tests.system.proxy import Fault, Kind, Proxy, Request

KILLER = "killer"
PART = 5 << 20
PARTS = f'[upload]\nmultipart_threshold = "{PART}"\npart_size = "{PART}"\n'


class Deadly:
    """A daemon behind a proxy that kills it at each request with content for the key ``KILLER``, if armed."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.proxy = Proxy(store.endpoint, self._plan)
        text = config_for(store, folder, store.new_bucket(), watch='settle = "0s"', more=PARTS)
        text = text.replace(store.endpoint, self.proxy.endpoint)
        self.daemon = Presignd(folder, text, secrets=(store.secret_key,))
        self.drop = folder / "drop"
        self.armed, self.holds = True, False
        self.seen: list[str] = []

    def _plan(self, request: Request) -> Fault:
        key = request.target.partition("?")[0].rpartition("/")[2]
        if request.method != "PUT" or key.startswith("."):
            return Fault()
        if self.daemon.process is None or self.daemon.process.poll() is not None:
            return Fault(Kind.RESET)  # what the last life had sent
        self.seen.append(key)
        if self.armed and key == KILLER:
            self.daemon.process.kill()
            return Fault(Kind.RESET)
        return Fault(Kind.DELAY, 60) if self.holds else Fault()

    def uploading(self) -> set[str]:
        """Return the paths that are in flight, by the ledger."""
        with sqlite3.connect(f"file:{self.daemon.state}/ledger.sqlite3?mode=ro", uri=True) as ledger:
            rows = ledger.execute("SELECT path FROM version WHERE state = 'uploading'").fetchall()
        return {path.decode() for (path,) in rows}

    def live_until_killed(self) -> None:
        self.daemon.start(ready=False)
        assert self.daemon.process is not None
        assert self.daemon.process.wait(60) == -9

    def kill_with_in_flight(self, names: set[str], fewest: int) -> None:
        """Start it, and kill it while at least so many are in flight, these among them, and none goes through."""
        self.holds, self.armed = True, False
        self.daemon.start()
        self.daemon.until(lambda: len(self.uploading()) >= fewest and self.uploading() >= names, "uploads")
        self.daemon.kill()
        self.holds, self.armed = False, True
        self.seen.clear()

    def stopped(self) -> list[str]:
        return [Path(event["path"]).name for event in self.daemon.events("file.quarantined")]

    def done(self) -> set[str]:
        return {event["key"] for event in self.daemon.events("file.done")}


@pytest.fixture
def deadly(tmp_path: Path, seaweedfs: Store) -> Iterator[Deadly]:
    made = Deadly(tmp_path, seaweedfs)
    with made.proxy:
        yield made
        made.daemon.end()


@pytest.mark.parametrize("size", [5, PART - 1, 2 * PART], ids=["tiny", "whole", "in parts"])
def test_a_file_that_kills_the_daemon_each_time_is_quarantined_after_three_exits(deadly: Deadly, size: int) -> None:
    (deadly.drop / KILLER).write_bytes(b"x" * size)
    for _ in range(UNCLEAN_LIMIT):
        deadly.live_until_killed()
    deadly.daemon.start()
    deadly.daemon.until(deadly.stopped, "file.quarantined")
    [event] = deadly.daemon.events("file.quarantined")
    assert (event["error_code"], "3 unclean exits" in event["error"]) == ("internal_error", True)
    (deadly.drop / "after").write_bytes(b"after")
    deadly.daemon.until(lambda: deadly.done() == {"after"}, "the others")
    deadly.armed = False
    deadly.daemon.run("retry", "--all", check=True)
    deadly.daemon.until(lambda: KILLER in deadly.done(), "the one that was taken back")


def test_of_256_in_flight_the_one_that_kills_is_found_and_no_other_stops(deadly: Deadly) -> None:
    others = {f"{number:03}" for number in range(255)}
    for name in {*others, KILLER}:
        (deadly.drop / name).write_bytes(name.encode())
    deadly.kill_with_in_flight({KILLER}, 200)
    for _ in range(UNCLEAN_LIMIT):
        deadly.live_until_killed()
    deadly.daemon.start()
    deadly.daemon.until(lambda: deadly.done() == others, "all others")
    assert deadly.stopped() == [KILLER]
    assert deadly.seen.count(KILLER) == UNCLEAN_LIMIT


def test_of_many_large_files_in_flight_each_is_alone_for_one_part(deadly: Deadly) -> None:
    others = ["large-1", "large-2", "large-3"]
    for name in [*others, KILLER]:
        (deadly.drop / name).write_bytes(name.encode().ljust(3 * PART, b"."))
    deadly.kill_with_in_flight({*others, KILLER}, len(others) + 1)
    for _ in range(UNCLEAN_LIMIT):
        deadly.live_until_killed()
    assert sorted(name for name in deadly.seen if name != KILLER) == others, "one part of each"
    deadly.daemon.start()
    deadly.daemon.until(lambda: deadly.done() == {*others}, "all others")
    assert deadly.stopped() == [KILLER]
