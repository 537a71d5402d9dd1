"""One lane's turns; the test controls the clock, the looks and the ledger."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from presignd.config import WatchConfig
from presignd.errors import Fault
from presignd.errors import fault as fault_for
from presignd.ledger import Enqueued, LostUpdate
from presignd.model import FileVersion, Fingerprint, Listed, NewVersion, Source, State
from presignd.pipeline.files.hash import Prepared, Read, read_at
from presignd.pipeline.intake import make_version
from presignd.pipeline.settle import lane as lanes
from presignd.pipeline.settle import looker
from presignd.pipeline.settle.decide import LOCAL_PRECISION, NETWORK_PRECISION, Look, Rules, decide
from presignd.pipeline.settle.lane import COMPARING, ROOM, SHOWN, Lane
from presignd.pipeline.settle.looker import Looker, ReadAhead
from presignd.pipeline.stage import TURN, Ahead
from presignd.states import IN_FLIGHT, is_recorded

EPOCH = 1_800_000_000 * 10**9
LARGE = 1 << 20
HOUR = 3600 * 10**9
OLD = Fingerprint(ino=1, size=5, mtime_ns=EPOCH - HOUR, ctime_ns=EPOCH - HOUR)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return EPOCH + round(self.now * 1e9)


class Files(Looker):
    """What a look finds: by path, a fingerprint and whether somebody writes."""

    def __init__(self, clock: Clock, rules: Rules, ahead: ReadAhead) -> None:
        self.clock, self.rules, self.ahead = clock, rules, ahead
        self.there: dict[bytes, Fingerprint] = {}
        self.writers: set[bytes] = set()
        self.unreadable: set[bytes] = set()
        self.faults: dict[bytes, str] = {}
        self.markers: dict[bytes, str] = {}
        self.same: bool | None = True
        self.looks: list[list[bytes]] = []
        self.read: dict[bytes, Read] = {}
        self.during: Callable[[], None] = lambda: None
        self.comparing: Callable[[], None] = lambda: None
        self.compared = threading.Event()
        self.compared.set()

    inline_limit = 0

    def look(self, paths: Iterable[tuple[bytes, Look | None]], read: Read = read_at) -> list[Look]:
        asked = [*paths]
        self.looks.append([path for path, _ in asked])
        self.during()
        return [self._seen(path, before, read) for path, before in asked]

    def _seen(self, path: bytes, before: Look | None, read: Read) -> Look:
        code = "unreadable" if path in self.unreadable else self.faults.get(path)
        broken, missing = fault_for(code) if code else None, self.markers.get(path, "")
        found, now = self.there.get(path), self.clock.now
        look = Look(self.clock.time_ns(), now, now, found, path in self.writers, missing, fault=broken)
        if before:
            look.follow(before)
        look.wait = decide(look, self.rules)
        if found and look.wait is None and (ahead := self.ahead("drop")) and found.size <= ahead.size:
            self.read[path] = read
            look.content = Prepared(None, found, dict.fromkeys(ahead.algorithms, ""), b"")
        return look

    def same_content(  # its arguments are the looker's
        self,
        path: bytes,
        fingerprint: Fingerprint,  # noqa: ARG002
        known: FileVersion,  # noqa: ARG002
        stop: threading.Event,  # noqa: ARG002
    ) -> bool | None:
        self.comparing()
        self.compared.wait()
        return self.same if path in self.there else None


class Records:
    """The few methods of the ledger that settling calls."""

    def __init__(self) -> None:
        self.current: dict[bytes, FileVersion] = {}
        self.enqueued: list[NewVersion] = []
        self.asked: list[int] = []
        self.before_enqueue: Callable[[], None] = lambda: None

    async def known(self, watch: str, paths: Sequence[bytes]) -> dict[bytes, FileVersion]:
        assert watch == "drop"
        self.asked.append(len(paths))
        return {path: self.current[path] for path in paths if path in self.current}

    async def differing(self, watch: str, listed: Sequence[Listed]) -> list[Listed]:
        known = await self.known(watch, [path for path, *_ in listed])
        return [each for each in listed if not is_recorded(known.get(each[0]), Fingerprint(*each[1:]))]

    async def enqueue(self, versions: Sequence[NewVersion]) -> list[Enqueued]:
        self.before_enqueue()
        if any(self._state(one.path) in IN_FLIGHT for one in versions):
            raise LostUpdate
        self.enqueued += versions
        made = [recorded(one) for one in versions]
        self.current |= {one.path: one for one in made}
        return [Enqueued(one, None) for one in made]

    async def refingerprint(self, found: Sequence[tuple[str, Fingerprint]]) -> None:
        paths = {version.file_id: path for path, version in self.current.items()}
        if not all(file_id in paths for file_id, _ in found):
            raise LostUpdate
        for file_id, fingerprint in found:
            path = paths[file_id]
            self.current[path] = self.current[path]._replace(fingerprint=fingerprint)

    def move(self, path: bytes, state: State, **changes: Any) -> None:
        self.current[path] = self.current[path]._replace(state=state, **changes)

    def _state(self, path: bytes) -> State | None:
        return self.current[path].state if path in self.current else None


def listed(path: bytes, fingerprint: Fingerprint = OLD) -> Listed:
    return path, fingerprint.ino, fingerprint.size, fingerprint.mtime_ns, fingerprint.ctime_ns


def recorded(new: NewVersion) -> FileVersion:
    return FileVersion(
        file_id=new.file_id,
        watch=new.watch,
        path=new.path,
        fingerprint=new.fingerprint,
        state=new.state,
        bucket=new.bucket,
        base_key=new.key,
        key=new.key,
        content_type=new.content_type,
        priority=new.priority,
        queued_at=new.queued_at,
        error_code=new.error_code,
    )


def numbered(
    watch: WatchConfig,
    path: bytes,
    fingerprint: Fingerprint,
    source: Source,
    *,
    fault: Fault | None = None,
    now: datetime | None = None,
) -> NewVersion:
    """Return a version that a test can name: by path and fingerprint."""
    version = make_version(watch, path, fingerprint, source, fault=fault, now=now)
    return version._replace(file_id=f"{path!r}{fingerprint}", priority=0 if source is Source.EVENT else 1)


class Bench:
    """A lane with everything around it, turned by hand."""

    def __init__(self, **options: Any) -> None:
        self.clock, self.ledger = Clock(), Records()
        self.told: list[Enqueued] = []
        self.contents: dict[bytes, Prepared] = {}
        self.hashed_by: Collection[str] = ()
        watch = self.watch = WatchConfig(name="drop", path=Path("/srv/drop"), bucket="test-bucket", **options)
        ledger: Any = self.ledger
        self.returned: list[FileVersion] = []
        self.is_back = True
        self.files = Files(self.clock, Rules.of(watch.settle), self.ahead)
        self.lane = Lane(
            watch,
            ledger,
            record=self.record,
            on_return=self.is_there,
            monotonic=self.clock.monotonic,
        )
        self.lane.use(self.files)

    async def record(self, versions: Sequence[NewVersion], contents: Mapping[str, Prepared]) -> None:
        """Record them whoever is cancelled meanwhile, as the recorder does."""
        paths = {version.file_id: version.path for version in versions}
        self.contents |= {paths[file_id]: content for file_id, content in contents.items()}

        async def recorded() -> None:
            self.told += await self.ledger.enqueue(versions)

        await asyncio.shield(recorded())

    def ahead(self, watch: str) -> Ahead | None:
        assert watch == "drop"
        return Ahead(LARGE - 1, self.hashed_by) if self.hashed_by else None

    async def is_there(self, version: FileVersion) -> bool:
        self.returned.append(version)
        return self.is_back

    def file(self, path: bytes, fingerprint: Fingerprint = OLD, source: Source = Source.EVENT) -> None:
        self.files.there[path] = fingerprint
        self.lane.submit([path], source)

    async def turn(self, after: float = 0.0) -> bool:
        """Let ``after`` seconds pass and take one turn, what it began included."""
        self.clock.now += after
        async with asyncio.TaskGroup() as tasks:
            return await self.lane.turn(tasks)

    def paths(self) -> list[bytes]:
        return [one.path for one in self.ledger.enqueued]


@pytest.fixture(autouse=True)
def numbered_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "make_version", numbered)


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_a_quiet_file_is_enqueued_and_told_of(bench: Bench) -> None:
    bench.file(b"a")
    assert await bench.turn()
    assert bench.paths() == [b"a"]
    assert [one.version.path for one in bench.told] == [b"a"]
    assert bench.lane.snapshot() == []
    assert not await bench.turn(3600)


async def test_a_tiny_file_is_read_by_the_look_that_finds_it_complete(bench: Bench) -> None:
    bench.hashed_by = ["md5"]
    bench.file(b"tiny", OLD)
    bench.file(b"large", OLD._replace(size=LARGE))
    bench.file(b"young", OLD._replace(ctime_ns=EPOCH))
    await bench.turn()
    assert {path: [*content.checksums] for path, content in bench.contents.items()} == {b"tiny": ["md5"]}
    assert bench.files.read == {b"tiny": read_at}, "in a thread, so from the disk too"


async def test_many_hints_for_a_path_are_one_look_at_the_best_priority(bench: Bench) -> None:
    bench.file(b"a", source=Source.BACKLOG)
    bench.file(b"a", source=Source.EVENT)
    bench.file(b"a", source=Source.SCAN)
    await bench.turn()
    assert bench.files.looks == [[b"a"]]
    assert [one.priority for one in bench.ledger.enqueued] == [0]


async def test_events_go_before_a_backlog_of_any_length(bench: Bench) -> None:
    for number in range(3 * TURN):
        bench.file(b"old%d" % number, source=Source.BACKLOG)
    bench.file(b"new")
    await bench.turn()
    assert bench.paths()[0] == b"new"
    assert len(bench.files.looks[0]) == TURN


async def test_one_turn_asks_the_ledger_once(bench: Bench) -> None:
    for number in range(TURN):
        bench.file(b"%d" % number)
    await bench.turn()
    assert bench.ledger.asked == [TURN]
    assert len(bench.ledger.enqueued) == TURN


async def test_a_young_file_is_looked_at_again_when_its_quiet_time_is_over_and_not_before(bench: Bench) -> None:
    bench.file(b"a", OLD._replace(ctime_ns=EPOCH))
    await bench.turn()
    assert bench.lane.snapshot()[0].why == "not yet quiet for 1 s"
    assert not await bench.turn(0.99)
    assert await bench.turn(0.01)
    assert bench.paths() == [b"a"]


async def test_a_file_that_grows_for_a_minute_settles_once_it_has_stopped(bench: Bench) -> None:
    """By a writer that opens and closes it each time, with pauses shorter than the quiet time."""
    for piece in range(75):
        bench.file(b"a", OLD._replace(size=piece, ctime_ns=bench.clock.time_ns()))
        for _ in range(4):
            await bench.turn(0.2)
    assert bench.paths() == []
    await bench.turn(0.2)
    assert [one.fingerprint.size for one in bench.ledger.enqueued] == [74]


async def test_a_held_file_waits_and_an_event_brings_the_look_forward(bench: Bench) -> None:
    bench.files.writers.add(b"a")
    bench.file(b"a")
    for _ in range(20):
        await bench.turn(1.0)
    assert [(one.path, one.why) for one in bench.lane.snapshot()] == [(b"a", "open for writing")]
    bench.files.writers.clear()
    assert not await bench.turn(0.2)
    bench.file(b"a")
    await bench.turn()
    assert bench.paths() == [b"a"]


async def test_a_stream_of_events_for_one_file_costs_ten_looks_a_second_at_most(bench: Bench) -> None:
    bench.files.writers.add(b"a")
    for _ in range(1000):
        bench.file(b"a")
        await bench.turn(0.001)
    assert len(bench.files.looks) <= 11


async def test_a_file_that_vanishes_while_it_settles_is_forgotten(bench: Bench) -> None:
    bench.file(b"a", OLD._replace(ctime_ns=EPOCH))
    await bench.turn()
    del bench.files.there[b"a"]
    await bench.turn(1)
    assert bench.lane.snapshot() == []
    assert bench.ledger.enqueued == []


async def test_an_event_during_the_turn_that_settles_a_file_brings_another_look(bench: Bench) -> None:
    """What the event tells of may have come after the look: dropping it would lose the newer content."""
    newer = OLD._replace(size=6)
    bench.files.during = lambda: bench.lane.submit([b"a"], Source.EVENT)
    bench.file(b"a")
    await bench.turn()
    bench.files.during = lambda: None
    bench.files.there[b"a"] = newer
    await bench.turn(0.1)
    assert [one.fingerprint for one in bench.ledger.enqueued] == [OLD, newer]


async def test_what_the_ledger_has_is_dropped_without_a_change(bench: Bench) -> None:
    bench.file(b"a")
    await bench.turn()
    bench.file(b"a")
    await bench.turn()
    assert bench.paths() == [b"a"]


@pytest.mark.parametrize("state", sorted(IN_FLIGHT))
async def test_new_content_waits_while_the_version_before_it_is_in_flight(bench: Bench, state: State) -> None:
    bench.file(b"a")
    await bench.turn()
    bench.ledger.move(b"a", state)
    bench.file(b"a", OLD._replace(size=6))
    for _ in range(10):
        await bench.turn(2)
    assert len(bench.ledger.enqueued) == 1
    assert "in flight" in bench.lane.snapshot()[0].why
    bench.ledger.move(b"a", State.FINISHED)
    await bench.turn(2)
    assert [one.fingerprint.size for one in bench.ledger.enqueued] == [5, 6]


async def test_a_path_that_gets_in_flight_between_question_and_record_holds_up_no_other(bench: Bench) -> None:
    bench.file(b"a")
    await bench.turn()
    bench.ledger.before_enqueue = lambda: bench.ledger.move(b"a", State.UPLOADING)
    bench.file(b"a", OLD._replace(size=6))
    bench.file(b"b")
    await bench.turn()
    assert bench.paths() == [b"a", b"b"]
    bench.ledger.before_enqueue = lambda: None
    bench.ledger.move(b"a", State.FINISHED)
    await bench.turn(1)
    assert bench.paths() == [b"a", b"b", b"a"]


async def test_equal_content_under_another_ctime_is_recorded_as_the_same_version(bench: Bench) -> None:
    bench.file(b"a")
    await bench.turn()
    bench.ledger.move(b"a", State.FINISHED, checksum="md5:0")
    touched = OLD._replace(ctime_ns=OLD.ctime_ns + 1)
    bench.file(b"a", touched)
    await bench.turn()
    assert bench.paths() == [b"a"]
    assert bench.ledger.current[b"a"].fingerprint == touched
    assert bench.lane.snapshot() == []


async def test_other_content_under_the_same_size_and_mtime_is_a_new_version(bench: Bench) -> None:
    bench.file(b"a")
    await bench.turn()
    bench.ledger.move(b"a", State.FINISHED, checksum="md5:0")
    bench.files.same = False
    bench.file(b"a", OLD._replace(ctime_ns=OLD.ctime_ns + 1))
    await bench.turn()
    assert bench.paths() == [b"a", b"a"]


async def test_a_file_that_changes_while_it_is_compared_is_looked_at_again(bench: Bench) -> None:
    bench.file(b"a")
    await bench.turn()
    bench.ledger.move(b"a", State.FINISHED, checksum="md5:0")
    bench.files.same = None
    bench.file(b"a", OLD._replace(ctime_ns=OLD.ctime_ns + 1))
    await bench.turn()
    assert len(bench.lane.snapshot()) == 1
    bench.files.same = True
    await bench.turn(1)
    assert bench.lane.snapshot() == []


@pytest.mark.parametrize("now", [OLD, OLD._replace(ino=OLD.ino + 1)])
async def test_a_version_whose_file_is_back_is_told_of_before_that_is_recorded(bench: Bench, now: Fingerprint) -> None:
    """With the file's fingerprint as it is now; and if the file is gone again, nothing is recorded."""
    bench.file(b"a")
    await bench.turn()
    bench.ledger.move(b"a", State.FINISHED, checksum="md5:0", gone_at=datetime(2026, 1, 1, tzinfo=UTC))
    bench.is_back = False
    bench.file(b"a", now)
    await bench.turn()
    assert [version.fingerprint for version in bench.returned] == [now]
    assert bench.ledger.current[b"a"].fingerprint == OLD
    assert len(bench.lane.snapshot()) == 1
    bench.is_back = True
    await bench.turn(1)
    assert bench.ledger.current[b"a"].fingerprint == now
    assert bench.paths() == [b"a"]
    assert bench.lane.snapshot() == []


