"""A daemon that is killed at each point of an inbox: each file is in the folder once, and nothing goes back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from presignd.runtime.crash_points import INBOX_CHANGES, INBOX_POINTS
from tests.inboxes import Site, site_of
from tests.stores import Store
from tests.system.crash.run import Victim

LARGE = random.Random(1).randbytes((3 << 20) + 7)
POINTS = [*INBOX_POINTS, *(f"commit.{change}.{side}" for change in INBOX_CHANGES for side in ("before", "after"))]


@pytest.fixture(scope="module")
def broker_and_store(seaweedfs: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of(tmp_path_factory.mktemp("site"), seaweedfs) as found:
        yield found


@pytest.fixture
def site(broker_and_store: Site, tmp_path: Path) -> Site:
    """Return the same with folders of this test's own."""
    return replace(broker_and_store, folder=tmp_path, sent={})


@pytest.mark.parametrize("point", [*POINTS, "inbox.download.step:2"])
def test_a_kill_at_any_point_loses_and_doubles_nothing(site: Site, point: str) -> None:
    daemon = Victim(site.folder, site.toml(watched="in"), secrets=(site.secret, *site.broker.secrets))
    site.send("Scans/large.bin", LARGE)
    site.send("Scans/a.txt")
    try:
        assert daemon.started_at(point).wait(60) == -9
        daemon.start()
        daemon.until(lambda: not site.listed(), "every acknowledgement")
        assert site.files() == site.sent
        before = len(daemon.events("scan.finished"))
        assert daemon.stop() == 0
        daemon.start()
        daemon.until(lambda: len(daemon.events("scan.finished")) > before, "a scan of all that is there")
        assert daemon.stop() == 0
        assert site.files() == site.sent
        assert site.store.list(site.broker.bucket, "drop/") == []
        assert daemon.events("inbox.failed", "inbox.blocked", "file.left_aside") == []
    finally:
        daemon.end()
