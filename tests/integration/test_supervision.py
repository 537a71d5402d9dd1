"""A loop that fails ends the process, which logs why and releases everything: systemd restarts it."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest

from presignd.app import daemon
from presignd.cli import run as run_command
from presignd.config import Config
from presignd.control import server as control
from presignd.errors import PresigndError, Unavailable, UsageError, fault
from presignd.ledger.lock import DaemonLock
from presignd.telemetry import log
from tests.faulty_s3 import FaultyS3
from tests.running import config, watch

CANARY = "c0ffee00" * 8


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Configure a daemon whose store was never started: none of this needs one."""
    monkeypatch.setenv("PRESIGND_SOCKET", str(tmp_path / "control.sock"))
    return config(tmp_path, FaultyS3(), watch(tmp_path))


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    async def loop(*_: Any) -> None:
        await asyncio.sleep(0)
        raise error

    monkeypatch.setattr(daemon, "upkeep", loop)


def served(configured: Config) -> tuple[int, list[dict[str, Any]]]:
    """Run the daemon as the command does; return its exit code and events."""
    said = io.StringIO()
    log.setup(configured.log, stream=said)
    with pytest.raises(SystemExit) as ended:
        run_command.serve(configured, print_links=False)
    return int(ended.value.code or 0), [json.loads(line) for line in said.getvalue().splitlines()]


def test_a_bug_in_a_loop_ends_with_1_and_its_traceback_redacted(
    configured: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, RuntimeError(f"GET http://h/b/k?X-Amz-Signature={CANARY} failed"))
    code, events = served(configured)
    assert code == 1
    [crash] = [event for event in events if event["event"] == "daemon.crashed"]
    assert crash["level"] == "critical"
    assert "RuntimeError" in crash["exception"]
    assert "in loop" in crash["exception"]
    assert CANARY not in json.dumps(events)
    assert "daemon.stopped" not in {event["event"] for event in events}


def test_a_control_socket_that_dies_is_no_silent_one(configured: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    async def accept(_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(control._Server, "_accept", accept)
    code, events = served(configured)
    assert code == 1
    assert "a bug" in next(event for event in events if event["event"] == "daemon.crashed")["exception"]


def test_what_it_held_is_free_again(configured: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing(monkeypatch, RuntimeError("a bug"))
    served(configured)
    DaemonLock(configured.ledger.path).close()
    assert not (tmp_path / "control.sock").exists()


@pytest.mark.parametrize("error", [UsageError("damaged"), Unavailable("gone"), fault("disk_full")])
def test_an_expected_failure_comes_out_as_itself_and_no_tree_of_groups(
    configured: Config, monkeypatch: pytest.MonkeyPatch, error: PresigndError
) -> None:
    failing(monkeypatch, error)
    log.setup(configured.log, stream=io.StringIO())
    with pytest.raises(type(error)) as raised:
        run_command.serve(configured, print_links=False)
    assert raised.value is error


def test_a_bug_is_told_even_where_an_expected_failure_came_with_it(
    configured: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, ExceptionGroup("both", [fault("disk_full"), RuntimeError("a bug")]))
    assert served(configured)[0] == 1
