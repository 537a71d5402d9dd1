"""One inbox: wait for files of its invitation, bring each into its folder, and acknowledge it to the broker.

The broker's list is the queue. A listed file is recorded or, if it is known, continued from its state in the ledger.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

from presignd.config import InboxConfig
from presignd.errors import Fault, FileFault, GrantFault, PresigndError, fault
from presignd.inbox.fetch import Fetcher, folder_fault, in_thread
from presignd.inbox.folder import Identity, InboxFolder
from presignd.inbox.names import FALLBACK, safe_path
from presignd.ledger import Arrival, ArrivalRecords, NewArrival
from presignd.presign.broker_inbox import MOST, WAIT, Arrived, BrokerInbox
from presignd.runtime.crash_points import passed
from presignd.runtime.heartbeat import alive, beat, resting
from presignd.runtime.outage import Trouble
from presignd.runtime.tasks import first_error, looping
from presignd.store.signed import SignedStore
from presignd.system.clock import utcnow
from presignd.telemetry import metrics
from presignd.telemetry.log import get_logger

WORKERS = 4
"""Most files that are brought in at a time."""

TRIES = 3
"""How often a file is tried after faults of its own."""

LONGEST_PAUSE = 30.0
"""Seconds between two tries while something is away."""

FIRST_REST, LONGEST_REST = 60.0, 3600.0
"""Longest pauses before a file that was given up is tried again, in seconds: the first, and any other."""

_OWN = ("missing_object", "wrong_bytes", "internal_error")
"""Faults of one file; after any other, the call is retried."""

_BAD_NAME = frozenset({errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG})
"""Errors of a filesystem for a name that it can't have."""

T = TypeVar("T")

log = get_logger()


