"""Any input to the status page, the control socket or the broker gets an answer, never a 500 or a traceback."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from presignd.broker import tokens
from presignd.broker.load import load
from presignd.broker.service import Broker
from presignd.broker.state.invitations import Invitations, NewInvitation
from presignd.config import LogConfig
from presignd.presign import GrantRequest
from presignd.states import Event
from presignd.telemetry import log
from tests.canary import assert_no_secrets
from tests.pages import TOKEN, Page, page_of
from tests.served import DONE, SECRET, Served, configuration, recorded, served

__all__ = ["served"]

# One server answers all examples: that is the point.
fuzz = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

TEXT = st.text(max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture
def said() -> io.StringIO:
    stream = io.StringIO()
    log.setup(LogConfig(level="debug", format="json"), stream=stream)
    return stream


async def exchanged(host: str, port: int, request: bytes) -> bytes:
    """Send a request as it is; return what is answered, to the end of the connection."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        async with asyncio.timeout(60):
            writer.write(request)
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def request_of(start: str, headers: dict[str, bytes], body: bytes) -> bytes:
    """Make an HTTP request whose headers hold any bytes that can stand in one."""
    lines = [start.encode(), b"Connection: close", b"Content-Length: %d" % len(body)]
    lines += [name.encode() + b": " + value for name, value in headers.items()]
    return b"\r\n".join([*lines, b"", body])


LINE = st.binary(max_size=40).map(lambda value: value.translate(None, b"\0\r\n").strip())
QUOTED = "".join(map(chr, range(0x21, 0x7F)))
PATH = st.text(QUOTED, max_size=40).map(lambda text: "/" + text)

# --- the status page --------------------------------------------------------------------------------
BOUNDARIES = (b"x", b'"x"', b"", b'"', b"x y", b"x" * 100, b"\xff", b"x; boundary=y")
FORM_TYPES = st.one_of(
    st.builds(b"multipart/form-data; boundary=".__add__, st.sampled_from(BOUNDARIES) | LINE),
    st.builds(b"application/x-www-form-urlencoded; charset=".__add__, st.sampled_from([b"utf-16", b"no-such"]) | LINE),
    st.sampled_from([b"multipart/form-data", b"application/x-www-form-urlencoded", b"multipart/mixed; boundary=x"]),
    LINE,
)
PART = b'--x\r\nContent-Disposition: form-data; name="file_id"%s\r\n\r\n%s\r\n--x%s'
FORMS = st.one_of(
    st.binary(max_size=200),
    st.builds(b"file_id=".__add__, st.binary(max_size=40)),
    st.builds(
        lambda *parts: PART % parts, st.sampled_from([b"", b'; filename="f"']) | LINE, LINE, LINE | st.just(b"--")
    ),
)


@pytest_asyncio.fixture
async def page(tmp_path: Path, said: io.StringIO) -> AsyncIterator[Page]:
    async with page_of(configuration(tmp_path)) as found:
        yield found
    assert "Traceback" not in said.getvalue()
    assert_no_secrets(said.getvalue(), TOKEN, SECRET)


async def status_of(page: Page, request: bytes) -> int:
    host, port = page.root.removeprefix("http://").split(":")
    head = await exchanged(host, int(port), request)
    return int(head.split(b" ")[1]) if head else 0


@fuzz
@given(FORM_TYPES, FORMS, st.sampled_from([b"gzip", b"deflate", b"identity", b"br"]))
@example(b"multipart/form-data; boundary=\xff", b"x", b"identity")
@example(b"multipart/form-data", b"x", b"identity")
@example(b"application/x-www-form-urlencoded; charset=no-such", b"file_id=a", b"identity")
@example(b"application/x-www-form-urlencoded; charset=utf-7", b"file_id=+2AA-", b"identity")
@example(b"multipart/form-data; boundary=x", PART % (b'; filename="f"', b"a", b"--"), b"identity")
async def test_a_form_that_is_none_is_a_400_and_no_bug(page: Page, kind: bytes, body: bytes, coding: bytes) -> None:
    headers = {"Host": b"localhost", "Authorization": b"Bearer " + TOKEN.encode(), "Content-Type": kind}
    if coding != b"identity":
        headers["Content-Encoding"] = coding
    assert await status_of(page, request_of("POST /retry HTTP/1.1", headers, body)) in {200, 400, 409, 413}