async def test_a_folder_that_is_touched_whole_is_compared_a_few_files_at_a_time(bench: Bench) -> None:
    """``chmod -R`` over a million files: no million tasks, and a scan that waits for them."""
    paths = [b"%d" % number for number in range(COMPARING + 50)]
    for path in paths:
        bench.file(path)
    while await bench.turn():
        pass
    touched = OLD._replace(ctime_ns=OLD.ctime_ns + 1)
    for path in paths:
        bench.ledger.move(path, State.FINISHED, checksum="md5:0")
        bench.file(path, touched)
    bench.files.compared.clear()
    async with asyncio.TaskGroup() as tasks:
        while await bench.lane.turn(tasks):
            assert bench.lane._comparing <= COMPARING
        assert len(bench.lane.snapshot()) == len(paths)
        bench.files.compared.set()
    assert len(bench.lane.snapshot()) == 50
    while await bench.turn():
        pass
    assert bench.lane.snapshot() == []
    assert {one.fingerprint for one in bench.ledger.current.values()} == {touched}


async def test_a_file_that_waits_to_be_compared_is_looked_at_when_an_event_tells_of_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves its place among those that wait, and the one behind it gets its turn."""
    monkeypatch.setattr(lanes, "COMPARING", 1)
    bench.files.compared.clear()
    paths = [b"first", b"told of", b"behind"]
    for path in paths:
        bench.file(path)
    await bench.turn()
    for path in paths:
        bench.ledger.move(path, State.FINISHED, checksum="md5:0")
        bench.file(path, OLD._replace(ctime_ns=OLD.ctime_ns + 1))
    async with asyncio.TaskGroup() as tasks:
        await bench.lane.turn(tasks)
        newer = OLD._replace(size=6)
        bench.file(b"told of", newer)
        bench.clock.now += 1
        await bench.lane.turn(tasks)
        assert bench.ledger.enqueued[-1].fingerprint == newer
        bench.files.compared.set()
    while await bench.turn():
        pass
    assert bench.lane.snapshot() == []


async def test_files_that_wait_to_be_compared_get_their_turn_though_the_one_before_them_is_gone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``chmod -R``, then ``rm -r`` of a part: else the rest would wait for an event, and scans for ever for room."""
    monkeypatch.setattr(lanes, "COMPARING", 1)
    bench.files.compared.clear()
    paths = [b"first", b"removed", b"behind"]
    for path in paths:
        bench.file(path)
    await bench.turn()
    touched = OLD._replace(ctime_ns=OLD.ctime_ns + 1)
    for path in paths:
        bench.ledger.move(path, State.FINISHED, checksum="md5:0")
        bench.file(path, touched)
    async with asyncio.TaskGroup() as tasks:
        await bench.lane.turn(tasks)
        del bench.files.there[b"removed"]
        bench.files.compared.set()
    while await bench.turn():
        pass
    assert bench.lane.snapshot() == []
    assert bench.ledger.current[b"behind"].fingerprint == touched


