"""How a bucket handles its presigner's answers; the store is never reached."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from presignd.config import PresignConfig, UploadConfig, WatchConfig
from presignd.errors import Fault, fault
from presignd.model import Sent, State
from presignd.pipeline.upload.bucket import OTHER_EXPIRES, Bucket, StoredObject
from presignd.pipeline.upload.identify import read_back
from presignd.pipeline.upload.multipart import abort
from presignd.presign import Grant, GrantRequest, Operation, Presigner
from presignd.s3.responses import Response
from presignd.store import signed as module
from presignd.store.client import StoreClient
from presignd.store.signed import LEAST_LEFT, SignedStore
from tests.versions import in_state


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
    signed = SignedStore(cast("Presigner", presigner), cast("StoreClient", None))
    return Bucket(watch, PresignConfig(), UploadConfig(), signed)


@pytest.mark.parametrize("raises", [True, False])
async def test_a_refused_grant_is_its_requests_fault(*, raises: bool) -> None:
    refused = bucket(fault("key_refused", "no such key"), raises=raises)
    with pytest.raises(Fault) as caught:
        await refused.store.send(refused.request(Operation.HEAD, "a"))
    assert caught.value.code == "key_refused"


@pytest.mark.parametrize(
    ("code", "there"),
    [("no_credentials", False), ("expired_grant", False), ("key_refused", True), ("connection_refused", True)],
)
@pytest.mark.parametrize("raises", [True, False])
async def test_a_presigner_that_answers_is_there_whatever_it_refuses(code: str, *, there: bool, raises: bool) -> None:
    """Else a store that is away, or one refused key, would shut the presigner's gate for every file."""
    assert (await bucket(fault(code), raises=raises).probe_grant() is None) is there


@pytest.mark.parametrize(
    ("seconds", "dead"), [(OTHER_EXPIRES - LEAST_LEFT - 1, False), (OTHER_EXPIRES - LEAST_LEFT + 1, True)]
)
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
    signed = SignedStore(cast("Presigner", Late()), cast("StoreClient", None))
    if not dead:
        assert (await signed.grant(late.request(Operation.HEAD, "a"))).method == "HEAD"
        return
    with pytest.raises(Fault) as caught:
        await signed.grant(late.request(Operation.HEAD, "a"))
    assert caught.value.code == "expired_grant"


class Answering:
    """A store that gives these answers, in turn, and a presigner whose grants lead to it."""

    def __init__(self, *answers: Response | Fault) -> None:
        self._answers = list(answers)

    async def grant(self, requests: Sequence[GrantRequest]) -> Sequence[Grant]:
        now = datetime(2026, 1, 1, tzinfo=UTC)
        return [Grant("GET", "", {}, now + timedelta(hours=1), now) for _ in requests]

    async def send(self, *_: Any, into: Any = None, **__: Any) -> Response:
        answer = self._answers.pop(0)
        if isinstance(answer, Fault):
            raise answer
        if into:
            await into(answer.body)
        return answer

    @property
    def bucket(self) -> Bucket:
        watch = WatchConfig(name="drop", path=Path("/srv/drop"), bucket="test-bucket")
        signed = SignedStore(cast("Presigner", self), cast("StoreClient", self))
        return Bucket(watch, PresignConfig(), UploadConfig(), signed)


async def test_an_answer_that_tells_nothing_of_a_right_to_versions_is_not_remembered() -> None:
    answering = Answering(Response(404, {}), fault("connection_refused"), Response(200, {}))
    bucket = answering.bucket
    assert [await bucket.reads_versions("a", "1") for _ in range(4)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Response(404, {}), "precondition_failed"),
        (Response(200, {}, b"hello, longer"), "precondition_failed"),
        (fault("no_such_bucket"), "no_such_bucket"),
    ],
    ids=["gone", "another", "refused as a whole"],
)
async def test_what_is_another_object_by_the_time_it_is_read_back_proves_nothing(
    answer: Response | Fault, code: str
) -> None:
    with pytest.raises(Fault) as caught:
        await read_back(Answering(answer).bucket, "a", StoredObject(5, "e"), [Sent(5, "md5:00", 0, "")])
    assert caught.value.code == code


async def test_what_may_not_be_read_back_tells_nothing() -> None:
    refused = Answering(fault("access_denied"))
    assert await read_back(refused.bucket, "a", StoredObject(5, "e"), [Sent(5, "md5:00", 0, "")]) == {}


async def test_an_upload_that_the_broker_takes_for_another_s_is_as_good_as_aborted() -> None:
    version = in_state(State.UPLOADING, key="a", upload_id="u")
    await abort(Answering(fault("upload_lost")).bucket, version)
    with pytest.raises(Fault) as caught:
        await abort(Answering(fault("expired_grant")).bucket, version)
    assert caught.value.code == "expired_grant"
