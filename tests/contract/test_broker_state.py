"""What the broker's state promises, in SQLite and in PostgreSQL: links once, counts never over, nothing lost."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from presignd.broker.state.database import StateAway
from presignd.broker.state.links import Alive, Links, NewLink, hash_of, ref_of
from presignd.broker.state.migrations import MIGRATIONS
from presignd.broker.state.postgres import PostgresDatabase
from presignd.broker.state.sqlite import SqliteDatabase
from presignd.demo.seaweedfs import LOOPBACK
from presignd.system import filesystem
from tests.postgres import Postgres
from tests.states import Connect

NOW = datetime(2026, 11, 29, 12, 0, 0, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)


@asynccontextmanager
async def opened(connect: Connect) -> AsyncIterator[Links]:
    database = connect()
    try:
        yield Links(database)
    finally:
        await database.close()


@pytest.fixture
async def links(connect: Connect) -> AsyncIterator[Links]:
    async with opened(connect) as links:
        yield links


def a_link(link_id: str = "one", **changes: Any) -> NewLink:
    link = NewLink(
        id=hash_of(link_id),
        token="scanner-1",
        bucket="b",
        key="scanner-1/a.pdf",
        version_id="",
        size=5,
        content_type="application/pdf",
        filename="Bericht \u00fc.pdf",
        disposition="attachment",
        note="",
        pin="",
        made_at=NOW,
        ends_at=None,
        max_downloads=None,
    )
    return link._replace(**changes)


async def test_a_link_is_found_as_it_was_put(links: Links) -> None:
    new = a_link(ends_at=NOW + HOUR, max_downloads=5, pin="scrypt:x", size=None, unit=True)
    (put,) = await links.put([new])
    assert put.new == new
    assert (put.opened, put.opened_at, put.revoked_at, put.kept) == (0, None, None, False)
    assert await links.find(new.id) == put
    assert await links.find(hash_of("other")) is None


async def test_the_first_to_put_an_id_wins(links: Links) -> None:
    first, second = a_link(key="scanner-1/first"), a_link(key="scanner-1/second")
    await links.put([first])
    (found,) = await links.put([second])
    assert found.new == first


async def test_a_batch_returns_each_in_its_place(links: Links) -> None:
    many = [a_link(f"id-{n}", key=f"scanner-1/{n}") for n in range(100)]
    assert [link.new for link in await links.put([*many, many[3]])] == [*many, many[3]]


async def test_of_many_brokers_that_put_one_id_at_once_one_wins(connect: Connect) -> None:
    async with AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(opened(connect)) for _ in range(4)]
        asked = [
            broker.put([a_link(f"id-{n}", key=f"scanner-1/{number}") for n in order])
            for number, broker in enumerate(brokers)
            for order in (range(20), range(19, -1, -1))
        ]
        answers = await asyncio.gather(*asked)
        keys = [{link.new.id: link.new.key for link in answer} for answer in answers]
        assert all(each == keys[0] for each in keys)
        assert len(await brokers[0].of_token("scanner-1", after="", limit=1000)) == 20


async def test_a_link_without_limits_is_counted_when_it_is_opened(links: Links) -> None:
    link = a_link()
    await links.put([link])
    for _ in range(3):
        await links.open(link.id, NOW)
    found = await links.find(link.id)
    assert found is not None
    assert (found.opened, found.opened_at) == (3, NOW)


async def test_an_opening_that_is_refused_is_taken_back(links: Links) -> None:
    """A link says when it was opened last, however often it was refused after that, as without its token."""
    link = a_link()
    await links.put([link])
    await links.open(link.id, NOW)
    for seconds in (1, 2):
        await links.open(link.id, NOW + timedelta(seconds=seconds))
        await links.take_back(link.id, NOW + timedelta(seconds=seconds))
        found = await links.find(link.id)
        assert found is not None
        assert (found.opened, found.opened_at) == (1, NOW)


async def test_a_later_opening_stays_the_last_one(links: Links) -> None:
    link = a_link()
    await links.put([link])
    for seconds in (0, 1):
        await links.open(link.id, NOW + timedelta(seconds=seconds))
    await links.take_back(link.id, NOW)
    found = await links.find(link.id)
    assert found is not None
    assert (found.opened, found.opened_at) == (1, NOW + timedelta(seconds=1))


async def test_a_link_that_was_never_opened_says_so_after_a_refusal(links: Links) -> None:
    link = a_link()
    await links.put([link])
    await links.open(link.id, NOW)
    await links.take_back(link.id, NOW)
    found = await links.find(link.id)
    assert found is not None
    assert (found.opened, found.opened_at) == (0, None)


@pytest.mark.parametrize("limits", [{"max_downloads": 5}, {"pin": "scrypt:x"}, {"ends_at": NOW}, {"unit": True}])
async def test_a_link_with_limits_is_not_opened_without_spending(links: Links, limits: dict[str, Any]) -> None:
    link = a_link(**limits)
    await links.put([link])
    assert await links.open(link.id, NOW) is None
    found = await links.find(link.id)
    assert found is not None
    assert found.opened == 0


async def test_where_there_is_no_link_none_is_opened(links: Links) -> None:
    assert await links.open(hash_of("none"), NOW) is None


async def test_no_opening_is_lost_where_hundreds_come_at_once(connect: Connect) -> None:
    link = a_link()
    async with opened(connect) as one, opened(connect) as other:
        await one.put([link])
        await asyncio.gather(*((one, other)[n % 2].open(link.id, NOW) for n in range(300)))
        found = await one.find(link.id)
    assert found is not None
    assert found.opened == 300


async def test_a_limit_holds_however_many_open_at_once(connect: Connect) -> None:
    link = a_link(max_downloads=5)
    async with opened(connect) as one, opened(connect) as other:
        await one.put([link])
        spent = await asyncio.gather(*((one, other)[n % 2].spend(link.id, NOW) for n in range(300)))
        found = await one.find(link.id)
    assert sum(each is not None for each in spent) == 5
    assert found is not None
    assert found.opened == 5


async def test_what_has_ended_is_not_spent(links: Links) -> None:
    link = a_link(ends_at=NOW + HOUR)
    await links.put([link])
    assert await links.spend(link.id, NOW + HOUR) is None
    assert await links.spend(link.id, NOW + HOUR - timedelta(microseconds=1)) is not None


async def test_a_revoked_link_is_not_spent_and_is_revoked_once(links: Links) -> None:
    link = a_link()
    await links.put([link])
    (revoked,) = await links.revoke("scanner-1", link.id, NOW)
    assert revoked.revoked_at == NOW
    assert await links.revoke("scanner-1", link.id, NOW + HOUR) == []
    assert await links.spend(link.id, NOW) is None
    assert await links.open(link.id, NOW) is None
    found = await links.find(link.id)
    assert found is not None
    assert (found.opened, found.revoked_at) == (0, NOW)


async def test_what_one_broker_revoked_no_other_opens_from_then_on(connect: Connect) -> None:
    """No broker keeps a link: each call reads the state, so what was answered before it holds for it."""
    one_of_each: dict[str, Callable[[Links], Awaitable[Any]]] = {
        "id": lambda links: links.revoke("scanner-1", hash_of("id"), NOW),
        "ref": lambda links: links.revoke_ref("scanner-1", ref_of(hash_of("ref")), NOW),
        "object": lambda links: links.revoke_object("scanner-1", "b", "scanner-1/object", NOW),
        "token": lambda links: links.revoke_token("scanner-2", NOW),
    }
    made = {
        name: a_link(name, key=f"scanner-1/{name}", token="scanner-2" if name == "token" else "scanner-1")
        for name in one_of_each
    }
    async with opened(connect) as one, opened(connect) as other:
        await one.put(list(made.values()))
        for name, revoke in one_of_each.items():
            link = made[name]
            assert await other.open(link.id, NOW) is not None, name
            assert await revoke(one), name
            assert await other.open(link.id, NOW) is None, name
            assert await other.spend(link.id, NOW) is None, name
            found = await other.find(link.id)
            assert found is not None
            assert found.revoked_at == NOW, name


async def test_a_link_is_revoked_by_its_ref(links: Links) -> None:
    one, other = await links.put([a_link("one"), a_link("other")])
    assert [link.new.id for link in await links.revoke_ref("scanner-1", one.ref, NOW)] == [one.new.id]
    found = await links.find(other.new.id)
    assert found is not None
    assert found.revoked_at is None
    for wrong in ("", "short", "\u00fc" * 16, "A" * 16, "*" * 16):
        assert await links.revoke_ref("scanner-1", wrong, NOW) == []


async def test_a_token_finds_its_own_links_by_their_refs(links: Links) -> None:
    one, _, foreign = await links.put([a_link("one"), a_link("other"), a_link("foreign")._replace(token="scanner-2")])
    wrong = ("", "short", "\u00fc" * 16, "A" * 16)
    found = await links.of_refs("scanner-1", (one.ref, foreign.ref, *wrong))
    assert [link.ref for link in found] == [one.ref]
    assert await links.of_refs("scanner-1", wrong) == []


async def test_all_links_to_an_object_are_revoked(links: Links) -> None:
    elsewhere = a_link("two", bucket="other")
    await links.put([a_link("one"), elsewhere, a_link("three")])
    assert len(await links.revoke_object("scanner-1", "b", "scanner-1/a.pdf", NOW)) == 2
    found = await links.find(elsewhere.id)
    assert found is not None
    assert found.revoked_at is None


async def test_a_token_revokes_only_its_own(links: Links) -> None:
    link = a_link()
    (put,) = await links.put([link])
    assert await links.revoke("scanner-2", link.id, NOW) == []
    assert await links.revoke_ref("scanner-2", put.ref, NOW) == []
    assert await links.revoke_object("scanner-2", link.bucket, link.key, NOW) == []
    assert await links.of_token("scanner-2", after="", limit=10) == []


async def test_a_token_takes_its_links_with_it(links: Links) -> None:
    await links.put([a_link("one"), a_link("two"), a_link("other", token="scanner-2")])
    assert await links.revoke_token("scanner-1", NOW) == 2
    assert await links.alive(NOW) == {"scanner-2": Alive(1, 0)}


async def test_links_that_are_kept_are_marked(links: Links) -> None:
    link = a_link()
    await links.put([link])
    assert await links.keep("scanner-1") == 1
    found = await links.find(link.id)
    assert found is not None
    assert found.kept


async def test_links_are_listed_page_by_page(links: Links) -> None:
    made = [a_link(f"id-{n}") for n in range(25)]
    for link in made:
        await links.put([link])
    seen: list[bytes] = []
    after = ""
    while page := await links.of_token("scanner-1", after=after, limit=10):
        seen += [link.new.id for link in page]
        after = page[-1].ref
    assert seen == [link.id for link in made]
    for wrong in ("0", "A" * 16, ref_of(hash_of("none"))):
        with pytest.raises(LookupError):
            await links.of_token("scanner-1", after=wrong, limit=10)
    with pytest.raises(LookupError):
        await links.of_token("scanner-2", after=after, limit=10)


async def test_pin_tries_are_limited_for_each_link(links: Links) -> None:
    link = a_link(pin="scrypt:x")
    await links.put([link])
    taken = await asyncio.gather(*(links.take_pin_try(link.id, NOW, most=5, window=HOUR) for _ in range(50)))
    assert sum(taken) == 5
    assert not await links.take_pin_try(link.id, NOW + HOUR - timedelta(seconds=1), most=5, window=HOUR)
    assert await links.take_pin_try(link.id, NOW + HOUR, most=5, window=HOUR)


async def test_the_right_pin_gives_all_tries_back(links: Links) -> None:
    link = a_link(pin="scrypt:x")
    await links.put([link])
    for _ in range(3):
        for _ in range(5):
            assert await links.take_pin_try(link.id, NOW, most=5, window=HOUR)
        assert await links.spend(link.id, NOW) is not None


async def test_links_alive_are_counted(links: Links) -> None:
    ended, used_up = a_link("ended", ends_at=NOW), a_link("used", max_downloads=1)
    await links.put([a_link("one"), a_link("two"), ended, used_up])
    await links.spend(used_up.id, NOW)
    assert await links.alive(NOW) == {"scanner-1": Alive(2, 0)}
    await links.keep("scanner-1")
    await links.put([a_link("three")])
    assert await links.alive(NOW) == {"scanner-1": Alive(3, 2)}


async def test_all_brokers_share_a_secret(connect: Connect) -> None:
    one, other = connect(), connect()
    try:
        assert await one.secret("pass", b"first") == b"first"
        assert await other.secret("pass", b"second") == b"first"
    finally:
        await one.close()
        await other.close()


async def test_what_was_put_is_there_for_the_next_broker(connect: Connect) -> None:
    link = a_link()
    async with opened(connect) as links:
        await links.put([link])
    async with opened(connect) as links:
        found = await links.find(link.id)
    assert found is not None
    assert found.new == link


async def test_brokers_that_start_together_migrate_once(connect: Connect) -> None:
    async with AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(opened(connect)) for _ in range(5)]
        await asyncio.gather(*(broker.put([a_link(f"id-{n}")]) for n, broker in enumerate(brokers)))
        assert len(await brokers[0].of_token("scanner-1", after="", limit=10)) == 5


async def test_a_caller_that_goes_away_breaks_nothing(links: Links) -> None:
    link = a_link()
    await links.put([link])
    calls = [asyncio.create_task(links.open(link.id, NOW)) for _ in range(20)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(each, asyncio.CancelledError) for each in results) == 10
    assert await links.find(link.id) is not None


# --- away ---------------------------------------------------------------------------------------
async def test_a_postgres_that_is_away_is_said_at_once_and_found_when_it_is_back(own_postgres: Postgres) -> None:
    url = own_postgres.new_database()
    own_postgres.stop()
    async with opened(lambda: PostgresDatabase(url)) as links:
        with pytest.raises(StateAway) as away:
            await links.find(hash_of("one"))
        assert "in-the-tests" not in str(away.value)
        own_postgres.start()
        await asyncio.sleep(0.6)
        await links.put([a_link()])
        own_postgres.kill()
        results = await asyncio.gather(*(links.open(hash_of("one"), NOW) for _ in range(20)), return_exceptions=True)
        assert all(isinstance(each, StateAway) for each in results)
        own_postgres.start()
        assert await links.open(hash_of("one"), NOW) is not None


async def test_a_postgres_is_asked_over_tls_and_believed_by_its_certificate(
    own_postgres: Postgres, tmp_path: Path
) -> None:
    ours, another = trustme.CA(), trustme.CA()
    for name, authority in (("ours", ours), ("another", another)):
        authority.cert_pem.write_to_path(str(tmp_path / name))
    own_postgres.serve_tls(ours.issue_cert(LOOPBACK))
    url = f"{own_postgres.new_database()}?sslmode=verify-full&sslrootcert={tmp_path}"
    believed, doubted = PostgresDatabase(f"{url}/ours"), PostgresDatabase(f"{url}/another")
    try:
        assert await believed.fetch("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [(True,)]
        with pytest.raises(StateAway, match="certificate verify failed"):
            await doubted.fetch("SELECT 1")
    finally:
        await believed.close()
        await doubted.close()


async def test_a_postgres_connection_that_breaks_while_it_is_used_or_given_back_is_an_outage_at_most(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is stopped under load breaks connections at any point; a commit that was answered is done."""
    asyncpg = pytest.importorskip("asyncpg")

    async def broken(*_: object, **__: object) -> None:
        raise asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")

    database = PostgresDatabase(postgres.new_database())
    await database.fetch("SELECT 0")
    try:
        with monkeypatch.context() as patched:
            patched.setattr(asyncpg.Connection, "reset", broken)
            assert await database.fetch("SELECT 1") == [(1,)]
        with pytest.raises(StateAway, match="another operation"):
            async with database._connected():
                await broken()
        assert await database.fetch("SELECT 2") == [(2,)]
    finally:
        await database.close()


