"""Decide whether a file and its object are equal, by checksums, and describe the result. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from presignd.errors import PresigndError
from presignd.model import FileVersion
from presignd.pipeline.files.hash import ALGORITHMS
from presignd.pipeline.upload.bucket import StoredObject
from presignd.s3.checksums import STRONG, algorithm_of
from presignd.s3.responses import is_md5


class Outcome(StrEnum):
    """The outcome of comparing one file."""

    EQUAL = "equal"
    DIFFERS = "differs"
    MISSING = "missing"
    """The store holds no object of this file."""
    UNCHECKED = "unchecked"


class By(StrEnum):
    """What decided the comparison."""

    SIZE = "size"
    CHECKSUM = "checksum"
    ETAG = "etag"
    DOWNLOAD = "download"


class Against(StrEnum):
    """What the object was compared with."""

    FILE = "file"
    MOVED = "moved"
    """The file in ``move_to``."""
    RECEIPT = "receipt"
    """The receipt's checksum: the file is gone, or is not readable here."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The result for one file; ``why`` is for people, and "" for an equal one.

    ``problem`` is why it was not checked. ``skipped``: the check was not tried, because the store was away already or
    the file waits for its upload.
    """

    outcome: Outcome
    why: str = ""
    by: By | None = None
    against: Against | None = None
    found: StoredObject | None = None
    problem: PresigndError | None = None
    skipped: bool = False


def unchecked(problem: PresigndError, *, skipped: bool = False) -> Verified:
    """Return the result of a file that could not be checked."""
    return Verified(Outcome.UNCHECKED, problem.message, problem=problem, skipped=skipped)


@dataclass(frozen=True, slots=True)
class Proof:
    """A checksum that the store returned for an object, in the form of ``hash.checksum_like``.

    ``decides``: another checksum means other content. Otherwise it may be computed in another way, and only equality
    counts. ``proves``: the same checksum means the same content.
    """

    by: By
    checksum: str
    part_size: int
    decides: bool
    proves: bool = True


def proofs(found: StoredObject, version: FileVersion) -> Iterator[Proof]:
    """Return the proofs in the answer to a HEAD, best first.

    An ETag that the store returned for our own upload identifies what was uploaded, whatever its form. Any other is an
    MD5 only if ours was one: some stores, and SSE-KMS, have others. Anyone can make other bytes of a given CRC, so a
    CRC proves something only under the ETag of our own upload.
    """
    is_ours = bool(found.etag) and found.etag == version.etag
    for checksum in sorted(found.checksums, key=lambda each: algorithm_of(each) not in STRONG):
        if algorithm_of(checksum) in ALGORITHMS:
            for proof in _by_checksum(By.CHECKSUM, checksum, found, version, decides=True):
                yield replace(proof, proves=is_ours or algorithm_of(checksum) in STRONG)
    if is_ours and version.checksum:
        yield Proof(By.ETAG, version.checksum, version.part_size, decides=True)
    if not found.opaque and found.etag:
        decides = is_md5(found.etag) and version.checksum == f"md5:{version.etag.lower()}"
        yield from _by_checksum(By.ETAG, f"md5:{found.etag.lower()}", found, version, decides=decides)


def _by_checksum(by: By, checksum: str, found: StoredObject, version: FileVersion, *, decides: bool) -> Iterator[Proof]:
    """Yield a checksum of the whole, or one of as many parts as our upload had: others can't be computed here."""
    digest, dash, parts = checksum.partition("-")
    if not dash and (by is not By.ETAG or is_md5(found.etag)):
        yield Proof(by, digest, 0, decides)
    elif dash and version.part_size and parts == str(-(-found.size // version.part_size)):
        yield Proof(by, checksum, version.part_size, decides=False)


def difference(version: FileVersion, found: StoredObject, size: int, *, file_kept: bool, offset: int | None) -> str:
    """Return how a file of ``size`` bytes and its object differ, and which of them changed since the upload. Pure."""
    object_kept = bool(found.etag) and found.etag == version.etag and found.size in (-1, version.size)
    changed = [] if file_kept else ["the file changed since it was uploaded"]
    if not object_kept:
        changed.append("the object was replaced" + (f" on {found.modified}" if found.modified else ""))
    if not changed:
        changed = ["the object holds other bytes than were uploaded, under the same ETag"]
    if found.size not in (-1, size):
        changed.append(f"the object has {found.size} bytes, not {size}")
    elif offset is not None:
        changed.append(f"they differ from byte {offset} on")
    return "; ".join(changed)
