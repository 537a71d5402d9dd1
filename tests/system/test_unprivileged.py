"""The installed daemon as an unprivileged user, with another user's files; as root these faults would not occur."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.needs import need
from tests.stores import Store
from tests.system.harness import Event, Presignd, config_for
from tests.unprivileged import NOBODY, as_nobody, world_readable

Make = Callable[..., Presignd]


@pytest.fixture
def place() -> Iterator[Path]:
    """Yield a folder of the user nobody; root owns ``drop`` in it, which nobody may only read."""
    need("another user")
    with world_readable() as folder:
        os.chown(folder, NOBODY, NOBODY)
        yield folder


@pytest.fixture
def make(place: Path, seaweedfs: Store) -> Iterator[Make]:
    """``make("lease", watch="…")`` starts a daemon as the user nobody with these capabilities."""
    made: list[Presignd] = []

    def build(*capabilities: str, watch: str = "") -> Presignd:
        config = config_for(seaweedfs, place, seaweedfs.new_bucket(), watch=watch)
        daemon = Presignd(place, config, secrets=(seaweedfs.secret_key,), prefix=as_nobody(*capabilities))
        os.chown(daemon.config, NOBODY, NOBODY)
        made.append(daemon)
        daemon.start()
        return daemon

    yield build
    for daemon in made:
        daemon.end()


def opened(folder: Path, name: str, owner: int) -> IO[bytes]:
    """Put a file in the drop that belongs to ``owner`` and is open for writing, its content all there."""
    staged = folder / name
    file = staged.open("wb", buffering=0)
    os.fchown(file.fileno(), owner, owner)
    file.write(name.encode())
    staged.rename(folder / "drop" / name)
    return file


def dropped(folder: Path, name: str, owner: int) -> None:
    opened(folder, name, owner).close()


def done(daemon: Presignd) -> dict[str, Event]:
    return {event["key"]: event for event in daemon.events("file.done") if event["status"] == "linked"}


def why_waiting(daemon: Presignd) -> dict[str, str]:
    """Return the reason for which each settling file waits, by name."""
    return {Path(one["path"]).name: one["why"] for one in daemon.status()["settling"]}


@pytest.mark.long
def test_own_files_settle_by_the_writer_check_and_others_by_quiet_time(make: Make, place: Path) -> None:
    """``settle = "auto"``: 1 s where the kernel tells of writers, 10 s where it can't."""
    daemon = make()
    (started,) = daemon.events("watch.started")
    assert started["writer_check"] == "lease"
    assert "no CAP_LEASE" in started["reason"]
    dropped(place, "theirs", 0)
    began = time.monotonic()
    dropped(place, "own", NOBODY)
    daemon.until(lambda: "own" in done(daemon), "own", 8)
    assert "theirs" in why_waiting(daemon)
    daemon.until(lambda: "theirs" in done(daemon), "theirs", 30)
    assert time.monotonic() - began > 9


def test_a_writer_is_seen_on_own_files_and_not_on_others(make: Make, place: Path) -> None:
    """What the kernel doesn't tell, the quiet time decides: so a writer of another user may only pause less."""
    daemon = make(watch='settle = "500ms"')
    with opened(place, "own", NOBODY), opened(place, "theirs", 0):
        daemon.until(lambda: "theirs" in done(daemon), "theirs", 20)
        assert why_waiting(daemon) == {"own": "open for writing"}
    daemon.until(lambda: "own" in done(daemon), "own", 20)


def test_with_cap_lease_writers_of_other_users_are_seen_too(make: Make, place: Path) -> None:
    """The capability that the systemd unit gives, and no other."""
    daemon = make("lease", watch='settle = "200ms"')
    (started,) = daemon.events("watch.started")
    assert (started["writer_check"], started.get("reason", "")) == ("lease", "")
    with opened(place, "slow", 0) as slow:
        dropped(place, "theirs", 0)
        daemon.until(lambda: "theirs" in done(daemon), "theirs", 20)
        time.sleep(1)  # five quiet times
        assert why_waiting(daemon) == {"slow": "open for writing"}
        slow.write(b" and whole")
    daemon.until(lambda: "slow" in done(daemon), "slow", 20)
    assert done(daemon)["slow"]["size"] == len("slow and whole")


def test_a_file_that_may_not_be_read_is_quarantined_alone_and_goes_through_once_it_may(make: Make, place: Path) -> None:
    daemon = make(watch='settle = "200ms"')
    private = place / "private"
    private.write_text("x")
    private.chmod(0o600)
    private = private.rename(place / "drop" / "private")
    daemon.until(lambda: daemon.events("file.quarantined"), "file.quarantined", 20)
    (event,) = daemon.events("file.quarantined")
    assert (event["error_code"], event["path"]) == ("unreadable", str(private))
    assert "read permission" in event["fix"]
    assert daemon.run("status").returncode == 4
    for command in ("put", "status", "wait"):  # refused for what it is, and not as bad usage
        assert daemon.run(command, private).returncode == 4
    assert daemon.run("put", private).stderr == f"presignd: put: {private}: Permission denied\n"
    dropped(place, "other", 0)
    daemon.until(lambda: "other" in done(daemon), "other", 20)
    private.chmod(0o644)
    daemon.until(lambda: "private" in done(daemon), "private", 20)
    assert daemon.run("status").returncode == 0
    assert daemon.stop() == 0
