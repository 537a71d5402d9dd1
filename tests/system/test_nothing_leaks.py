"""No signature, credential or token in any output of the daemon (guarantee 7), tested from outside.

A store that tells each caller his own signed URL in every coat, on top of every other fault; at ``debug``,
with asyncio's debug mode, so that each library says all it has. Then every piece of every signature that
reached the store or stands in a link is searched for. (``tests/running.py`` does the same in every test
of the fault matrix, metrics included.)
"""

from __future__ import annotations

import json
import os
import random
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from presignd.demo.seaweedfs import free_ports
from tests.canary import assert_no_secrets, assert_no_signatures
from tests.faulty_s3 import BUCKET, FOREVER, FaultyS3
from tests.system.harness import Presignd
from tests.system.processes import tree
from tests.system.test_faults import STORM

TOKEN = 'canary-session-token/with+odd=characters&more%20of "them" 0123456789'
ECHOES: list[dict[str, Any]] = [
    {"status": 400, "echo": True},
    {"status": 400, "echo": True, "code": "BadDigest"},
    {"status": 403, "echo": True, "code": "SignatureDoesNotMatch"},
    {"status": 403, "echo": True, "code": "AccessDenied"},
    {"status": 404, "echo": True, "code": "NoSuchBucket"},
    {"status": 412, "echo": True, "code": "PreconditionFailed"},
    {"status": 500, "echo": True, "code": "InternalError"},
    {"status": 503, "echo": True, "code": "SlowDown"},
]
_REGION = b"<Error><Code>PermanentRedirect</Code><Message>SIGNATURE</Message><Region>SIGNATURE</Region></Error>"
BARE: list[dict[str, Any]] = [
    {"status": 403, "code": "AccessDenied", "message": "the signature SIGNATURE of CREDENTIAL"},
    {"status": 400, "code": "SIGNATURE", "message": "CREDENTIAL"},
    {"status": 503, "code": "SlowDown", "message": "SIGNATURE"},
    {"status": 301, "body": _REGION, "headers": {"x-amz-bucket-region": "SIGNATURE"}},
    {"method": "PUT", "etag": '"SIGNATURE"'},
    {"method": "PUT", "headers": {"x-amz-version-id": "SIGNATURE", "x-amz-server-side-encryption": "aws:kms"}},
    {"method": "PUT", "etag": '"SIGNATURE"', "headers": {"x-amz-server-side-encryption": "aws:kms"}},
]
"""No shape tells a bare signature from a checksum: only who sent it knows."""