async def test_a_version_that_moves_on_while_its_file_is_compared_is_asked_for_again(bench: Bench) -> None:
    """A retry by hand may take it up just then: which version the file is has to be asked anew."""
    bench.file(b"a")
    await bench.turn()
    bench.ledger.move(b"a", State.FINISHED, checksum="md5:0")
    touched = OLD._replace(ctime_ns=OLD.ctime_ns + 1)
    file_id = bench.ledger.current[b"a"].file_id
    bench.files.comparing = lambda: bench.ledger.move(b"a", State.QUEUED, file_id="another")
    bench.file(b"a", touched)
    await bench.turn()
    assert [one.path for one in bench.lane.snapshot()] == [b"a"]
    bench.files.comparing = lambda: None
    bench.ledger.move(b"a", State.FINISHED, file_id=file_id)
    await bench.turn(1)
    assert bench.lane.snapshot() == []
    assert bench.ledger.current[b"a"].fingerprint == touched


async def test_a_scan_waits_while_too_much_is_to_be_compared(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "ROOM", 10)
    monkeypatch.setattr(lanes, "COMPARING", 1)
    bench.files.compared.clear()
    paths = [b"%d" % number for number in range(10)]
    for path in paths:
        bench.file(path)
    await bench.turn()
    for path in paths:
        bench.ledger.move(path, State.FINISHED, checksum="md5:0")
        bench.file(path, OLD._replace(ctime_ns=OLD.ctime_ns + 1))
    async with asyncio.TaskGroup() as tasks:
        await bench.lane.turn(tasks)
        waiting = asyncio.ensure_future(bench.lane.wait_for_room())
        await asyncio.sleep(0)
        assert not waiting.done()
        bench.files.compared.set()
    await waiting


