"""What ``presignd status`` prints for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from presignd.cli import show

if TYPE_CHECKING:
    from collections.abc import Iterator

    Document = dict[str, Any]


def print_status(found: Document) -> None:
    """Print the whole status: one table for each thing there is something to say of."""
    daemon = found["daemon"]
    show.say(f"daemon: pid {daemon['pid']}, up {show.ago(daemon['started_at'])}" if daemon else "daemon: not running")
    show.table("watch", _WATCH, map(_watch_row, found["watches"]))
    show.table("blocked", ("what", "error", "since", "cause", "fix"), map(_blocked_row, found["blocked"]))
    show.table("in flight", ("watch", "path", "sent", "of", "rate", "left"), map(_upload_row, found["in_flight"]))
    show.table("settling", ("watch", "path", "since", "why"), map(_settling_row, found["settling"]))
    show.table("quarantined", ("watch", "path", "error", "cause", "fix"), map(_stopped_row, found["quarantined"]))
    for name in ("settling", "quarantined"):
        if (more := found[f"{name}_count"] - len(found[name])) > 0:
            show.say(f"and {more} more {name}")


_WATCH = ("name", "folder", "bucket", "queued", "in flight", "done", "quarantined", "oldest", "next scan", "settles by")


def _watch_row(watch: Document) -> list[str]:
    counts = watch["counts"]
    under_way = sum(counts[state] for state in ("uploading", "verified", "linked"))
    folder = watch["path"] + (" (its folder is away)" if watch["lost"] else "")
    return [
        watch["name"],
        folder,
        watch["bucket"],
        str(counts["queued"]),
        str(under_way),
        str(counts["finished"]),
        str(counts["quarantined"]),
        show.ago(watch["oldest_queued_at"]),
        show.until(watch["next_scan"]),
        watch["writer_check"],
    ]


def _blocked_row(found: Document) -> list[str]:
    return [found["what"], found["code"], show.ago(found["since"]), found["cause"], found["fix"]]


def _upload_row(found: Document) -> list[str]:
    rate = f"{show.size(found['rate'])}/s"
    left = "" if found["seconds_left"] is None else show.span(found["seconds_left"])
    return [found["watch"], found["path"], show.size(found["sent"]), show.size(found["size"]), rate, left]


def _settling_row(found: Document) -> list[str]:
    return [found["watch"], found["path"], show.ago(found["since"]), found["why"]]


def _stopped_row(found: Document) -> list[str]:
    error = found["error"] or {"code": "", "cause": "", "fix": ""}
    return [found["watch"], found["path"], error["code"], error["cause"], error["fix"]]


def print_path(found: Document) -> None:
    """Print where one file stands, a name and a value a line."""
    show.table("", ("", ""), _path_rows(found))


def _path_rows(found: Document) -> Iterator[list[str]]:
    version = found["version"]
    yield ["path", found["path"]]
    yield ["watch", found["watch"]]
    if settling := found["settling"]:
        yield ["settling", f"since {show.ago(settling['since'])}: {settling['why']}"]
    if version:
        yield ["state", version["state"]]
        yield from _version_rows(version)
    if upload := found["in_flight"]:
        sent, size = show.size(upload["sent"]), show.size(upload["size"])
        yield ["sent", f"{sent} of {size}, {show.size(upload['rate'])}/s"]


def _version_rows(version: Document) -> Iterator[list[str]]:
    if error := version["error"]:
        yield ["error", error["code"]]
        yield ["cause", error["cause"]]
        yield ["fix", error["fix"]]
    if receipt := version["receipt"]:
        yield ["object", f"{receipt['bucket']}/{receipt['key']}"]
        yield ["size", f"{receipt['size']} bytes"]
        yield ["checksum", receipt["checksum"]]
        yield ["etag", receipt["etag"]]
        yield ["uploaded", receipt["done_at"] or ""]
    if version["link_expires_at"]:
        yield ["link dies", f"{version['link_expires_at']} (in {show.until(version['link_expires_at'])})"]
