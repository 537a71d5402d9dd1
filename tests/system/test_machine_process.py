"""Faults of the machine that concern the process: no descriptors, a changed clock, an hour of sleep. It goes on."""

from __future__ import annotations

import datetime as dt
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faulty_s3 import BUCKET, FaultyS3
from tests.needs import LIBFAKETIME
from tests.system.harness import Presignd, all_ended, config_for, fetch

HOUR = 3600


class Clocked(Presignd):
    """A daemon whose wall clock can be set while it runs; its monotonic clock goes on as it did."""

    @property
    def environ(self) -> dict[str, str]:
        """Make libfaketime reread the offset at each call."""
        assert LIBFAKETIME is not None
        fake = {
            "LD_PRELOAD": os.fspath(LIBFAKETIME),
            "FAKETIME_TIMESTAMP_FILE": os.fspath(self.folder / "offset"),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        return super().environ | fake

    def set_clock(self, seconds: int) -> None:
        """Set it so far ahead of the true time (behind, where negative)."""
        offset = self.folder / "offset"
        offset.with_name("offset.new").write_text(f"{seconds:+d}")
        offset.with_name("offset.new").replace(offset)


Make = Callable[..., Presignd]


@pytest.fixture
def make(tmp_path: Path, faulty_s3: FaultyS3) -> Iterator[Make]:
    """``make(kind, upload="…")`` a daemon on ``tmp_path/drop``."""
    with all_ended() as made:

        def build(kind: type[Presignd] = Presignd, upload: str = "") -> Presignd:
            watch = 'settle = "0s"\nlink_expires = "2h"'
            text = config_for(faulty_s3, tmp_path, BUCKET, watch=watch, more=f"[upload]\n{upload}")
            made.append(kind(tmp_path, text, secrets=(faulty_s3.secret_key,)))
            return made[-1]

        yield build


def drop(daemon: Presignd, *names: str) -> None:
    for name in names:
        path = daemon.folder / "drop" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())


def linked(daemon: Presignd, *names: str, seconds: float = 120) -> None:
    """Wait until these have their links, each once, and each fetches."""
    daemon.until(lambda: {link["key"] for link in daemon.links()} == set(names), f"{len(names)} links", seconds)
    assert len(daemon.links()) == len(names)
    assert all(fetch(link["url"]) == link["key"].encode() for link in daemon.links())
    assert daemon.events("file.quarantined") == []


def has_link(daemon: Presignd, name: str) -> None:
    daemon.until(lambda: name in {link["key"] for link in daemon.links()}, f"a link for {name}", 60)


def is_blocked(daemon: Presignd, before: int) -> None:
    daemon.until(lambda: len(daemon.events("watch.blocked")) > before, "watch.blocked", 30)


@pytest.mark.parametrize("spare", [pytest.param(0, marks=pytest.mark.long), 1, 6])
def test_too_many_open_files_are_waited_for_and_said(make: Make, spare: int) -> None:
    """However long: no file is to blame for it. What a scan could not open is scanned again soon, not in a minute."""
    daemon = make(upload="attempts = 2")
    daemon.start()
    drop(daemon, "before")
    linked(daemon, "before")
    assert daemon.process is not None
    pid = daemon.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    open_now = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now + spare, before[1]))
    names = [f"d{number % 7}/{number}" for number in range(60)]
    drop(daemon, *names)
    said = ("scan.cut_short", "settle.retry", "upload.retry")
    daemon.until(lambda: daemon.events(*said), "a word of it")
    time.sleep(2)  # a few rounds more
    assert {event["error_code"] for event in daemon.events(*said)} == {"too_many_files"}
    assert daemon.process.poll() is None
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    linked(daemon, "before", *names)
    assert daemon.stop() == 0


@pytest.mark.needs("faketime")
def test_a_clock_that_jumps_both_ways_hangs_nothing_and_no_link_says_more_than_is_true(
    make: Make, faulty_s3: FaultyS3
) -> None:
    """A few minutes off the store takes; an hour off it refuses, and that is said, until the clock is right again."""
    daemon = make(Clocked)
    assert isinstance(daemon, Clocked)
    daemon.set_clock(0)
    daemon.start()
    drop(daemon, "true")
    linked(daemon, "true")
    for name, seconds in (("ahead", 300), ("behind", -300)):
        daemon.set_clock(seconds)
        drop(daemon, name)
        has_link(daemon, name)
    for name, seconds in (("an hour ahead", HOUR), ("two hours behind", -2 * HOUR)):
        blocked = len(daemon.events("watch.blocked"))
        daemon.set_clock(seconds)
        drop(daemon, name)
        is_blocked(daemon, blocked)
        assert daemon.events("watch.blocked")[-1]["error_code"] == "clock_skew"
        daemon.set_clock(0)
        has_link(daemon, name)
    linked(daemon, "true", "ahead", "behind", "an hour ahead", "two hours behind")
    for link in daemon.links():
        signed = dt.datetime.strptime(link["url"].split("X-Amz-Date=")[1][:16], "%Y%m%dT%H%M%S%z")
        assert dt.datetime.fromisoformat(link["expires_at"]) == signed + dt.timedelta(hours=2)
    assert daemon.stop() == 0


@pytest.mark.needs("faketime")
def test_an_hour_of_sleep_in_the_middle_of_an_upload_is_gone_on_from(make: Make, faulty_s3: FaultyS3) -> None:
    """As a laptop sleeps: nothing runs, then both clocks are an hour on, and every connection is dead."""
    daemon = make(Clocked, upload='timeout = "2s"')
    assert isinstance(daemon, Clocked)
    daemon.set_clock(0)
    daemon.start()
    drop(daemon, "before")
    linked(daemon, "before")
    order = faulty_s3.fault(method="PUT", key="underway", hang="after")
    drop(daemon, "underway")
    daemon.until(lambda: order.times == 0, "its PUT")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    drop(daemon, "meanwhile")
    daemon.set_clock(HOUR)
    faulty_s3.clock_skew = dt.timedelta(seconds=HOUR)
    before = len(faulty_s3.requests)
    daemon.process.send_signal(signal.SIGCONT)
    linked(daemon, "before", "underway", "meanwhile")
    assert daemon.events("watch.blocked", "file.quarantined") == []
    # None was refused as old; 0 is the one that hung.
    assert {seen.status for seen in faulty_s3.requests[before:]} <= {0, 200, 204, 412}
    assert daemon.stop() == 0


@pytest.mark.needs("time namespaces")
def test_the_age_of_a_grant_is_told_by_a_clock_that_goes_on_while_the_machine_sleeps() -> None:
    """A time namespace in which the machine has slept for two hours: monotonic clocks stood still meanwhile."""
    program = "import time; from presignd.system import clock; print(clock.since_boot() - time.monotonic())"

    def slept(*prefix: str) -> subprocess.CompletedProcess[str]:
        command = [*prefix, sys.executable, "-c", program]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    asleep = slept("unshare", "--time", "--boottime=7200", "--fork")
    assert round(float(asleep.stdout) - float(slept().stdout)) == 2 * HOUR
