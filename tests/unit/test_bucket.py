"""What a bucket makes of its presigner's answers; the store is never reached."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from presignd.config import PresignConfig, UploadConfig, WatchConfig
from presignd.errors import Fault, fault
from presignd.pipeline.upload import bucket as module
from presignd.pipeline.upload.bucket import LEAST_LEFT, SHORT, Bucket
from presignd.presign import Grant, GrantRequest, Operation, Presigner
from presignd.store.client import StoreClient


class Refusing:
    """A presigner that answers, or raises, this one fault."""

    def __init__(self, problem: Fault, *, raises: bool) -> None:
        self._problem, self._raises = problem, raises

    async def grant(self, requests: Sequence[GrantRequest]) -> Sequence[Grant | Exception]:
        if self._raises:
            raise self._problem
        return [self._problem for _ in requests]


def bucket(problem: Fault, *, raises: bool) -> Bucket:
    return bucket_of(Refusing(problem, raises=raises))


def bucket_of(presigner: Any) -> Bucket:
    watch = WatchConfig(name="drop", path=Path("/srv/drop"), bucket="test-bucket")
    return Bucket(watch, PresignConfig(), UploadConfig(), cast("Presigner", presigner), cast("StoreClient", None))


@pytest.mark.parametrize("raises", [True, False])
async def test_a_refused_grant_is_its_requests_fault(*, raises: bool) -> None:
    refused = bucket(fault("key_refused", "no such key"), raises=raises)
    with pytest.raises(Fault) as caught:
        await refused.send(refused.request(Operation.HEAD, "a"))
    assert caught.value.code == "key_refused"


@pytest.mark.parametrize(
    ("code", "there"),
    [("no_credentials", False), ("expired_grant", False), ("key_refused", True), ("connection_refused", True)],
)
@pytest.mark.parametrize("raises", [True, False])
async def test_a_presigner_that_answers_is_there_whatever_it_refuses(code: str, *, there: bool, raises: bool) -> None:
    """Else a store that is away, or one refused key, would shut the presigner's gate for every file."""
    assert (await bucket(fault(code), raises=raises).probe_grant() is None) is there


@pytest.mark.parametrize(("seconds", "dead"), [(SHORT - LEAST_LEFT - 1, False), (SHORT - LEAST_LEFT + 1, True)])
async def test_a_grant_that_dies_while_it_is_waited_for_is_never_sent(
    monkeypatch: pytest.MonkeyPatch, *, seconds: float, dead: bool
) -> None:
    """A presigner that answers late, or a machine that slept meanwhile: nobody's date tells of that time."""
    now = 1000.0

    class Late:
        async def grant(self, requests: Sequence[GrantRequest]) -> Sequence[Grant]:
            nonlocal now
            now += seconds
            signed = datetime(2026, 1, 1, tzinfo=UTC)
            return [Grant("HEAD", "", {}, signed + timedelta(seconds=each.expires), signed) for each in requests]

    monkeypatch.setattr(module, "since_boot", lambda: now)
    late = bucket_of(Late())
    if not dead:
        assert (await late.grant(late.request(Operation.HEAD, "a"))).method == "HEAD"
        return
    with pytest.raises(Fault) as caught:
        await late.grant(late.request(Operation.HEAD, "a"))
    assert caught.value.code == "expired_grant"