class Inbox:
    """Brings in the files of one invitation; ``run`` never returns.

    ``listing`` and ``bringing`` are the faults it waits for, if any: of the broker's list, and of its files.
    ``backoff`` is ``states.backoff``. ``on_arrival`` is called with each file once it is in its place.
    """

    def __init__(
        self,
        config: InboxConfig,
        broker: BrokerInbox,
        arrivals: ArrivalRecords,
        store: Callable[[], SignedStore],
        *,
        backoff: Callable[..., float],
        on_arrival: Callable[[NewArrival, Path], None] = lambda *_: None,
    ) -> None:
        self.config = config
        self.listing, self.bringing = Trouble("inbox", config.name), Trouble("inbox", config.name)
        self._broker, self._arrivals, self._backoff = broker, arrivals, backoff
        self._on_arrival = on_arrival
        self._folder = InboxFolder(config.name, config.path)
        self._fetcher = Fetcher(self._folder, store)
        self._after = "0"
        self._known: set[str] = set()
        self._given_up: Counter[str] = Counter()
        self._rests: dict[str, float] = {}
        self._waiting: asyncio.Queue[Arrival] = asyncio.Queue(MOST)
        self._placed: asyncio.Queue[str] = asyncio.Queue()

    async def run(self) -> None:
        """Bring in files until cancelled; raise what the ledger raises."""
        try:
            async with looping() as loops:
                for number in range(WORKERS):
                    loops.start(f"inbox worker {number}", self._work())
                loops.start("inbox acknowledgements", self._acknowledge())
                with alive(f"inbox {self.config.name}"):
                    await self._follow()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            await self._broker.close()

    # --- the list ---------------------------------------------------------------------------------
    async def _follow(self) -> None:
        first = True
        while True:
            beat()
            self._end_rests()
            found = await self._persist(self._list, self.listing)
            if first and len(found) < MOST:
                await self._persist(partial(self._clear, found), self.bringing)
            first = False
            await self._take([_new(each) for each in found if each.id not in self._known])

    async def _list(self) -> list[Arrived]:
        try:
            found, self._after = await self._broker.arrived(self._after, WAIT)
        except Fault:
            self._after = "0"  # its state may be another one by then
            raise
        return found

    def _end_rests(self) -> None:
        """Read the list from its start once a file that was given up is due: another host may have fetched it."""
        now = _now()
        for ref in [ref for ref, until in self._rests.items() if until <= now]:
            del self._rests[ref]
            self._known.discard(ref)
            self._after = "0"

    async def _clear(self, listed: Sequence[Arrived]) -> None:
        """Remove downloads of files that the broker no longer lists: another host fetched them."""
        await in_thread(self._folder.forget_others, [each.id for each in listed])

    async def _take(self, new: Sequence[NewArrival]) -> None:
        if not new:
            return
        self._known |= {each.ref for each in new}
        for arrival in await self._arrivals.record(self.config.name, new):
            if arrival.is_placed:
                self._placed.put_nowait(arrival.new.ref)
            else:
                with resting():
                    await self._waiting.put(arrival)

    # --- one file ---------------------------------------------------------------------------------
    async def _work(self) -> None:
        with alive(f"inbox {self.config.name}: a file"):
            while True:
                with resting():
                    arrival = await self._waiting.get()
                await self._bring(arrival)

    async def _bring(self, arrival: Arrival) -> None:
        for attempt in count(1):
            try:
                place = await self._persist(partial(self._place, arrival), self.bringing)
            except Fault as problem:
                if attempt < TRIES:
                    await self._pause(attempt, problem)
                    continue
                await self._stop(arrival, problem)
            except Exception as bug:
                log.exception("inbox.bug", inbox=self.config.name, ref=arrival.new.ref)
                await self._stop(arrival, fault("internal_error", type(bug).__name__))
            else:
                await self._arrived(arrival.new, place)
            return

    async def _place(self, arrival: Arrival) -> bytes:
        """Bring a file to its place, and return that; raise a ``Fault``."""
        new = arrival.new
        if arrival.state == "placing":
            identity = Identity(arrival.ino, arrival.mtime_ns)
            if await in_thread(self._folder.is_in_place, new.ref, arrival.place, new.size, identity):
                return arrival.place
        identity = await self._fetcher.fetch(new)
        names = safe_path(new.path)
        while True:
            beat()
            try:
                place = await asyncio.to_thread(self._folder.choose, names)
                await self._arrivals.placing(new.ref, place, *identity)
                await asyncio.to_thread(self._folder.put_in_place, new.ref, place)
            except FileExistsError:
                continue  # another program took the name
            except OSError as error:
                names = _easier(names, error)
            else:
                return place

    async def _arrived(self, new: NewArrival, place: bytes) -> None:
        await self._arrivals.placed(new.ref, utcnow())
        path = os.fsdecode(os.path.join(os.fsencode(self.config.path), place))  # noqa: PTH118 - a bytes path
        metrics.INBOX_RECEIVED.labels(self.config.name).inc()
        metrics.INBOX_BYTES.labels(self.config.name).inc(new.size)
        log.info("inbox.received", inbox=self.config.name, path=path, size=new.size, key=new.key, ref=new.ref)
        self._on_arrival(new, Path(path))
        self._placed.put_nowait(new.ref)

    async def _stop(self, arrival: Arrival, problem: Fault) -> None:
        """Leave a file on the broker's list until its pause is over or the next start; log it once."""
        ref = arrival.new.ref
        await self._arrivals.stopped(ref, problem.code, problem.message)
        self._given_up[ref] += 1
        self._rests[ref] = _now() + self._backoff(self._given_up[ref], base=FIRST_REST, cap=LONGEST_REST)
        if arrival.error_code != problem.code:
            log.error(
                "inbox.failed",
                inbox=self.config.name,
                path=arrival.new.path,
                key=arrival.new.key,
                ref=ref,
                error_code=problem.code,
                error=problem.message,
                fix=problem.fix,
            )

    # --- acknowledgements -------------------------------------------------------------------------
    async def _acknowledge(self) -> None:
        """Acknowledge files in their place to the broker, all that wait in one call."""
        with alive(f"inbox {self.config.name}: acknowledgements"):
            while True:
                with resting():
                    refs = [await self._placed.get()]
                while len(refs) < MOST and not self._placed.empty():
                    refs.append(self._placed.get_nowait())
                await self._persist(partial(self._broker.ack, refs), self.listing)
                passed("inbox.acked")
                await self._arrivals.acked(refs)

    # --- faults -----------------------------------------------------------------------------------
    async def _persist(self, call: Callable[[], Awaitable[T]], trouble: Trouble) -> T:
        """Return what ``call`` returns once it works; raise a fault of one file."""
        for attempt in count(1):
            beat()
            try:
                found = await call()
            except Fault as problem:
                if problem.code in _OWN or isinstance(problem, FileFault):
                    raise
                if not isinstance(problem, GrantFault) or attempt > 1:
                    trouble.met(problem)
                    await self._pause(attempt, problem)
            else:
                if attempt > 1:
                    trouble.over()
                return found
        raise AssertionError("count doesn't end")  # pragma: no cover

    async def _pause(self, attempt: int, problem: PresigndError) -> None:
        after = getattr(problem, "retry_after", None) or 0.0
        with resting():
            await asyncio.sleep(max(after, self._backoff(attempt, cap=LONGEST_PAUSE)))


def _now() -> float:
    return asyncio.get_running_loop().time()


def _new(arrived: Arrived) -> NewArrival:
    received_at: datetime = arrived.received_at
    return NewArrival(
        ref=arrived.id,
        bucket=arrived.bucket,
        key=arrived.key,
        path=arrived.path,
        size=arrived.size,
        checksum=arrived.checksum or "",
        part_size=arrived.part_size,
        received_at=received_at,
    )


def _easier(names: list[str], error: OSError) -> list[str]:
    """Return names to try after an error: a folder may be another filesystem, or have rules of its own for names."""
    if error.errno == errno.EXDEV and len(names) > 1:
        return names[-1:]
    if error.errno in _BAD_NAME and names != [FALLBACK]:
        return [FALLBACK]
    raise folder_fault(error) from None
