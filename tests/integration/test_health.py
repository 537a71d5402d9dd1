"""What tells a container whether its daemon or its broker works: the exit code of a command."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trustme

from presignd.broker import health
from presignd.broker.config import BrokerSection
from presignd.cli import short_commands
from presignd.errors import Unavailable
from presignd.runtime import heartbeat
from tests.brokers import Broker, broker_for, command
from tests.integration.test_commands import presignd
from tests.served import Served, served
from tests.stores import Store

__all__ = ["served"]


# --- the daemon -------------------------------------------------------------------------------------
async def test_a_daemon_whose_loops_take_their_turns_is_healthy(served: Served) -> None:
    done = await presignd(served, "health")
    assert (done.code, done.out, done.err) == (0, "", "")


async def test_a_daemon_with_a_loop_that_hangs_is_not(served: Served) -> None:
    with heartbeat.alive("scanner") as heart:
        heart._beat_at -= 2 * heartbeat.USUAL
        done = await presignd(served, "health")
    assert (done.code, done.out) == (3, "")
    assert "no turn in time: scanner" in done.err


async def test_without_a_daemon_nothing_is_healthy_and_no_ledger_is_made(served: Served, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f'[ledger]\npath = "{tmp_path}/other"\n[[watch]]\nname = "w"\npath = "{tmp_path}"\nbucket = "bucket-x"\n'
    )
    config.chmod(0o600)
    done = await presignd(served, "health", "-c", config)
    assert done.code == 3
    assert "no daemon answers" in done.err
    assert not (tmp_path / "other").exists()


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Path]:
    """Yield a socket at which connections are taken and nothing is said."""
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.bind(str(tmp_path / "silent.sock"))
        sock.listen()
        yield tmp_path / "silent.sock"


def test_a_daemon_that_does_not_answer_is_not_healthy(silent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRESIGND_SOCKET", str(silent))
    monkeypatch.setattr(short_commands, "PATIENCE", 0.1)
    with pytest.raises(Unavailable, match="does not answer"):
        short_commands.health_command()


# --- the broker -------------------------------------------------------------------------------------
def test_a_broker_that_runs_is_healthy_and_one_that_was_stopped_is_not(tmp_path: Path, seaweedfs: Store) -> None:
    with broker_for(tmp_path, seaweedfs) as broker:
        done = command("health", "-c", broker.file)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = command("health", "-c", broker.file)
    assert done.returncode == 3
    assert f"no broker answers at 127.0.0.1:{broker.port}: Connection refused" in done.stderr


def test_a_broker_with_tls_on_every_address_is_healthy_whatever_its_name(tmp_path: Path, seaweedfs: Store) -> None:
    pem = tmp_path / "broker.pem"
    # 127.0.0.1 is what the test's broker waits for; the check asks by no name at all.
    trustme.CA().issue_cert("broker.example", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    broker = Broker(tmp_path, seaweedfs, tls=f'tls_cert = "{pem}"')
    broker.configure(broker.file.read_text().replace("127.0.0.1:", "0.0.0.0:"))
    try:
        broker.start()
        assert command("health", "-c", broker.file).returncode == 0
    finally:
        broker.end()


def test_a_broker_on_a_unix_socket_is_healthy(tmp_path: Path, seaweedfs: Store) -> None:
    broker = Broker(tmp_path, seaweedfs)
    path = tmp_path / "broker.sock"
    broker.configure(broker.file.read_text().replace(f"127.0.0.1:{broker.port}", f"unix:{path}"))
    try:
        broker.start(ready=False)
        broker.until(path.exists, "its socket")
        assert command("health", "-c", broker.file).returncode == 0
    finally:
        broker.end()


def test_a_broker_that_does_not_answer_is_not_healthy(silent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PATIENCE", 0.1)
    with pytest.raises(Unavailable, match=r"no broker answers at unix:.*: timed out"):
        health.require_answer(BrokerSection(listen=f"unix:{silent}"))


def test_what_is_no_broker_that_works_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_status", lambda *_, **__: 503)
    with pytest.raises(Unavailable, match="answers with HTTP 503"):
        health.require_answer(BrokerSection())
