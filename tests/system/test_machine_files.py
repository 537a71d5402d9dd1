"""Faults of the machine that concern files: failed reads, another device number, metadata changed over a whole tree."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.faulty_s3 import BUCKET, FOREVER, FaultyS3
from tests.mounts import tmpfs
from tests.power.mounted import PowerDisk, power_disk
from tests.system.crash.run import Victim
from tests.system.harness import Presignd, all_ended, config_for, fetch

Make = Callable[..., Presignd]


@pytest.fixture
def make(tmp_path: Path, faulty_s3: FaultyS3) -> Iterator[Make]:
    """``make(drop, more="…")`` a daemon on that folder, which it takes for local even where it is FUSE."""
    with all_ended() as made:

        def build(drop: Path, more: str = "") -> Presignd:
            text = config_for(faulty_s3, tmp_path, BUCKET, watch='settle = "0s"', more=more, drop=drop)
            daemon = Victim(tmp_path, text, secrets=(faulty_s3.secret_key,))
            daemon.broken = "on_fuse"
            made.append(daemon)
            return daemon

        yield build


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[PowerDisk]:
    with power_disk(tmp_path / "disk") as mounted:
        yield mounted


def linked(daemon: Presignd, files: dict[str, bytes]) -> None:
    daemon.until(lambda: {link["key"] for link in daemon.links()} >= set(files), "all links")
    assert {link["key"]: fetch(link["url"]) for link in daemon.links()} == files


def sent(store: FaultyS3) -> list[str]:
    """Return the keys of all objects that were sent, in order, however often."""
    return [seen.key for seen in store.seen("PUT") if not seen.key.startswith(".presignd-check")]


@pytest.mark.parametrize("size", [5, 3 << 20, 11 << 20], ids=["small", "streamed", "in parts"])
def test_a_file_that_cannot_be_read_is_tried_again_and_holds_nobody_up(disk: PowerDisk, make: Make, size: int) -> None:
    """EIO in the middle of an upload: said with its cause, and gone on from once the disk reads again."""
    daemon = make(disk.path, '[upload]\nmultipart_threshold = "5MiB"\npart_size = "5MiB"')
    disk.fail("bad")
    files = {"bad": random.Random(size).randbytes(size), "good": b"good"}
    for name, content in files.items():
        (disk.path / name).write_bytes(content)
    daemon.start()
    daemon.until(lambda: daemon.events("upload.retry"), "upload.retry")
    linked(daemon, {"good": b"good"})
    retry = daemon.events("upload.retry")[0]
    assert (retry["error_code"], Path(retry["path"]).name) == ("read_error", "bad")
    assert "Input/output error" in retry["error"]
    disk.fail("")
    linked(daemon, files)
    assert daemon.events("file.quarantined") == []
    assert daemon.stop() == 0


def test_a_file_that_can_never_be_read_is_quarantined_alone_and_taken_back(disk: PowerDisk, make: Make) -> None:
    daemon = make(disk.path, "[upload]\nattempts = 2")
    disk.fail("bad")
    for name in ("bad", "good"):
        (disk.path / name).write_bytes(name.encode())
    daemon.start()
    daemon.until(lambda: daemon.events("file.quarantined"), "file.quarantined")
    [stopped] = daemon.events("file.quarantined")
    assert (stopped["error_code"], stopped["fix"]) == ("read_error", "look at the disk (dmesg)")
    linked(daemon, {"good": b"good"})
    disk.fail("")
    assert daemon.run("retry", "--all").returncode == 0
    linked(daemon, {"bad": b"bad", "good": b"good"})
    assert daemon.stop() == 0


@pytest.mark.parametrize("size", [5, 3 << 20, 11 << 20], ids=["small", "streamed", "in parts"])
@pytest.mark.parametrize("with_another", [False, True], ids=["deleted", "replaced"])
def test_a_file_that_goes_stale_while_it_is_sent_is_no_bug(
    disk: PowerDisk, make: Make, faulty_s3: FaultyS3, *, size: int, with_another: bool
) -> None:
    """On FUSE, as on NFS, nothing is known of a file that was deleted or replaced, even by who has it open."""
    daemon = make(disk.path, '[upload]\nmultipart_threshold = "5MiB"\npart_size = "5MiB"')
    file, beside = disk.path / "stale", disk.path / ".beside"
    file.write_bytes(random.Random(size).randbytes(size))
    beside.write_bytes(b"another")

    def goes(method: str, key: str) -> bool:
        if (method, key) == ("PUT", "stale") and beside.exists():
            beside.rename(file)
            if not with_another:
                file.unlink()
        return False

    faulty_s3.fault(when=goes, times=FOREVER)
    daemon.start()
    daemon.until(lambda: daemon.events("file.done"), "its end")
    if with_another:
        linked(daemon, {"stale": b"another"})
    else:
        assert [end["status"] for end in daemon.events("file.done")] == ["vanished"]
        assert daemon.links() == []
    assert daemon.events("file.quarantined") == []
    assert daemon.stop() == 0


@pytest.mark.long
@pytest.mark.parametrize("size", [3 << 20, 11 << 20], ids=["streamed", "in parts"])
def test_a_disk_whose_server_dies_under_an_upload_is_waited_for(disk: PowerDisk, make: Make, size: int) -> None:
    """However long it is away: that is no fault of its files, nor a bug met in closing them."""
    content = random.Random(size).randbytes(size)
    in_parts = 'multipart_threshold = "5MiB"\npart_size = "5MiB"'
    daemon = make(disk.path, f"[upload]\nattempts = 2\nmax_rate = {size // 5}\n{in_parts}")
    (disk.path / "large").write_bytes(content)
    disk.remount(lambda: None)
    daemon.start()
    daemon.until(lambda: sum(one["sent"] for one in daemon.status()["in_flight"]) > 100_000, "some of it sent")
    disk.die()
    daemon.until(lambda: len(daemon.events("upload.retry")) > 2, "more retries than attempts")
    assert {retry["error_code"] for retry in daemon.events("upload.retry")} == {"read_error"}
    daemon.until(lambda: daemon.events("watch.lost"), "watch.lost")
    disk.come_back()
    linked(daemon, {"large": content})
    assert daemon.events("file.quarantined") == []
    assert daemon.stop() == 0


def take_number(number: int, folder: Path, stack: ExitStack) -> None:
    """Mount others until one has the device number: a new mount gets the lowest that is free."""
    for count in range(64):
        target = folder / f"in between {count}"
        stack.enter_context(tmpfs(target, "64k"))
        if target.stat().st_dev == number:
            return


def test_another_device_number_after_a_reboot_sends_nothing_again(
    disk: PowerDisk, make: Make, faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    files = {f"{number}": b"%d" % number for number in range(20)}
    for name, content in files.items():
        (disk.path / name).write_bytes(content)
    daemon = make(disk.path)
    daemon.start()
    linked(daemon, files)
    assert daemon.stop() == 0
    before, asked = disk.path.stat(), len(faulty_s3.seen("HEAD"))
    for _ in range(20):  # another test may free the number meanwhile
        with ExitStack() as stack:
            disk.remount(partial(take_number, before.st_dev, tmp_path, stack))
        if disk.path.stat().st_dev != before.st_dev:
            break
    assert disk.path.stat().st_dev != before.st_dev
    assert disk.path.stat().st_ino == before.st_ino
    scans = len(daemon.events("scan.finished"))
    daemon.start()
    daemon.until(lambda: len(daemon.events("scan.finished")) > scans, "the first scan")
    assert daemon.events("scan.finished")[-1]["candidates"] == 0
    assert daemon.stop() == 0
    assert sorted(sent(faulty_s3)) == sorted(files)
    assert len(daemon.links()) == len(files)
    assert len(faulty_s3.seen("HEAD")) - asked <= 1  # of the check key


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "while it does not"])
def test_chmod_and_touch_over_a_whole_folder_send_nothing_again(
    make: Make, faulty_s3: FaultyS3, tmp_path: Path, *, running: bool
) -> None:
    """chmod: the same version. touch: another, whose content the store has already: adopted, not sent."""
    files = {f"{number % 3}/{number}": b"%d" % number for number in range(60)}
    for name, content in files.items():
        (tmp_path / "drop" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "drop" / name).write_bytes(content)
    daemon = make(tmp_path / "drop")
    daemon.start()
    linked(daemon, files)
    if not running:
        assert daemon.stop() == 0
    subprocess.run(["chmod", "-R", "go-rwx", tmp_path / "drop"], check=True)
    if not running:
        daemon.start()
        daemon.until(lambda: not daemon.status()["settling_count"], "it settled")
        assert daemon.stop() == 0
    assert len(daemon.events("file.queued")) == len(files)
    subprocess.run(["find", tmp_path / "drop", "-type", "f", "-exec", "touch", "{}", "+"], check=True)
    if not running:
        daemon.start()
    daemon.until(lambda: statuses(daemon).count("adopted") == len(files), "all adopted")
    assert daemon.stop() == 0
    assert sorted(sent(faulty_s3)) == sorted(files)
    assert statuses(daemon).count("linked") == len(files)


def statuses(daemon: Presignd) -> list[str]:
    return [event["status"] for event in daemon.events("file.done")]


def test_a_full_disk_under_the_links_alone_is_waited_for(make: Make, faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """What was uploaded meanwhile gets its link once there is room; nothing is sent twice for it."""
    with tmpfs(tmp_path / "links", "64k"):
        (tmp_path / "drop").mkdir()
        daemon = make(tmp_path / "drop", f'[links]\nfile = "{tmp_path}/links/links.jsonl"')
        daemon.links_file = tmp_path / "links" / "links.jsonl"
        try:
            daemon.start()
            filler = tmp_path / "links" / "filler"
            with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
                file.writelines(itertools.repeat(bytes(4096)))
            files = {f"{number}": os.urandom(100) for number in range(30)}
            for name, content in files.items():
                (tmp_path / "drop" / name).write_bytes(content)
            daemon.until(lambda: daemon.events("links.blocked"), "links.blocked")
            assert daemon.events("links.blocked")[0]["error_code"] == "disk_full"
            filler.unlink()
            linked(daemon, files)
            daemon.until(lambda: daemon.events("links.unblocked"), "links.unblocked")
            assert sorted(sent(faulty_s3)) == sorted(files)
            assert daemon.events("file.quarantined") == []
            assert daemon.stop() == 0
        finally:
            daemon.end()
