"""The broker's control socket: where it is, who may use it, and what it answers."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from presignd.broker.config import SYSTEM_FILE, SYSTEM_STATE, BrokerConfig, ControlSection, LinksSection, StatePlace
from presignd.broker.control import SYSTEM_SOCKET, serving, socket_path
from presignd.broker.invitations.commands import InvitationCommands
from presignd.broker.state.database import Database, StateAway
from presignd.broker.state.links import hash_of
from presignd.broker.state.sqlite import SqliteDatabase
from presignd.cli.invite import ask
from presignd.control.peer import Peer
from presignd.control.server import Answered
from presignd.errors import Refused, Unavailable, UsageError
from tests.unprivileged import without_rights, world_readable

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
NEW = {"op": "invite_create", "name": "march", "bucket": "scans", "prefix": "in/", "valid": 3600, "pin": True}
URL = "https://files.example.org"


def config_of(folder: Path, *, url: str = URL, **control: Any) -> BrokerConfig:
    nothing: Any = SimpleNamespace()
    return BrokerConfig(
        folder / "broker.toml",
        nothing,
        nothing,
        nothing,
        nothing,
        links=LinksSection(url=url),
        state=StatePlace(folder / "state.db"),
        control=ControlSection(**control),
    )


@pytest.fixture(autouse=True)
def at_info() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))


@pytest.fixture
async def database(tmp_path: Path) -> Any:
    found = SqliteDatabase(tmp_path / "state.db")
    yield found
    await found.close()


async def answered(database: Database, request: dict[str, Any]) -> dict[str, Any]:
    (answer,) = [each async for each in InvitationCommands(URL, database, lambda: NOW).answer(request, Peer.me(), ())]
    return answer


# --- what it answers ----------------------------------------------------------------------------------
async def test_an_invitation_is_made_shown_and_revoked(database: Database) -> None:
    with capture_logs() as said:
        made = await answered(database, NEW)
        shown = await answered(database, {"op": "invite_show", "name": "march"})
        (listed,) = (await answered(database, {"op": "invite_list"}))["invitations"]
        revoked = [await answered(database, {"op": "invite_revoke", "name": "march"}) for _ in range(2)]
    assert made["url"].startswith(f"{URL}/i/")
    assert len(made["pin"]) == 6
    assert shown == {"invitation": made["invitation"], "files": []}
    assert listed == made["invitation"]
    assert (listed["state"], listed["pin_needed"], listed["expires_at"][:19]) == ("open", True, "2026-11-29T13:00:00")
    assert [each["revoked"] for each in revoked] == [True, False]
    assert (await answered(database, {"op": "invite_show", "name": "march"}))["invitation"]["state"] == "revoked"
    assert [(event["event"], event["by_uid"]) for event in said] == [
        ("invitation.made", os.geteuid()),
        ("invitation.revoked", os.geteuid()),
    ]


async def test_nothing_that_it_shows_or_logs_opens_an_invitation(database: Database) -> None:
    with capture_logs() as said:
        made = await answered(database, NEW)
        told = [await answered(database, {"op": op, "name": "march"}) for op in ("invite_list", "invite_show")]
    secret = made["url"].rpartition("/")[2]
    for text in (str(said), str(told)):
        for hidden in (secret, hash_of(secret).hex(), str(hash_of(secret)), made["pin"], "scrypt"):
            assert hidden not in text


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"op": "state"}, UsageError),
        ({"op": 5}, UsageError),
        ({"op": "invite_show", "name": "none"}, Refused),
        ({"op": "invite_revoke"}, Refused),
        ({**NEW, "bucket": "B"}, UsageError),
        ({**NEW, "max_files": -1}, UsageError),
        ({**NEW, "valid": "1h"}, UsageError),
        ({**NEW, "valid": 0}, UsageError),
        ({**NEW, "valid": None}, UsageError),
    ],
)
async def test_what_is_no_request_is_refused(
    database: Database, request_: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await answered(database, request_)
    assert (await answered(database, {"op": "invite_list"}))["invitations"] == []


async def test_a_state_that_is_away_is_told(tmp_path: Path) -> None:
    class Away(SqliteDatabase):
        async def fetch(self, *_: object) -> Any:
            raise StateAway("no answer")

    with pytest.raises(Unavailable, match="no answer"):
        await answered(Away(tmp_path / "none.db"), {"op": "invite_list"})


# --- where it is --------------------------------------------------------------------------------------
def test_the_service_s_socket_is_found_without_its_configuration(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert socket_path(config) == tmp_path / "broker-control.sock"
    for file in (SYSTEM_FILE, None):
        assert socket_path(replace(config, file=file), tmp_path) == tmp_path / SYSTEM_SOCKET.name
        assert socket_path(replace(config, file=file), tmp_path / "none") == SYSTEM_STATE / SYSTEM_SOCKET.name
    assert socket_path(config_of(tmp_path, socket=tmp_path / "x.sock")) == tmp_path / "x.sock"


@pytest.fixture
def broker_file(tmp_path: Path) -> Path:
    """Make a configuration that can't be read: who asks the running broker needs none."""
    file = tmp_path / "broker.toml"
    file.write_text("is no TOML", "utf-8")
    return file


async def test_a_command_asks_the_running_service(tmp_path: Path, broker_file: Path, database: Database) -> None:
    config = config_of(tmp_path)
    system = {"system_file": broker_file, "system_socket": socket_path(config)}
    async with serving(config, database):
        made = await asyncio.to_thread(ask, NEW, broker_file, **system)
        assert made["invitation"]["name"] == "march"
        with pytest.raises(Answered) as again:
            await asyncio.to_thread(ask, NEW, broker_file, **system)
        assert again.value.exit_code == 4
    with pytest.raises(UsageError):  # it ended: now the configuration is needed
        await asyncio.to_thread(ask, NEW, broker_file, **system)


async def test_without_links_there_is_no_socket(tmp_path: Path, database: Database) -> None:
    async with serving(config_of(tmp_path, url=""), database):
        assert not socket_path(config_of(tmp_path)).exists()


async def test_who_may_not_use_it_is_told_so(database: Database) -> None:
    with world_readable() as folder:
        config = config_of(folder)
        async with serving(config, database):
            socket_path(config).chmod(0)
            with without_rights(), pytest.raises(Unavailable, match="not open to you") as met:
                ask({"op": "invite_list"}, SYSTEM_FILE, system_socket=socket_path(config))
    assert "[control] group" in met.value.fix


# --- when it can't be made ----------------------------------------------------------------------------
async def test_without_the_usual_socket_the_broker_works_and_says_so(tmp_path: Path, database: Database) -> None:
    config = config_of(tmp_path)
    socket_path(config).write_bytes(b"")
    with capture_logs() as said:
        async with serving(config, database):
            pass
    (told,) = [event for event in said if event["event"] == "control.unavailable"]
    assert (told["log_level"], "no socket is in the way" in told["error"]) == ("info", True)


@pytest.mark.parametrize("control", [{"group": "no-such-group"}, {"socket": "/proc/none/x.sock"}])
async def test_a_socket_that_is_configured_must_be_made(
    tmp_path: Path, database: Database, control: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        async with serving(config_of(tmp_path, **control), database):
            pass
