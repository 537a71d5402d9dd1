"""The tables of the state, as numbered migrations: the number of those applied is stored in the database.

Never change a released migration. ``{…}`` marks what differs between SQLite and PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Mapping

SQLITE: Mapping[str, str] = {"bytes": "BLOB", "number": "INTEGER", "counter": "INTEGER PRIMARY KEY", "room": ""}
POSTGRES: Mapping[str, str] = {
    "bytes": "BYTEA",
    "number": "BIGINT",
    "counter": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    # An opening updates its row: with room in its page, no index changes (PostgreSQL's heap-only tuples).
    "room": "WITH (fillfactor = 80)",
}

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE links (
            n {counter},
            id {bytes} NOT NULL UNIQUE,
            token TEXT NOT NULL,
            bucket TEXT NOT NULL,
            key TEXT NOT NULL,
            version_id TEXT NOT NULL,
            size {number},
            content_type TEXT NOT NULL,
            filename TEXT NOT NULL,
            disposition TEXT NOT NULL,
            note TEXT NOT NULL,
            pin TEXT NOT NULL,
            made_at {number} NOT NULL,
            ends_at {number},
            max_downloads {number},
            opened {number} NOT NULL DEFAULT 0,
            opened_at {number},
            revoked_at {number},
            kept {number} NOT NULL DEFAULT 0,
            pin_tries {number} NOT NULL DEFAULT 0,
            pin_since {number} NOT NULL DEFAULT 0
        ) {room}
        """,
        "CREATE INDEX links_of_token ON links (token, n)",
        "CREATE INDEX links_of_object ON links (key)",
        "CREATE TABLE secrets (name TEXT PRIMARY KEY, value {bytes} NOT NULL)",
    ),
    (
        """
        CREATE TABLE invitations (
            n {counter},
            id {bytes} NOT NULL UNIQUE,
            name TEXT NOT NULL UNIQUE,
            bucket TEXT NOT NULL,
            prefix TEXT NOT NULL,
            note TEXT NOT NULL,
            pin TEXT NOT NULL,
            made_at {number} NOT NULL,
            ends_at {number} NOT NULL,
            max_files {number},
            max_size {number},
            total {number},
            revoked_at {number},
            files {number} NOT NULL DEFAULT 0,
            bytes {number} NOT NULL DEFAULT 0,
            newest {bytes},
            pin_tries {number} NOT NULL DEFAULT 0,
            pin_since {number} NOT NULL DEFAULT 0
        ) {room}
        """,
        """
        CREATE TABLE tickets (
            n {counter},
            id {bytes} NOT NULL UNIQUE,
            invitation {number} NOT NULL,
            path TEXT NOT NULL,
            bucket TEXT NOT NULL,
            key TEXT NOT NULL,
            size {number} NOT NULL,
            content_type TEXT NOT NULL,
            part_size {number} NOT NULL,
            ends_at {number} NOT NULL,
            state TEXT NOT NULL,
            made_at {number} NOT NULL,
            used_at {number} NOT NULL,
            due_at {number},
            signed_until {number} NOT NULL DEFAULT 0,
            checksum TEXT NOT NULL DEFAULT '',
            etag TEXT NOT NULL DEFAULT '',
            done_at {number},
            released {number} NOT NULL DEFAULT 0,
            mark {bytes}
        ) {room}
        """,
        "CREATE INDEX tickets_of_invitation ON tickets (invitation, n)",
        "CREATE INDEX tickets_due ON tickets (due_at) WHERE due_at IS NOT NULL",
        """
        CREATE TABLE uploads (
            upload {bytes} PRIMARY KEY,
            ticket {bytes} NOT NULL UNIQUE,
            upload_id TEXT NOT NULL
        )
        """,
    ),
    (
        # ``arrivals`` numbers the files of an invitation, in the order of the commits: each increments it.
        "ALTER TABLE invitations ADD COLUMN arrivals {number} NOT NULL DEFAULT 0",
        "ALTER TABLE tickets ADD COLUMN arrival {number}",
        "ALTER TABLE tickets ADD COLUMN acked_at {number}",
        "UPDATE tickets SET arrival = n WHERE state = 'received'",
        """
        UPDATE invitations
        SET arrivals = COALESCE((SELECT max(arrival) FROM tickets WHERE tickets.invitation = invitations.n), 0)
        """,
        "CREATE INDEX tickets_inbox ON tickets (invitation, arrival) WHERE arrival IS NOT NULL AND acked_at IS NULL",
    ),
    ("ALTER TABLE links ADD COLUMN unit {number} NOT NULL DEFAULT 0",),
    (
        # Messages that are still to be sent to webhooks; ``data`` is JSON. ``mark`` is that of the change it reports.
        """
        CREATE TABLE messages (
            n {counter},
            webhook TEXT NOT NULL,
            event TEXT NOT NULL,
            subject TEXT NOT NULL,
            at {number} NOT NULL,
            due_at {number} NOT NULL,
            tries {number} NOT NULL DEFAULT 0,
            data TEXT NOT NULL,
            mark {bytes} NOT NULL
        )
        """,
        "CREATE INDEX messages_due ON messages (webhook, due_at, n)",
        "CREATE INDEX messages_subject ON messages (webhook, subject, n)",
        "CREATE TABLE webhooks_off (name TEXT PRIMARY KEY, address {bytes} NOT NULL, at {number} NOT NULL)",
        "ALTER TABLE links ADD COLUMN mark {bytes}",
    ),
    # What ``opened_at`` was before the newest opening, which may be taken back.
    ("ALTER TABLE links ADD COLUMN opened_before {number}",),
)


def migrations(dialect: Mapping[str, str]) -> list[list[str]]:
    """Return the statements of each migration, in order."""
    return [[statement.format_map(dialect) for statement in migration] for migration in MIGRATIONS]


def newer(found: int) -> str:
    """Return why a database with ``found`` migrations can't be used by this version."""
    return (
        f"it was made by a newer presignd (schema {found}, this version knows {len(MIGRATIONS)}): upgrade this broker"
    )
