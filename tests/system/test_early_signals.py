"""Signals while a service is imported and reads its configuration, and orphaned processes under PID 1."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.needs import need
from tests.stores import Store
from tests.system.harness import Presignd, config_for, until_true

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def daemon(tmp_path: Path, seaweedfs: Store) -> Iterator[Presignd]:
    text = config_for(seaweedfs, tmp_path, seaweedfs.new_bucket(), watch='settle = "0s"')
    daemon = Presignd(tmp_path, text, secrets=(seaweedfs.secret_key,))
    daemon.log.touch()
    yield daemon
    daemon.end()


def start(daemon: Presignd, *before: str, run: tuple[str | Path, ...] = ()) -> subprocess.Popen[bytes]:
    """Start it as ``python -m presignd``, as the installed command does."""
    with daemon.log.open("ab") as stderr:
        daemon.process = subprocess.Popen(
            [*before, sys.executable, "-m", "presignd", *(run or ("run", "-c", daemon.config))],
            env=daemon.environ,
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    return daemon.process


def minds(process: subprocess.Popen[bytes], number: signal.Signals) -> bool:
    """Return whether ``process`` has a handler for a signal (proc_pid_status(5))."""
    status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught & 1 << (number - 1))


def send_early(daemon: Presignd, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal as soon as it doesn't kill, long before the first event."""
    while not minds(process, signal.SIGHUP):
        time.sleep(0.001)
    assert daemon.log.read_bytes() == b"", "too late to be early"
    process.send_signal(number)


def test_a_hang_up_right_at_the_start_is_a_reload_once_there_is_something_to_reload(daemon: Presignd) -> None:
    process = start(daemon)
    send_early(daemon, process, signal.SIGHUP)
    daemon.until(lambda: daemon.events("config.reloaded"), "config.reloaded")
    assert daemon.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_right_at_the_start_is_a_clean_end(daemon: Presignd, number: signal.Signals) -> None:
    process = start(daemon)
    send_early(daemon, process, number)
    assert process.wait(60) == 0
    assert not daemon.state.exists()


def test_a_broker_minds_them_as_early(daemon: Presignd) -> None:
    file = daemon.folder / "broker.toml"
    text = daemon.config.read_text()
    store = text[text.index("[presign]") : text.index("[ledger]")].replace("[presign]", "[store]")
    token = f'[[token]]\nname = "a"\nhash = "sha256:{"0" * 64}"\nbucket = "bucket"\nprefix = "a/"\n'
    file.write_text(f'[broker]\nlisten = "unix:{daemon.folder}/broker"\n{store}\n{token}')
    file.chmod(0o600)
    run = ("broker", "run", "-c", file)
    process = start(daemon, run=run)
    send_early(daemon, process, signal.SIGTERM)
    assert process.wait(60) == 0
    process = start(daemon, run=run)
    send_early(daemon, process, signal.SIGHUP)
    daemon.until(lambda: daemon.events("config.reloaded"), "config.reloaded")
    assert daemon.stop() == 0


def test_as_pid_1_it_leaves_no_zombies_of_others(daemon: Presignd) -> None:
    """A container without ``--init``, in which ``docker exec`` leaves orphans."""
    need("mount")
    outer = start(daemon, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    daemon.until(lambda: daemon.events("daemon.ready"), "daemon.ready")
    inner = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()[0])
    orphan = subprocess.run(
        ["nsenter", "--target", str(inner), "--pid", "sh", "-c", "sleep 0.2 & cut -d' ' -f1 /proc/self/stat"],
        check=False,
    )
    assert orphan.returncode == 0
    children = Path(f"/proc/{inner}/task/{inner}/children")
    until_true(lambda: not children.read_text().split(), "end of the orphan", 30, process=outer, log=daemon.log)
    os.kill(inner, signal.SIGTERM)
    assert outer.wait(60) == 0


def test_ctrl_c_while_a_command_is_imported_is_130_and_no_traceback() -> None:
    code = """
        import signal, sys
        from presignd.__main__ import main

        class Interrupting:
            def find_spec(self, name, *_):
                if name == "typer":
                    signal.raise_signal(signal.SIGINT)

        sys.meta_path.insert(0, Interrupting())
        sys.argv = ["presignd", "status"]
        main()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, timeout=60, capture_output=True)
    assert (done.returncode, done.stderr) == (130, b"")
