"""What an invitation allows: which files get a ticket, what is signed for a ticket, when a ticket ends. Pure.

All objects lie below the invitation's prefix, under keys that the broker made, within the limits, and none replaces
another. tests/unit/broker/invitations/test_machine.py searches for calls that store more.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from presignd.broker.invitations.request import FileRequest, SignRequest
from presignd.broker.policy import Refusal, RefusalCode, is_upload_id, refuse_key
from presignd.broker.state.invitations import Invitation, NewInvitation
from presignd.broker.state.tickets import UNUSED, Ticket, TicketState
from presignd.presign import ON_AN_UPLOAD, GrantRequest, Operation
from presignd.s3.checksums import algorithm_of, header_of
from presignd.s3.limits import CHECK_NAME, FEW_PARTS, LARGEST_OBJECT
from presignd.s3.multipart import MIB, checksum_of_parts, part_size_for
from presignd.s3.responses import Response, is_md5

PART = 16 * MIB
"""Size of a part, and of the largest file that is sent by one PUT."""

LARGEST_EASY_PART = 64 * MIB
"""Up to this size, parts grow so that ``FEW_PARTS`` are enough: some stores take no more."""

LONGEST_NAME = 255
"""Most bytes of UTF-8 in one segment of a path: the limit of filesystems."""

STORING = timedelta(minutes=5)
"""Lifetime of a grant that can make an object. A reservation is held until it has ended."""
SENDING = timedelta(minutes=15)
"""Lifetime of other grants."""
SETTLING = timedelta(minutes=5)
"""How long after the last grant's end an object may still be stored, by a request that began before or because of a
wrong clock."""

LONGEST_TYPE = 255
PLAIN = "application/octet-stream"

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_TYPE = re.compile(r"[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}(?:[ \t]*;[ -~]*)?", re.ASCII)
_STORES = frozenset({Operation.PUT, Operation.MULTIPART_COMPLETE})
_IN_PARTS = frozenset({Operation.MULTIPART_CREATE, *ON_AN_UPLOAD})
_OF_WHOLE = "crc64nvme"
_MD5_OF_PARTS = re.compile(r"[0-9a-f]{32}-[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Admitted:
    """A file that an invitation takes if there is room: its key, its stored content type, its part size."""

    path: str
    key: str
    size: int
    content_type: str
    part_size: int


# --- files ------------------------------------------------------------------------------------------
def admit(invitation: NewInvitation, asked: Sequence[FileRequest], folder: str) -> list[Admitted | Refusal]:
    """Return the files of one call that may get a ticket; ``folder`` is used by this call alone."""
    files: set[str] = set()
    folders: set[str] = set()
    results = []
    for file in asked:
        result = _admit(invitation, file, folder, files, folders)
        if isinstance(result, Admitted):
            files.add(file.path)
            folders |= _folders_of(file.path)
        results.append(result)
    return results


def _admit(
    invitation: NewInvitation, file: FileRequest, folder: str, files: Collection[str], folders: Collection[str]
) -> Admitted | Refusal:
    key = f"{invitation.prefix}{folder}/{file.path}"
    if problem := _path_problem(file.path):
        return Refusal(RefusalCode.KEY_REFUSED, f"this name can't be stored: {problem}")
    if refusal := refuse_key(key, invitation.bucket, invitation.prefix):
        return refusal
    if file.path in files or file.path in folders or _folders_of(file.path) & set(files):
        return Refusal(RefusalCode.KEY_REFUSED, "another file of this call has this name, or that of its folder")
    if not 0 <= file.size <= LARGEST_OBJECT:
        return Refusal(RefusalCode.TOO_LARGE, f"a file has 0 to {LARGEST_OBJECT} bytes")
    if invitation.max_size is not None and file.size > invitation.max_size:
        return Refusal(RefusalCode.TOO_LARGE, f"a file of this invitation has {invitation.max_size} bytes at most")
    return Admitted(file.path, key, file.size, _type_of(file.type), part_size_of(file.size))


def _path_problem(path: str) -> str | None:
    if _CONTROL.search(path):
        return "it holds a control character"
    names = path.split("/")
    if any(len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME for name in names):
        return f"a part of it is longer than {LONGEST_NAME} bytes"
    if CHECK_NAME in names:
        return f"{CHECK_NAME} is the name of presignd's own objects"
    return None


def _folders_of(path: str) -> set[str]:
    names = path.split("/")[:-1]
    return {"/".join(names[:count]) for count in range(1, len(names) + 1)}


def _type_of(text: str) -> str:
    kind = text.strip()
    return kind if len(kind) <= LONGEST_TYPE and _TYPE.fullmatch(kind) else PLAIN


def part_size_of(size: int) -> int:
    """Return the size of each part but the last in bytes; 0 where one PUT sends the file."""
    if size <= PART:
        return 0
    easy = part_size_for(size, PART, FEW_PARTS)
    return easy if easy <= LARGEST_EASY_PART else max(LARGEST_EASY_PART, part_size_for(size, PART))


def why_full(invitation: Invitation, size: int, now: datetime, *, took_more: bool = False) -> Refusal:
    """Return why there was no ticket for a file of ``size`` bytes, by what ``invitation`` has left.

    ``took_more``: a later file of the same call got the last ticket, so there was one when this file asked.
    """
    if not invitation.is_open(now):
        return Refusal(RefusalCode.INVITATION_ENDED, "this invitation has ended")
    if invitation.files_left == 0 and not took_more:
        return Refusal(RefusalCode.NO_FILES_LEFT, "this invitation takes no more files")
    left = invitation.bytes_left
    return Refusal(RefusalCode.NO_BYTES_LEFT, f"this invitation takes {left} bytes more, and the file has {size}")


# --- grants -----------------------------------------------------------------------------------------
def decide_sign(ticket: Ticket | None, asked: SignRequest, now: datetime) -> GrantRequest | Refusal:
    """Return the request to sign for a ticket, or a refusal.

    ``Desk`` adds the store's condition. The first use of an upload id must still be bound.
    """
    if ticket is None:
        return Refusal(RefusalCode.TICKET_REFUSED, "there is no such ticket")
    if ticket.state is not TicketState.RESERVED or ticket.revoked or now >= ticket.ends_at:
        return Refusal(RefusalCode.TICKET_REFUSED, f"this ticket has ended: {ended(ticket, now)}")
    operation = _operation(ticket, asked)
    if isinstance(operation, Refusal):
        return operation
    for rule in (_upload, _part, _body):
        if refusal := rule(ticket, operation, asked):
            return refusal
    return _request(ticket, operation, asked, now)


def ended(ticket: Ticket, now: datetime) -> str:
    """Return why a ticket takes no more requests: its state, or the end of its invitation."""
    if ticket.state is not TicketState.RESERVED:
        return ticket.state
    return "revoked" if ticket.revoked or now < ticket.ends_at else "expired"


def _operation(ticket: Ticket, asked: SignRequest) -> Operation | Refusal:
    """Return the operation: PUT for a file without parts, and only that; for others one on an upload."""
    name = asked.operation or ("" if ticket.new.part_size else Operation.PUT)
    possible = _IN_PARTS if ticket.new.part_size else frozenset({Operation.PUT})
    if name not in possible:
        return Refusal(RefusalCode.OPERATION_REFUSED, f"for this ticket there is {', '.join(sorted(possible))}")
    return Operation(name)


def _upload(ticket: Ticket, operation: Operation, asked: SignRequest) -> Refusal | None:
    if operation not in ON_AN_UPLOAD:
        if asked.upload_id:
            return Refusal(RefusalCode.UPLOAD_REFUSED, f"{operation} takes no upload_id")
        if operation is Operation.MULTIPART_CREATE and ticket.upload_id:
            return Refusal(RefusalCode.UPLOAD_REFUSED, "this file's upload has begun: go on with its id, or cancel it")
        return None
    if not asked.upload_id or not is_upload_id(asked.upload_id):
        return Refusal(RefusalCode.UPLOAD_REFUSED, "this is no upload id that a store makes")
    return None if ticket.upload_id in ("", asked.upload_id) else foreign_upload()


def foreign_upload() -> Refusal:
    """Return the refusal of an upload id that is not the ticket's."""
    return Refusal(RefusalCode.UPLOAD_REFUSED, "this upload id is not that of the ticket")


