"""The ledger's multipart uploads in SQL: an upload id with its version, and a row a part the store has."""

from __future__ import annotations

import sqlite3

from presignd.ledger.changes import update
from presignd.ledger.queries import select
from presignd.ledger.rows import LostUpdate
from presignd.model import FileVersion, Part

_OF = "version = (SELECT id FROM version WHERE file_id = ?)"


def begin_upload(connection: sqlite3.Connection, version: FileVersion, upload_id: str, part_size: int) -> FileVersion:
    """Record a created upload; whatever was recorded of an earlier one goes."""
    _forget_parts(connection, version)
    return update(connection, version, {"upload_id": upload_id, "part_size": part_size})


def part_done(connection: sqlite3.Connection, version: FileVersion, part: Part) -> None:
    """Record one part; a part sent again replaces its row. Raises ``LostUpdate`` for another upload's part."""
    row = (part.number, part.size, part.md5, part.etag, version.file_id, version.upload_id)
    done = connection.execute(
        "INSERT OR REPLACE INTO part (version, number, size, md5, etag)"
        " SELECT id, ?, ?, ?, ? FROM version WHERE file_id = ? AND upload_id = ?",
        row,
    )
    if done.rowcount != 1:
        raise LostUpdate(f"{version.file_id}: part {part.number} of an upload that is not its own")
    # What gets on is not what kills the daemon: a large file may be in flight at any number of exits.
    connection.execute("UPDATE version SET unclean = 0 WHERE file_id = ? AND unclean > 0", (version.file_id,))


def parts(connection: sqlite3.Connection, version: FileVersion) -> list[Part]:
    """Return the recorded parts, by number."""
    sql = f"SELECT number, size, md5, etag FROM part WHERE {_OF} ORDER BY number"  # noqa: S608 - our own words
    return [Part(*row) for row in connection.execute(sql, (version.file_id,))]


def end_upload(connection: sqlite3.Connection, version: FileVersion) -> FileVersion:
    """Forget the upload's id and parts; ``part_size`` stays, as the checksum of parts needs it."""
    _forget_parts(connection, version)
    return update(connection, version, {"upload_id": ""})


def uploads_left(connection: sqlite3.Connection) -> list[FileVersion]:
    """Return versions past uploading that still name an upload."""
    return select(connection, "upload_id != '' AND +state NOT IN ('queued', 'uploading') ORDER BY id")


def _forget_parts(connection: sqlite3.Connection, version: FileVersion) -> None:
    connection.execute(f"DELETE FROM part WHERE {_OF}", (version.file_id,))  # noqa: S608 - our own words
