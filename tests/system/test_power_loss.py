"""Power loss (guarantee 3): with each kill of the daemon, a disk loses what was not synced.

`tests/power/disk.py` says what is durable when: more strictly than any journaling filesystem does. The daemon is the
installed one; it is only told to take FUSE for a local filesystem, so that ledger, leases and inotify work there.

These are short runs of the crash harness. The long one, each in turn and all together:
``python -m tests.system.crash --power ledger links folder --kills 200 --seed 1``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.power.disk import Cut
from tests.power.mounted import power_disk
from tests.stores import Store
from tests.system.crash.beside import Beside, begun
from tests.system.crash.run import ON_POWER, Victim
from tests.system.harness import config_for

KILLS = os.environ.get("PRESIGND_POWER_KILLS", "4")
SEED = os.environ.get("PRESIGND_POWER_SEED", "1")

pytestmark = [pytest.mark.timeout(3600), pytest.mark.long, pytest.mark.needs("fuse", "libfuse")]


@pytest.fixture(scope="module")
def beside(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """Begin all runs of this module's tests that are to be waited for."""
    yield from begun(request, tmp_path_factory)


LIMITS = ("--seed", SEED, "--kills", KILLS, "--audit-every", KILLS)
POWER = {"+".join(power): ("--power", *power, *LIMITS) for power in (ON_POWER, *([what] for what in ON_POWER))}


@pytest.mark.parametrize("run", POWER.values(), ids=POWER)
def test_power_loss_loses_no_file_and_no_link(beside: Beside, run: Sequence[str]) -> None:
    """No file whose writer synced it, no link that was told; nothing twice; nothing deleted that was not safe."""
    ended = beside.ended(*run)
    assert (ended.code, f"{KILLS} kills survived" in ended.text) == (0, True), ended.text


def test_what_a_first_start_made_is_there_after_power_loss(seaweedfs: Store, tmp_path: Path) -> None:
    """Ledger and links lie below folders that did not exist either, as on a new machine; so does ``move_to``."""
    with power_disk(tmp_path / "disk") as disk:
        for folder in ("drop", "done"):
            (disk.path / folder).mkdir()
        root = os.open(disk.path, os.O_RDONLY)
        os.fsync(root)
        os.close(root)
        watch = f'settle = "0s"\nafter = "move"\nmove_to = "{disk.path}/done/here"'
        text = config_for(seaweedfs, tmp_path, seaweedfs.new_bucket(), watch=watch)
        text = text.replace(f"{tmp_path}/state", f"{disk.path}/home/state/presignd").replace(
            f"{tmp_path}/drop", f"{disk.path}/drop"
        )
        daemon = Victim(tmp_path, text, secrets=(seaweedfs.secret_key,))
        daemon.broken, daemon.state = "on_fuse", disk.path / "home/state/presignd"
        try:
            daemon.start()
            with (disk.path / "drop/a").open("wb") as file:
                file.write(b"content")
                file.flush()
                os.fsync(file.fileno())
            daemon.until(lambda: daemon.events("file.done"), "file.done")
            [before] = daemon.links()
            daemon.kill()
            disk.cut(Cut.NOTHING, 0)
            assert daemon.links() == [before]
            assert (disk.path / "done/here/a").read_bytes() == b"content"
            daemon.start()
            done = daemon.events("file.done")  # said again where it was not yet recorded as said
            assert [end["status"] for end in done if not end.get("replayed")] == ["linked"]
            assert {end["file_id"] for end in done} == {before["file_id"]}
            assert daemon.status()["watches"][0]["counts"]["finished"] == 1
            assert daemon.stop() == 0
            assert daemon.events("ledger.rebuilt") == []
        finally:
            daemon.end()