def _part(ticket: Ticket, operation: Operation, asked: SignRequest) -> Refusal | None:
    count = part_count(ticket)
    if operation is Operation.MULTIPART_PART and not 1 <= asked.part_number <= count:
        return Refusal(RefusalCode.PART_REFUSED, f"this file has parts 1 to {count}")
    if operation is Operation.MULTIPART_LIST and not 0 <= asked.part_number <= count:
        return Refusal(RefusalCode.PART_REFUSED, f"this file has parts 1 to {count}")
    if operation not in (Operation.MULTIPART_PART, Operation.MULTIPART_LIST) and asked.part_number:
        return Refusal(RefusalCode.PART_REFUSED, f"{operation} takes no part_number")
    return None


def _body(_ticket: Ticket, operation: Operation, asked: SignRequest) -> Refusal | None:
    if operation not in (Operation.PUT, Operation.MULTIPART_PART):
        if asked.checksum and (operation is not Operation.MULTIPART_CREATE or asked.checksum != _OF_WHOLE):
            return Refusal(RefusalCode.CHECKSUM_REQUIRED, f"{operation} takes no checksum")
        return None
    try:
        header_of(asked.checksum)
    except ValueError as problem:
        return Refusal(RefusalCode.CHECKSUM_REQUIRED, str(problem))
    return None


