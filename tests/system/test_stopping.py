"""Starting and stopping as a user, a shell or systemd does it, at good moments and at bad ones."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounts import tmpfs
from tests.stores import Store
from tests.system.harness import COMMAND, Presignd, config_for

Make = Callable[..., Presignd]
QUICK = 'settle = "0s"\n'


@pytest.fixture
def make(tmp_path: Path, seaweedfs: Store) -> Iterator[Make]:
    """``make()`` a daemon on ``tmp_path/drop`` and a bucket of its own."""
    made: list[Presignd] = []

    def build(watch: str = QUICK, more: str = "", folder: Path = tmp_path) -> Presignd:
        folder.mkdir(exist_ok=True)
        text = config_for(seaweedfs, folder, seaweedfs.new_bucket(), watch=watch, more=more)
        made.append(Presignd(folder, text, secrets=(seaweedfs.secret_key,)))
        return made[-1]

    yield build
    for daemon in made:
        daemon.end()


def linked(daemon: Presignd, count: int) -> None:
    daemon.until(lambda: len(daemon.events("file.done")) >= count, f"{count} of file.done")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_right_at_the_start_is_a_clean_end(make: Make, number: signal.Signals) -> None:
    daemon = make()
    daemon.start(ready=False)
    daemon.until(lambda: daemon.events("daemon.started"), "daemon.started")
    assert daemon.stop(number) == 0
    assert daemon.events("daemon.stopped")
    daemon.start()
    assert daemon.stop() == 0


def test_a_reader_of_the_links_that_went_away_stops_no_upload(make: Make, tmp_path: Path) -> None:
    """``presignd run --print-links | head -1``: what can't be printed is in the links file all the same."""
    daemon = make()
    ours, theirs = os.pipe()
    with daemon.log.open("ab") as stderr:
        daemon.process = subprocess.Popen(
            [COMMAND, "run", "-c", daemon.config, "--print-links"],
            env=daemon.environ,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=stderr,
        )
    os.close(theirs)
    daemon.until(lambda: daemon.events("watch.started"), "watch.started")
    (tmp_path / "drop" / "one").write_bytes(b"1")
    assert os.read(ours, 4096).startswith(b"http")
    os.close(ours)
    for number in range(2, 5):
        (tmp_path / "drop" / f"{number}").write_bytes(b"%d" % number)
        linked(daemon, number)
    assert daemon.events("file.quarantined") == []
    assert daemon.stop() == 0
    assert len(daemon.events("stdout.lost")) == 1


