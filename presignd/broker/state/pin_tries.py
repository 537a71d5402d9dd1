"""The limit on tries of a PIN, in any table with the columns ``id``, ``pin_tries`` and ``pin_since``."""

from __future__ import annotations


def pin_try(table: str) -> str:
    """Return SQL that takes one of ``?4`` tries of ``?1`` since ``?2``, now being ``?3``; no row if none is left."""
    return (
        f"UPDATE {table} SET pin_tries = CASE WHEN pin_since > ?2 THEN pin_tries + 1 ELSE 1 END, "  # noqa: S608
        "pin_since = CASE WHEN pin_since > ?2 THEN pin_since ELSE ?3 END "
        "WHERE id = ?1 AND (pin_tries < ?4 OR pin_since <= ?2) RETURNING id"
    )