async def test_a_newer_postgres_schema_is_refused(postgres: Postgres) -> None:
    url = postgres.new_database()
    database = PostgresDatabase(url)
    await database.secret("pass", b"x")
    await database.fetch("INSERT INTO presignd_schema VALUES (?1)", len(MIGRATIONS) + 1)
    await database.close()
    with pytest.raises(StateAway, match="newer presignd"):
        await PostgresDatabase(url).secret("pass", b"x")


async def test_a_sqlite_file_that_was_removed_is_made_again(tmp_path: Path) -> None:
    file = tmp_path / "below" / "state.db"
    async with opened(lambda: SqliteDatabase(file)) as links:
        await links.put([a_link()])
        assert file.stat().st_mode & 0o777 == 0o600
        for each in file.parent.iterdir():
            each.unlink()
        assert await links.find(hash_of("one")) is None


async def test_a_sqlite_file_that_was_replaced_is_the_state_from_then_on(tmp_path: Path) -> None:
    """As a backup is that is put in its place while a broker runs: neither gets what the other's log has."""
    file, backup, aside = (tmp_path / name for name in ("state.db", "backup.db", "aside.db"))
    async with opened(lambda: SqliteDatabase(backup)) as links:
        await links.put([a_link("one")])
    async with opened(lambda: SqliteDatabase(file)) as links:
        await links.put([a_link("two")])
        file.rename(aside)
        backup.rename(file)
        assert await links.find(hash_of("one")) is not None
        assert await links.find(hash_of("two")) is None
    async with opened(lambda: SqliteDatabase(aside)) as links:
        assert await links.find(hash_of("two")) is not None


