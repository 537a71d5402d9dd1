"""In any order of events the ledger keeps its invariants: a model compared with the real SQL."""

from __future__ import annotations

import sqlite3
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from presignd.ledger import Enqueued, LostUpdate, Selection, changes
from presignd.ledger import queries as questions
from presignd.ledger.changes import NOTHING, Change, Claim, Intents
from presignd.ledger.schema import MIGRATIONS
from presignd.model import FileVersion, Fingerprint, LinksMark, NewVersion, State
from presignd.states import ENDED, IN_FLIGHT, TRANSITIONS, UNCLEAN_LIMIT, Event, is_recorded
from tests.versions import NOW, PRINT, linking, new

PATHS = st.sampled_from([b"a", b"d/a", b"d/b"])
KEYS = st.sampled_from(["k", "k.txt", None])
PRINTS = (PRINT, PRINT._replace(ctime_ns=PRINT.ctime_ns + 1))
INTENTS = ["", "md5:e", "crc64nvme:0"]
EVENTS = st.sampled_from(sorted(set(Event) - {Event.CLAIM, Event.RELEASE, Event.REQUEUE, Event.RESUME}))


class LedgerMachine(RuleBasedStateMachine):
    """Work on one ledger in any order.

    ``states`` is the model: where each version has to stand; ``unclean`` has the suspects' numbers.
    """

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.execute("PRAGMA foreign_keys = ON")
        for migration in MIGRATIONS:
            for statement in migration:
                self.connection.execute(statement)
        self.states: dict[str, State] = {}
        self.unclean: dict[str, int] = {}
        self.now = NOW

    def teardown(self) -> None:
        self.connection.close()

    def attempt(self, version: FileVersion, event: Event, code: str = "") -> FileVersion | None:
        """Apply an event; a stale value must be refused, and only a stale one."""
        stale = self.states.get(version.file_id) is not version.state  # None once pruned
        self.connection.execute("SAVEPOINT one")
        try:
            (moved,) = changes.apply(
                self.connection, [Change(version, (event,), {"done_at": self.now, "error_code": code})]
            )
        except LostUpdate:
            assert stale
            self.connection.execute("ROLLBACK TO one")
            return None
        finally:
            self.connection.execute("RELEASE one")
        assert not stale
        self.moved(moved, event)
        return moved

    def moved(self, version: FileVersion, event: Event) -> None:
        """Check one move against the table."""
        assert TRANSITIONS[self.states[version.file_id]][event] is version.state
        self.states[version.file_id] = version.state
        if event in (Event.VERIFY, Event.REQUEUE, Event.RESUME):
            self.unclean.pop(version.file_id, None)

    def enqueued(self, wanted: NewVersion, intents: Intents = NOTHING) -> list[Enqueued]:
        """Record a new version as ``Ledger.enqueue`` does."""
        self.connection.execute("SAVEPOINT new")
        try:
            return changes.enqueue_new(self.connection, [wanted], intents)
        except sqlite3.IntegrityError:
            self.connection.execute("ROLLBACK TO new")
            return changes.enqueue(self.connection, [wanted], intents)
        finally:
            self.connection.execute("RELEASE new")

    @rule(path=PATHS, key=KEYS, fresh=st.booleans(), following=st.booleans())
    def enqueue(self, path: bytes, key: str | None, fresh: bool, following: bool) -> None:
        before = questions.by_path(self.connection, "drop", path)
        wanted = new(path, key=key, fresh_key=fresh, next_key=following, queued_at=self.now)
        self.connection.execute("SAVEPOINT one")
        try:
            (recorded,) = self.enqueued(wanted)
        except LostUpdate:
            assert before is not None
            assert before.state in IN_FLIGHT
            self.connection.execute("ROLLBACK TO one")
            return
        finally:
            self.connection.execute("RELEASE one")
        assert before is None or before.state not in IN_FLIGHT
        if recorded.superseded:
            self.moved(recorded.superseded, Event.SUPERSEDE)
        self.states[wanted.file_id] = recorded.version.state
        assert (recorded.version.state is State.QUARANTINED) == (key is not None and recorded.version.key is None)

    @rule(
        target=held, path=PATHS, key=KEYS, fresh=st.booleans(), following=st.booleans(), intent=st.sampled_from(INTENTS)
    )
    def enqueue_and_claim(self, path: bytes, key: str | None, fresh: bool, following: bool, intent: str) -> object:
        before = questions.by_path(self.connection, "drop", path)
        if before and before.state in IN_FLIGHT:
            return multiple()
        wanted = new(path, key=key, fresh_key=fresh, next_key=following, queued_at=self.now)
        self.connection.execute("SAVEPOINT one")
        (queued,) = changes.enqueue(self.connection, [wanted])
        (claimed,) = changes.claim(self.connection, [Claim(queued.version, intent)])
        in_two_steps = claimed or (queued.version, None), queued.superseded, self.rows()
        self.connection.execute("ROLLBACK TO one")
        self.connection.execute("RELEASE one")
        (done,) = self.enqueued(wanted, {wanted.file_id: intent})
        assert ((done.version, done.previous), done.superseded, self.rows()) == in_two_steps
        if done.superseded:
            self.moved(done.superseded, Event.SUPERSEDE)
        self.states[wanted.file_id] = done.version.state
        return done.version if claimed else multiple()

    def rows(self) -> list[object]:
        return [self.connection.execute(f"SELECT * FROM {table}").fetchall() for table in ("version", "object_key")]

    def claimed(self, limit: int) -> list[FileVersion]:
        due = questions.due(self.connection, "drop", limit, self.now)
        found = changes.claim(self.connection, [Claim(version) for version in due])
        return [one.version for one in found if one]

    @rule(target=held, limit=st.integers(1, 3))
    def claim(self, limit: int) -> object:
        waiting = [file_id for file_id, state in self.states.items() if state is State.QUEUED]
        claimed = self.claimed(limit)
        assert len(claimed) == min(limit, len(waiting))
        for version in claimed:
            self.moved(version, Event.CLAIM)
        return multiple(*claimed)

    @rule(target=held, version=consumes(held), event=EVENTS, code=st.sampled_from(["", "unreadable", "exists"]))
    def work(self, version: FileVersion, event: Event, code: str) -> object:
        if event not in TRANSITIONS[version.state]:
            return version
        moved = self.attempt(version, event, code)
        return multiple(*[moved] if moved else [])

    @rule()
    def upload_all(self) -> None:
        for version in self.claimed(100):
            self.moved(version, Event.CLAIM)
            if version.key:
                self.succeed_with(version)

    def succeed_with(self, version: FileVersion) -> None:
        for event in (Event.VERIFY, Event.LINK, Event.FINISH):
            moved = self.attempt(version, event)
            assert moved is not None
            version = moved

    @rule(target=held, version=consumes(held), fresh=st.booleans(), beyond=st.booleans())
    def assign_key(self, version: FileVersion, fresh: bool, beyond: bool) -> object:
        if version.state is not State.UPLOADING or self.states.get(version.file_id) is not State.UPLOADING:
            return version
        passed_over = (version.key or "") if beyond else ""
        base_key = version.base_key or "hash"
        named = changes.assign_key(
            self.connection, version, base_key, fresh=fresh, next_key=True, after_key=passed_over
        )
        assert named is not None
        assert not (beyond and version.key) or named.key != version.key
        return named

    @rule(where=st.sampled_from([b"a", b"d", b"d/a", b"missing"]))
    def gone(self, where: bytes) -> None:
        ended, more = changes.record_gone(self.connection, "drop", [where], self.now)
        assert not more
        for version in ended:
            self.moved(version, Event.VANISH)

    @rule(version=held, fingerprint=st.sampled_from(PRINTS))
    def refingerprint(self, version: FileVersion, fingerprint: Fingerprint) -> None:
        self.connection.execute("SAVEPOINT one")
        try:
            changes.refingerprint(self.connection, [(version.file_id, fingerprint)])
        except LostUpdate:
            self.connection.execute("ROLLBACK TO one")
        finally:
            self.connection.execute("RELEASE one")

    @rule(unclean=st.booleans())
    def restart(self, unclean: bool) -> None:
        uploading = [file_id for file_id, state in self.states.items() if state is State.UPLOADING]
        for file_id in uploading if unclean else ():
            self.unclean[file_id] = self.unclean.get(file_id, 1) + (len(uploading) == 1)
        stopped = changes.release(self.connection, unclean=unclean)
        limit = UNCLEAN_LIMIT if unclean else sum(self.unclean.values())
        assert {one.file_id for one in stopped} == {one for one in uploading if self.unclean.get(one, 0) > limit}
        for version in stopped:
            self.moved(version, Event.QUARANTINE)
        for file_id, state in self.states.items():
            if state is State.UPLOADING:
                self.states[file_id] = TRANSITIONS[state][Event.RELEASE]

    @precondition(lambda self: State.QUARANTINED in self.states.values())
    @rule()
    def retry(self) -> None:
        for version in changes.requeue(self.connection, Selection(), self.now):
            self.moved(version, Event.RESUME if version.state is State.LINKED else Event.REQUEUE)
        assert State.QUARANTINED not in self.states.values()

    @rule()
    def announce_and_prune(self) -> None:
        ended = questions.unannounced(self.connection)
        assert all(version.state in ENDED for version in ended)
        changes.record_announced(self.connection, [version.file_id for version in ended])
        self.now += timedelta(days=1)
        changes.prune(self.connection, self.now)
        kept = {row[0] for row in self.connection.execute("SELECT file_id FROM version")}
        assert all(self.states[file_id] in ENDED for file_id in self.states.keys() - kept)
        self.states = {file_id: state for file_id, state in self.states.items() if file_id in kept}

    @rule(version=held, ends=st.booleans())
    def link_in_a_batch(self, version: FileVersion, ends: bool) -> None:
        if version.state is State.VERIFIED and self.states.get(version.file_id) is State.VERIFIED:
            link = linking(version, done_at=self.now) if ends else linking(version)
            (moved,) = changes.record_linked(self.connection, [link], LinksMark(1, 2))
            self.moved(moved._replace(state=State.LINKED), Event.LINK)
            if ends:
                self.moved(moved, Event.FINISH)

    @invariant()
    def rows_stand_where_their_events_led(self) -> None:
        rows = dict(self.connection.execute("SELECT file_id, state FROM version"))
        assert rows == self.states

    @invariant()
    def those_in_flight_at_an_unclean_exit_are_suspects_until_they_get_on(self) -> None:
        rows = self.connection.execute("SELECT file_id, unclean FROM version WHERE unclean > 0")
        assert {*rows} == {(file_id, n) for file_id, n in self.unclean.items() if file_id in self.states}
        queued = {file_id for file_id in self.unclean if self.states.get(file_id) is State.QUEUED}
        assert {*questions.suspects(self.connection)} == queued

    @invariant()
    def each_path_has_one_current_version_and_only_that_is_worked_on(self) -> None:
        others = self.connection.execute(
            "SELECT count(*) FROM version WHERE current = 0 AND state NOT IN ('finished', 'vanished', 'superseded')"
        )
        assert others.fetchone() == (0,)
        paths = [row[0] for row in self.connection.execute("SELECT path FROM version WHERE current = 1")]
        assert len(paths) == len(set(paths))

    @invariant()
    def a_scan_s_query_and_the_rule_agree_on_what_is_recorded_as_it_is(self) -> None:
        for path in (b"a", b"d/a", b"d/b"):
            known = questions.by_path(self.connection, "drop", path)
            for fingerprint in PRINTS:
                listed = (path, *fingerprint)
                differs = questions.differing(self.connection, "drop", [listed]) == [listed]
                assert differs == (not is_recorded(known, fingerprint))

    @invariant()
    def no_key_with_an_object_or_an_upload_to_come_is_another_paths(self) -> None:
        strangers = self.connection.execute(
            "SELECT version.path, version.key FROM version LEFT JOIN object_key USING (bucket, key)"
            " WHERE version.key IS NOT NULL AND object_key.path IS NOT version.path"
            " AND (version.verified = 1 OR version.state IN ('queued', 'uploading', 'quarantined'))"
        )
        assert strangers.fetchall() == []


@pytest.mark.parametrize("histories", [75, pytest.param(300, marks=pytest.mark.long)])
def test_the_invariants_hold_in_any_order_of_events(histories: int) -> None:
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=histories,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,  # the same histories in each run: a red CI is one that can be repeated
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
