"""Stable links in tests: a broker whose links have a name of their own, and a client that follows no redirect."""

from __future__ import annotations

import http.client
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from presignd.demo.seaweedfs import LOOPBACK
from tests.brokers import Broker, Document, served
from tests.stores import Store

OPERATIONS = ["put", "multipart", "head", "get", "link"]
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@dataclass(frozen=True)
class Answer:
    """An answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def location(self) -> str:
        return self.headers["location"]

    @property
    def cookie(self) -> str:
        """The cookie to send back."""
        return self.headers["set-cookie"].partition(";")[0]


class Sharing(Broker):
    """A broker with stable links at ``localhost``, its API at 127.0.0.1, and the token "one" for a bucket."""

    def __init__(
        self, folder: Path, store: Store, bucket: str, *, state: str = "", shared: bool = False, endpoint: str = ""
    ) -> None:
        super().__init__(folder, store, endpoint=endpoint)
        self.links_url = self.url if shared else f"http://localhost:{self.port}"
        state = state or 'path = "state.db"'
        self.configure(f'{self.file.read_text()}\n[links]\nurl = "{self.links_url}"\n[state]\n{state}\n')
        self.bucket = bucket
        self.secret = self.token("one", bucket, operations=OPERATIONS)

    def link(self, key: str, **terms: Any) -> Document:
        """Make a link; the answer has its ``id`` too."""
        link_id = secrets.token_urlsafe(16)
        self.secrets.append(link_id)
        asked = {"bucket": self.bucket, "key": key, **terms}
        status, answer, _ = self.call(f"/v1/links/{link_id}", self.secret, asked, method="PUT")
        assert status == 201, answer
        return {"id": link_id, **answer}

    def revoke_link(self, link: Document) -> None:
        """Revoke a link."""
        assert self.call(f"/v1/links/{link['id']}", self.secret, method="DELETE")[0] == 204

    def opened(self, link: Document) -> int:
        """Return how often a link was opened."""
        for each in self.call("/v1/links", self.secret)[1]["links"]:
            if each["ref"] == link["ref"]:
                return int(each["opened"])
        raise LookupError(link["ref"])


def ask(url: str, method: str = "GET", headers: Mapping[str, str] | None = None, **form: str) -> Answer:
    """Send one request; ``form`` is sent by POST."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(LOOPBACK, parts.port, timeout=30)
    given = {"Host": parts.netloc, **(headers or {})}
    body = None
    if method == "POST":
        body = urlencode(form)
        given = {"Content-Type": "application/x-www-form-urlencoded", **given}
    try:
        connection.request(method, f"{parts.path}{'?' if parts.query else ''}{parts.query}", body, given)
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


@contextmanager
def sharing(folder: Path, store: Store, bucket: str, **how: Any) -> Iterator[Sharing]:
    """Run a broker with stable links."""
    with served(Sharing(folder, store, bucket, **how)) as broker:
        yield broker
