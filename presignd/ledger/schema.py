"""The ledger's tables, as numbered migrations. Never change a released migration; add a new one.

Times are microseconds since 1970 UTC. ``ino``, ``mtime_ns``, ``ctime_ns`` and ``meta.value`` have no declared
type: values beyond SQLite's 64 signed bits (inodes of some filesystems, years after 2262) are kept as text.
"""

from __future__ import annotations

from presignd.system.sqlite import DatabaseKind

APPLICATION_ID = 0x70736764
""""psgd": marks the file as presignd's, among SQLite databases."""

_VERSION = """
CREATE TABLE version (
  id           INTEGER PRIMARY KEY,
  file_id      TEXT    NOT NULL UNIQUE,
  watch        TEXT    NOT NULL,
  path         BLOB    NOT NULL,
  current      INTEGER NOT NULL,
  state        TEXT    NOT NULL,
  ino                  NOT NULL,
  size         INTEGER NOT NULL,
  mtime_ns             NOT NULL,
  ctime_ns             NOT NULL,
  bucket       TEXT    NOT NULL,
  base_key     TEXT,
  key          TEXT,
  content_type TEXT    NOT NULL,
  priority     INTEGER NOT NULL,
  queued_at    INTEGER NOT NULL,
  attempt      INTEGER NOT NULL DEFAULT 0,
  faults       INTEGER NOT NULL DEFAULT 0,
  unclean      INTEGER NOT NULL DEFAULT 0,
  not_before   INTEGER,
  checksum     TEXT    NOT NULL DEFAULT '',
  etag         TEXT    NOT NULL DEFAULT '',
  version_id   TEXT    NOT NULL DEFAULT '',
  adopted      INTEGER NOT NULL DEFAULT 0,
  verified     INTEGER NOT NULL DEFAULT 0,
  error_code   TEXT    NOT NULL DEFAULT '',
  error        TEXT    NOT NULL DEFAULT '',
  done_at      INTEGER,
  signed_at    INTEGER,
  expires_at   INTEGER,
  announced    INTEGER NOT NULL DEFAULT 0,
  gone_at      INTEGER,
  upload_id    TEXT    NOT NULL DEFAULT '',
  part_size    INTEGER NOT NULL DEFAULT 0
)
"""
"""``verified``: these bytes were once verified under ``key``, so there is a receipt. ``gone_at``: when the
content left its path, by deletion or by a newer version; ``prune`` goes by it. ``linked``, added later: its link was
made."""

_OBJECT_KEY = """
CREATE TABLE object_key (
  bucket TEXT NOT NULL,
  key    TEXT NOT NULL,
  watch  TEXT NOT NULL,
  path   BLOB NOT NULL,
  PRIMARY KEY (bucket, key)
) WITHOUT ROWID
"""

_PART = """
CREATE TABLE part (
  version INTEGER NOT NULL REFERENCES version (id) ON DELETE CASCADE,
  number  INTEGER NOT NULL,
  size    INTEGER NOT NULL,
  md5     TEXT    NOT NULL,
  etag    TEXT    NOT NULL,
  PRIMARY KEY (version, number)
) WITHOUT ROWID
"""

_WATCH = """
CREATE TABLE watch (
  name             TEXT    PRIMARY KEY,
  first_started_at INTEGER NOT NULL,
  first_scan_done  INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID
"""

_FOLDER_UNIT = """
CREATE TABLE folder_unit (
  id           INTEGER PRIMARY KEY,
  watch        TEXT    NOT NULL,
  folder       BLOB    NOT NULL,
  marker_size  INTEGER NOT NULL,
  marker_mtime         NOT NULL,
  made         INTEGER NOT NULL,
  manifest     INTEGER NOT NULL REFERENCES version (id) ON DELETE CASCADE,
  sums         INTEGER NOT NULL REFERENCES version (id) ON DELETE CASCADE,
  open         INTEGER NOT NULL DEFAULT 1
)
"""
"""A folder that was complete, and is one unit (``presignd.ledger.units``): ``manifest`` and ``sums`` are the versions
of its two own files; ``open`` until it is finished."""

_MEMBER = """
CREATE TABLE member (
  unit    INTEGER NOT NULL REFERENCES folder_unit (id) ON DELETE CASCADE,
  version INTEGER NOT NULL REFERENCES version (id) ON DELETE CASCADE,
  PRIMARY KEY (unit, version)
) WITHOUT ROWID
"""

