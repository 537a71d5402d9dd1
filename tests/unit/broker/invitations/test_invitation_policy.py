"""What an invitation allows: names, sizes and keys of files, and what is signed for a ticket."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from presignd.broker.invitations.policy import (
    PART,
    SENDING,
    SETTLING,
    STORING,
    Admitted,
    Received,
    Step,
    admit,
    decide_sign,
    judge,
    next_step,
    part_count,
    part_size_of,
    size_of_part,
    why_full,
)
from presignd.broker.invitations.request import FileRequest, SignRequest
from presignd.broker.policy import Refusal, RefusalCode
from presignd.broker.state.invitations import Invitation, NewInvitation
from presignd.broker.state.tickets import UNUSED, NewTicket, Ticket, TicketState
from presignd.presign import GrantRequest, Operation
from presignd.s3.limits import FEW_PARTS, LARGEST_OBJECT, MAX_PARTS
from presignd.s3.multipart import etag_of_parts
from presignd.s3.responses import Response

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
MD5 = "md5:" + "a" * 32
GIB = 1 << 30


def an_invitation(**changes: Any) -> NewInvitation:
    new = NewInvitation(b"i", "march", "b", "in/", "", "", NOW, NOW + timedelta(days=14), None, None, None)
    return new._replace(**changes)


def a_ticket(size: int = 10, **changes: Any) -> Ticket:
    new = NewTicket(b"t", "a.pdf", "in/x/a.pdf", size, "application/pdf", part_size_of(size))
    ticket = Ticket(
        new=new,
        invitation=1,
        bucket="b",
        ends_at=NOW + timedelta(days=14),
        state=TicketState.RESERVED,
        made_at=NOW,
        used_at=NOW,
        due_at=NOW + UNUSED,
        signed_until=None,
        checksum="",
        etag="",
        done_at=None,
        released=False,
        name="march",
        revoked=False,
        upload_id="",
    )
    return ticket._replace(**changes)


# --- files ------------------------------------------------------------------------------------------
def one(path: str, size: int = 1, kind: str = "", **limits: Any) -> Admitted | Refusal:
    (result,) = admit(an_invitation(**limits), [FileRequest(path, size, kind)], "2026-11-29-abc")
    return result


def test_the_broker_makes_the_key_and_keeps_the_folders() -> None:
    assert one("Scans/M\u00e4rz/a b.pdf", 7, "application/pdf") == Admitted(
        "Scans/M\u00e4rz/a b.pdf", "in/2026-11-29-abc/Scans/M\u00e4rz/a b.pdf", 7, "application/pdf", 0
    )


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "../a",
        "a/../../b",
        "a\\b",
        "a\x00b",
        "a\nb",
        "a\tb",
        "a\x7fb",
        "a\x85b",
        "a\u2028b",
        "a\ud800b",
        "x" * 256,
        "\u00fc" * 128,
        "/".join(["x" * 200] * 6),
        "%2e%2e/%2e%2e/a",
        "a/%252e%252e/%252e%252e/b",
        "..%2fa",
        "a/..;/..;/b",
        ".presignd-check",
        "a/.presignd-check",
    ],
)
def test_a_name_that_could_lead_elsewhere_is_refused(path: str) -> None:
    result = one(path)
    assert isinstance(result, Refusal)
    assert result.code in (RefusalCode.KEY_REFUSED, RefusalCode.OUTSIDE_PREFIX)


@pytest.mark.parametrize(
    "path", ["a b", "100%", "x" * 255, "\u202eabc", "\U0001f600.txt", "a'\"<script>.html", "~$x", "...a"]
)
def test_an_odd_name_is_kept(path: str) -> None:
    result = one(path)
    assert isinstance(result, Admitted)
    assert result.key == f"in/2026-11-29-abc/{path}"


def test_files_of_one_call_have_keys_of_their_own() -> None:
    paths = ["a", "a", "a/b", "d/e", "d", "d/f", "d/e/g"]
    results = admit(an_invitation(), [FileRequest(path, 1) for path in paths], "x")
    assert [isinstance(each, Admitted) for each in results] == [True, False, False, True, False, True, False]


@pytest.mark.parametrize(
    ("size", "limit", "fits"),
    [
        (0, 5, True),
        (5, 5, True),
        (6, 5, False),
        (-1, None, False),
        (LARGEST_OBJECT, None, True),
        (LARGEST_OBJECT + 1, None, False),
    ],
)
def test_a_size_within_the_limit_is_taken(size: int, limit: int | None, fits: bool) -> None:
    result = one("a", size, max_size=limit)
    assert isinstance(result, Admitted) is fits
    assert fits or (isinstance(result, Refusal) and result.code is RefusalCode.TOO_LARGE)


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ("", "application/octet-stream"),
        ("image/png", "image/png"),
        ("text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        ("nonsense", "application/octet-stream"),
        ("text/plain\r\nX: y", "application/octet-stream"),
        ("a/" + "b" * 300, "application/octet-stream"),
    ],
)
def test_what_is_no_type_becomes_the_plain_one(told: str, kind: str) -> None:
    result = one("a", 1, told)
    assert isinstance(result, Admitted)
    assert result.content_type == kind


@pytest.mark.parametrize(
    ("size", "part", "most"),
    [
        (0, 0, 0),
        (PART, 0, 0),
        (PART + 1, PART, 2),
        (20 * GIB, 21 << 20, FEW_PARTS),
        (62 * GIB, 64 << 20, FEW_PARTS),
        (64 * GIB, 64 << 20, MAX_PARTS),
        (LARGEST_OBJECT, 525 << 20, MAX_PARTS),
    ],
)
def test_parts_are_few_where_that_is_easy(size: int, part: int, most: int) -> None:
    assert part_size_of(size) == part
    assert part_count(a_ticket(size)) <= most


@pytest.mark.parametrize("size", [PART + 1, 2 * PART, 2 * PART + 5, 20 * GIB + 7, LARGEST_OBJECT])
def test_the_legal_sizes_of_all_parts_are_the_file(size: int) -> None:
    ticket = a_ticket(size)
    sizes = [size_of_part(ticket, number) for number in range(1, part_count(ticket) + 1)]
    assert sum(sizes) == size
    assert all(each == ticket.new.part_size for each in sizes[:-1])
    assert 0 < sizes[-1] <= ticket.new.part_size


@pytest.mark.parametrize(
    ("changes", "files", "taken", "code"),
    [
        ({}, 0, 0, RefusalCode.NO_BYTES_LEFT),
        ({"max_files": 2}, 2, 0, RefusalCode.NO_FILES_LEFT),
        ({"max_files": 3, "total": 5}, 2, 5, RefusalCode.NO_BYTES_LEFT),
        ({"ends_at": NOW}, 0, 0, RefusalCode.INVITATION_ENDED),
    ],
)
def test_a_full_invitation_says_what_is_full(
    changes: dict[str, Any], files: int, taken: int, code: RefusalCode
) -> None:
    invitation = Invitation(an_invitation(**changes), None, files, taken, 1)
    assert why_full(invitation, 6, NOW).code is code


# --- grants -----------------------------------------------------------------------------------------
BIG = 2 * PART + 5


def signed(ticket: Ticket, operation: str = "", **asked: Any) -> GrantRequest:
    result = decide_sign(ticket, SignRequest("t", operation, **asked), NOW)
    assert isinstance(result, GrantRequest), result
    return result


def refused(ticket: Ticket | None, operation: str = "", **asked: Any) -> RefusalCode:
    result = decide_sign(ticket, SignRequest("t", operation, **asked), NOW)
    assert isinstance(result, Refusal)
    return result.code


def test_a_put_signs_the_size_the_type_and_the_checksum() -> None:
    request = signed(a_ticket(), checksum=MD5)
    assert request == GrantRequest(
        Operation.PUT,
        "b",
        "in/x/a.pdf",
        int(STORING.total_seconds()),
        size=10,
        content_type="application/pdf",
        checksum=MD5,
        date=NOW,
        public=True,
    )
    assert signed(a_ticket(), "put", checksum=MD5) == request


def test_each_part_has_one_legal_size() -> None:
    ticket = a_ticket(BIG, upload_id="up")
    sizes = [signed(ticket, "multipart.part", upload_id="up", part_number=n, checksum=MD5).size for n in (1, 2, 3)]
    assert sizes == [PART, PART, 5]
    for number in (-1, 0, 4, 10_001):
        asked = {"upload_id": "up", "part_number": number, "checksum": MD5}
        assert refused(ticket, "multipart.part", **asked) is RefusalCode.PART_REFUSED


def test_the_requests_of_an_upload_in_parts() -> None:
    ticket = a_ticket(BIG)
    create = signed(ticket, "multipart.create")
    assert (create.content_type, create.size, create.expires) == ("application/pdf", None, SENDING.total_seconds())
    whole = signed(ticket, "multipart.create", checksum="crc64nvme")
    assert (whole.checksum_algorithm, whole.checksum_type, whole.checksum) == ("CRC64NVME", "FULL_OBJECT", "")
    listed = signed(ticket, "multipart.list", upload_id="up", part_number=2)
    assert (listed.upload_id, listed.part_number) == ("up", 2)
    complete = signed(ticket, "multipart.complete", upload_id="up")
    assert (complete.content_type, complete.expires) == ("", STORING.total_seconds())
    assert signed(ticket, "multipart.abort", upload_id="up").upload_id == "up"


@pytest.mark.parametrize("operation", ["get", "head", "delete", "multipart.create", "multipart.part", "nonsense"])
def test_a_file_without_parts_has_a_put_and_nothing_else(operation: str) -> None:
    assert refused(a_ticket(), operation, checksum=MD5) is RefusalCode.OPERATION_REFUSED


@pytest.mark.parametrize("operation", ["", "put", "get", "head", "delete", "nonsense"])
def test_a_file_in_parts_has_no_put(operation: str) -> None:
    assert refused(a_ticket(BIG), operation, checksum=MD5) is RefusalCode.OPERATION_REFUSED


@pytest.mark.parametrize("upload_id", ["", "other", "../up", "a/b", "..", "\u00fc"])
def test_an_upload_id_of_another_is_refused(upload_id: str) -> None:
    assert refused(a_ticket(BIG, upload_id="up"), "multipart.complete", upload_id=upload_id) is (
        RefusalCode.UPLOAD_REFUSED
    )


def test_an_upload_begins_once() -> None:
    assert refused(a_ticket(BIG, upload_id="up"), "multipart.create") is RefusalCode.UPLOAD_REFUSED
    assert refused(a_ticket(BIG), "multipart.create", upload_id="up") is RefusalCode.UPLOAD_REFUSED


@pytest.mark.parametrize("checksum", ["", "md5:", "md5:zz", "sha1:aa", "crc64nvme", f"{MD5}-3"])
def test_a_body_needs_its_checksum(checksum: str) -> None:
    assert refused(a_ticket(), checksum=checksum) is RefusalCode.CHECKSUM_REQUIRED
    asked = {"upload_id": "up", "part_number": 1, "checksum": checksum}
    assert refused(a_ticket(BIG), "multipart.part", **asked) is RefusalCode.CHECKSUM_REQUIRED


def test_what_an_operation_has_no_use_for_is_refused() -> None:
    ticket = a_ticket(BIG)
    assert refused(ticket, "multipart.create", checksum=MD5) is RefusalCode.CHECKSUM_REQUIRED
    assert refused(ticket, "multipart.complete", upload_id="up", checksum=MD5) is RefusalCode.CHECKSUM_REQUIRED
    assert refused(ticket, "multipart.complete", upload_id="up", part_number=1) is RefusalCode.PART_REFUSED
    assert refused(ticket, "multipart.list", upload_id="up", part_number=4) is RefusalCode.PART_REFUSED


@pytest.mark.parametrize(
    "changes",
    [
        {"state": TicketState.RECEIVED},
        {"state": TicketState.CANCELLED},
        {"state": TicketState.EXPIRED},
        {"revoked": True},
        {"ends_at": NOW},
    ],
)
def test_nothing_is_signed_for_a_ticket_that_has_ended(changes: dict[str, Any]) -> None:
    assert refused(a_ticket(**changes), checksum=MD5) is RefusalCode.TICKET_REFUSED


def test_nothing_is_signed_without_a_ticket() -> None:
    assert refused(None, checksum=MD5) is RefusalCode.TICKET_REFUSED


def test_no_grant_outlives_its_invitation() -> None:
    assert signed(a_ticket(ends_at=NOW + timedelta(seconds=40)), checksum=MD5).expires == 40
    assert signed(a_ticket(ends_at=NOW + timedelta(milliseconds=5)), checksum=MD5).expires == 1


# --- what came in -----------------------------------------------------------------------------------
def found(size: int = 10, etag: str = "", **headers: str) -> Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(200, {"content-length": str(size), "etag": f'"{etag}"', **given})


def test_a_whole_object_is_received_with_the_checksum_that_the_store_tells() -> None:
    assert judge(a_ticket(checksum=MD5), (), found(etag="b" * 32)) == Received("md5:" + "b" * 32, "b" * 32)
    told = found(etag="b" * 32, x_amz_checksum_crc64nvme="AAAAAAAAAAA=")
    assert judge(a_ticket(), (), told) == Received("crc64nvme:" + "0" * 16, "b" * 32)


def test_an_etag_that_is_no_md5_proves_nothing() -> None:
    encrypted = found(etag="b" * 32, x_amz_server_side_encryption="aws:kms")
    assert judge(a_ticket(checksum=MD5), (), encrypted) == Received(MD5, "b" * 32)
    assert judge(a_ticket(), (), found(etag="odd")) == Received("", "odd")


def test_an_object_of_another_size_is_not_received() -> None:
    for size in (0, 9, 11):
        result = judge(a_ticket(), (), found(size))
        assert isinstance(result, Refusal)
        assert result.code is RefusalCode.NOT_STORED


def test_parts_are_compared_with_the_etag() -> None:
    ticket = a_ticket(BIG)
    parts = [MD5] * 3
    result = judge(ticket, parts, found(BIG, etag="0" * 32 + "-3"))
    assert isinstance(result, Refusal)
    assert result.code is RefusalCode.BAD_DIGEST
    right = etag_of_parts(["a" * 32] * 3)
    assert judge(ticket, parts, found(BIG, etag=right)) == Received(f"md5:{right}", right)
    assert judge(ticket, parts, found(BIG, etag="b" * 32)) == Received("md5:" + "b" * 32, "b" * 32)
    assert judge(ticket, parts, found(BIG, etag="odd")) == Received(f"md5:{right}", "odd")


@pytest.mark.parametrize("parts", [[MD5], [MD5] * 4, ["md5:x"] * 3, ["nonsense"] * 3])
def test_parts_that_are_none_of_the_file_are_refused(parts: list[str]) -> None:
    result = judge(a_ticket(BIG), parts, found(BIG))
    assert isinstance(result, Refusal)
    assert result.code is RefusalCode.CHECKSUM_REQUIRED


def test_parts_of_several_algorithms_are_not_compared() -> None:
    parts = [MD5, MD5, "crc32c:00000000"]
    assert judge(a_ticket(BIG), parts, found(BIG, etag="odd")) == Received("", "odd")


# --- ends -------------------------------------------------------------------------------------------
TICK = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("changes", "at", "step"),
    [
        ({}, NOW + UNUSED - TICK, Step.WAIT),
        ({}, NOW + UNUSED, Step.EXPIRE),
        ({"used_at": NOW + TICK}, NOW + UNUSED, Step.WAIT),
        ({"ends_at": NOW + timedelta(hours=1)}, NOW + timedelta(hours=1), Step.EXPIRE),
        ({"revoked": True}, NOW, Step.EXPIRE),
        ({"state": TicketState.CANCELLED}, NOW, Step.SETTLE),
        ({"state": TicketState.CANCELLED, "signed_until": NOW}, NOW, Step.ABORT),
        ({"state": TicketState.EXPIRED, "signed_until": NOW}, NOW + SETTLING - TICK, Step.ABORT),
        ({"state": TicketState.EXPIRED, "signed_until": NOW}, NOW + SETTLING, Step.SETTLE),
    ],
)
def test_a_ticket_ends_only_when_nothing_can_be_stored_any_more(
    changes: dict[str, Any], at: datetime, step: Step
) -> None:
    found_step, due = next_step(a_ticket(**changes), at)
    assert found_step is step
    assert (due > at) is (step in (Step.WAIT, Step.ABORT))
