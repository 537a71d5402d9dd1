"""Inboxes in tests: a broker with an invitation, a guest who sends files, and the configuration of a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from presignd.config import Config, InboxConfig, WatchConfig
from tests.brokers import Document
from tests.guests import Guest, invite
from tests.running import config, watch
from tests.stable import OPERATIONS, Sharing, sharing
from tests.stores import Store

PART = 16 << 20
BODY = b"scanned in March\n" * 10


@dataclass
class Site:
    """A store, a broker with the invitation "march", and the folders of a daemon that takes what comes in."""

    store: Store
    broker: Sharing
    folder: Path
    guest: Guest
    secret: str
    sent: dict[str, bytes] = field(default_factory=dict)

    @property
    def inbox(self) -> Path:
        """The inbox's folder."""
        return self.folder / "in"

    def config(self, *watches: WatchConfig, inboxes: tuple[InboxConfig, ...] | None = None, **presign: Any) -> Config:
        """Configure a daemon with the inbox "scans"."""
        self.inbox.mkdir(exist_ok=True)
        given = {"kind": "broker", "url": self.broker.url, "token": SecretStr(self.secret), **presign}
        drop = watch(self.folder, bucket=self.broker.bucket, key="{prefix}drop/{path}", links="presigned")
        found = config(self.folder, self.store, *(watches or [drop]), access_key="", secret_key=None, **given)
        own = InboxConfig(name="scans", path=self.inbox, invitation="march")
        return found.model_copy(update={"inboxes": (own,) if inboxes is None else inboxes})

    def toml(self, *, watched: str = "drop") -> str:
        """Return the same as a file; the watch is on the folder ``watched``."""
        for name in ("in", watched):
            (self.folder / name).mkdir(exist_ok=True)
        return f"""
[presign]
kind = "broker"
url = "{self.broker.url}"
token = "{self.secret}"
endpoint = "{self.store.endpoint}"
region = "us-east-1"
[ledger]
path = "{self.folder / "state"}"
[log]
format = "json"
[[watch]]
name = "drop"
path = "{self.folder / watched}"
bucket = "{self.broker.bucket}"
key = "{{prefix}}drop/{{path}}"
settle = "0s"
[[inbox]]
name = "scans"
path = "{self.inbox}"
invitation = "march"
"""

    def send(self, path: str, body: bytes = BODY) -> Document:
        """Send a file as a guest does, in parts if it is large; return its ticket."""
        (ticket,) = self.guest.tickets((path, len(body)))
        size = ticket["part_size"]
        if size:
            upload = self.guest.begin(ticket)
            parts = [body[start : start + size] for start in range(0, len(body), size)]
            etags = [
                self.guest.send_part(ticket, upload, number, part).headers["etag"].strip('"')
                for number, part in enumerate(parts, 1)
            ]
            assert self.guest.complete(ticket, upload, etags).status == 200
        else:
            assert self.guest.put(ticket, body).status == 200
        status, told = self.guest.done(ticket)
        assert status == 200, told
        self.sent[path] = body
        return ticket

    def listed(self) -> list[Document]:
        """Return what the broker lists still."""
        status, answer, _ = self.broker.call("/v1/inbox/march", self.secret)
        assert status == 200, answer
        found: list[Document] = answer["files"]
        return found

    def files(self) -> dict[str, bytes]:
        """Return what is in the inbox, hidden files too."""
        return {
            str(path.relative_to(self.inbox)): path.read_bytes() for path in self.inbox.rglob("*") if path.is_file()
        }


@contextmanager
def site_of(folder: Path, store: Store, **how: Any) -> Iterator[Site]:
    """Run a broker with an invitation."""
    with sharing(folder / "broker", store, store.new_bucket(), **how) as broker:
        secret = broker.token("office", broker.bucket, prefix="", operations=[*OPERATIONS, "receive"])
        guest = Guest(invite(broker, "march", prefix="in/")["url"], broker.secrets)
        yield Site(store, broker, folder, guest, secret)
