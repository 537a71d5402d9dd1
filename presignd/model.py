"""The immutable values that pass between the stages. Sizes are bytes, times are UTC or nanoseconds.

What is made and replaced several times for each file is a NamedTuple: ``_replace`` takes a tenth of the time of
``dataclasses.replace`` on a frozen class (1.2 and 10.5 us with 29 fields).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    """The state of a version; ``presignd.states`` has the moves."""

    QUEUED = "queued"
    UPLOADING = "uploading"
    VERIFIED = "verified"
    LINKED = "linked"
    FINISHED = "finished"
    QUARANTINED = "quarantined"
    VANISHED = "vanished"
    SUPERSEDED = "superseded"
    IGNORED = "ignored"


class Source(StrEnum):
    """Where a candidate came from; it sets the priority, and nothing else."""

    EVENT = "event"
    SCAN = "scan"
    BACKLOG = "backlog"
    PUT = "put"


class Fingerprint(NamedTuple):
    """What identifies a file without reading it, after a reboot too (so no device number)."""

    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, st: os.stat_result) -> Fingerprint:
        """Return the fingerprint in a stat result."""
        # ``cls()`` would be one more call, of a Python function, three times for each file.
        return tuple.__new__(cls, (st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns))

    def same_data(self, other: Fingerprint) -> bool:
        """Return whether size and mtime agree: then only a hash of the content can show a difference."""
        return (self.size, self.mtime_ns) == (other.size, other.mtime_ns)


NO_FILE = -1
"""The inode of a version that is made from the ledger, and is no file of the watch: a unit's two own files."""

Listed = tuple[bytes, int, int, int, int]
"""A file as a scan lists it: its path and the fields of its ``Fingerprint``. A tuple, as there may be a million."""


class NewVersion(NamedTuple):
    """A settled file, ready to be recorded.

    ``key`` is the rendered template (None while it needs the hash); ``fresh_key`` asks for a key no version ever had
    (collision = "rename"); ``next_key`` lets a key of another path become ``name~2.ext`` instead of the quarantine
    ``key_taken``.
    """

    file_id: str
    watch: str
    path: bytes
    fingerprint: Fingerprint
    bucket: str
    key: str | None
    content_type: str
    priority: int
    queued_at: datetime
    fresh_key: bool = False
    next_key: bool = True
    state: State = State.QUEUED
    error_code: str = ""
    error: str = ""


class FileVersion(NamedTuple):
    """One row of the ledger: a version and where it stands.

    ``path`` is below the watch's root, or absolute for a ``put`` from elsewhere. ``base_key`` is the rendered template,
    ``key`` the one in use (``name~2.ext`` after a collision). ``attempt`` counts requests begun; ``faults`` those that
    count against the file. ``unclean`` is 0 for a version that was in flight at no unclean exit since it last made
    progress. Otherwise it is a suspect, and ``unclean`` is 1 plus the number of those exits at which it was alone.
    ``checksum`` is ``algorithm:hex``, once verified. ``etag`` is the store's, once verified; before, what was committed
    before the content was sent: the MD5 that the ETag will be, or a checksum that identifies the object (``crc64nvme:``
    alone for the parts of an upload whose checksum is not known yet). ``signed_at`` is the link's signing date.
    ``gone_at`` is when the content was seen to have left its path. ``link_version`` is the ``version_id`` that the link
    names, "" for none. ``link_id`` (secret) is the id of its stable link, "" for a presigned one. Only ``linked`` says
    whether its link was made: ``expires_at`` is None for a link without an end, too.
    """

    file_id: str
    watch: str
    path: bytes
    fingerprint: Fingerprint
    state: State
    bucket: str
    base_key: str | None
    key: str | None
    content_type: str
    priority: int
    queued_at: datetime
    attempt: int = 0
    faults: int = 0
    unclean: int = 0
    not_before: datetime | None = None
    checksum: str = ""
    etag: str = ""
    version_id: str = ""
    adopted: bool = False
    error_code: str = ""
    error: str = ""
    done_at: datetime | None = None
    signed_at: datetime | None = None
    expires_at: datetime | None = None
    announced: bool = False
    upload_id: str = ""
    part_size: int = 0
    gone_at: datetime | None = None
    link_version: str = ""
    link_id: str = ""
    linked: bool = False

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.fingerprint.size

    @property
    def fixed_version_id(self) -> str:
        """The ``version_id`` if it always names this object, else "".

        A bucket with suspended versioning gives each object the id "null", which names whatever the key holds.
        """
        return "" if self.version_id == "null" else self.version_id

    @property
    def is_made(self) -> bool:
        """Whether this is one of a unit's two own files, whose content is made from the ledger, not read."""
        return self.fingerprint.ino == NO_FILE

    @property
    def is_manifest(self) -> bool:
        """Whether it is the manifest of a unit, whose link is the unit's: its ``path`` is the unit's folder."""
        return self.is_made and not self.path.endswith(b"/")

    @property
    def intent(self) -> str:
        """What was committed before the content was sent, as a checksum; "" for nothing, and once it is verified."""
        if self.checksum or not self.etag:
            return ""
        return self.etag if ":" in self.etag else f"md5:{self.etag}"

    def __repr__(self) -> str:
        """Hide the id of the link: a repr may end in a log."""
        shown = self._replace(link_id=self.link_id and "REDACTED")
        return f"FileVersion({', '.join(f'{name}={value!r}' for name, value in shown._asdict().items())})"


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent from a path under a key, verified or not: size in bytes, checksum, and the size of its parts.

    ``etag`` is the store's, once verified, whatever form it has; "" before.
    """

    size: int
    checksum: str
    part_size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart upload that the store has: its number (from 1), size in bytes, digest (hex), ETag.

    The upload's algorithm is that of its version's ``intent``, MD5 if there is none yet.
    """

    number: int
    size: int
    digest: str
    etag: str


class Link(NamedTuple):
    """A link for a receipt, presigned or stable: one line of ``links.jsonl``. ``url`` is secret.

    ``expires_at`` is None for a stable link without an end.
    """

    time: datetime
    file_id: str
    watch: str
    path: str
    bucket: str
    key: str
    size: int
    content_type: str
    etag: str
    checksum: str
    expires_at: datetime | None
    url: str
    version_id: str = ""

    @property
    def names_version(self) -> bool:
        """Whether the URL names the object's version."""
        return "versionId=" in self.url  # in bucket, key and values "=" is encoded

    def __repr__(self) -> str:
        """Hide the URL: a repr may end in a log."""
        return f"Link(file_id={self.file_id!r}, key={self.key!r}, url=REDACTED)"


@dataclass(frozen=True, slots=True)
class LinksMark:
    """How much of ``links.jsonl`` the ledger has recorded: the file's inode, and the offset after the last line."""

    inode: int
    offset: int
