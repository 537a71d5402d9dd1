"""The JSON of answers: names are text (with surrogates where they are not UTF-8), times RFC 3339 in UTC.

Only ``of_link`` returns a URL.
"""

from __future__ import annotations

import json
import os
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from presignd.errors import CODES
from presignd.links import encode
from presignd.model import State
from presignd.redaction.redact import redact_texts
from presignd.units import rfc3339
from presignd.webhooks.shown import of_webhook

if TYPE_CHECKING:
    from collections.abc import Mapping

    from presignd.config import Config, WatchConfig
    from presignd.control.view import BlockedView, FolderView, InFlightView, View
    from presignd.inbox.inboxes import InboxView
    from presignd.ledger import WatchSummary
    from presignd.model import FileVersion, Link
    from presignd.pipeline.settle.lane import SettlingPath
    from presignd.presign.broker_links import IssuedLink

    Roots = Mapping[str, str]

Document = dict[str, Any]

LISTED = 1000
"""Most files in a list; the totals are given beside the lists."""

IDLE_SECONDS = 5.0
"""Seconds without a byte sent after which the time is shown instead of the rate: the store may hang."""


def time_text(time: datetime | None) -> str | None:
    """Render a time as RFC 3339 in UTC with microseconds."""
    return None if time is None else rfc3339(time)


def roots_of(config: Config) -> Roots:
    """Return where each watch's paths begin."""
    return {watch.name: os.path.abspath(watch.path) for watch in config.watches}  # noqa: PTH100 - resolve() would follow symlinks


def absolute(roots: Roots, watch: str, path: bytes) -> str:
    """Return the absolute path of a file; in a watch that is no longer configured it stays relative."""
    return os.path.join(roots.get(watch, ""), os.fsdecode(path))  # noqa: PTH118 - a put's own path is absolute


def of_link(link: Link) -> Document:
    """Render a link as a line of ``links.jsonl`` has it: with its URL."""
    document: Document = json.loads(encode(link))
    return document


def of_issued(link: IssuedLink) -> Document:
    """Render a stable link as the broker lists it, without the id that opens it."""
    document: Document = link.model_dump()
    return document | {name: time_text(document[name]) for name in ("made_at", "expires_at", "opened_at")}


def of_error(version: FileVersion) -> Document | None:
    """Render the last error of a version, which quarantined or requeued it: code, cause and fix."""
    if not version.error_code:
        return None
    known = CODES.get(version.error_code)
    cause = version.error or (known.cause if known else "")
    return {"code": version.error_code, "cause": cause, "fix": known.fix if known else ""}


def has_receipt(version: FileVersion) -> bool:
    """Return whether the version's upload was verified: its object is stored, so a link can be made."""
    if version.state is State.QUARANTINED:
        return version.linked
    return version.state in {State.VERIFIED, State.LINKED, State.FINISHED}


def of_receipt(version: FileVersion) -> Document | None:
    """Render the record of the verified upload, None before there is one."""
    if not has_receipt(version):
        return None
    receipt = {
        "bucket": version.bucket,
        "key": version.key,
        "size": version.size,
        "content_type": version.content_type,
        "checksum": version.checksum,
        "etag": version.etag,
        "adopted": version.adopted,
        "done_at": time_text(version.done_at),
    }
    return receipt | ({"version_id": version.version_id} if version.version_id else {})


def of_version(version: FileVersion, roots: Roots) -> Document:
    """Render the state of a version; of its link only the kind and the expiry are in it, not the URL."""
    return {
        "file_id": version.file_id,
        "watch": version.watch,
        "path": absolute(roots, version.watch, version.path),
        "state": str(version.state),
        "bucket": version.bucket,
        "key": version.key,
        "size": version.size,
        "attempt": version.attempt,
        "queued_at": time_text(version.queued_at),
        "not_before": time_text(version.not_before),
        "error": of_error(version),
        "receipt": of_receipt(version),
        "link": _kind_of_link(version),
        "link_expires_at": time_text(version.expires_at),
    }