ODD = ("Host", "Origin", "Cookie", "Authorization", "Accept", "Sec-Fetch-Site", "X-Forwarded-Proto", "Content-Type")
PLACES = (
    "/",
    "/login",
    "/login?token=",
    "/login?token=%ff",
    "/api/status",
    "/healthz",
    "/metrics",
    "/retry",
    "/live.js",
)


@fuzz
@given(
    st.sampled_from(["GET", "POST", "HEAD", "PUT", "OPTIONS"]),
    st.sampled_from(PLACES) | PATH,
    st.dictionaries(st.sampled_from(ODD), LINE, max_size=4),
    st.binary(max_size=40),
)
@example("POST", "/retry", {"Host": b"localhost", "Origin": b"http://["}, b"")
@example("GET", "/metrics", {"Host": b"localhost", "Accept": b"application/openmetrics-text;version=x;q=y"}, b"")
async def test_odd_headers_are_answered(
    page: Page, method: str, path: str, headers: dict[str, bytes], body: bytes
) -> None:
    request = request_of(f"{method} {path} HTTP/1.1", {"Host": b"localhost"} | headers, body)
    assert await status_of(page, request) < 500


# --- the control socket -----------------------------------------------------------------------------
OPERATIONS = ("ping", "status", "path", "wait", "links", "link", "put", "retry", "verify", "web")
VALUES = JSON | st.sampled_from(
    ["/", "/srv/../x", "/" + "x" * 5000, "/" + "x/" * 2000, "s3://", "s3://b", 10**400, "\ud800"]
)
FIELDS = ("path", "paths", "key", "watch", "expires", "timeout", "after", "all", "error", "ledger")


@fuzz
@given(st.sampled_from(OPERATIONS) | JSON, st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5))
@example("wait", {"timeout": 10**400})
@example("link", {"key": "a", "expires": 10**400})
@example("wait", {"paths": ["/" + "x" * 5000]})
@example("links", {"after": {"inode": 10**400, "offset": -1}})
async def test_whatever_is_asked_of_the_control_socket_is_no_bug(
    served: Served, op: Any, fields: dict[str, Any]
) -> None:
    answers = await served.raw(json.dumps({"op": op, **fields}).encode() + b"\n")
    errors = [answer["error"] for answer in answers if "error" in answer]
    assert [error for error in errors if error["exit"] not in {2, 3, 4, 5}] == []


@fuzz
@given(st.sampled_from(["path", "wait", "link", "retry", "verify"]), st.binary(min_size=1, max_size=300))
async def test_whatever_name_is_asked_for_in_a_watch_is_no_bug(served: Served, op: str, name: bytes) -> None:
    path = os.fsdecode(os.fsencode(served.view.config.watches[0].path) + b"/" + name)
    fields = {"path": path, "paths": [path]}
    answers = await served.raw(json.dumps({"op": op, "timeout": 0, **fields}).encode() + b"\n")
    assert [a["error"] for a in answers if "error" in a and a["error"]["exit"] not in {2, 4, 5}] == []


async def test_the_control_socket_answers_as_before_after_nonsense(served: Served) -> None:
    await recorded(served, "a", *DONE)
    await recorded(served, "b", Event.QUARANTINE, error_code="too_large", error="x")
    for line in (b"\xff\n", b"{}\n", b'{"op": null}\n', b'{"op": "wait", "paths": 5}\n'):
        assert (await served.raw(line))[0]["error"]["exit"] == 2
    assert (await served.ask({"op": "status"}))[0]["quarantined_count"] == 1


# --- the broker -------------------------------------------------------------------------------------
BEARER = tokens.new_token()
MARCH = NewInvitation(
    id=bytes(32),
    name="march",
    bucket="bucket",
    prefix="in/",
    note="",
    pin="",
    made_at=datetime(2026, 1, 1, tzinfo=UTC),
    ends_at=datetime(2026, 1, 2, tzinfo=UTC),
    max_files=None,
    max_size=None,
    total=None,
)
GRANT = st.fixed_dictionaries(
    {"operation": st.sampled_from(["put", "get", "head", "multipart.create", "multipart.part"]) | JSON},
    optional={
        name: JSON | st.sampled_from(["bucket", "k", 10**400, "md5:00", {"Content-Type": "a\nb"}])
        for name in GrantRequest.__dataclass_fields__
        if name != "operation"
    },
)
BODIES = st.one_of(
    st.binary(max_size=100),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.lists(GRANT, max_size=3).map(lambda grants: json.dumps({"grants": grants}).encode()),
)


