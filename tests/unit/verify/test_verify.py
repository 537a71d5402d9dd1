"""Verify: what the answer to a HEAD proves of an object's content, and which side changed."""

from __future__ import annotations

import asyncio
import hashlib
import os
from base64 import b64encode
from pathlib import Path

import pytest

from presignd.errors import Fault, Refused, fault
from presignd.model import FileVersion, Fingerprint, State
from presignd.pipeline.upload.bucket import StoredObject
from presignd.s3.responses import Response
from presignd.verify.contents import OpenFile, Receipt
from presignd.verify.proofs import Against, By, Proof, difference, proofs
from presignd.verify.verifier import Verifier
from tests.versions import in_state

MD5, OTHER, SHA = "0" * 32, "f" * 32, "a" * 64
SIZE, PART = 20, 8
VERSION = in_state(State.FINISHED, bucket="b")._replace(
    fingerprint=Fingerprint(1, SIZE, 1, 1),
    key="k",
    checksum=f"md5:{MD5}",
    etag=MD5,
)
IN_PARTS = VERSION._replace(checksum=f"md5:{MD5}-3", etag=f"{MD5}-3", part_size=PART)


FILE, OBJECT = "the file changed since it was uploaded", "the object was replaced"
ROTTEN = "the object holds other bytes than were uploaded, under the same ETag"


def proved(found: StoredObject, version: FileVersion = VERSION) -> list[Proof]:
    return list(proofs(found, version))


def test_the_objects_own_checksum_comes_first_and_decides() -> None:
    found = StoredObject(SIZE, OTHER, checksums=(f"sha256:{SHA}",))
    assert proved(found)[0] == Proof(By.CHECKSUM, f"sha256:{SHA}", 0, decides=True)


def test_a_crc_comes_last_and_proves_something_only_under_our_own_etag() -> None:
    """Anyone can make other bytes of a given CRC."""
    crc = "crc64nvme:" + "0" * 16
    told = StoredObject(SIZE, OTHER, checksums=(crc, f"sha256:{SHA}"))
    sha, weak, *_ = proved(told)
    assert ((sha.checksum, sha.proves), (weak.checksum, weak.proves)) == ((f"sha256:{SHA}", True), (crc, False))
    assert proved(told._replace(etag=MD5))[1].proves


def test_a_checksum_that_can_not_be_computed_here_proves_nothing() -> None:
    assert proved(StoredObject(SIZE, "", checksums=("crc99:00",))) == []


def test_an_etag_is_an_md5_only_where_ours_was_one() -> None:
    foreign = StoredObject(SIZE, OTHER)
    assert proved(foreign) == [Proof(By.ETAG, f"md5:{OTHER}", 0, decides=True)]
    unlike = VERSION._replace(etag="e" * 32)
    assert proved(foreign, unlike) == [Proof(By.ETAG, f"md5:{OTHER}", 0, decides=False)]
    assert proved(StoredObject(SIZE, OTHER, opaque=True)) == []
    assert proved(StoredObject(SIZE, "of another form")) == []


def test_the_etag_of_our_own_upload_stands_for_what_was_uploaded_whatever_its_form() -> None:
    version = VERSION._replace(checksum=f"sha256:{SHA}", etag="opaque")
    assert proved(StoredObject(SIZE, "opaque", opaque=True), version) == [
        Proof(By.ETAG, f"sha256:{SHA}", 0, decides=True)
    ]


def test_an_etag_of_parts_is_computed_for_parts_of_our_size_and_never_shows_a_difference() -> None:
    """Another tool may have sent the same bytes in parts of another size."""
    assert proved(StoredObject(SIZE, f"{OTHER}-3"), IN_PARTS) == [Proof(By.ETAG, f"md5:{OTHER}-3", PART, decides=False)]
    assert proved(StoredObject(SIZE, f"{OTHER}-2"), IN_PARTS) == []
    assert proved(StoredObject(SIZE, f"{OTHER}-3"), VERSION) == []


@pytest.mark.parametrize(
    ("header", "value", "checksums"),
    [
        ("sha256", b64encode(bytes.fromhex(SHA)).decode(), (f"sha256:{SHA}",)),
        ("sha256", b64encode(bytes.fromhex(SHA)).decode() + "-3", (f"sha256:{SHA}-3",)),
        ("type", "FULL_OBJECT", ()),
        ("algorithm", "SHA256", ()),
        ("crc32", "no base64", ()),
        ("crc32", "AAAA-x", ()),
        ("crc32", "", ()),
    ],
)
def test_checksums_are_read_from_the_answer(header: str, value: str, checksums: tuple[str, ...]) -> None:
    assert Response(200, {f"x-amz-checksum-{header}": value}).checksums == checksums


@pytest.mark.parametrize(
    ("found", "size", "file_kept", "offset", "told"),
    [
        (StoredObject(SIZE, MD5), SIZE, False, None, FILE),
        (StoredObject(SIZE, OTHER, modified="Monday"), SIZE, True, None, f"{OBJECT} on Monday"),
        (StoredObject(5, OTHER), SIZE, True, None, f"{OBJECT}; the object has 5 bytes, not 20"),
        (StoredObject(SIZE, MD5), SIZE, True, 7, f"{ROTTEN}; they differ from byte 7 on"),
        (StoredObject(5, OTHER), 6, False, None, f"{FILE}; {OBJECT}; the object has 5 bytes, not 6"),
    ],
)
def test_what_changed_is_told(found: StoredObject, size: int, file_kept: bool, offset: int | None, told: str) -> None:
    assert difference(VERSION, found, size, file_kept=file_kept, offset=offset) == told


