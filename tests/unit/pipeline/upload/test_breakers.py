"""The circuit breakers together: which probe answers for which fault, and what is paused for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from presignd.errors import CODES, BucketFault, Fault, GrantFault, PresignerFault, StoreFault, WatchFault, fault
from presignd.pipeline.upload.breakers import LOCAL, Breakers
from presignd.pipeline.upload.bucket import Bucket
from presignd.presign import Presigner


@dataclass
class FakeBucket:
    """A watch's bucket that answers its probes as told; ``looks`` counts what the presigner was told to forget."""

    name: str
    problem: Fault | None = None
    grant_problem: Fault | None = None
    probes: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    watch: Any = None

    def forget_support(self) -> None:
        """Nothing was probed."""

    def __post_init__(self) -> None:
        self.watch = SimpleNamespace(bucket=self.name, headers=self.headers)

    async def probe(self) -> Fault | None:
        self.probes += 1
        return self.problem

    async def probe_grant(self) -> Fault | None:
        return self.grant_problem


@dataclass
class Setup:
    """Watches named like their buckets, and the breakers over them, whose probing while tripped never goes on."""

    buckets: dict[str, FakeBucket]
    forgotten: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        presigner = SimpleNamespace(look_again=self.forgotten.append)
        self.breakers = Breakers(cast("dict[str, Bucket]", self.buckets), cast("Presigner", presigner), lambda: None)
        for breaker in self.all:
            breaker._sleep = lambda _: asyncio.Event().wait()

    @property
    def all(self) -> list[Any]:
        return [self.breakers.store, self.breakers.presigner, *self.breakers.watches.values()]

    @property
    def tripped(self) -> set[str]:
        named = {"store": self.breakers.store, "presigner": self.breakers.presigner, **self.breakers.watches}
        return {name for name, breaker in named.items() if breaker.trip}


def setup(**problems: Fault | None) -> Setup:
    return Setup({name: FakeBucket(name, problem) for name, problem in problems.items()})


DEAD, DENIED, FULL = fault("server_error"), fault("access_denied"), fault("store_full")


@pytest.mark.parametrize(
    "code", [code for code, row in CODES.items() if issubclass(row.kind, (StoreFault, WatchFault))]
)
async def test_a_fault_counts_while_the_bucket_serves(code: str) -> None:
    made = setup(a=None, b=None)
    assert await made.breakers.blames_file("a", fault(code))
    assert made.tripped == set()
    assert made.buckets["a"].probes == 1


@pytest.mark.parametrize("code", LOCAL)
async def test_a_fault_of_this_machines_disk_asks_nobody(code: str) -> None:
    made = setup(a=DEAD)
    assert await made.breakers.blames_file("a", fault(code))
    assert made.buckets["a"].probes == 0


async def test_a_store_that_fails_two_buckets_is_shut_for_all() -> None:
    made = setup(a=DEAD, b=DEAD, c=DEAD)
    assert not await made.breakers.blames_file("a", DEAD)
    assert made.tripped == {"store"}
    assert not made.breakers.may_send("c")
    await made.breakers.close()


async def test_a_bucket_that_fails_alone_shuts_its_own_watch() -> None:
    made = setup(a=DEAD, b=None)
    assert not await made.breakers.blames_file("a", DEAD)
    assert made.tripped == {"a"}
    assert made.breakers.may_send("b")
    await made.breakers.close()


async def test_a_store_that_goes_away_between_two_looks_shuts_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would stay blocked, for a reason that isn't its own, until a probe of its own found the store back."""
    made = setup(a=None)
    answers = iter([None, DEAD, DEAD])

    async def probe() -> Fault | None:
        return next(answers)

    monkeypatch.setattr(made.buckets["a"], "probe", probe)
    assert not await made.breakers.blames_file("a", DEAD)
    assert made.tripped == {"store"}
    await made.breakers.close()


async def test_a_bucket_that_refuses_proves_that_the_store_serves() -> None:
    made = setup(a=None, b=DENIED)
    assert await made.breakers.blames_file("a", DEAD)
    assert made.tripped == set()


