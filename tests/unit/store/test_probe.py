"""The probe: its conclusion from each possible answer, and what it leaves behind."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import cast

import pytest

from presignd.config.rules import check_checksum
from presignd.errors import Fault, fault
from presignd.presign import Grant, GrantRequest, Operation
from presignd.presign.local import METHODS
from presignd.s3.checksums import checksum_of, header_of, native
from presignd.s3.responses import Response, fault_of
from presignd.store.probe import BODY, OTHER, TIMEOUT, TRIES, Probe
from presignd.store.signed import SignedStore
from presignd.store.support import Conditions, Handling, Remains

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SIGNED = "http://s/b/k?X-Amz-Signature=" + 64 * "a"
Says = Callable[[GrantRequest, bool], Response | None]
"""Answers a request, and whether its signature is right; None: as S3 does."""


@dataclass
class FakeStore:
    """A store with one key that does what S3 does, but where ``says`` has another answer."""

    says: Says = lambda _request, _signed: None
    versioned: bool = False
    there: bool = False
    requests: list[GrantRequest] = field(default_factory=list)
    signs: tuple[str, ...] = ("md5", "sha256", "crc64nvme")

    @property
    def presigner(self) -> FakeStore:
        return self

    async def checksums(self) -> tuple[str, ...]:
        return self.signs

    async def grant(self, request: GrantRequest) -> Grant:
        self.requests.append(request)
        return Grant(METHODS[request.operation], SIGNED, {}, NOW + timedelta(hours=1), NOW)

    @property
    def client(self) -> SimpleNamespace:
        return SimpleNamespace(send=self._send_granted)

    async def send(self, request: GrantRequest, *_: object, accept: Collection[int], timeout: float) -> Response:
        return await self._send_granted(await self.grant(request), accept=accept, timeout=timeout)

    async def _send_granted(self, grant: Grant, *_: object, accept: Collection[int], timeout: float) -> Response:
        assert timeout == TIMEOUT
        request, signed = self.requests[-1], grant.url == SIGNED
        answer = self.says(request, signed) or self._s3(request, signed=signed)
        if answer.status // 100 == 2 or answer.status in accept:
            return answer
        raise fault_of(answer, expires_at=grant.expires_at, now=NOW, clock_offset=0.0)

    def _s3(self, request: GrantRequest, *, signed: bool) -> Response:
        if not signed:
            return Response(403, {})
        writes = request.operation in (Operation.PUT, Operation.MULTIPART_COMPLETE)
        if writes and ((request.if_none_match and self.there) or request.if_match not in ("", "etag")):
            return Response(412, {})
        if request.operation is Operation.HEAD and not self.there:
            return Response(404, {})
        self.there = (self.there or writes) and request.operation is not Operation.DELETE
        version = {"x-amz-version-id": str(len(self.requests))} if writes and self.versioned else {}
        return Response(200, {"etag": '"etag"', **version}, b"<UploadId>u</UploadId>")

    def sent(self, operation: Operation) -> list[GrantRequest]:
        return [request for request in self.requests if request.operation is operation]


def probe(store: FakeStore, headers: Mapping[str, str] | None = None) -> Probe:
    return Probe(cast("SignedStore", store), "b", "in/.presignd-check", headers or {})


def conditional(request: GrantRequest) -> bool:
    return request.if_none_match or bool(request.if_match)


def on(*operations: Operation, status: int) -> Says:
    """Answer so to what carries a condition."""
    return lambda request, _: Response(status, {}) if request.operation in operations and conditional(request) else None


PUT, COMPLETE = Operation.PUT, Operation.MULTIPART_COMPLETE
ALL = Conditions(Handling.HONOURED, Handling.HONOURED)


async def test_a_store_that_holds_to_conditions_is_seen_to() -> None:
    assert await probe(FakeStore()).put_conditions() == ALL
    assert await probe(FakeStore()).complete_conditions() == ALL


@pytest.mark.parametrize(
    ("status", "heed"),
    [(200, Handling.IGNORED), (501, Handling.REFUSED), (400, Handling.REFUSED)],
    ids=["ignored", "not implemented", "an invalid request"],
)
async def test_each_way_of_writing_is_proven_for_itself(status: int, heed: Handling) -> None:
    store = FakeStore(on(COMPLETE, status=status))
    assert await probe(store).put_conditions() == ALL
    assert await probe(store).complete_conditions() == Conditions(heed, heed)
    assert await probe(FakeStore(on(PUT, status=status))).put_conditions() == Conditions(heed, heed)


async def test_each_condition_is_proven_for_itself() -> None:
    deaf = FakeStore(lambda request, _: Response(200, {}) if request.if_none_match else None)
    assert await probe(deaf).put_conditions() == Conditions(Handling.IGNORED, Handling.HONOURED)


async def test_an_if_match_that_refuses_the_right_etag_too_is_none() -> None:
    """A file that changes would never replace its own object. Ceph's versioned buckets do so."""
    strict = FakeStore(lambda request, _: Response(412, {}) if request.if_match else None)
    assert await probe(strict).put_conditions() == Conditions(Handling.HONOURED, Handling.REFUSED)


