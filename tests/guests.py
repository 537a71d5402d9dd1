"""Guests in tests: they send files by an invitation as the page does, over HTTP."""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from presignd.demo.seaweedfs import LOOPBACK
from presignd.s3.multipart import complete_body
from tests.brokers import Document, command
from tests.stable import Answer, Sharing

_TLS = ssl.create_default_context()
_TLS.check_hostname, _TLS.verify_mode = False, ssl.CERT_NONE


def invite(broker: Sharing, name: str, *options: str, prefix: str = "in/") -> Document:
    """Make an invitation by the command; the answer has its ``url`` and ``pin``."""
    given = ["--bucket", broker.bucket, "--prefix", prefix, *options]
    made = command("invite", "create", name, "-c", broker.file, "--json", *given)
    assert made.returncode == 0, made.stderr
    found: Document = json.loads(made.stdout)
    broker.secrets.append(found["url"].rpartition("/")[2])
    return found


def send(url: str, method: str, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> Answer:
    """Send one request, at loopback whatever its name, and whoever certified it."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(LOOPBACK, parts.port, timeout=60)
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(LOOPBACK, parts.port, timeout=60, context=_TLS)
    try:
        place = f"{parts.path}{'?' if parts.query else ''}{parts.query}"
        connection.request(method, place, body, {"Host": parts.netloc, **(headers or {})})
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


class Guest:
    """Somebody with an invitation's address; its tickets are added to ``secrets``, which no log may have."""

    def __init__(self, url: str, secrets: list[str] | None = None) -> None:
        self.url = url
        self._secrets = [] if secrets is None else secrets
        self.passed = ""

    def look(self, **headers: str) -> Answer:
        """Open the address."""
        return send(self.url, "GET", {"Accept": "application/json", **headers})

    def post(self, call: str, body: Any) -> tuple[int, Document]:
        """Send one call; return the status and the document."""
        headers = {"Content-Type": "application/json"} | ({"X-Pass": self.passed} if self.passed else {})
        answer = send(f"{self.url}/{call}", "POST", headers, json.dumps(body).encode())
        return answer.status, json.loads(answer.body)

    def ask(self, call: str, body: Any) -> Document:
        """Send a call that must be answered."""
        status, found = self.post(call, body)
        assert status == 200, found
        return found

    def tickets(self, *files: tuple[str, int]) -> list[Document]:
        """Ask for tickets; each is a ticket or an error."""
        asked = [{"path": path, "size": size, "type": "text/plain"} for path, size in files]
        found: list[Document] = self.ask("files", {"files": asked})["files"]
        self._secrets += [each["ticket"] for each in found if "ticket" in each]
        return found

    def sign(self, ticket: Document, operation: str = "", **more: Any) -> Document:
        """Ask for one grant, or its error."""
        asked = {"ticket": ticket["ticket"], **({"operation": operation} if operation else {}), **more}
        (found,) = self.ask("sign", {"requests": [asked]})["grants"]
        assert isinstance(found, dict)
        return found

    def put(self, ticket: Document, body: bytes) -> Answer:
        """Send a file by one PUT."""
        return carry_out(self.sign(ticket, checksum=md5(body)), body)

    def begin(self, ticket: Document) -> str:
        """Begin an upload in parts; return its id."""
        answer = carry_out(self.sign(ticket, "multipart.create"), b"")
        return answer.text.partition("<UploadId>")[2].partition("</UploadId>")[0]

    def send_part(self, ticket: Document, upload_id: str, number: int, body: bytes) -> Answer:
        """Send one part."""
        grant = self.sign(ticket, "multipart.part", upload_id=upload_id, part_number=number, checksum=md5(body))
        return carry_out(grant, body)

    def complete(self, ticket: Document, upload_id: str, etags: list[str]) -> Answer:
        """End an upload in parts."""
        grant = self.sign(ticket, "multipart.complete", upload_id=upload_id)
        return carry_out(grant, complete_body(list(enumerate(etags, 1))))

    def done(self, ticket: Document, parts: list[str] | None = None) -> tuple[int, Document]:
        """Say that a file is there."""
        return self.post("done", {"ticket": ticket["ticket"], **({"parts": parts} if parts else {})})


def carry_out(grant: Document, body: bytes | None = None) -> Answer:
    """Send a granted request."""
    assert "error" not in grant, grant
    return send(grant["url"], grant["method"], grant["headers"], body)


def md5(body: bytes) -> str:
    """Return the checksum of a body as the protocol has it."""
    return f"md5:{hashlib.md5(body, usedforsecurity=False).hexdigest()}"
