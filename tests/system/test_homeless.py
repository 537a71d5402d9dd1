"""Environments of containers, cron and root's shell: no session, no home, no user name."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.canary import assert_no_secrets
from tests.needs import need
from tests.stores import Store
from tests.system.harness import COMMAND, Presignd, config_for, until_true
from tests.unprivileged import without_rights, world_readable

UID = 23456
"""A user of whom passwd has no entry."""

NAMELESS = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--", "env", "-i"]
"""As ``docker run --user 23456`` does: not even HOME is there."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Lend a folder that any user may use."""
    with world_readable() as folder:
        folder.chmod(0o777)
        yield folder


@pytest.fixture
def daemon(folder: Path, seaweedfs: Store) -> Iterator[Presignd]:
    text = config_for(seaweedfs, folder, seaweedfs.new_bucket(), watch='settle = "0s"')
    daemon = Presignd(folder, text, secrets=(seaweedfs.secret_key,))
    (folder / "drop").chmod(0o777)
    daemon.config.chmod(0o644)
    yield daemon
    daemon.end()


def start(daemon: Presignd, environ: Mapping[str, str], command: Sequence[str] = ()) -> None:
    with daemon.log.open("ab") as stderr:
        daemon.process = subprocess.Popen(
            [*command, COMMAND, "run", "-c", daemon.config], env=environ, stdin=subprocess.DEVNULL, stderr=stderr
        )
    daemon.until(lambda: daemon.events("daemon.ready"), "daemon.ready")


def done(environ: Mapping[str, str], *command: str | Path) -> str:
    """Run a command, which must succeed, and return what it prints."""
    found = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert found.returncode == 0, (command, found.stdout, found.stderr)
    return found.stdout


def test_without_a_session_commands_find_the_daemon_with_no_configuration(daemon: Presignd, folder: Path) -> None:
    """Root's shell has no XDG_RUNTIME_DIR, and this daemon's ledger lies where no command would look."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder / "home")}
    start(daemon, environ)
    (folder / "drop" / "a.txt").write_bytes(b"a")
    done(environ, COMMAND, "wait", "--timeout", "60s", folder / "drop" / "a.txt")
    done(environ, COMMAND, "status")
    assert done(environ, COMMAND, "links").startswith("http")
    assert daemon.stop() == 0


def test_a_user_without_name_and_home_has_every_command(daemon: Presignd, folder: Path) -> None:
    need("another user")
    daemon.config.write_text(f'{daemon.config.read_text()}\n[control]\nsocket = "{folder}/sock"\n')
    more = ["-c", str(daemon.config)]
    file = folder / "drop" / "a.txt"
    assert "ok" in done({}, *NAMELESS, COMMAND, "check", *more)
    file.write_bytes(b"a")
    assert done({}, *NAMELESS, COMMAND, "put", file, *more).startswith("http")
    done({}, *NAMELESS, COMMAND, "run", "--dry-run", *more)
    start(daemon, {}, NAMELESS)
    for command in (["wait", "--timeout", "60s", file], ["status"], ["links"], ["link", file], ["config"]):
        done({}, *NAMELESS, COMMAND, *command, *more)
    assert done({}, *NAMELESS, COMMAND, "put", daemon.config, "--watch", "drop", *more).startswith("http")
    assert daemon.stop() == 0
    assert done({}, *NAMELESS, COMMAND, "links", *more).startswith("http")


def test_a_user_without_name_and_home_has_the_brokers_commands(folder: Path, seaweedfs: Store) -> None:
    need("another user")
    file, tokens = folder / "broker.toml", folder / "tokens.d"
    tokens.mkdir(mode=0o755)
    os.chown(tokens, UID, UID)
    file.write_text(
        f'[broker]\nlisten = "unix:{folder}/broker"\ntoken_files = ["tokens.d/*.toml"]\n[store]\n'
        f'endpoint = "{seaweedfs.endpoint}"\naccess_key = "{seaweedfs.access_key}"\n'
        f'secret_key = "{seaweedfs.secret_key}"\n'
    )
    file.chmod(0o600)
    os.chown(file, UID, UID)
    broker: list[str | Path] = [*NAMELESS, COMMAND, "broker"]
    bucket = seaweedfs.new_bucket()
    (tokens / "a.toml").write_text(
        done({}, *broker, "token", "create", "a", "--bucket", bucket, "--prefix", "a/").partition("\n")[2]
    )
    assert "a/" in done({}, *broker, "token", "list", "-c", file)
    done({}, *broker, "check", "-c", file)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*broker, "run", "-c", file], env={}, stderr=log, stdin=subprocess.DEVNULL)
    try:
        until_true((folder / "broker").exists, "socket", 60, process=process, log=folder / "log")
        process.terminate()
        assert process.wait(60) == 0, (folder / "log").read_text()
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('[[watch]]\nname = "a"\nbucket = "bbb"\npath = "~/drop"', "~/drop: this user has no home folder"),
        ('[[watch]]\nname = "a"\nbucket = "bbb"\npath = "/"', "ledger.path: is missing, and this user has no home"),
    ],
)
def test_what_would_lie_at_home_is_one_clear_line(folder: Path, config: str, said: str) -> None:
    need("another user")
    file = folder / "config.toml"
    file.write_text(f'{config}\n[presign]\nendpoint = "http://127.0.0.1:9"\naccess_key = "a"\nsecret_key = "s"\n')
    for arguments in (["run"], ["check"], ["status"], ["put", file]):
        found = subprocess.run(
            [*NAMELESS, COMMAND, *arguments, "-c", file], env={}, capture_output=True, text=True, check=False
        )
        told = found.stdout + found.stderr
        assert found.returncode == 2, told
        assert said in told
        assert "Traceback" not in told
        assert_no_secrets(told)


def test_only_root_and_this_user_are_believed_below_a_user_s_folders(tmp_path: Path) -> None:
    """``su`` leaves root another user's XDG_RUNTIME_DIR; a put hands over what root alone can read."""
    need("another user")
    with world_readable() as folder:
        (folder / "presignd").mkdir()
        (folder / "presignd").chmod(0o777)
        place, secret = folder / "presignd" / "control.sock", tmp_path / "secret"
        secret.write_text("root's")
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(folder)}
        with socket.socket(socket.AF_UNIX) as theirs:
            with without_rights():
                theirs.bind(str(place))
                place.chmod(0o666)
                theirs.listen()
            theirs.settimeout(30)
            put: list[str | Path] = [COMMAND, "put", secret]
            done = subprocess.run(put, env=environ, capture_output=True, text=True, check=False, timeout=60)
            assert (done.returncode, done.stdout) == (3, "")
            assert f"PRESIGND_SOCKET={place}" in done.stderr
            with theirs.accept()[0] as probe:
                assert probe.recvmsg(1, 100)[:2] == (b"", [])
            named = subprocess.Popen(put, env={**environ, "PRESIGND_SOCKET": str(place)}, stderr=subprocess.DEVNULL)
            with theirs.accept()[0] as probe, theirs.accept()[0] as asked:
                assert probe.recv(1) == b""
                assert b'"put"' in asked.recvmsg(4096, 100)[0]
            assert named.wait(60) == 3
