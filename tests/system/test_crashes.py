"""SIGKILL at any moment: guarantee 3, tested at named points and at random.

``PRESIGND_CRASH_KILLS`` and ``PRESIGND_CRASH_SEED`` make the two runs of the harness longer or others;
``python -m tests.system.crash`` is the long run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.stores import Store
from tests.system.crash.beside import Beside, begun
from tests.system.crash.run import Victim
from tests.system.harness import config_for
from tests.system.proxy import Fault, Kind, Proxy, Request

KILLS = os.environ.get("PRESIGND_CRASH_KILLS", "20")
FEW = str(int(KILLS) // 4)
SEED = os.environ.get("PRESIGND_CRASH_SEED", "7")

pytestmark = [pytest.mark.timeout(3600), pytest.mark.long]


@pytest.fixture
def victim(tmp_path: Path, store: Store) -> Iterator[tuple[Victim, str]]:
    bucket = store.new_bucket()
    made = Victim(tmp_path, config_for(store, tmp_path, bucket, watch='settle = "0s"'), secrets=(store.secret_key,))
    yield made, bucket
    made.end()


# --- long runs, beside each other: those that take longest first -----------------------------------
WHOLE = ("--seed", SEED, "--kills", KILLS, "--audit-every", KILLS)
BY_BROKER = ("--presigner", "broker", "--seed", SEED, "--kills", FEW, "--audit-every", FEW)
LINKS = ("--links", "postgresql", *BY_BROKER[2:])
BROKEN = ("--seed", SEED, "--kills", "200", "--audit-every", "6", "--seconds", "900")
STORES = ("juicefs", "seaweedfs")


@pytest.fixture(scope="module")
def beside(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """Begin all runs of this module's tests that are to be waited for."""
    yield from begun(request, tmp_path_factory)


@pytest.mark.parametrize("run", [("--store", store, *WHOLE) for store in STORES], ids=STORES)
def test_nothing_is_lost_torn_or_doubled_whenever_it_is_killed(beside: Beside, run: Sequence[str]) -> None:
    ended = beside.ended(*run)
    assert (ended.code, f"{KILLS} kills survived" in ended.text) == (0, True), ended.text


@pytest.mark.needs("ceph")
@pytest.mark.parametrize("run", [("--store", "ceph", "--seed", SEED, "--kills", FEW, "--audit-every", FEW)])
def test_nothing_is_lost_torn_or_doubled_on_ceph(beside: Beside, run: Sequence[str]) -> None:
    """It honours no condition as an upload in parts completes."""
    ended = beside.ended(*run)
    assert (ended.code, f"{FEW} kills survived" in ended.text) == (0, True), ended.text


@pytest.mark.parametrize(
    "run",
    [
        *(("--broken", build, *BROKEN) for build in ("fingerprint", "intent", "link")),
        ("--broken", "link_id", "--links", "sqlite", *BROKEN),
    ],
    ids=("fingerprint", "intent", "link", "link_id"),
)
def test_a_broken_build_is_caught(beside: Beside, run: Sequence[str]) -> None:
    """One that compares nothing, one that sends before the commit, one that links after the state, one with new ids.

    It takes 10 to 60 seconds; the bound is for a machine that does other things too.
    """
    ended = beside.ended(*run)
    assert (ended.code, f", broken: {run[1]}" in ended.text) == (1, True), ended.text
    assert "ended by itself" not in ended.text, ended.text


@pytest.mark.parametrize("run", [("--store", store, *BY_BROKER) for store in STORES], ids=STORES)
def test_nothing_is_lost_torn_or_doubled_with_a_broker_that_dies_as_often(beside: Beside, run: Sequence[str]) -> None:
    ended = beside.ended(*run)
    assert (ended.code, f"{FEW} kills survived" in ended.text) == (0, True), ended.text
    assert f"{FEW} kills of the broker" in ended.text, ended.text


@pytest.mark.needs("postgres")
@pytest.mark.parametrize("run", [("--store", store, *LINKS) for store in STORES], ids=STORES)
def test_each_file_has_one_stable_link_whatever_dies_of_daemon_broker_and_database(
    beside: Beside, run: Sequence[str]
) -> None:
    """One line in ``links.jsonl``, one living link at the broker that opens, and none that is of no file."""
    ended = beside.ended(*run)
    assert (ended.code, f"{FEW} kills survived" in ended.text) == (0, True), ended.text
    assert f"{FEW} kills of the broker" in ended.text, ended.text
    assert f"{FEW} kills of the database" in ended.text, ended.text


@pytest.mark.parametrize("run", [("--links", "sqlite", *BY_BROKER[2:])], ids=["sqlite"])
def test_each_file_has_one_stable_link_with_the_broker_and_its_state_in_one_process(
    beside: Beside, run: Sequence[str]
) -> None:
    ended = beside.ended(*run)
    assert (ended.code, f"{FEW} kills survived" in ended.text) == (0, True), ended.text


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


def test_a_fault_of_one_part_among_several_is_waited_out(store: Store, tmp_path: Path) -> None:
    """The harness found it: raised out of a group of parts, a fault came wrapped, and passed for a bug."""
    failed: list[str] = []

    def fail_one_part(request: Request) -> Fault:
        if "partNumber=2" not in request.target or failed:
            return Fault()
        failed.append(request.target)
        return Fault(Kind.ANSWER, status=500)

    with Proxy(store.endpoint, fail_one_part) as proxy:
        more = '[upload]\nmultipart_threshold = "5MiB"\npart_size = "5MiB"'
        bucket = store.new_bucket()
        config = config_for(store, tmp_path, bucket, watch='settle = "0s"', more=more)
        daemon = Victim(tmp_path, config.replace(store.endpoint, proxy.endpoint), secrets=(store.secret_key,))
        content = random.Random(1).randbytes(11 << 20)
        (tmp_path / "drop" / "a.bin").write_bytes(content)
        daemon.start()
        try:
            daemon.until(lambda: daemon.events("file.done", "file.quarantined"), "an end")
            assert daemon.events("file.quarantined") == []
            assert store.read(bucket, "a.bin") == content
            assert len(failed) == 1
        finally:
            daemon.end()
