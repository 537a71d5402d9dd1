"""The tables of the state, as numbered migrations: the number of those applied is stored in the database.

A migration that was released is never changed. ``{…}`` is what differs between SQLite and PostgreSQL.
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
)


def migrations(dialect: Mapping[str, str]) -> list[list[str]]:
    """Return the statements of each migration, in order."""
    return [[statement.format_map(dialect) for statement in migration] for migration in MIGRATIONS]


def newer(found: int) -> str:
    """Return why a database with ``found`` migrations can't be used by this version."""
    return (
        f"it was made by a newer presignd (schema {found}, this version knows {len(MIGRATIONS)}): upgrade this broker"
    )
