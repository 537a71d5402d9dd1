"""What goes on now, as one document: ``presignd status --json``, the status page and ``/api/status``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from presignd.control import documents
from presignd.redaction.redact import redact_texts

if TYPE_CHECKING:
    from presignd.control.documents import Document
    from presignd.control.view import View

LISTED = 1000
"""At most so many files are listed one by one; the totals are beside them."""


async def overview(view: View) -> Document:
    """Return the document; no URL is in it, in no file's name either."""
    summaries = {found.watch: found for found in await view.ledger.summary()}
    configs = {watch.name: watch for watch in view.config.watches}
    roots = documents.roots_of(view.config)
    stopped = await view.ledger.quarantined()
    settling, uploads = view.settling(), view.in_flight()
    status = {
        "daemon": of_daemon(view),
        "watches": [
            documents.of_watch(folder, configs.get(folder.watch), summaries.get(folder.watch))
            for folder in view.folders()
        ],
        "settling_count": len(settling),
        "settling": [documents.of_settling(found, roots) for found in settling[:LISTED]],
        "in_flight": [documents.of_in_flight(found, roots) for found in uploads[:LISTED]],
        "blocked": [documents.of_blocked(found) for found in view.blocked()],
        "quarantined_count": len(stopped),
        "quarantined": [documents.of_version(found, roots) for found in stopped[:LISTED]],
        "ledger": str(view.config.ledger.path),
        "links_file": str(view.config.links.file),
    }
    return cast("Document", redact_texts(status))  # names may hold anything, and /api/status asks for no token


def of_daemon(view: View) -> Document | None:
    """Return who answers; None where no daemon runs."""
    started = view.started_at
    return {"pid": os.getpid(), "started_at": documents.time_text(started)} if started else None