def _kind_of_link(version: FileVersion) -> str | None:
    if not version.linked:
        return None
    if version.link_id:
        return "stable"
    return "presigned" if version.expires_at else "unit"  # a presigned link ends; a unit's files have none of their own


def of_settling(settling: SettlingPath, roots: Roots) -> Document:
    """Render one path that is settling."""
    return {
        "watch": settling.watch,
        "path": absolute(roots, settling.watch, settling.path),
        "since": time_text(settling.since),
        "why": settling.why,
    }


def of_in_flight(upload: InFlightView, roots: Roots) -> Document:
    """Render one upload in progress: bytes sent, bytes a second, seconds since the last byte, seconds left.

    A stream that ``put -`` still reads has no size yet: then the size is what was sent so far.
    """
    version = upload.version
    size = max(version.size, upload.sent)
    return {
        "file_id": version.file_id,
        "watch": version.watch,
        "path": absolute(roots, version.watch, version.path),
        "size": size,
        "sent": upload.sent,
        "rate": upload.rate,
        "idle_seconds": round(upload.idle, 1),
        "seconds_left": (size - upload.sent) / upload.rate if upload.rate >= 1 else None,
    }


def of_blocked(blocked: BlockedView) -> Document:
    """Render one thing that blocks a watch, or all of them (``watch`` is "")."""
    known = CODES.get(blocked.code)
    return {
        "part": blocked.part,
        "watch": blocked.watch,
        "what": blocked.what,
        "code": blocked.code,
        "cause": blocked.cause,
        "fix": known.fix if known else "",
        "since": time_text(blocked.since),
    }


def of_watch(folder: FolderView, config: WatchConfig | None, summary: WatchSummary | None) -> Document:
    """Render one watch: its folder, and how many files it has in each state."""
    counts: Mapping[State, int] = summary.counts if summary else {}
    return {
        "name": folder.watch,
        "path": str(config.path) if config else "",
        "bucket": config.bucket if config else "",
        "writer_check": folder.writer_check,
        "lost": folder.lost,
        "next_scan": time_text(folder.next_scan),
        "counts": {str(state): counts.get(state, 0) for state in State},
        "oldest_queued_at": time_text(summary.oldest_queued_at) if summary else None,
    }


def of_inbox(inbox: InboxView) -> Document:
    """Render one inbox: its folder, and how many files came in by it."""
    return {
        "name": inbox.config.name,
        "path": str(inbox.config.path),
        "invitation": inbox.config.invitation,
        "waiting": inbox.waiting,
        "stopped": inbox.stopped,
        "received": inbox.received,
        "last_at": time_text(inbox.last_at),
    }


async def overview(view: View) -> Document:
    """Return the whole status: for ``status --json``, the status page and ``/api/status``. No URL is in it."""
    summaries = {found.watch: found for found in await view.ledger.summary()}
    configs = {watch.name: watch for watch in view.config.watches}
    roots = roots_of(view.config)
    stopped = await view.ledger.quarantined()
    settling, uploads = view.settling(), view.in_flight()
    status = {
        "daemon": of_daemon(view),
        "watches": [
            of_watch(folder, configs.get(folder.watch), summaries.get(folder.watch)) for folder in view.folders()
        ],
        "inboxes": [of_inbox(found) for found in await view.inboxes()],
        "settling_count": len(settling),
        "settling": [of_settling(found, roots) for found in settling[:LISTED]],
        "in_flight": [of_in_flight(found, roots) for found in uploads[:LISTED]],
        "blocked": [of_blocked(found) for found in view.blocked()],
        "quarantined_count": len(stopped),
        "quarantined": [of_version(found, roots) for found in stopped[:LISTED]],
        "webhooks": [of_webhook(found) for found in await view.webhooks.overview()],
        "ledger": str(view.config.ledger.path),
        "links_file": str(view.config.links.file),
    }
    return cast("Document", redact_texts(status))  # names may hold anything, and /api/status needs no token


def of_daemon(view: View) -> Document | None:
    """Render the daemon that answers; None where no daemon runs."""
    started = view.started_at
    return {"pid": os.getpid(), "started_at": time_text(started)} if started else None