async def test_what_cannot_be_looked_at_now_is_told_once_for_each_reason_while_any_file_has_it() -> None:
    with capture_logs() as told:
        bench = Bench()
        bench.files.faults = {b"a": "too_many_files", b"b/c": "too_many_files", b"d": "read_error"}
        for path in (b"a", b"b/c", b"d"):
            bench.file(path)
        for _ in range(3):
            await bench.turn(1)
        lines = [(one["event"], one["log_level"], one["watch"], one["path"], one["error_code"]) for one in told]
        assert lines == [
            ("settle.retry", "warning", "drop", "/srv/drop/a", "too_many_files"),
            ("settle.retry", "warning", "drop", "/srv/drop/d", "read_error"),
        ]
        assert all(one["error"] and one["fix"] for one in told)
        del bench.files.faults[b"a"]
        bench.files.faults[b"e"] = "too_many_files"
        bench.file(b"e")
        await bench.turn(1)
        assert len(told) == 2, "b/c still waits for the same"
        bench.files.faults.clear()
        await bench.turn(1)
        assert sorted(bench.paths()) == [b"a", b"b/c", b"d", b"e"]
        bench.files.faults[b"f"] = "too_many_files"
        bench.file(b"f")
        await bench.turn(1)
        assert [one["path"] for one in told[2:]] == ["/srv/drop/f"]


