"""The messages for a daemon's webhooks: make the body of each, and record events about the store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from presignd.config import WebhookConfig
from presignd.errors import CODES, FileFault
from presignd.ledger import Ledger
from presignd.ledger.outbox import STORE
from presignd.model import Link
from presignd.pipeline.announce import shown_path
from presignd.pipeline.finish.link import Linker
from presignd.redaction.redact import redact_texts
from presignd.system.clock import from_micros, utcnow
from presignd.units import rfc3339
from presignd.webhooks.outbox import Message
from presignd.webhooks.schedule import Schedule
from presignd.webhooks.signature import encoded
from presignd.webhooks.webhooks import Webhooks

Data = Mapping[str, Any]

_DONE = ("file_id", "watch", "path", "bucket", "key", "size", "content_type", "checksum", "etag", "version_id")
_TIMES = ("queued_at", "done_at", "expires_at")


class WebhookMessages:
    """Records events about the store, and makes the body of every message. ``roots`` are the watches' folders."""

    def __init__(
        self, ledger: Ledger, roots: Mapping[str, bytes], linker: Linker, schedule: Schedule | None = None
    ) -> None:
        self._ledger, self._roots, self._linker = ledger, roots, linker
        self._outbox = ledger.outbox()
        self.webhooks = Webhooks(self._outbox, self.text, schedule=schedule)
        self._adding: set[asyncio.Task[None]] = set()

    def add(self, event: str, data: Data) -> None:
        """Record an event about the store, in order, if a webhook wants it."""
        if not self.webhooks.wants(event):
            return
        adding = asyncio.create_task(self._record(event, data), name=f"record {event}")
        self._adding.add(adding)
        adding.add_done_callback(self._adding.discard)

    async def _record(self, event: str, data: Data) -> None:
        await self._outbox.add(event, STORE, data)
        self.webhooks.wake()

    async def close(self) -> None:
        """Wait until every event is recorded, and close the webhooks' connections."""
        await asyncio.gather(*self._adding, return_exceptions=True)
        await self.webhooks.close()

    async def text(self, message: Message, webhook: WebhookConfig) -> bytes:
        """Return a message's body. Raises ``Fault`` if it needs a link that can't be made now."""
        fields = self._of_file(message.data) if message.event.startswith("file.") else dict(message.data)
        data: dict[str, Any] = redact_texts(fields)
        if webhook.include_link and (link := await self._link(data)):
            data["url"] = link.url
        return encoded(message.event, message.at, data)

    def _of_file(self, recorded: Data) -> dict[str, Any]:
        """Return the fields of a message about a version, named as in the log's events."""
        path = shown_path(self._roots.get(recorded["watch"], b""), bytes.fromhex(recorded["path"]))
        found = {name: recorded[name] for name in _DONE} | {"path": path, "attempt": recorded["attempt"]}
        found |= {name: rfc3339(from_micros(recorded[name])) for name in _TIMES if recorded[name] is not None}
        found["status"] = _status(recorded)
        if recorded["state"] == "quarantined":
            code = recorded["error_code"]
            known = CODES.get(code)
            found |= {"error_code": code, "error": recorded["error"], "fix": known.fix if known else ""}
        return {name: value for name, value in found.items() if value not in ("", None)}

    async def _link(self, data: Data) -> Link | None:
        """Return the link of a version that was linked or adopted; None if there is none or it has expired."""
        if data.get("status") not in ("linked", "adopted"):
            return None
        ends = data.get("expires_at")
        if ends is not None and datetime.fromisoformat(ends) <= utcnow():
            return None
        version = await self._ledger.by_id(data["file_id"])
        if version is None or not (version.link_id or version.expires_at):  # a file of a unit has no link of its own
            return None
        try:
            return await self._linker.link_again(version)
        except FileFault:
            return None


def _status(recorded: Data) -> str:
    """Return the status of ``file.done``, as ``states.done_status`` does, or "quarantined"."""
    if recorded["state"] == "finished":
        return "adopted" if recorded["adopted"] else "linked"
    return str(recorded["state"])
