"""[state]: where it is, and that an outage is logged once each way."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from presignd.broker.config import StatePlace, api_origins
from presignd.broker.state.database import NO_DATABASE, Database, Row, StateAway, Statement
from presignd.broker.state.place import LoggedDatabase
from presignd.broker.state.sqlite import open_file
from presignd.errors import UsageError
from tests.unit.broker.test_config import loaded, problems_of

URL = "postgresql://presignd:hush-hush@db/presignd"


class Fickle(Database):
    """A database that is away when the test says so."""

    away = False

    async def fetch(self, sql: str, *values: object) -> list[Row]:  # noqa: ARG002 - the port's
        if self.away:
            raise StateAway("it is away", fix="start it")
        return [(1,)]

    async def fetch_each(self, sql: str, rows: Sequence[Sequence[object]]) -> list[list[Row]]:
        return [await self.fetch(sql) for _ in rows]

    async def transact(self, statements: Sequence[Statement]) -> list[list[Row]]:
        return [await self.fetch(sql) for sql, _ in statements]

    async def close(self) -> None:
        self.away = True


async def test_an_outage_is_logged_once_each_way() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    fickle = Fickle()
    database = LoggedDatabase(fickle)
    with capture_logs() as events:
        for away in (False, True, True, False, False):
            fickle.away = away
            calls = (
                database.fetch("SELECT 1"),
                database.fetch_each("SELECT 1", [()]),
                database.transact([("SELECT 1", ())]),
            )
            for call in calls:
                if away:
                    with pytest.raises(StateAway):
                        await call
                else:
                    await call
    assert [event["event"] for event in events] == ["state.unreachable", "state.back"]
    assert (events[0]["error"], events[0]["fix"].partition(";")[0]) == ("it is away", "start it")
    await database.close()
    assert fickle.away


async def test_a_broker_without_links_has_no_state() -> None:
    with pytest.raises(StateAway):
        await NO_DATABASE.secret("a", b"b")
    with pytest.raises(StateAway):
        await NO_DATABASE.fetch_each("SELECT 1", [()])
    with pytest.raises(StateAway):
        await NO_DATABASE.transact([("SELECT 1", ())])
    await NO_DATABASE.close()


def place(folder: Path, text: str, **environ: str) -> StatePlace:
    return loaded(folder, text, HOME=str(folder), **environ).state


def test_the_state_is_a_file_unless_a_url_is_given(tmp_path: Path) -> None:
    assert place(tmp_path, "") == StatePlace(tmp_path / "state.db")
    assert place(tmp_path, "", STATE_DIRECTORY="/var/lib/x:/y") == StatePlace(Path("/var/lib/x/state.db"))
    assert place(tmp_path, '[state]\npath = "a.db"') == StatePlace(tmp_path / "a.db")
    assert place(tmp_path, f'[state]\nurl = "{URL}"') == StatePlace(url=URL)
    assert place(tmp_path, "", PRESIGND_STATE_URL=URL) == StatePlace(url=URL)
    assert place(tmp_path, '[state]\npath = "a.db"', PRESIGND_STATE_URL=URL) == StatePlace(tmp_path / "a.db")
    (tmp_path / "url").write_text(f"{URL}\n")
    (tmp_path / "url").chmod(0o600)
    assert place(tmp_path, '[state]\nurl_file = "url"') == StatePlace(url=URL)
    assert "hush" not in repr(StatePlace(url=URL))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '[state]\nurl = "mysql://u:hush-hush@h/d"',
            'state.url: must be an address of PostgreSQL, e.g. "postgresql://host/',
        ),
        (f'[state]\npath = "a"\nurl = "{URL}"', "state.url_file: the state is given as path and as url"),
        ('[state]\nurl_file = "none"', "state.url_file"),
        ('[links]\nurl = "https://files.example.org/below"', "links.url: has a path"),
        ('[links]\nurl = "ftp://files.example.org"', "links.url"),
        ('[links]\ntarget_expires = "4m"', "links.target_expires: must be between 5m and 7d"),
        ('[links]\ntarget_expires = "8d"', "links.target_expires: must be between 5m and 7d"),
        ('[broker]\nurl = "https://a@b"', "broker.url: holds credentials"),
    ],
)
def test_what_can_not_be_is_told(tmp_path: Path, text: str, problem: str) -> None:
    found = problems_of(tmp_path, text)
    assert [each for each in found if each.startswith(problem)]
    assert "hush" not in str(found)


def test_the_url_in_the_environment_is_checked_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        loaded(tmp_path, "", HOME="/", PRESIGND_STATE_URL="hush-hush")
    assert "$PRESIGND_STATE_URL" in str(refused.value.problems)
    assert "hush" not in str(refused.value.problems)


def test_a_url_in_a_file_that_others_read_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text(f'[state]\nurl = "{URL}"')
    file.chmod(0o644)
    from presignd.broker.load import load  # noqa: PLC0415

    assert any("state.url" in warning for warning in load(file, environ={}).warnings)


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ('url = "https://broker.example.org"', {"https://broker.example.org"}),
        ('listen = "127.0.0.1:8420"', {"http://127.0.0.1:8420", "https://127.0.0.1:8420"}),
        ('listen = "unix:/run/x"', set()),
    ],
)
def test_the_api_is_asked_at_its_url_or_where_it_listens(tmp_path: Path, text: str, origins: set[str]) -> None:
    assert api_origins(loaded(tmp_path, f"[broker]\n{text}", HOME="/").broker) == origins


@pytest.mark.needs("root")
def test_what_root_makes_before_the_service_did_is_the_services(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    open_file(tmp_path / "state.db").close()
    st = (tmp_path / "state.db").stat()
    assert (st.st_uid, st.st_gid, st.st_mode & 0o777) == (65534, 65534, 0o600)
