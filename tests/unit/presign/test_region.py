"""A bucket's region, read from every form in which stores return it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Collection
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.errors import StoreFault, fault
from presignd.presign import Grant
from presignd.presign.region import FALLBACK_REGION, RegionFinder, read_region, region_in_host
from presignd.s3.responses import Response

NOW = datetime(2026, 1, 1, tzinfo=UTC)
XML = b'<?xml version="1.0" encoding="UTF-8"?>\n'
SPACE = b'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


@pytest.mark.parametrize(
    ("answer", "region"),
    [
        (Response(200, {}, XML + b"<LocationConstraint %s>eu-west-1</LocationConstraint>" % SPACE), "eu-west-1"),
        (Response(200, {}, XML + b"<LocationConstraint %s>EU</LocationConstraint>" % SPACE), "eu-west-1"),
        (Response(200, {}, XML + b"<LocationConstraint %s></LocationConstraint>" % SPACE), "us-east-1"),
        (Response(200, {}, XML + b"<LocationConstraint %s/>" % SPACE), "us-east-1"),
        (Response(200, {}, b"<LocationConstraint>\n  fr-par\n</LocationConstraint>"), "fr-par"),
        (Response(200, {"x-amz-bucket-region": "eu-north-1"}, b"<LocationConstraint/>"), "eu-north-1"),
        (Response(301, {"x-amz-bucket-region": "ap-south-1"}), "ap-south-1"),
        (Response(403, {"x-amz-bucket-region": "ap-south-1"}), "ap-south-1"),
        (Response(400, {}, b"<Error><Code>X</Code><Region>eu-central-1</Region></Error>"), "eu-central-1"),
        (Response(403, {}, b"<Error><Code>AccessDenied</Code></Error>"), "us-east-1"),
        (Response(404, {}, b"<Error><Code>NoSuchBucket</Code></Error>"), "us-east-1"),
        (Response(501, {}, b"<Error><Code>NotImplemented</Code></Error>"), "us-east-1"),
        (Response(200, {}, b"<html>a console</html>"), "us-east-1"),
        (Response(200, {"x-amz-bucket-region": "not a region/"}), "us-east-1"),
        (Response(400, {}, b"<Region>" + b"x" * 65 + b"</Region>"), "us-east-1"),
        (Response(400, {}, b"<Region>&evil;</Region>"), "us-east-1"),
        (Response(400, {}, b" " * 70_000 + b"<Region>too-far-down</Region>"), "us-east-1"),
    ],
)
def test_every_way_a_store_tells_the_region_is_understood(answer: Response, region: str) -> None:
    assert read_region(answer) == region


@given(st.binary(max_size=300), st.text(max_size=40))
def test_no_answer_makes_the_reader_fail_or_gives_what_is_no_region_name(body: bytes, header: str) -> None:
    region = read_region(Response(400, {"x-amz-bucket-region": header}, b"<Region>" + body + b"</Region>"))
    assert region.replace("-", "").isalnum()
    assert region.isascii()


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [
        ("https://s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://s3.dualstack.ap-southeast-2.amazonaws.com", "ap-southeast-2"),
        ("https://s3-us-west-2.amazonaws.com", "us-west-2"),
        ("https://s3-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("https://s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("https://s3.amazonaws.com", ""),
        ("https://s3.eu-west-1.amazonaws.com.example", ""),
        ("http://127.0.0.1:9000", ""),
    ],
)
def test_an_aws_endpoint_tells_its_region_by_its_name(endpoint: str, region: str) -> None:
    assert region_in_host(endpoint) == region


class Store:
    """Answers from a list; ``gate`` holds the answers back until it is set."""

    def __init__(self, *answers: Response | StoreFault) -> None:
        self.answers = list(answers)
        self.signed: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def sign(self, bucket: str) -> Grant:
        self.signed.append(bucket)
        return Grant("GET", f"http://store/{bucket}", {}, NOW, NOW)

    async def send(self, grant: Grant, *, accept: Collection[int]) -> Response:  # noqa: ARG002 - what is sent is the signer's
        await self.gate.wait()
        answer = self.answers.pop(0)
        if isinstance(answer, StoreFault):
            raise answer
        assert answer.status // 100 == 2 or answer.status in accept
        return answer


def located(region: str) -> Response:
    return Response(200, {"x-amz-bucket-region": region})


def finder_of(store: Store, known: str = "") -> RegionFinder:
    return RegionFinder(store.sign, store.send, known=known)


def unreachable() -> StoreFault:
    problem = fault("connection_refused")
    assert isinstance(problem, StoreFault)
    return problem


async def test_a_known_region_is_never_asked_for() -> None:
    store = Store()
    assert await finder_of(store, known="eu-west-1").region_of("b") == "eu-west-1"
    assert store.signed == []


async def test_each_bucket_is_asked_for_once() -> None:
    store = Store(located("eu-west-1"), located("eu-west-2"))
    finder = finder_of(store)
    assert [await finder.region_of(bucket) for bucket in "abab"] == ["eu-west-1", "eu-west-2"] * 2
    assert store.signed == ["a", "b"]


async def test_a_refusal_without_a_region_is_remembered_too() -> None:
    """Many upload keys may not read the location: asking again before each grant would double the requests."""
    store = Store(Response(403, {}))
    finder = finder_of(store)
    assert [await finder.region_of("b") for _ in range(2)] == [FALLBACK_REGION] * 2
    assert len(store.signed) == 1


async def test_a_bucket_that_is_not_there_yet_is_asked_for_again() -> None:
    store = Store(Response(404, {}), located("eu-west-1"))
    finder = finder_of(store)
    assert [await finder.region_of("b") for _ in range(2)] == [FALLBACK_REGION, "eu-west-1"]


async def test_a_forgotten_region_is_asked_for_again() -> None:
    store = Store(located("eu-west-1"), located("eu-west-2"))
    finder = finder_of(store)
    await finder.region_of("b")
    finder.forget("b")
    assert await finder.region_of("b") == "eu-west-2"


async def test_an_unreachable_store_is_its_own_fault_and_asked_again_later() -> None:
    store = Store(unreachable(), located("eu-west-1"))
    finder = finder_of(store)
    with pytest.raises(StoreFault):
        await finder.region_of("b")
    assert await finder.region_of("b") == "eu-west-1"


async def test_callers_at_the_same_time_share_one_request() -> None:
    store = Store(located("eu-west-1"))
    finder = finder_of(store)
    assert set(await asyncio.gather(*(finder.region_of("b") for _ in range(20)))) == {"eu-west-1"}
    assert store.signed == ["b"]


async def test_a_cancelled_caller_does_not_take_the_answer_from_the_others() -> None:
    store = Store(located("eu-west-1"))
    store.gate.clear()
    finder = finder_of(store)
    first, second = (asyncio.create_task(finder.region_of("b")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    store.gate.set()
    assert await second == "eu-west-1"


async def test_a_failure_that_no_caller_waits_for_any_more_makes_no_noise() -> None:
    """Asyncio would report it as an exception that was never retrieved."""
    noises: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, noise: noises.append(noise))
    store = Store(unreachable())
    store.gate.clear()
    caller = asyncio.create_task(finder_of(store).region_of("b"))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    store.gate.set()
    for _ in range(5):
        await asyncio.sleep(0)
    del caller
    gc.collect()
    assert store.answers == []
    assert noises == []
