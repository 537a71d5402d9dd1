"""Deliberately broken builds of the daemon, for the harness to catch: Python loads this before anything else.

``PRESIGND_TEST_BROKEN`` names one; the folder is put on the daemon's ``PYTHONPATH`` only then.
"""

from __future__ import annotations

import os
from typing import Any

from presignd.ledger.sqlite import SqliteLedger
from presignd.links import LinksFile
from presignd.model import Fingerprint
from presignd.pipeline.transfer import Transfer


def intent() -> None:
    """Send without having committed what is sent."""
    committed = SqliteLedger.update

    async def update(self: Any, version: Any, **changed: Any) -> Any:
        return version if set(changed) == {"etag"} else await committed(self, version, **changed)

    SqliteLedger.update = update  # type: ignore[method-assign] # that is the breakage


def fingerprint() -> None:
    """Take the file for unchanged, however it is after its upload."""

    def trust(self: Any) -> Fingerprint:
        return Fingerprint.of(os.fstat(self._fd))

    Transfer._recheck = trust  # type: ignore[method-assign] # that is the breakage


def link() -> None:
    """Commit ``linked`` first, and write the lines after it."""
    put_off: list[Any] = []
    append, commit = LinksFile.append, SqliteLedger.linked

    def wait(self: Any, links: Any) -> Any:
        put_off.append(lambda: append(self, links))
        return self.mark

    async def linked(self: Any, versions: Any, mark: Any) -> Any:
        done = await commit(self, versions, mark)
        while put_off:
            put_off.pop()()
        return done

    LinksFile.append = wait  # type: ignore[method-assign] # that is the breakage
    SqliteLedger.linked = linked  # type: ignore[method-assign] # as above


{"intent": intent, "fingerprint": fingerprint, "link": link}[os.environ["PRESIGND_TEST_BROKEN"]]()