class Storm:
    """A daemon in bad weather, and all that must not be seen of it."""

    def __init__(self, store: FaultyS3, folder: Path, form: str) -> None:
        self.store, self.folder = store, folder
        [self.port] = free_ports(1)
        (folder / "drop").mkdir()
        text = f"""
[presign]
endpoint = "{store.endpoint}"
access_key = "{store.access_key}"
secret_key = "{store.secret_key}"
session_token = {json.dumps(TOKEN)}
[ledger]
path = "{folder}/state"
[log]
level = "debug"
format = "{form}"
[web]
listen = "127.0.0.1:{self.port}"
[upload]
timeout = "1500ms"
attempts = 1000
drain_timeout = "0s"
[[watch]]
name = "drop"
path = "{folder}/drop"
bucket = "{BUCKET}"
settle = "0s"
events = "watchfiles"
"""
        self.daemon = Presignd(folder, text, secrets=(store.secret_key, TOKEN))

    def signatures(self) -> set[str]:
        """Return every signature there was: of all that was sent, and of the links."""
        sent = {seen.query.get("X-Amz-Signature", "") for seen in self.store.requests}
        return sent | {link["url"].rpartition("X-Amz-Signature=")[2] for link in self.daemon.links()} - {""}

    def assert_clean(self, text: str | bytes) -> None:
        """Fail for any piece of a secret."""
        assert_no_secrets(text, self.store.secret_key, self.store.access_key, TOKEN)
        assert_no_signatures(text, self.signatures())

    def drop(self, numbers: range) -> None:
        """Drop a file for each number."""
        for number in numbers:
            (self.folder / "drop" / f"{number}").write_bytes(os.urandom(2000))

    def get(self, path: str) -> bytes:
        """Fetch a page as somebody without a token."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            body: bytes = answer.read()
        return body

    def ledger(self) -> list[bytes]:
        """Return the files of the ledger, as they are on disk."""
        return [file.read_bytes() for file in (self.folder / "state").glob("ledger.sqlite3*")]

    def told(self, *commands: list[str]) -> list[bytes]:
        """Return what these commands print."""
        done = [self.daemon.run(*command) for command in commands]
        return [each.stdout.encode() + each.stderr.encode() for each in done]


@pytest.fixture
def storm(form: str, faulty_s3: FaultyS3, tmp_path: Path) -> Iterator[Storm]:
    made = Storm(faulty_s3, tmp_path, form)
    rng = random.Random(form)
    for how in (*STORM, *ECHOES):
        faulty_s3.fault(when=lambda *_: rng.random() < 0.02, times=FOREVER, **how)
    yield made
    made.daemon.end()


@pytest.mark.parametrize(
    ("form", "files"),
    [
        ("console", 10),
        pytest.param("console", 50, marks=pytest.mark.long),
        pytest.param("json", 50, marks=pytest.mark.long),
    ],
)
def test_a_storm_of_echoes_tells_nobody_a_secret(
    storm: Storm, faulty_s3: FaultyS3, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    """Log, metrics, status, process arguments and what the other commands print; the files all arrive."""
    monkeypatch.setattr(Presignd, "environ", property(lambda self: _environ(self.folder)))
    storm.daemon.start(ready=False)
    storm.drop(range(files))
    storm.daemon.until(lambda: len(faulty_s3.requests) > files + 10, "many requests")
    storm.drop(range(files, files + 10))
    seen = [storm.get(path) for path in ("/metrics", "/api/status", "/")]
    assert storm.daemon.process is not None
    seen += [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in tree(storm.daemon.process.pid)]
    for command in (["status"], ["status", "--json"], ["config"], ["links", "--help"]):
        done = storm.daemon.run(*command)
        seen += [done.stdout.encode(), done.stderr.encode()]
        if "--json" in command:
            faulty_s3.heal()  # the others ask of no weather: the longer it lasts, the longer each file waits after it
    storm.daemon.until(lambda: len({link["key"] for link in storm.daemon.links()}) == files + 10, "all linked")
    assert storm.daemon.stop() == 0
    log = storm.daemon.log.read_bytes()
    assert len(storm.signatures()) > 2 * files
    assert b"watchfiles" in log, "the libraries are to be heard"
    for text in (log, *seen):
        storm.assert_clean(text)


@pytest.mark.long
def test_a_store_that_says_bare_signatures_gets_none_of_them_told(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an error's code, message or region, as ETag, as version: not in log, ledger, page, links.jsonl, commands."""
    monkeypatch.setattr(Presignd, "environ", property(lambda self: _environ(self.folder)))
    storm = Storm(faulty_s3, tmp_path, "json")
    faulty_s3.fault(key="7", times=FOREVER, status=400, code="SIGNATURE", message="SIGNATURE")
    rng = random.Random(7)
    for how in BARE:
        faulty_s3.fault(when=lambda *_: rng.random() < 0.1, times=FOREVER, **how)
    try:
        storm.daemon.start(ready=False)
        storm.drop(range(30))
        storm.daemon.until(lambda: len(faulty_s3.requests) > 100, "many requests")
        [known, *_] = storm.daemon.events("file.queued")
        seen = storm.told(["status"], ["status", "--json"], ["check"], ["check", "--json"], ["status", known["path"]])
        faulty_s3.heal()
        storm.daemon.until(lambda: len({link["key"] for link in storm.daemon.links()}) == 30, "all linked")
        seen += [storm.get(path) for path in ("/metrics", "/api/status", "/")]
        assert storm.daemon.stop() == 0
        seen += [storm.daemon.log.read_bytes(), *storm.ledger()]
        seen += [json.dumps({**link, "url": ""}).encode() for link in storm.daemon.links()]
        for text in seen:
            storm.assert_clean(text)
        assert any(b"REDACTED" in text for text in seen), "what was said again was met"
    finally:
        storm.daemon.end()


def _environ(folder: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    debug = {"PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1", "PYTHONWARNINGS": "default"}
    return {**kept, **debug, "HOME": str(folder), "PRESIGND_SOCKET": str(folder / "control.sock")}


def test_the_canary_finds_what_it_looks_for() -> None:
    """A piece of a signature, plain or wrapped, is found; a checksum is none."""
    signature = "0123456789abcdef" * 4
    for leak in (signature, f"…{signature[20:40]}…", re.sub(r"(.{5})", r"\1\\n", signature), signature[:12]):
        with pytest.raises(AssertionError, match="a signature leaked"):
            assert_no_signatures(f"before {leak} after", {signature})
    assert_no_signatures("md5:09c6b7881eadab9027829b185a32b29e", {signature})
