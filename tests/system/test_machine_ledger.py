"""The ledger is deleted, replaced, cut or corrupted, with and without a running daemon: each is reported.

An honest error, with its exit code and its fix; then the ledger begins anew, the store is found to have everything,
and every link that was issued is in ``links.jsonl`` still.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faulty_s3 import BUCKET, FaultyS3
from tests.mounts import tmpfs
from tests.stores import Store
from tests.system.harness import Presignd, config_for, fetch

FILES = {f"{number}.txt": b"content %d" % number for number in range(3)}
QUICK = 'settle = "0s"\n'


@pytest.fixture
def daemon(tmp_path: Path, seaweedfs: Store) -> Iterator[Presignd]:
    """Give a daemon that runs and has linked ``FILES``; its links are not beside the ledger."""
    more = f'[links]\nfile = "{tmp_path}/links/links.jsonl"\n'
    text = config_for(seaweedfs, tmp_path, seaweedfs.new_bucket(), watch=QUICK, more=more)
    made = Presignd(tmp_path, text, secrets=(seaweedfs.secret_key,))
    made.links_file = tmp_path / "links" / "links.jsonl"
    made.start()
    for name, content in FILES.items():
        (tmp_path / "drop" / name).write_bytes(content)
    done(made, len(FILES))
    yield made
    made.end()


def done(daemon: Presignd, count: int) -> None:
    daemon.until(lambda: len(daemon.events("file.done")) >= count, f"{count} of file.done")


def ended(daemon: Presignd) -> tuple[int, str]:
    """Wait for its end; return its exit code and the last line it said."""
    assert daemon.process is not None
    code = daemon.process.wait(60)
    said = daemon.log.read_text("utf-8").splitlines()
    assert "Traceback" not in "\n".join(said)
    return code, said[-1]


def assert_goes_on(daemon: Presignd, before: list[str]) -> None:
    """See it start with what is there: all is adopted, every earlier link stands where it stood."""
    (daemon.folder / "drop" / "new.txt").write_bytes(b"new")
    daemon.start()
    daemon.until(lambda: daemon.events("ledger.rebuilt"), "ledger.rebuilt")
    newest = {**FILES, "new.txt": b"new"}
    daemon.until(lambda: {link["key"] for link in daemon.links()[len(before) :]} == set(newest), "links for all")
    assert daemon.stop() == 0
    links = daemon.links()
    assert [link["file_id"] for link in links][: len(before)] == before
    assert len({link["file_id"] for link in links}) == len(links)
    assert all(fetch(link["url"]) == newest[link["key"]] for link in links)
    status = {event["key"]: event["status"] for event in daemon.events("file.done")}
    assert {status[key] for key in FILES} == {"adopted"}
    assert daemon.events("file.quarantined") == []


def ids(daemon: Presignd) -> list[str]:
    return [link["file_id"] for link in daemon.links()]


def delete(ledger: Path) -> None:
    ledger.unlink()


def delete_all(ledger: Path) -> None:
    shutil.rmtree(ledger.parent)


def move_away(ledger: Path) -> None:
    ledger.rename(ledger.with_name("elsewhere"))


def replace(ledger: Path) -> None:
    ledger.with_name("other").write_bytes(b"")
    ledger.with_name("other").replace(ledger)


def cut(ledger: Path) -> None:
    os.truncate(ledger, 0)


def delete_log(ledger: Path) -> None:
    ledger.with_name(f"{ledger.name}-wal").unlink()


@pytest.mark.parametrize("lose", [delete, delete_all, move_away, replace], ids=lambda lose: lose.__name__)
def test_a_ledger_lost_while_it_runs_ends_it_with_3_and_the_next_start_loses_no_link(
    daemon: Presignd, lose: Callable[[Path], None]
) -> None:
    before = ids(daemon)
    lose(daemon.state / "ledger.sqlite3")
    code, line = ended(daemon)
    assert code == 3
    assert line.startswith(f"presignd: the ledger's file {daemon.state}/ledger.sqlite3")
    assert "start presignd again" in line
    assert_goes_on(daemon, before)


@pytest.mark.parametrize("lose", [cut, delete_log], ids=lambda lose: lose.__name__)
def test_a_half_of_the_ledger_lost_while_it_runs_ends_it_with_3_and_is_made_good_by_the_other(
    daemon: Presignd, lose: Callable[[Path], None]
) -> None:
    """Of a young ledger all is in its write-ahead log; as it ends, SQLite brings the two together."""
    before = ids(daemon)
    lose(daemon.state / "ledger.sqlite3")
    code, line = ended(daemon)
    assert code == 3
    assert line.startswith(f"presignd: the ledger's file {daemon.state}/ledger.sqlite3")
    daemon.start()
    daemon.until(lambda: daemon.events("daemon.ready"), "daemon.ready")
    assert daemon.status()["watches"][0]["counts"]["finished"] == len(FILES)
    assert daemon.stop() == 0
    assert ids(daemon) == before
    assert daemon.events("ledger.rebuilt") == []


def test_an_older_ledger_links_nothing_twice_under_one_name(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """SIGKILL and only the write-ahead log lost, or a backup put back: it knows the files, but of no link."""
    text = config_for(faulty_s3, tmp_path, BUCKET, watch=QUICK)
    daemon = Presignd(tmp_path, text, secrets=(faulty_s3.secret_key,))
    try:
        faulty_s3.stop()
        for name, content in FILES.items():
            (tmp_path / "drop" / name).write_bytes(content)
        daemon.start()
        daemon.until(lambda: len(daemon.events("file.queued")) == len(FILES), "all queued")
        assert daemon.stop() == 0
        faulty_s3.start()
        daemon.start()
        done(daemon, len(FILES))
        before = ids(daemon)
        daemon.kill()
        for suffix in ("-wal", "-shm"):
            (daemon.state / f"ledger.sqlite3{suffix}").unlink()
        assert_goes_on(daemon, before)
    finally:
        daemon.end()


def test_nothing_is_told_as_done_that_went_into_a_lost_ledger(daemon: Presignd, tmp_path: Path) -> None:
    """What comes at the very moment of the loss is done after the next start, and was not said to be before."""
    before = ids(daemon)
    delete(daemon.state / "ledger.sqlite3")
    (tmp_path / "drop" / "late.txt").write_bytes(b"late")
    assert ended(daemon)[0] == 3
    assert ids(daemon) == before
    assert len(daemon.events("file.done")) == len(FILES)
    daemon.start()
    daemon.until(lambda: "late.txt" in {link["key"] for link in daemon.links()}, "its link")


def test_a_ledger_deleted_while_it_does_not_run_begins_anew_and_says_so(daemon: Presignd) -> None:
    assert daemon.stop() == 0
    delete(daemon.state / "ledger.sqlite3")
    assert_goes_on(daemon, ids(daemon))


def spoil(file: Path) -> None:
    """Overwrite all but the first bytes, in place."""
    with file.open("r+b") as opened:
        opened.seek(100)
        opened.write(b"\xff" * (file.stat().st_size - 100))


def test_a_ledger_corrupted_while_it_runs_ends_it_with_2_and_names_the_way_out(
    daemon: Presignd, tmp_path: Path
) -> None:
    before = ids(daemon)
    ledger = daemon.state / "ledger.sqlite3"
    for file in (ledger, ledger.with_name(f"{ledger.name}-wal")):
        spoil(file)
    (tmp_path / "drop" / "more.txt").write_bytes(b"more")
    code, line = ended(daemon)
    assert code == 2
    assert f"presignd: the ledger {ledger} is damaged" in line
    assert "-wal and" in line
    move_all_away(ledger)
    (tmp_path / "drop" / "more.txt").unlink()
    assert_goes_on(daemon, before)


def test_a_ledger_corrupted_while_it_does_not_run_is_refused_with_2_and_the_way_out(daemon: Presignd) -> None:
    assert daemon.stop() == 0
    ledger = daemon.state / "ledger.sqlite3"
    ledger.write_bytes(b"\xff" * 4096)
    for command in (("run",), ("status",)):
        refused = daemon.run(*command, "-c", daemon.config)
        assert refused.returncode == 2
        assert f"the ledger {ledger} is damaged" in refused.stderr
        assert "start again" in refused.stderr
        assert "Traceback" not in refused.stderr
    move_all_away(ledger)
    assert_goes_on(daemon, ids(daemon))


def test_sigterm_while_the_ledgers_disk_is_full_ends_with_3_and_the_next_start_goes_on(
    seaweedfs: Store, tmp_path: Path
) -> None:
    """A clean end could not be recorded, and nobody is told otherwise."""
    with tmpfs(tmp_path / "state", "4m"):
        daemon = Presignd(
            tmp_path,
            config_for(seaweedfs, tmp_path, seaweedfs.new_bucket(), watch=QUICK),
            secrets=(seaweedfs.secret_key,),
        )
        try:
            daemon.start()
            fill(tmp_path / "state" / "filler")
            for number in range(300):
                (tmp_path / "drop" / f"{number}").write_bytes(b"%d" % number)
            daemon.until(lambda: daemon.events("ledger.blocked"), "ledger.blocked")
            assert daemon.stop() == 3
            _, line = ended(daemon)
            assert line.startswith(f"presignd: the disk is full: the ledger {daemon.state}/ledger.sqlite3")
            (tmp_path / "state" / "filler").unlink()
            daemon.start()
            done(daemon, 300)
            assert daemon.stop() == 0
            assert len({link["key"] for link in daemon.links()}) == len(ids(daemon)) == 300
            assert daemon.events("file.quarantined") == []
        finally:
            daemon.end()


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(itertools.repeat(bytes(4096)))


def move_all_away(ledger: Path) -> None:
    """Do what the error says."""
    for suffix in ("", "-wal", "-shm"):
        file = ledger.with_name(ledger.name + suffix)
        if file.exists():
            file.rename(file.with_name(f"old{suffix}"))
