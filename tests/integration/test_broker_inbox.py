"""``/v1/inbox/``: hosts with a token see what came in by their invitation, at once, and take it off the list."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.brokers import Document, command, get
from tests.guests import Guest, invite, md5
from tests.postgres import Postgres
from tests.stable import Sharing, sharing
from tests.stores import Store

BODY = b"scanned in March\n" * 10
OPERATIONS = ["get", "receive"]
_names = (f"invitation-{number}" for number in count())


@pytest.fixture(scope="module")
def broker(seaweedfs: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharing]:
    with sharing(tmp_path_factory.mktemp("broker"), seaweedfs, seaweedfs.new_bucket()) as broker:
        yield broker


class Host:
    """A host whose token may receive what comes in by one invitation; ``after`` is where it is in the list."""

    def __init__(self, broker: Sharing, *, name: str = "", secret: str = "", **token: Any) -> None:
        self.broker, self.name = broker, name or next(_names)
        given = {"prefix": "in/", "operations": OPERATIONS, **token}
        self.secret = secret or broker.token(f"host-{self.name}", broker.bucket, **given)
        self.after = "0"

    def invite(self, *options: str) -> Guest:
        return Guest(invite(self.broker, self.name, *options)["url"], self.broker.secrets)

    def call(self, query: str = "", body: Document | None = None, *, path: str = "") -> tuple[int, Document]:
        status, answer, _ = self.broker.call(f"/v1/inbox/{path or self.name}{query}", self.secret, body)
        return status, answer

    def look(self, wait: int = 0) -> list[Document]:
        """Ask for what came in since the last look."""
        status, answer = self.call(f"?after={self.after}&wait={wait}")
        assert status == 200, answer
        self.after = answer["next"]
        found: list[Document] = answer["files"]
        return found

    def ack(self, *ids: str) -> int:
        return self.call("/ack", {"ids": list(ids)})[0]


def drop(guest: Guest, path: str = "a.txt", body: bytes = BODY) -> Document:
    """Send a file as the page does; return its ticket."""
    (ticket,) = guest.tickets((path, len(body)))
    assert guest.put(ticket, body).status == 200
    assert guest.done(ticket)[0] == 200
    return ticket


def test_what_came_in_is_listed_until_it_is_acknowledged(broker: Sharing) -> None:
    host = Host(broker)
    guest = host.invite()
    assert host.call() == (200, {"files": [], "next": "0"})
    ticket = drop(guest, "Scans/M\u00e4rz/a b.txt")
    (file,) = host.look()
    assert file.pop("received_at").endswith("Z")
    told = file.pop("id"), file.pop("etag")
    assert file == {
        "path": "Scans/M\u00e4rz/a b.txt",
        "bucket": broker.bucket,
        "key": ticket["key"],
        "size": len(BODY),
        "content_type": "text/plain",
        "part_size": 0,
        "checksum": md5(BODY),
    }
    assert host.look() == [], "it is before what is asked for now"
    (grant,) = broker.grants(host.secret, get(file["bucket"], file["key"]))
    with urlopen(Request(grant["url"], headers=grant["headers"]), timeout=30) as answer:
        assert answer.read() == BODY
    host.after = "0"
    assert [each["id"] for each in host.look()] == [told[0]]
    assert host.ack(told[0], told[0], "none") == 204
    assert host.ack(told[0]) == 204, "as often as it is asked"
    host.after = "0"
    assert host.look() == []
    event = broker.told("inbox.acked", invitation=host.name)
    assert (event["by"], event["key"], event["ref"]) == (f"host-{host.name}", ticket["key"], told[0])
    assert 'presignd_broker_invited_files_total{result="fetched"}' in broker.metrics()


def test_what_is_not_received_is_not_listed_and_what_came_in_outlives_its_invitation(broker: Sharing) -> None:
    host = Host(broker)
    guest = host.invite()
    guest.tickets(("reserved.txt", 5))
    (ticket,) = guest.tickets(("a.txt", len(BODY)))
    assert guest.put(ticket, BODY).status == 200
    assert host.look() == [], "nobody has asked the store yet"
    drop(guest, "b.txt")
    assert command("invite", "revoke", host.name, "-c", broker.file).returncode == 0
    assert [each["path"] for each in host.look()] == ["b.txt"]


# --- waiting ------------------------------------------------------------------------------------------
def waited(host: Host, wait: int = 30) -> Future[list[Document]]:
    """Begin a call that waits; return once the broker answers it."""
    pool = ThreadPoolExecutor(1)
    before = host.broker.metrics()
    call = pool.submit(host.look, wait)
    pool.shutdown(wait=False)
    host.broker.until(lambda: _waiting(host.broker.metrics()) > _waiting(before), "a call that waits")
    return call


def _waiting(text: str) -> float:
    (line,) = [line for line in text.splitlines() if line.startswith("presignd_broker_inbox_waiting ")]
    return float(line.split()[1])


def test_who_waits_is_told_as_soon_as_a_file_came_in(broker: Sharing) -> None:
    host = Host(broker)
    guest = host.invite()
    call = waited(host)
    assert not call.done()
    drop(guest, "now.txt")
    assert [each["path"] for each in call.result(20)] == ["now.txt"]


def test_who_waits_at_one_broker_is_told_of_what_came_in_at_another(
    seaweedfs: Store, tmp_path: Path, postgres: Postgres
) -> None:
    state = f'url = "{postgres.new_database()}"'
    bucket = seaweedfs.new_bucket()
    with (
        sharing(tmp_path / "one", seaweedfs, bucket, state=state) as one,
        sharing(tmp_path / "other", seaweedfs, bucket, state=state) as other,
    ):
        host = Host(one)
        guest = host.invite()
        at_other = Guest(guest.url.replace(one.links_url, other.links_url), other.secrets)
        call = waited(host)
        drop(at_other)
        (file,) = call.result(20)
        there = Host(other, name=host.name)
        assert [each["id"] for each in there.look()] == [file["id"]]
        assert there.ack(file["id"]) == 204
        host.after = "0"
        assert host.look() == []


def test_a_drain_answers_who_waits(seaweedfs: Store, tmp_path: Path) -> None:
    with sharing(tmp_path, seaweedfs, seaweedfs.new_bucket()) as broker:
        host = Host(broker)
        host.invite()
        call = waited(host)
        assert broker.stop() == 0
        assert call.result(20) == []
        (drained,) = broker.events("broker.draining")
        assert drained["in_flight"] == 1


def test_a_token_revoked_while_it_waits_is_told_nothing_more(broker: Sharing) -> None:
    host = Host(broker)
    guest = host.invite()
    call = waited(host)
    broker.revoke(f"host-{host.name}")
    with pytest.raises(AssertionError, match="unauthorized"):
        call.result(20)
    drop(guest)


def test_one_token_that_waits_often_does_not_keep_others_out(broker: Sharing) -> None:
    host, other = Host(broker), Host(broker)
    host.invite()
    guest = other.invite()
    with ThreadPoolExecutor(20) as pool:
        calls = [pool.submit(host.call, "?wait=12") for _ in range(20)]
        told = sorted(call.result(60)[0] for call in calls)
        assert told == [200] * 16 + [503] * 4
    drop(guest)
    assert len(other.look(30)) == 1


# --- who may --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("token", "status", "code"),
    [
        ({"operations": ["get"]}, 403, "operation_refused"),
        ({"operations": ["receive"]}, 403, "operation_refused"),
        ({"prefix": "in/other/"}, 404, "unknown_invitation"),
        ({"prefix": "i/"}, 404, "unknown_invitation"),
        ({"bucket": "another-bucket"}, 404, "unknown_invitation"),
        ({"prefix": ""}, 200, ""),
    ],
)
def test_a_token_sees_what_lies_within_it(broker: Sharing, token: dict[str, Any], status: int, code: str) -> None:
    name = next(_names)
    bucket = token.pop("bucket", broker.bucket)
    secret = broker.token(f"host-{name}", bucket, **{"prefix": "in/", "operations": OPERATIONS, **token})
    host = Host(broker, name=name, secret=secret)
    drop(host.invite())
    for answer in (host.call(), host.call("/ack", {"ids": []})):
        assert answer[0] in {status, 204} if status == 200 else answer[0] == status
        assert answer[1].get("error", {}).get("code", "") == code
    assert host.call(path="none")[0] == (403 if status == 403 else 404)


@pytest.mark.parametrize(
    "query", ["?after=x", "?after=-1", "?wait=1.5", "?wait=%20", f"?after={'9' * 19}", "?wait=%D9%A1"]
)
def test_a_query_that_is_none_is_refused(broker: Sharing, query: str) -> None:
    host = Host(broker)
    host.invite()
    status, answer = host.call(query)
    assert (status, answer["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize("query", ["?after=", "?wait=", "?after=&wait="])
def test_a_value_that_is_empty_counts_as_left_out(broker: Sharing, query: str) -> None:
    """As a program asks for the first time, which has no ``next`` yet."""
    host = Host(broker)
    drop(host.invite())
    assert host.call(query) == host.call()
    assert host.call(query)[0] == 200


@pytest.mark.parametrize("body", [{"ids": [1]}, {"ids": "a"}, {}, {"ids": [], "more": 1}])
def test_a_body_that_is_none_is_refused(broker: Sharing, body: Document) -> None:
    host = Host(broker)
    host.invite()
    assert host.call("/ack", body)[0] == 400


def test_too_many_ids_are_refused(broker: Sharing) -> None:
    host = Host(broker)
    host.invite()
    status, answer = host.call("/ack", {"ids": ["a"] * 1001})
    assert (status, answer["error"]["code"]) == (413, "too_many_ids")


def test_a_state_that_is_away_is_a_503_and_a_broker_without_one_says_so(seaweedfs: Store, tmp_path: Path) -> None:
    away = 'url = "postgresql://127.0.0.1:1/none"'
    with sharing(tmp_path, seaweedfs, seaweedfs.new_bucket(), state=away) as broker:
        host = Host(broker)
        status, answer, headers = broker.call(f"/v1/inbox/{host.name}?wait=30", host.secret)
        assert (status, answer["error"]["code"], headers["retry-after"]) == (503, "state_unreachable", "2")
        assert host.ack("a") == 503
        broker.configure(broker.file.read_text().partition("[links]")[0])
        broker.stop(signal.SIGTERM)
        broker.start()
        assert host.call()[0] == 403
        assert json.dumps(host.call()[1]).count("[links] url is not set") == 1
