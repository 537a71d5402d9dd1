"""SIGKILL at any moment: what contract §6.3 promises, tried at named points and at random.

``PRESIGND_CRASH_KILLS`` and ``PRESIGND_CRASH_SEED`` make the two runs of the harness longer or others;
``python -m tests.system.crash`` is the long run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stores import Store
from tests.system.crash.run import Options, Victim, crash
from tests.system.harness import config_for

KILLS = int(os.environ.get("PRESIGND_CRASH_KILLS", "20"))
SEED = int(os.environ.get("PRESIGND_CRASH_SEED", "7"))

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture
def victim(tmp_path: Path, store: Store) -> Iterator[tuple[Victim, str]]:
    bucket = store.new_bucket()
    made = Victim(tmp_path, config_for(store, tmp_path, bucket, watch='settle = "0s"'), secrets=(store.secret_key,))
    yield made, bucket
    made.end()


def test_nothing_is_lost_torn_or_doubled_whenever_it_is_killed(store: Store) -> None:
    report = crash(store, Options(SEED, KILLS, audit_every=KILLS))
    print(report.text())  # noqa: T201 - shown when it fails, and with -s
    assert report.violations == []
    assert report.kills == KILLS


def test_content_that_changed_after_a_crash_still_replaces_its_own_object(
    victim: tuple[Victim, str], store: Store, tmp_path: Path
) -> None:
    """Killed between PUT and receipt: the object there is known for the path's own by its committed ETag."""
    daemon, bucket = victim
    (tmp_path / "drop" / "a.txt").write_bytes(b"first")
    assert daemon.started_at("put.after").wait(30) == -9
    assert store.read(bucket, "a.txt") == b"first"
    (tmp_path / "drop" / "a.txt").write_bytes(b"second, longer")
    daemon.start()
    daemon.until(lambda: any(link["size"] == len(b"second, longer") for link in daemon.links()), "the second link")
    assert store.read(bucket, "a.txt") == b"second, longer"
    assert [key for key in store.list(bucket) if "~" in key] == []