async def test_a_path_that_is_forgotten_no_longer_counts_as_waiting_for_a_fault_to_pass(bench: Bench) -> None:
    """What the ledger has as it is needs no marker, so its path is forgotten though it could not be opened."""
    bench.file(b"a")
    await bench.turn()
    bench.files.markers[b"a"] = "a.ok"
    bench.files.faults = {b"a": "too_many_files", b"b": "too_many_files"}
    with capture_logs() as told:
        bench.file(b"a")
        await bench.turn()
        assert bench.lane.snapshot() == []
        bench.file(b"b")
        await bench.turn()
    assert [one["path"] for one in told] == ["/srv/drop/a", "/srv/drop/b"]


async def test_an_unreadable_file_is_recorded_as_quarantined(bench: Bench) -> None:
    bench.files.unreadable.add(b"a")
    bench.file(b"a")
    await bench.turn()
    assert [(one.state, one.error_code) for one in bench.ledger.enqueued] == [(State.QUARANTINED, "unreadable")]


async def test_a_scan_offers_only_what_the_ledger_does_not_have(bench: Bench) -> None:
    bench.file(b"a")
    await bench.turn()
    assert await bench.lane.submit_scanned([listed(b"a"), listed(b"b")], Source.SCAN) == 1
    assert [one.path for one in bench.lane.snapshot()] == [b"b"]