def part_count(ticket: Ticket) -> int:
    """Return the number of a file's parts; 0 for one PUT."""
    return -(-ticket.new.size // ticket.new.part_size) if ticket.new.part_size else 0


def size_of_part(ticket: Ticket, number: int) -> int:
    """Return the one legal size of a part in bytes."""
    return min(ticket.new.part_size, ticket.new.size - (number - 1) * ticket.new.part_size)


def _request(ticket: Ticket, operation: Operation, asked: SignRequest, now: datetime) -> GrantRequest:
    """Return the request, dated ``now``, that ends with the invitation at the latest."""
    life = min(STORING if operation in _STORES else SENDING, ticket.ends_at - now)
    size, typed = None, operation in (Operation.PUT, Operation.MULTIPART_CREATE)
    if operation is Operation.PUT:
        size = ticket.new.size
    elif operation is Operation.MULTIPART_PART:
        size = size_of_part(ticket, asked.part_number)
    with_whole = operation is Operation.MULTIPART_CREATE and asked.checksum == _OF_WHOLE
    return GrantRequest(
        operation,
        ticket.bucket,
        ticket.new.key,
        max(1, int(life.total_seconds())),
        size=size,
        content_type=ticket.new.content_type if typed else "",
        checksum="" if operation is Operation.MULTIPART_CREATE else asked.checksum,
        checksum_algorithm="CRC64NVME" if with_whole else "",
        checksum_type="FULL_OBJECT" if with_whole else "",
        date=now,
        public=True,
        upload_id=asked.upload_id,
        part_number=asked.part_number,
    )


def end_of(request: GrantRequest) -> datetime:
    """Return when the grant for a request of ``decide_sign`` ends."""
    assert request.date is not None, "each is dated"
    return request.date + timedelta(seconds=request.expires)


def stores(operation: Operation) -> bool:
    """Return whether this operation can make an object."""
    return operation in _STORES


# --- what came in -----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Received:
    """A whole object: its checksum, "" if the store returns none, and its ETag."""

    checksum: str
    etag: str


def judge(ticket: Ticket, parts: Sequence[str], found: Response) -> Received | Refusal:
    """Return a ticket's object by its HEAD; refuse another size, or other bytes than those of ``parts``."""
    size = found.headers.get("content-length", "")
    if size != str(ticket.new.size):
        return Refusal(RefusalCode.NOT_STORED, f"the store holds {size[:20]} bytes of {ticket.new.size}")
    try:
        expected = _expected(ticket, parts)
    except ValueError as problem:
        return Refusal(RefusalCode.CHECKSUM_REQUIRED, str(problem))
    checksums = [each for each in found.checksums if "-" not in each]
    etag = found.etag.lower()
    if not found.opaque_etag and (is_md5(etag) or _MD5_OF_PARTS.fullmatch(etag)):
        checksums.append(f"md5:{etag}")
    alike = [each for each in checksums if algorithm_of(each) == algorithm_of(expected) and _is_alike(each, expected)]
    if parts and alike and expected not in alike:
        return Refusal(RefusalCode.BAD_DIGEST, "the store holds other bytes than the parts sent")
    return Received(checksums[0] if checksums else expected, found.etag)


def _is_alike(one: str, other: str) -> bool:
    """Return whether two checksums of one algorithm can be compared: both of a whole object, or both of its parts."""
    return ("-" in one) == ("-" in other)


def _expected(ticket: Ticket, parts: Sequence[str]) -> str:
    """Return the checksum that the object should have, "" if it is not known; raise ``ValueError`` for odd parts."""
    if not parts:
        return ticket.checksum
    if len(parts) != part_count(ticket):
        raise ValueError(f"this file has {part_count(ticket)} parts")
    for each in parts:
        header_of(each)
    algorithms = {algorithm_of(each) for each in parts}
    if len(algorithms) > 1 or not algorithms <= {"md5", "crc64nvme", "crc32c"}:
        return ""
    sized = [(each.partition(":")[2], size_of_part(ticket, number)) for number, each in enumerate(parts, 1)]
    return checksum_of_parts(algorithms.pop(), sized)


# --- ends -------------------------------------------------------------------------------------------
class Step(Enum):
    """What a sweep must do with a ticket that is due."""

    WAIT = "wait"
    EXPIRE = "expire"
    ABORT = "abort"
    """Abort its upload in parts, and wait: its object can still appear."""
    SETTLE = "settle"
    """Abort its upload in parts, look at its object, and give the reservation back if there is none."""


def next_step(ticket: Ticket, now: datetime) -> tuple[Step, datetime]:
    """Return the next step for a ticket, and when it is due again."""
    if ticket.state is TicketState.RESERVED:
        ends = min(ticket.used_at + UNUSED, ticket.ends_at)
        is_over = ticket.revoked or ends <= now
        return (Step.EXPIRE, now) if is_over else (Step.WAIT, ends)
    if ticket.signed_until is not None and now < ticket.signed_until + SETTLING:
        return Step.ABORT, ticket.signed_until + SETTLING
    return Step.SETTLE, now