@pytest.fixture
async def broker(tmp_path: Path, said: io.StringIO) -> AsyncIterator[Broker]:
    file = tmp_path / "broker.toml"
    file.write_text(
        f"""
[broker]
listen = "127.0.0.1:0"
[store]
access_key = "a"
secret_key = "secret-key"
region = "r"
[[token]]
name = "one"
hash = "{tokens.hash_of(BEARER)}"
bucket = "bucket"
prefix = "in/"
operations = ["put", "get", "receive"]
[links]
url = "http://links.example.org"
[state]
path = "state.db"
""",
        encoding="utf-8",
    )
    file.chmod(0o600)
    broker = Broker(load(file, environ={}), lambda: load(file, environ={}))
    try:
        async with contextlib.AsyncExitStack() as stack:
            await broker.open(stack)
            assert await Invitations(broker.database).make(MARCH)
            yield broker
    finally:
        await broker.close()
    assert "Traceback" not in said.getvalue()
    assert_no_secrets(said.getvalue(), BEARER)


async def told_by(broker: Broker, request: bytes) -> int:
    host, port = broker.servers[0].place.split(":")
    head = await exchanged(host, int(port), request)
    return int(head.split(b" ")[1]) if head else 0


@fuzz
@given(BODIES)
@example(b'{"grants": [{"operation": "put", "bucket": "bucket", "key": "k", "size": 1e400}]}')
@example(b"[" * 100_000)
@example(b'{"grants": [{"operation": "put", "bucket": "bucket", "key": "\\ud800"}]}')
async def test_whatever_a_token_sends_to_the_broker_is_no_bug(broker: Broker, body: bytes) -> None:
    headers = {"Host": b"x", "Authorization": b"Bearer " + BEARER.encode(), "Content-Type": b"application/json"}
    assert await told_by(broker, request_of("POST /v1/grants HTTP/1.1", headers, body)) in {200, 400, 413, 429}


WORD = st.text(QUOTED, max_size=20)
ACKS = st.one_of(
    st.binary(max_size=100),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.lists(TEXT | JSON, max_size=3).map(lambda ids: json.dumps({"ids": ids}).encode()),
)


@fuzz
@given(ACKS)
@example(b'{"ids": ["\\ud800", "\\u0000", "AAAAAAAAAAAAAAAA", "====", ""]}')
async def test_whatever_is_acknowledged_is_no_bug(broker: Broker, body: bytes) -> None:
    headers = {"Host": b"x", "Authorization": b"Bearer " + BEARER.encode(), "Content-Type": b"application/json"}
    assert await told_by(broker, request_of("POST /v1/inbox/march/ack HTTP/1.1", headers, body)) in {204, 400, 413}


@fuzz
@given(
    st.sampled_from(["march", "april", "%00", "..", "a" * 100]) | PATH, st.text(QUOTED, max_size=20), st.text(QUOTED)
)
@example("march", "9" * 18, "0")
@example("march", "", "")
async def test_whatever_is_asked_of_an_inbox_is_no_bug(broker: Broker, name: str, after: str, more: str) -> None:
    headers = {"Host": b"x", "Authorization": b"Bearer " + BEARER.encode()}
    start = f"GET /v1/inbox/{name}?after={after}&{more} HTTP/1.1"
    assert await told_by(broker, request_of(start, headers, b"")) in {200, 400, 404}


@fuzz
@given(
    st.sampled_from(["GET", "POST", "HEAD", "PUT", "OPTIONS"]),
    st.sampled_from(["/v1/grants", "/v1/me", "/openapi.json", "/healthz", "/readyz", "/metrics"]) | PATH,
    st.dictionaries(st.sampled_from([*ODD, "X-Forwarded-For", "Content-Encoding"]), LINE, max_size=4),
    st.binary(max_size=40),
)
@example("GET", "/metrics", {"Accept": b"application/openmetrics-text;version=x;q=y"}, b"")
async def test_odd_headers_to_the_broker_are_answered(
    broker: Broker, method: str, path: str, headers: dict[str, bytes], body: bytes
) -> None:
    assert await told_by(broker, request_of(f"{method} {path} HTTP/1.1", {"Host": b"x"} | headers, body)) < 500