# --- what an object is compared with ------------------------------------------------------------------


async def test_a_receipt_has_one_form_of_checksum_only() -> None:
    receipt = Receipt(VERSION)
    assert receipt.against is Against.RECEIPT
    assert await receipt.checksum_like(f"md5:{OTHER}", 0) == f"md5:{MD5}"
    assert await receipt.checksum_like(f"sha256:{SHA}", 0) == ""
    assert await receipt.checksum_like(f"md5:{OTHER}-3", PART) == ""


async def test_a_receipt_without_a_checksum_proves_nothing() -> None:
    receipt = Receipt(VERSION._replace(checksum=""))
    assert await receipt.checksum_like(f"md5:{MD5}", 0) == ""
    with pytest.raises(Refused):
        await receipt.take(b"x")


async def test_an_object_is_read_against_a_receipt_in_parts() -> None:
    content = os.urandom(SIZE)
    parts = b"".join(hashlib.md5(content[at : at + PART]).digest() for at in range(0, SIZE, PART))
    receipt = Receipt(IN_PARTS._replace(checksum=f"md5:{hashlib.md5(parts).hexdigest()}-3"))
    for size in (SIZE, SIZE - 1):
        receipt.restart()
        await receipt.take(content[:size])
        assert receipt.is_equal() is (size == SIZE)


async def test_a_file_that_is_closed_under_a_thread_is_closed_once_that_has_read(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * (8 << 20))
    fd = os.open(tmp_path / "large", os.O_RDONLY)
    file = OpenFile(fd, Against.FILE)
    hashing = asyncio.ensure_future(file.checksum_like("sha256:", 0))
    await asyncio.sleep(0)
    hashing.cancel()
    await asyncio.gather(hashing, return_exceptions=True)
    file.close()
    async with asyncio.timeout(10):
        while True:
            try:
                os.fstat(fd)
            except OSError:
                break
            await asyncio.sleep(0.01)


# --- a store that fails -------------------------------------------------------------------------------


class Failing:
    """A bucket whose requests fail with each of these codes in turn, then with the last."""

    def __init__(self, *codes: str) -> None:
        self.codes, self.asked = list(codes), 0

    def for_bucket(self, _name: str) -> Failing:
        return self

    async def find(self, _key: str, *, denied_is_absent: bool, with_checksums: bool) -> StoredObject:
        assert not denied_is_absent
        assert not with_checksums
        self.asked += 1
        code = self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]
        if code:
            raise fault(code)
        return StoredObject(SIZE, MD5)


def verifier(bucket: Failing) -> Verifier:
    async def at_once(_seconds: float) -> None:
        pass

    return Verifier({"drop": bucket}, {}, download=False, sleep=at_once)  # type: ignore[dict-item] # in place of a Bucket


PUT = VERSION._replace(watch="drop", path=b"/elsewhere")


async def test_a_request_that_fails_is_tried_again() -> None:
    found = await verifier(Failing("timeout", "server_error", "")).verify(PUT)
    assert (found.outcome, found.by, found.against) == ("equal", By.ETAG, Against.RECEIPT)


async def test_a_store_that_is_away_is_asked_for_a_few_files_only() -> None:
    bucket = Failing("connection_refused")
    compared = verifier(bucket)
    found = [await compared.verify(PUT) for _ in range(20)]
    assert [one.skipped for one in found] == [False] * 5 + [True] * 15
    assert {one.problem.code for one in found if isinstance(one.problem, Fault)} == {"connection_refused"}
    assert bucket.asked == 5 * 3


async def test_a_damaged_object_stops_no_other() -> None:
    compared = verifier(Failing(*(["server_error"] * 3 + [""]) * 8))
    found = [await compared.verify(PUT) for _ in range(16)]
    assert [one.outcome for one in found] == ["unchecked", "equal"] * 8


async def test_a_watch_that_a_reload_removed_is_not_checked() -> None:
    found = await verifier(Failing("")).verify(PUT._replace(watch="removed"))
    assert found.outcome == "unchecked"


async def test_a_descriptor_that_can_not_be_read_is_a_fault_and_stays_the_clients() -> None:
    """On NFS a file that was replaced is stale, even through an open descriptor."""
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("presignd.verify.contents.fingerprint_of", stale)
        found = await verifier(Failing("")).verify(PUT, reader)
    os.close(reader)
    assert found.problem
    assert found.problem.code == "read_error"


def stale(_fd: int) -> Fingerprint:
    raise fault("read_error")


async def test_a_refusal_tells_that_the_object_may_be_missing() -> None:
    compared = verifier(Failing("access_denied"))
    found = [await compared.verify(PUT) for _ in range(9)]
    assert not any(one.skipped for one in found), "the next object may be allowed"
    assert "unless s3:ListBucket is granted" in found[0].why
