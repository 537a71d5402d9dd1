"""Large files: in parts on every server, resumed after a SIGKILL, never torn, and no upload left behind."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from presignd.s3.checksums import checksum_of
from tests.stores import Store
from tests.system.harness import Presignd, config_for, fetch
from tests.system.proxy import Fault, Proxy, Request

PART = 5 << 20
SIZE = 6 * PART + 12345
PARTS = f'[upload]\nmultipart_threshold = "{PART}"\npart_size = "{PART}"\n'
SLOWLY = f"{PARTS}max_rate = {2 * PART}\npart_concurrency = 2\n"
"""Some three seconds for the file: time to meddle."""


@pytest.fixture(params=["seaweedfs", "juicefs", "rclone"])
def any_store(request: pytest.FixtureRequest) -> Store:
    store: Store = request.getfixturevalue(request.param)
    return store


class Large:
    """A daemon with parts of 5 MiB, and a file of seven of them."""

    def __init__(self, folder: Path, store: Store, more: str) -> None:
        self.store, self.bucket = store, store.new_bucket()
        config = config_for(store, folder, self.bucket, watch='settle = "0s"', more=more)
        self.daemon = Presignd(folder, config, secrets=(store.secret_key,))
        self.content = random.Random(1).randbytes(SIZE)
        self.path = folder / "drop" / "large.bin"

    def parts(self) -> int:
        """Return how many parts the ledger has."""
        with sqlite3.connect(f"file:{self.daemon.state}/ledger.sqlite3?mode=ro", uri=True) as ledger:
            return int(ledger.execute("SELECT count(*) FROM part").fetchone()[0])

    def uploads(self) -> list[str]:
        """Return the ids of uploads that are under way on the store."""
        answer = self.store.client.list_multipart_uploads(Bucket=self.bucket)
        return [upload["UploadId"] for upload in answer.get("Uploads", ())]

    def start_at_full_rate(self) -> None:
        """Start the daemon without ``max_rate``: nothing more is to happen during the upload."""
        self.daemon.config.write_text(self.daemon.config.read_text().replace(SLOWLY, PARTS))
        self.daemon.start()

    def until_linked(self) -> None:
        self.daemon.until(self.daemon.links, "a link")
        assert self.store.read(self.bucket, "large.bin") == self.content
        assert fetch(self.daemon.links()[-1]["url"]) == self.content


def large(folder: Path, store: Store, more: str) -> Iterator[Large]:
    made = Large(folder, store, more)
    yield made
    made.daemon.end()


@contextmanager
def closing_daemon(made: Large) -> Iterator[Large]:
    try:
        yield made
    finally:
        made.daemon.end()


@pytest.fixture
def quick(tmp_path: Path, any_store: Store) -> Iterator[Large]:
    yield from large(tmp_path, any_store, PARTS)


@pytest.fixture
def slow(tmp_path: Path, any_store: Store) -> Iterator[Large]:
    yield from large(tmp_path, any_store, SLOWLY)


@pytest.fixture
def slow_here(tmp_path: Path, store: Store) -> Iterator[Large]:
    """On the servers that list the uploads under way."""
    yield from large(tmp_path, store, SLOWLY)


def test_a_large_file_arrives_in_parts(quick: Large) -> None:
    quick.daemon.start()
    quick.path.write_bytes(quick.content)
    quick.until_linked()
    [link] = quick.daemon.links()
    if link["checksum"].startswith("md5:"):  # a store that checks no CRC
        assert link["checksum"].endswith("-7")
    else:
        assert link["checksum"] == checksum_of(quick.content, "crc64nvme")
    assert quick.parts() == 0


def test_after_a_sigkill_only_what_was_in_flight_goes_again(slow: Large) -> None:
    slow.daemon.start()
    slow.path.write_bytes(slow.content)
    slow.daemon.until(lambda: slow.parts() >= 2, "two parts")
    slow.daemon.kill()
    stood = slow.parts()
    slow.start_at_full_rate()
    slow.until_linked()
    resumed = slow.daemon.events("upload.resumed")
    assert [event["parts"] for event in resumed] == [stood]
    assert slow.daemon.events("upload.retry") == []


def test_killed_again_and_again_it_sends_no_more_than_the_file_and_what_was_in_flight(
    tmp_path: Path, seaweedfs: Store
) -> None:
    """More kills than a version may meet that gets nowhere (``states.UNCLEAN_LIMIT``)."""
    bodies: list[int] = []

    def counted(request: Request) -> Fault:
        if b"partNumber=" in request.target.encode():
            bodies.append(len(request.body))
        return Fault()

    kills, at_once = 4, 2  # a fifth could come too late: the last two parts end together, and the upload with them
    with Proxy(seaweedfs.endpoint, counted) as proxy, closing_daemon(Large(tmp_path, seaweedfs, SLOWLY)) as it:
        it.daemon.config.write_text(it.daemon.config.read_text().replace(seaweedfs.endpoint, proxy.endpoint))
        it.path.write_bytes(it.content)
        for kill in range(kills):
            it.daemon.start()
            it.daemon.until(lambda kill=kill: it.parts() > kill, "another part")  # type: ignore[misc] # bound by its default
            it.daemon.kill()
        it.start_at_full_rate()
        it.until_linked()
        assert it.daemon.events("file.quarantined") == []
    assert SIZE <= sum(bodies) <= SIZE + kills * at_once * PART


def test_a_file_that_changes_between_its_parts_is_never_completed(slow_here: Large) -> None:
    slow_here.daemon.start()
    slow_here.path.write_bytes(slow_here.content)
    slow_here.daemon.until(lambda: slow_here.parts() >= 2, "two parts")
    slow_here.content = b"x" + slow_here.content[1:]
    with slow_here.path.open("r+b") as file:
        file.write(b"x")
    slow_here.until_linked()
    statuses = [event["status"] for event in slow_here.daemon.events("file.done")]
    slow_here.daemon.until(lambda: slow_here.daemon.events("file.done")[-1]["status"] == "linked", "the end")
    assert statuses[0] == "superseded"
    slow_here.daemon.until(lambda: slow_here.uploads() == [], "the abort of the first upload")


def test_deleting_the_file_aborts_its_upload(slow_here: Large) -> None:
    slow_here.daemon.start()
    slow_here.path.write_bytes(slow_here.content)
    slow_here.daemon.until(lambda: slow_here.parts() >= 2, "two parts")
    slow_here.daemon.kill()
    assert len(slow_here.uploads()) == 1
    slow_here.path.unlink()
    slow_here.daemon.start()
    slow_here.daemon.until(lambda: slow_here.daemon.events("file.done"), "file.done")
    assert slow_here.daemon.events("file.done")[0]["status"] == "vanished"
    slow_here.daemon.until(lambda: slow_here.uploads() == [], "the abort")


def test_an_upload_that_the_store_lost_begins_again(slow_here: Large) -> None:
    slow_here.daemon.start()
    slow_here.path.write_bytes(slow_here.content)
    slow_here.daemon.until(lambda: slow_here.parts() >= 2, "two parts")
    slow_here.daemon.kill()
    client = slow_here.store.client
    client.abort_multipart_upload(Bucket=slow_here.bucket, Key="large.bin", UploadId=slow_here.uploads()[0])
    slow_here.start_at_full_rate()
    slow_here.until_linked()


@pytest.mark.parametrize("any_store", ["seaweedfs"], indirect=True)
def test_status_tells_how_far_it_is(slow: Large) -> None:
    slow.daemon.start()
    slow.path.write_bytes(slow.content)
    slow.daemon.until(lambda: slow.parts() >= 1, "a part")
    shown = slow.daemon.run("status", check=True).stdout
    assert "large.bin" in shown
    slow.until_linked()