_SHA256 = """
CREATE TABLE sha256 (
  version INTEGER PRIMARY KEY REFERENCES version (id) ON DELETE CASCADE,
  hex     TEXT    NOT NULL
)
"""
_ARRIVAL = """
CREATE TABLE arrival (
  ref         TEXT    PRIMARY KEY,
  inbox       TEXT    NOT NULL,
  bucket      TEXT    NOT NULL,
  key         TEXT    NOT NULL,
  path        TEXT    NOT NULL,
  size        INTEGER NOT NULL,
  checksum    TEXT    NOT NULL,
  part_size   INTEGER NOT NULL,
  received_at INTEGER NOT NULL,
  state       TEXT    NOT NULL DEFAULT 'waiting',
  place       BLOB    NOT NULL DEFAULT x'',
  ino,
  mtime_ns,
  placed_at   INTEGER,
  error_code  TEXT    NOT NULL DEFAULT '',
  error       TEXT    NOT NULL DEFAULT ''
) WITHOUT ROWID
"""
"""Files that came in by invitations (``arrivals``); ``place`` is a path below the inbox's folder."""

_MESSAGE = """
CREATE TABLE message (
  id      INTEGER PRIMARY KEY,
  webhook TEXT    NOT NULL,
  event   TEXT    NOT NULL,
  subject TEXT    NOT NULL,
  at      INTEGER NOT NULL,
  due_at  INTEGER NOT NULL,
  tries   INTEGER NOT NULL DEFAULT 0,
  data    TEXT    NOT NULL
)
"""
"""Messages that are still to be sent to webhooks; ``presignd.ledger.outbox`` writes them. ``data`` is JSON."""

UNANNOUNCED = "announced = 0 AND (+state = 'finished' OR +state = 'vanished' OR +state = 'superseded')"
"""Queries repeat an index's condition word for word, or SQLite does not use the index.

The plus, here and in other queries, keeps SQLite from using the index on the state instead, which would go through
every finished version. No ``IN``: for each row written, SQLite would build a table of its values (1 to 2 µs)."""

_UNSAID = "announced = 0 AND +state IN ('finished', 'vanished', 'superseded')"
"""``UNANNOUNCED`` as it was up to the sixth migration."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        _VERSION,
        "CREATE UNIQUE INDEX version_current ON version (watch, path) WHERE current = 1",
        "CREATE INDEX version_queue ON version (watch, priority, id, not_before, size) WHERE state = 'queued'",
        "CREATE INDEX version_due ON version (watch, not_before) WHERE state = 'queued'",
        "CREATE INDEX version_state ON version (state, watch, queued_at)",
        "CREATE INDEX version_key ON version (key) WHERE key IS NOT NULL",
        f"CREATE INDEX version_unsaid ON version (id) WHERE {_UNSAID}",
        "CREATE INDEX version_upload ON version (id) WHERE upload_id != ''",
        "CREATE INDEX version_gone ON version (gone_at) WHERE gone_at IS NOT NULL",
        _OBJECT_KEY,
        _PART,
        _WATCH,
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
    ),
    (
        "ALTER TABLE version ADD COLUMN link_version TEXT NOT NULL DEFAULT ''",
        # Earlier links nearly always named the version, but this was not recorded.
        "UPDATE version SET link_version = version_id WHERE expires_at IS NOT NULL AND version_id NOT IN ('', 'null')",
    ),
    (
        "ALTER TABLE version ADD COLUMN link_id TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE version ADD COLUMN linked INTEGER NOT NULL DEFAULT 0",
        "UPDATE version SET linked = 1 WHERE expires_at IS NOT NULL",
    ),
    (
        _FOLDER_UNIT,
        "CREATE INDEX folder_unit_of ON folder_unit (watch, folder, id)",
        "CREATE INDEX folder_unit_open ON folder_unit (watch, id) WHERE open = 1",
        _MEMBER,
        "CREATE INDEX member_version ON member (version)",
        _SHA256,
    ),
    (
        _MESSAGE,
        "CREATE INDEX message_due ON message (webhook, due_at, id)",
        "CREATE INDEX message_subject ON message (webhook, subject, id)",
        # The SHA-256 of its address: another address is another receiver, which is not gone.
        "CREATE TABLE webhook_off (name TEXT PRIMARY KEY, address BLOB NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID",
    ),
    (
        _ARRIVAL,
        "CREATE INDEX arrival_file ON arrival (ino, mtime_ns) WHERE ino IS NOT NULL",
    ),
    (
        "DROP INDEX version_unsaid",
        f"CREATE INDEX version_unannounced ON version (id) WHERE {UNANNOUNCED}",
    ),
)

LEDGER = DatabaseKind(
    "the ledger",
    APPLICATION_ID,
    MIGRATIONS,
    setting="ledger.path",
    place="folder",
    user="the daemon's user",
    loss="files already uploaded are found in the store, not sent twice",
)