@pytest.mark.parametrize(
    ("to", "why"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")], ids=["full", "closed"]
)
def test_a_stdout_that_takes_no_link_stops_no_upload(make: Make, tmp_path: Path, to: str, why: str) -> None:
    daemon = make()
    with daemon.log.open("ab") as stderr:
        shell = f'exec "{COMMAND}" run -c "{daemon.config}" --print-links {to}'
        daemon.process = subprocess.Popen(["sh", "-c", shell], env=daemon.environ, stderr=stderr)
    for number in range(1, 3):
        (tmp_path / "drop" / f"{number}").write_bytes(b"%d" % number)
        linked(daemon, number)
    assert daemon.stop() == 0
    assert [event["reason"] for event in daemon.events("stdout.lost")] == [
        f"the result can't be written to stdout: {why}"
    ]


def test_it_runs_without_stdin_stdout_and_stderr(make: Make, tmp_path: Path) -> None:
    """Else the next file it opens, a ledger or a socket, would have their numbers."""
    daemon = make()
    shell = f'exec "{COMMAND}" run -c "{daemon.config}" --print-links <&- >&- 2>&-'
    daemon.process = subprocess.Popen(["sh", "-c", shell], env=daemon.environ)
    (tmp_path / "drop" / "one").write_bytes(b"1")
    daemon.until(daemon.links, "a link", 30)
    assert daemon.run("status").returncode == 0
    assert daemon.stop() == 0


def test_a_second_daemon_on_the_same_folder_is_refused_and_touches_nothing(make: Make, tmp_path: Path) -> None:
    first = make()
    first.start()
    other = tmp_path / "other"
    second = make(folder=other)
    second.config.write_text(second.config.read_text().replace(f"{other}/drop", f"{tmp_path}/drop"))
    refused = second.run("run", "-c", second.config)
    assert refused.returncode == 3
    assert str(first.process.pid if first.process else "") in refused.stderr
    assert "another presignd" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert first.stop() == 0


def test_a_put_without_a_daemon_sends_its_own_file_alone_and_is_not_told_again(make: Make, tmp_path: Path) -> None:
    """Whoever put it has its link; what waits in the queue is left to the daemon, and so is its ``file.done``."""
    daemon = make()
    whole = daemon.config.read_text()
    endpoint = next(line for line in whole.splitlines() if line.startswith("endpoint"))
    daemon.config.write_text(whole.replace(endpoint, 'endpoint = "http://127.0.0.1:9"'))
    (tmp_path / "drop" / "queued").write_bytes(b"queued")
    daemon.start()
    daemon.until(lambda: daemon.events("file.queued"), "file.queued")
    assert daemon.stop() == 0
    daemon.config.write_text(whole)
    for number in range(3):
        file = tmp_path / f"elsewhere {number}"
        file.write_bytes(b"put %d" % number)
        assert daemon.run("put", file, "-c", daemon.config, check=True).stdout.startswith("http")
    assert [link["path"] for link in daemon.links()] == [str(tmp_path / f"elsewhere {number}") for number in range(3)]
    daemon.start()
    linked(daemon, 1)
    assert daemon.stop() == 0
    [event] = daemon.events("file.done")
    assert event["path"] == str(tmp_path / "drop" / "queued")
    assert not event.get("replayed")


def test_a_command_that_is_interrupted_waits_for_no_thread(tmp_path: Path) -> None:
    """A file is read or hashed in one, on a disk that hangs for ever."""
    code = """
        import asyncio, os, signal, sys
        from presignd import cli
        from presignd.cli import loop
        from presignd.system.threads import in_background

        async def work():
            reading = asyncio.create_task(in_background(os.read, os.pipe()[0], 1))
            await asyncio.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
            await reading

        cli.app = lambda **_: loop.run(work())
        cli.main()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, timeout=60, cwd=tmp_path)
    assert done.returncode == 130


def test_a_full_disk_under_ledger_and_links_is_waited_for(make: Make, tmp_path: Path) -> None:
    disk = tmp_path / "state"
    with tmpfs(disk, "16m"):
        daemon = make()
        daemon.start()
        with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            filler.writelines(itertools.repeat(bytes(4096)))
        for number in range(200):
            (tmp_path / "drop" / f"{number}").write_bytes(b"x" * number)
        daemon.until(lambda: daemon.events("ledger.blocked", "links.blocked"), "a blocked disk")
        time.sleep(2)
        assert daemon.process is not None
        assert daemon.process.poll() is None
        (disk / "filler").unlink()
        linked(daemon, 200)
        assert len(daemon.links()) == len({link["file_id"] for link in daemon.links()}) == 200
        assert daemon.events("file.quarantined") == []
        blocked = daemon.events("ledger.blocked", "links.blocked")
        assert len(blocked) == len(daemon.events("ledger.unblocked", "links.unblocked")) <= 4
        assert {event["error_code"] for event in blocked} == {"disk_full"}
        assert daemon.stop() == 0


def test_the_process_ends_though_a_thread_still_reads() -> None:
    """As one does whose file lies on a server that is gone: nobody waits for what it would return."""
    program = (
        "import asyncio, time\n"
        "from presignd.cli.loop import run_daemon\n"
        "async def work():\n"
        "    asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)\n"
        "    await asyncio.sleep(0.1)\n"
        "    print('through', flush=True)\n"
        "run_daemon(work(), threads=2)\n"
    )
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "through\n", "")
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("threads", ["None", "BACKGROUND"])
def test_a_failure_ends_the_process_though_a_thread_still_reads(threads: str) -> None:
    """A lost ledger while a disk hangs: the service manager is to start it again now, not when the disk is back."""
    program = (
        "import asyncio, time\n"
        "from presignd import cli\n"
        "from presignd.cli.loop import run_daemon\n"
        "from presignd.errors import Unavailable\n"
        "from presignd.system.threads import BACKGROUND\n"
        "async def work():\n"
        f"    asyncio.get_running_loop().run_in_executor({threads}, time.sleep, 60)\n"
        "    await asyncio.sleep(0.1)\n"
        "    raise Unavailable('the ledger is lost')\n"
        "cli.app = lambda prog_name: run_daemon(work(), threads=2)\n"
        "cli.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "", "presignd: the ledger is lost\n")
