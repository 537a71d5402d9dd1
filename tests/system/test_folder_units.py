"""Folders that are linked as a whole, killed at every step: each has one link in the end, and it is complete."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path

import pytest

from tests.folder_units import fill
from tests.stores import Store
from tests.system.harness import Presignd, config_for

FILES = {"a.jpg": b"first", "raw/b.raw": b"second" * 100_000, "empty": b""}
POINTS = [
    "commit.enqueue.after",
    "put.after:2",
    "commit.apply.verify.after",
    "commit.record_sha256.before",
    "commit.record_sha256.after",
    "unit.complete.before",
    "commit.complete_unit.before",
    "commit.complete_unit.after",
    "put.before:4",
    "put.after:4",
    "put.after:5",
    "links.made",
    "links.append.before",
    "links.append.written",
    "links.append.synced",
    "commit.record_linked.before",
    "commit.record_linked.after",
    "commit.close_unit.before",
    "commit.close_unit.after",
]
KEEPING = ["commit.apply.finish.before", "commit.apply.finish.after", "link_file.written", "link_file.published"]
DELETING = [
    "commit.apply.link.before",
    "commit.apply.link.after",
    "finish.unlink.before",
    "finish.unlink.after:2",
    "unit.empty.before",
    "commit.apply.finish.after:2",
]


class Killed(Presignd):
    """A daemon that is killed at a point, or at none."""

    at = ""

    @property
    def environ(self) -> dict[str, str]:
        """What ``Presignd`` has, and the point."""
        return {**super().environ, **({"PRESIGND_CRASH_AT": self.at} if self.at else {})}

    def start_until_killed(self, at: str) -> None:
        """Start it with a point at which it is killed."""
        self.at = at
        self.start(ready=False)
        self.at = ""

    def wait_until_killed(self) -> None:
        """Return once it was killed at its point."""
        assert self.process is not None
        assert self.process.wait(120) == -signal.SIGKILL


def manifest_keys(daemon: Presignd) -> list[str]:
    return sorted(line["key"] for line in daemon.links())


FEW = ["commit.complete_unit.after", "links.append.written", "commit.apply.link.after"]
"""Those with the most to lose."""

KEEP, DELETE = 'link_file = "{name}.link.txt"', 'after = "delete"'


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("store", "points", "options"),
    [
        pytest.param("seaweedfs", FEW, DELETE, id="few"),
        pytest.param("juicefs", FEW, DELETE, id="few-juicefs"),
        pytest.param("seaweedfs", [*POINTS, *KEEPING], KEEP, id="keep", marks=pytest.mark.series),
        pytest.param("seaweedfs", [*POINTS, *DELETING], DELETE, id="delete", marks=pytest.mark.series),
    ],
    indirect=["store"],
)
def test_a_folder_is_linked_once_and_complete_wherever_the_daemon_is_killed(
    store: Store, tmp_path: Path, points: list[str], options: str
) -> None:
    """Each point has a folder of its own; the next run goes on with it."""
    bucket, drop = store.new_bucket(), tmp_path / "drop"
    watch = f'settle = "0s"\nunit = "folder"\nready_marker = "{{name}}.ok"\n{options}'
    daemon = Killed(tmp_path, config_for(store, tmp_path, bucket, watch=watch), secrets=(store.secret_key,))
    try:
        for number, point in enumerate(points):
            daemon.start_until_killed(point)
            fill(drop, f"unit-{number}", FILES)
            daemon.wait_until_killed()
            daemon.start()
            _until_finished(daemon, number + 1)
            daemon.stop()
        assert not daemon.events("file.quarantined")
    finally:
        daemon.end()
    names = [f"unit-{number}" for number in range(len(points))]
    assert manifest_keys(daemon) == sorted(f"{name}/MANIFEST.json" for name in names)
    for name in names:
        manifest = json.loads(store.read(bucket, f"{name}/MANIFEST.json"))
        assert {file["path"]: file["key"] for file in manifest["files"]} == {p: f"{name}/{p}" for p in FILES}
        assert {path: store.read(bucket, f"{name}/{path}") for path in FILES} == FILES
        sums = store.read(bucket, f"{name}/SHA256SUMS").decode().splitlines()
        assert sums == [f"{hashlib.sha256(FILES[path]).hexdigest()}  {path}" for path in sorted(FILES)]
    left = {path.name for path in drop.iterdir()}
    if "delete" in options:
        assert left == {f"{name}.ok" for name in names}
    else:
        assert left == {f"{name}{end}" for name in names for end in ("", ".ok", ".link.txt")}


def _until_finished(daemon: Presignd, count: int) -> None:
    """Wait until each unit's manifest was said to be done."""

    def ended() -> set[str]:
        return {end["key"] for end in daemon.events("file.done") if end.get("key", "").endswith("/MANIFEST.json")}

    daemon.until(lambda: len(ended()) == count, "all to be finished")