async def test_a_bucket_without_room_proves_that_the_store_serves() -> None:
    made = setup(a=None, b=FULL)
    assert await made.breakers.blames_file("a", FULL)
    assert await made.breakers.blames_file("a", DEAD)
    assert made.tripped == set()


@pytest.mark.parametrize("code", [code for code, row in CODES.items() if row.kind is BucketFault])
async def test_what_the_store_can_not_do_for_a_watch_shuts_that_alone_and_has_no_keys_looked_for(code: str) -> None:
    made = setup(a=fault(code), b=None)
    assert not await made.breakers.blames_file("a", fault(code))
    assert (made.tripped, made.forgotten) == ({"a"}, [])
    await made.breakers.close()


async def test_a_store_is_there_while_one_bucket_of_many_goes_through() -> None:
    """Else the next probe, by that bucket, would call it back, and the next file gone again."""
    made = setup(a=DEAD, b=DEAD, c=None)
    assert not await made.breakers.blames_file("a", DEAD)
    assert made.tripped == {"a"}
    await made.breakers.close()


@pytest.mark.parametrize("first", ["cold", "plain"])
async def test_a_header_that_the_store_fails_at_shuts_its_watch_and_no_other_of_that_bucket(first: str) -> None:
    cold = FakeBucket("b", DEAD, headers={"x-amz-storage-class": "GLACIER"})
    both = {"cold": cold, "plain": FakeBucket("b")}
    made = Setup({name: both[name] for name in sorted(both, key=lambda name: name != first)})
    assert not await made.breakers.blames_file("cold", DEAD)
    assert made.tripped == {"cold"}
    await made.breakers.close()


async def test_a_broken_connection_of_a_watch_that_is_refused_blocks_it_and_charges_no_file() -> None:
    """A large body that is refused early may look like a connection that broke."""
    made = setup(a=DENIED)
    assert not await made.breakers.blames_file("a", fault("connection_reset"))
    assert made.tripped == {"a"}
    await made.breakers.close()


async def test_a_refusal_has_credentials_and_region_looked_for_before_the_probe() -> None:
    made = setup(a=None)
    assert await made.breakers.blames_file("a", DENIED)
    assert made.forgotten == ["a"]


async def test_a_shut_watch_looks_for_no_credentials_at_each_late_refusal() -> None:
    made = setup(a=DENIED)
    for _ in range(5):
        assert not await made.breakers.blames_file("a", DENIED)
    assert made.forgotten == ["a"]
    assert made.buckets["a"].probes == 1
    await made.breakers.close()


@pytest.mark.parametrize(
    "problem", [fault(code) for code, row in CODES.items() if row.kind in (PresignerFault, GrantFault)]
)
async def test_faults_of_grants_are_the_presigners_unless_it_gives_good_ones(problem: Fault) -> None:
    made = setup(a=None)
    assert await made.breakers.blames_file("a", problem)
    made.buckets["a"].grant_problem = problem
    assert not await made.breakers.blames_file("a", problem)
    assert made.tripped == {"presigner"}
    assert made.buckets["a"].probes == 0
    await made.breakers.close()


async def test_a_store_that_is_shut_is_asked_by_each_bucket_in_turn() -> None:
    """The one it was asked by first may be broken by itself: then it would never count as back."""
    made = setup(a=DEAD, b=DEAD)
    pauses = 0

    async def sleep(_: float) -> None:
        nonlocal pauses
        pauses += 1
        made.buckets["a"].problem = None
        await asyncio.sleep(0)

    made.breakers.store._sleep = sleep
    assert not await made.breakers.blames_file("a", DEAD)
    while made.breakers.store.trip:  # noqa: ASYNC110 - turns of the loop, no time
        await asyncio.sleep(0)
    assert pauses <= 2
    await made.breakers.close()


async def test_a_retry_after_met_again_is_asked_about() -> None:
    busy = fault("slow_down", retry_after=60.0)
    made = setup(a=None)
    assert not await made.breakers.blames_file("a", busy)
    await made.breakers.close()
    made = setup(a=None)
    assert await made.breakers.blames_file("a", busy, again=True)
