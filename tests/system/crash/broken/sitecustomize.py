"""Deliberately broken builds of the daemon, for the harness to catch: Python loads this before anything else.

``PRESIGND_TEST_BROKEN`` names them, with commas; the folder is put on the daemon's ``PYTHONPATH`` only then.
"""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from presignd.ledger import Ledger
from presignd.links import LinksFile, writer
from presignd.model import Fingerprint
from presignd.pipeline.files.folder import Gone, NotRegular
from presignd.pipeline.finish import link as made
from presignd.pipeline.finish import link_file
from presignd.pipeline.finish import remove as finish
from presignd.pipeline.upload import transfer, verify
from presignd.pipeline.watch import leftovers
from presignd.presign.stable import new_link_id
from presignd.system import filesystem
from presignd.system.sqlite import DatabaseFile


def intent() -> None:
    """Send without having committed what is sent."""
    committed, claimed, enqueued = Ledger.update, Ledger.claim, Ledger.enqueue

    async def update(self: Any, version: Any, **changed: Any) -> Any:
        return version if set(changed) == {"etag"} else await committed(self, version, **changed)

    async def claim(self: Any, wanted: Any) -> Any:
        return await claimed(self, [one._replace(intent="") for one in wanted])

    async def enqueue(self: Any, versions: Any, intents: Any = {}) -> Any:  # noqa: B006 - it is not changed
        return await enqueued(self, versions, dict.fromkeys(intents, ""))

    # That is the breakage.
    Ledger.update, Ledger.claim, Ledger.enqueue = update, claim, enqueue  # type: ignore[method-assign]


def fingerprint() -> None:
    """Take the file for unchanged, however it is after its upload."""

    async def trust(self: Any) -> Fingerprint:
        return Fingerprint.of(os.fstat(self._fd))

    def trust_path(self: Any, item: Any) -> Fingerprint:
        try:
            return Fingerprint.of(self._folders[item.version.watch].stat(item.version.path))
        except (Gone, NotRegular):
            return item.receipt.fingerprint  # type: ignore[no-any-return] # an Item has it as Receipt

    vars(transfer)["Transfer"]._require_unchanged = trust
    vars(transfer)["Transfer"]._recheck = _nothing
    vars(verify)["Verifier"]._recheck = trust_path


def link() -> None:
    """Commit ``record_linked`` first, and write the lines after it."""
    put_off: list[Any] = []
    append, commit = LinksFile.append, Ledger.record_linked

    def wait(self: Any, links: Any) -> Any:
        put_off.append(lambda: append(self, links))
        return self.mark

    async def record_linked(self: Any, linked: Any, mark: Any) -> Any:
        done = await commit(self, linked, mark)
        while put_off:
            put_off.pop()()
        return done

    LinksFile.append = wait  # type: ignore[method-assign] # that is the breakage
    Ledger.record_linked = record_linked  # type: ignore[method-assign] # as above


def link_id() -> None:
    """Ask the broker for another id than the ledger committed."""
    asked = vars(made)["stable_request"]
    vars(made)["stable_request"] = lambda *given: replace(asked(*given), id=new_link_id())


def unsynced_links() -> None:
    """Append, and let the disk come to it when it likes."""
    _without_fsync(writer)


def unsynced_rotation() -> None:
    """Rotate and make links files without making their names durable."""
    vars(writer)["sync_folder"] = _nothing


def unsynced_names() -> None:
    """Move files, and leave links beside them, without making their names durable."""
    for module in (finish, link_file, leftovers):
        vars(module)["sync"] = _nothing


def unsynced_copies() -> None:
    """Copy to another filesystem, and remove the original before the copy is durable."""
    _without_fsync(finish)


def unsynced_ledger() -> None:
    """Let the ledger's commits come to the disk when it likes."""
    connected = DatabaseFile.connect

    def connect(self: Any, **how: Any) -> Any:
        connection = connected(self, **how)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    DatabaseFile.connect = connect  # type: ignore[method-assign] # that is the breakage


def _without_fsync(module: Any) -> None:
    module.os = SimpleNamespace(**{**vars(os), "fsync": _nothing})


def _nothing(*_: Any) -> None:
    """Stand in for a sync."""


def on_fuse() -> None:
    """Take FUSE for a local filesystem: no breakage, but what the tests of power loss need."""
    del filesystem.NETWORK[0x65735546]


for name in os.environ["PRESIGND_TEST_BROKEN"].split(","):
    globals()[name]()