async def test_files_older_than_the_first_start_are_recorded_as_ignored_and_keep_no_key(bench: Bench) -> None:
    young = OLD._replace(ctime_ns=EPOCH)
    first_start = datetime.fromtimestamp(EPOCH / 1e9 - 60, UTC)
    found = [listed(b"old"), listed(b"young", young)]
    assert await bench.lane.submit_scanned(found, Source.BACKLOG, ignore_before=first_start) == 1
    assert [(one.path, one.state, one.key) for one in bench.ledger.enqueued] == [(b"old", State.IGNORED, None)]
    assert [one.path for one in bench.lane.snapshot()] == [b"young"]


async def test_a_first_scan_ignores_no_file_that_came_after_the_first_start(bench: Bench) -> None:
    first_start = datetime.fromtimestamp(EPOCH / 1e9 - 60, UTC)
    found = [listed(b"young", OLD._replace(ctime_ns=EPOCH))]
    assert await bench.lane.submit_scanned(found, Source.BACKLOG, ignore_before=first_start) == 1
    assert bench.ledger.enqueued == []
    assert [one.path for one in bench.lane.snapshot()] == [b"young"]


async def test_a_scan_waits_while_too_much_has_not_been_looked_at(bench: Bench) -> None:
    for number in range(ROOM):
        bench.file(b"%d" % number, source=Source.BACKLOG)
    waiting = asyncio.ensure_future(bench.lane.wait_for_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await bench.turn()
    await waiting


async def test_hints_before_the_folder_was_opened_are_dropped(bench: Bench) -> None:
    ledger: Any = bench.ledger
    lane = Lane(bench.watch, ledger, record=bench.record, on_return=bench.is_there)
    lane.submit([b"a"], Source.EVENT)
    assert lane.snapshot() == []


async def test_a_lane_that_runs_takes_what_is_submitted(bench: Bench) -> None:
    running = asyncio.ensure_future(bench.lane.run())
    await asyncio.sleep(0)
    bench.file(b"a")
    async with asyncio.timeout(10):
        while not bench.told:  # noqa: ASYNC110 - the lane looks in a thread
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert bench.paths() == [b"a"]


@pytest.mark.parametrize(
    ("network", "fine", "precision"),
    [(True, True, NETWORK_PRECISION), (False, False, LOCAL_PRECISION), (False, True, 0.0)],
)
def test_file_times_are_trusted_as_far_as_their_filesystem_tells_them(
    monkeypatch: pytest.MonkeyPatch, *, network: bool, fine: bool, precision: float
) -> None:
    monkeypatch.setattr(looker, "is_network", lambda _folder: network)
    monkeypatch.setattr(looker, "has_fine_times", lambda _folder: fine)
    assert looker._timestamp_precision(0) == precision


async def test_each_path_that_settles_is_found_though_only_the_first_are_shown(bench: Bench) -> None:
    """Status of one path must not call a file unknown because thousands settle before it."""
    for number in range(SHOWN + 1):
        bench.file(b"%d" % number)
    last = b"%d" % SHOWN
    assert last not in {one.path for one in bench.lane.snapshot()}
    found = bench.lane.settling(last)
    assert found is not None
    assert (found.watch, found.path, found.why) == ("drop", last, "not looked at yet")
    assert bench.lane.settling(b"other") is None