async def test_a_sqlite_file_on_a_network_filesystem_is_no_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brokers of two hosts would write into it side by side."""
    monkeypatch.setattr(filesystem, "fs_type", lambda _target: 0x6969)
    database = SqliteDatabase(tmp_path / "state.db")
    with pytest.raises(StateAway, match="lies on NFS") as refused:
        await database.fetch("SELECT 1")
    assert "PostgreSQL" in refused.value.fix
    await database.close()


async def test_a_call_that_no_database_takes_is_its_caller_s_bug_alone(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "state.db")
    with pytest.raises(OverflowError):
        await database.fetch("SELECT ?1", 1 << 64)
    assert await database.fetch("SELECT 1") == [(1,)]
    await database.close()


async def test_why_a_sqlite_file_is_no_state_is_told_with_what_to_do(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "state.db")
    (tmp_path / "state.db").write_bytes(b"no database " * 1000)
    with pytest.raises(StateAway, match=r"^the state .*state.db is damaged: ") as damaged:
        await database.fetch("SELECT 1")
    assert damaged.value.fix.startswith("test the disk, then move state.db, state.db-wal and state.db-shm away")
    (tmp_path / "state.db").unlink()
    with pytest.raises(StateAway, match=r"state.db: no such table: missing"):
        await database.fetch("SELECT 1 FROM missing")
    await database.close()


@pytest.mark.parametrize("change", ["PRAGMA user_version = 1000", "PRAGMA application_id = 1"])
async def test_a_file_that_is_newer_or_another_programs_is_refused(tmp_path: Path, change: str) -> None:
    file = tmp_path / "state.db"
    async with opened(lambda: SqliteDatabase(file)) as links:
        await links.put([a_link()])
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA user_version = 1000")
    connection.execute(change)
    connection.close()
    async with opened(lambda: SqliteDatabase(file)) as links:
        with pytest.raises(StateAway, match=r"this presignd knows versions up to|another program"):
            await links.find(hash_of("one"))


async def test_a_sqlite_file_that_cannot_be_opened_is_away_and_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    file.mkdir()
    async with opened(lambda: SqliteDatabase(file)) as links:
        with pytest.raises(StateAway):
            await links.find(hash_of("one"))
        file.rmdir()
        assert await links.find(hash_of("one")) is None


async def test_another_process_that_holds_a_sqlite_file_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    async with opened(lambda: SqliteDatabase(file)) as links:
        await links.put([a_link()])
        connection = sqlite3.connect(file, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        call = asyncio.create_task(links.open(hash_of("one"), NOW))
        await asyncio.sleep(0.2)
        assert not call.done()
        connection.execute("COMMIT")
        connection.close()
        assert await call is not None