async def test_a_check_object_that_another_daemon_removes_is_written_again() -> None:
    misses = iter([Response(200, {}), None])
    once = FakeStore(lambda request, _: next(misses) if request.if_none_match else None)
    assert (await probe(once).put_conditions()).if_none_match is Handling.HONOURED


async def test_an_error_in_a_200_at_the_end_of_an_upload_is_one() -> None:
    failed = Response(200, {}, b"<Error><Code>PreconditionFailed</Code></Error>")
    store = FakeStore(lambda request, _: failed if request.operation is COMPLETE and conditional(request) else None)
    assert (await probe(store).complete_conditions()).if_none_match is Handling.HONOURED


async def test_uploads_that_were_not_completed_are_aborted() -> None:
    store = FakeStore()
    await probe(store).complete_conditions()
    begun, done = store.sent(Operation.MULTIPART_CREATE), 1
    assert len(store.sent(Operation.MULTIPART_ABORT)) == len(begun) - done


@pytest.mark.parametrize("in_parts", [False, True], ids=["whole", "a part"])
@pytest.mark.parametrize(("status", "refused"), [(400, True), (422, True), (500, False), (200, False)])
async def test_a_wrong_checksum_is_seen_refused_and_leaves_no_upload(
    status: int, *, refused: bool, in_parts: bool
) -> None:
    sends = Operation.MULTIPART_PART if in_parts else PUT
    store = FakeStore(lambda request, _: Response(status, {}) if request.operation is sends else None)
    assert await probe(store).refuses("md5:" + 32 * "0", in_parts=in_parts) is refused
    assert len(store.sent(Operation.MULTIPART_ABORT)) == len(store.sent(Operation.MULTIPART_CREATE)) == in_parts


CRC = "crc64nvme"
RIGHT, WRONG = checksum_of(BODY, CRC), checksum_of(OTHER, CRC)
_, IN_BASE64 = header_of(RIGHT)
whole_and_parts = pytest.mark.parametrize("in_parts", [False, True], ids=["whole", "in parts"])


def checks(request: GrantRequest, _: bool) -> Response | None:
    """Refuse a wrong CRC, and tell the right one to a HEAD that asks."""
    if request.checksum == WRONG:
        return Response(400, {}, b"<Error><Code>BadDigest</Code></Error>")
    if request.checksum_mode == "ENABLED":
        return Response(200, {"x-amz-checksum-crc64nvme": IN_BASE64, "etag": "e"})
    return None


def takes_anything(request: GrantRequest, signed: bool) -> Response | None:
    return None if request.checksum == WRONG else checks(request, signed)


def tells_nothing(request: GrantRequest, signed: bool) -> Response | None:
    return None if request.checksum_mode else checks(request, signed)


def refuses_all(request: GrantRequest, _: bool) -> Response | None:
    return Response(501, {}) if request.checksum.startswith(CRC) or request.checksum_algorithm else None


@whole_and_parts
async def test_a_crc_that_is_checked_and_told_is_proven(*, in_parts: bool) -> None:
    store = FakeStore(checks)
    assert await probe(store).choose(CRC, in_parts=in_parts) == (CRC, True)
    begun = store.sent(Operation.MULTIPART_CREATE)
    assert {(each.checksum_algorithm, each.checksum_type) for each in begun} <= {("CRC64NVME", "FULL_OBJECT")}
    assert len(begun) == 2 * in_parts, "one for the right, one for the wrong"


@whole_and_parts
@pytest.mark.parametrize("says", [takes_anything, tells_nothing, refuses_all])
async def test_a_crc_that_is_not_checked_or_not_told_is_not_proven(says: Says, *, in_parts: bool) -> None:
    assert await probe(FakeStore(says)).choose(CRC, in_parts=in_parts) == ("md5" if in_parts else CRC, False)
    assert await probe(FakeStore(says)).choose("auto", in_parts=in_parts) == ("md5", False)


@whole_and_parts
async def test_what_the_presigner_does_not_sign_is_not_tried(*, in_parts: bool) -> None:
    store = FakeStore(checks, signs=("md5", "sha256"))
    assert await probe(store).choose(CRC, in_parts=in_parts) == ("md5", False)
    assert await probe(store).choose("sha256", in_parts=in_parts) == ("md5" if in_parts else "sha256", False)
    assert store.requests == []


