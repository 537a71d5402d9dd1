"""Make the request for a version's stable link, and the link from the broker's response. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from presignd.model import FileVersion, Link
from presignd.presign.stable import StableLink, StableRequest
from presignd.system.clock import utcnow


def stable_request(version: FileVersion, ends: datetime | None) -> StableRequest:
    """Return the request for the version's stable link, valid until ``ends``: the same link each time."""
    assert version.key is not None
    return StableRequest(
        id=version.link_id,
        bucket=version.bucket,
        key=version.key,
        size=version.size,
        content_type=version.content_type,
        filename=version.path.rpartition(b"/")[2].decode("utf-8", "backslashreplace"),
        expires_at=ends,
        version_id=version.fixed_version_id,
        unit=version.is_manifest,
    )


def end_after(version: FileVersion, seconds: int | None) -> datetime | None:
    """Return when a stable link of this lifetime ends, counted from its date; None for no end."""
    return None if seconds is None else (version.signed_at or utcnow()) + timedelta(seconds=seconds)


def link_to(version: FileVersion, url: str, expires_at: datetime | None, path: str) -> Link:
    """Return the link of a verified version, presigned or stable."""
    assert version.key is not None
    return Link(
        time=version.signed_at or utcnow(),
        file_id=version.file_id,
        watch=version.watch,
        path=path,
        bucket=version.bucket,
        key=version.key,
        size=version.size,
        content_type=version.content_type,
        etag=version.etag,
        checksum=version.checksum,
        expires_at=expires_at,
        url=url,
        version_id=version.version_id,
    )


def stable_link(version: FileVersion, made: StableLink, path: str) -> Link:
    """Return the version's link as the broker made it."""
    return link_to(version, made.url, made.expires_at, path)