async def test_a_store_that_is_busy_while_it_is_asked_is_asked_again_later() -> None:
    """Else it would be sent MD5 for as long as the daemon runs."""
    busy = FakeStore(lambda request, _: Response(503, {"retry-after": "1"}) if request.checksum == RIGHT else None)
    with pytest.raises(Fault, match="slow down"):
        await probe(busy).choose(CRC, in_parts=False)


async def test_auto_is_the_crc_where_awscrt_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    if native(CRC):
        assert await probe(FakeStore(checks)).choose("auto", in_parts=False) == (CRC, True)
    monkeypatch.setitem(sys.modules, "awscrt.checksums", None)
    native.cache_clear()
    try:
        assert await probe(FakeStore(checks)).choose("auto", in_parts=False) == ("md5", False)
        assert checksum_of(BODY, CRC) == RIGHT
        with pytest.raises(ValueError, match="awscrt"):
            check_checksum(CRC)
    finally:
        native.cache_clear()


async def test_an_end_of_an_upload_that_tells_no_etag_is_looked_up() -> None:
    """Ceph's does; its HEAD tells the MD5 of the parts'."""
    etag = f"{hashlib.md5(hashlib.md5(BODY).digest()).hexdigest()}-1"
    ended = Response(200, {}, b"<R><UploadId>u</UploadId><ETag></ETag></R>")

    def ceph(request: GrantRequest, _: bool) -> Response | None:
        return Response(200, {"etag": f'"{etag}"'}) if request.operation is Operation.HEAD else ended

    assert await probe(FakeStore(ceph)).has_md5_etags(in_parts=True)


async def test_what_is_stored_and_not_there_is_missing() -> None:
    empty = FakeStore(lambda request, _: Response(404, {}) if request.operation is Operation.HEAD else None)
    with pytest.raises(Fault) as caught:
        await probe(empty).write_and_find()
    assert caught.value.code == "missing_object"
    assert len(empty.sent(PUT)) == TRIES


# --- signatures -------------------------------------------------------------------------------------


async def test_a_wrong_signature_is_tried_once_and_writes_nothing() -> None:
    store = FakeStore()
    assert await probe(store).checks_signatures()
    assert [request.operation for request in store.requests] == [PUT, Operation.HEAD]


async def test_a_store_that_takes_a_wrong_signature_is_found_out() -> None:
    mock = FakeStore(lambda _, signed: None if signed else Response(200, {}))
    assert not await probe(mock).checks_signatures()


# --- what is left -------------------------------------------------------------------------------------


async def test_without_versions_one_delete_removes_it() -> None:
    store = FakeStore()
    asked = probe(store)
    await asked.put_conditions()
    assert await asked.remove() == Remains()
    assert [request.version_id for request in store.sent(Operation.DELETE)] == [""]


async def test_each_version_that_was_written_is_removed_and_no_marker_is_left() -> None:
    store = FakeStore(versioned=True)
    asked = probe(store)
    await asked.write()
    await asked.write()
    await asked.complete_conditions()
    assert await asked.remove() == Remains()
    removed = [request.version_id for request in store.sent(Operation.DELETE)]
    assert len(removed) == len(set(removed)) == 5
    assert "" not in removed


async def test_versions_that_may_not_be_removed_are_counted_and_hidden() -> None:
    denied = Response(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
    store = FakeStore(lambda request, _: denied if request.version_id else None, versioned=True)
    asked = probe(store)
    await asked.write()
    await asked.write()
    left = await asked.remove()
    assert left.versions == 2
    assert "403 AccessDenied" in left.reason
    assert store.sent(Operation.DELETE)[-1].version_id == ""


async def test_an_object_that_may_not_be_removed_stays() -> None:
    denied = Response(403, {})
    store = FakeStore(lambda request, _: denied if request.operation is Operation.DELETE else None)
    asked = probe(store)
    await asked.write()
    assert (await asked.remove()).versions == 1


# --- headers ------------------------------------------------------------------------------------------

HEADERS = {"Cache-Control": "no-cache", "x-amz-storage-class": "GLACIER"}


def refusing(name: str) -> FakeStore:
    return FakeStore(lambda request, _: Response(501, {}) if name in request.headers else None)


async def test_the_header_that_a_store_refuses_is_named() -> None:
    problem = fault("not_implemented", "501 NotImplemented")
    named = await probe(refusing("x-amz-storage-class"), HEADERS).blame(problem)
    assert (named.code, named.detail) == ("not_implemented", "x-amz-storage-class: 501 NotImplemented")


async def test_a_refusal_that_no_header_is_the_reason_for_stays_as_it_is() -> None:
    problem = fault("rejected", "400")
    nothing = FakeStore(lambda *_: Response(501, {}))
    assert await probe(nothing, HEADERS).blame(problem) is problem
