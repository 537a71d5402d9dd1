"""Stable links over the broker's API: one link for an id whatever happens, revoked at once, only its own token's."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Broker, Document, broker_for, command
from tests.postgres import Postgres
from tests.stores import Store

LINKS_URL = "https://files.example.org"
SQLITE = f'[links]\nurl = "{LINKS_URL}"\n[state]\npath = "state/links.db"'
OPERATIONS = ["put", "head", "get", "link"]


def new_id() -> str:
    """Return a new id of a link: 22 characters of base64url."""
    return secrets.token_urlsafe(16)


@pytest.fixture(scope="module")
def bucket(seaweedfs: Store) -> str:
    return seaweedfs.new_bucket()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def broker(
    request: pytest.FixtureRequest, seaweedfs: Store, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    more = SQLITE
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        more = f'[links]\nurl = "{LINKS_URL}"\n[state]\nurl = "{server.new_database()}"'
    with broker_for(tmp_path_factory.mktemp("broker"), seaweedfs, more=more) as broker:
        broker.secrets.append("in-the-tests")
        yield broker


@pytest.fixture(scope="module")
def token(broker: Broker, bucket: str) -> str:
    return broker.token("one", bucket, operations=OPERATIONS)


def put(broker: Broker, token: str, link_id: str, **terms: Any) -> tuple[int, Document]:
    broker.secrets.append(link_id)
    status, answer, _ = broker.call(f"/v1/links/{link_id}", token, terms, method="PUT")
    return status, answer


def made(broker: Broker, token: str, **terms: Any) -> Document:
    """Make a link with a new id; the answer has the id too."""
    link_id = new_id()
    status, answer = put(broker, token, link_id, **terms)
    assert status == 201, answer
    return {"id": link_id, **answer}


def told(broker: Broker, name: str, ref: str) -> list[Document]:
    """Return the events of a link, once there is one: another thread writes them."""
    broker.until(lambda: any(event["ref"] == ref for event in broker.events(name)), name)
    return [event for event in broker.events(name) if event["ref"] == ref]


def listed(broker: Broker, token: str) -> dict[str, Document]:
    """Return a token's links by their refs."""
    found: dict[str, Document] = {}
    after: str | None = ""
    while after is not None:
        status, answer, _ = broker.call(f"/v1/links?after={after}", token)
        assert status == 200, answer
        found |= {link["ref"]: link for link in answer["links"]}
        after = answer["next"]
    return found


# --- making -----------------------------------------------------------------------------------------
def test_a_link_has_an_address_and_is_told_as_it_is(broker: Broker, token: str, bucket: str) -> None:
    link = made(
        broker, token, bucket=bucket, key="one/R\u00e9sum\u00e9 1.pdf", size=5, content_type="application/pdf", note="n"
    )
    assert link["url"] == f"{LINKS_URL}/l/{link['id']}/R%C3%A9sum%C3%A9%201.pdf"
    assert link["filename"] == "R\u00e9sum\u00e9 1.pdf"
    assert (link["state"], link["opened"], link["opened_at"], link["expires_at"]) == ("alive", 0, None, None)
    assert abs(datetime.fromisoformat(link["made_at"]) - datetime.now(UTC)) < timedelta(seconds=30)
    (event,) = told(broker, "link.created", link["ref"])
    assert (event["by"], event["bucket"], event["key"]) == ("one", bucket, "one/R\u00e9sum\u00e9 1.pdf")


def test_a_known_id_is_answered_with_what_was_recorded_first(broker: Broker, token: str, bucket: str) -> None:
    first = made(broker, token, bucket=bucket, key="one/a", filename="a.pdf", max_downloads=5, pin="1234")
    link_id = first.pop("id")
    others = {"filename": "b.pdf", "max_downloads": 7, "pin": "9999", "expires_at": "2020-01-01T00:00:00Z"}
    assert put(broker, token, link_id, bucket=bucket, key="one/a", **others) == (200, first)
    assert len(told(broker, "link.created", first["ref"])) == 1


def test_an_id_is_one_objects_alone(broker: Broker, token: str, bucket: str) -> None:
    link = made(broker, token, bucket=bucket, key="one/a")
    status, answer = put(broker, token, link["id"], bucket=bucket, key="one/b")
    assert (status, answer["error"]["code"]) == (409, "link_taken")
    other = broker.token("other", bucket, prefix="one/", operations=OPERATIONS)
    assert put(broker, other, link["id"], bucket=bucket, key="one/a")[0] == 409


def test_many_links_are_made_in_one_call_and_a_refusal_stops_no_other(broker: Broker, token: str, bucket: str) -> None:
    links = [{"id": new_id(), "bucket": bucket, "key": f"one/{n}"} for n in range(100)]
    links[7]["key"] = "two/7"
    links[8]["id"] = "short"
    links[9]["later"] = "x"
    links[11] = links[10]
    status, answer, _ = broker.call("/v1/links", token, {"links": links})
    assert status == 200
    found = answer["links"]
    assert [found[n]["error"]["code"] for n in (7, 8, 9)] == ["outside_prefix", "link_refused", "unknown_field"]
    assert found[10] == found[11]
    assert all(link["url"].endswith(f"/{n}") for n, link in enumerate(found) if n not in (7, 8, 9, 11))
    again = broker.call("/v1/links", token, {"links": links})[1]["links"]
    assert again == found


def test_pins_are_hashed_for_few_links_of_a_call(broker: Broker, token: str, bucket: str) -> None:
    links = [{"id": new_id(), "bucket": bucket, "key": "one/p", "pin": "123456"} for _ in range(21)]
    found = broker.call("/v1/links", token, {"links": links})[1]["links"]
    assert [("error" in link) for link in found] == [False] * 20 + [True]


@pytest.mark.parametrize(
    ("terms", "refused"),
    [
        ({"key": "two/a"}, (403, "outside_prefix")),
        ({"bucket": "other"}, (403, "outside_bucket")),
        ({"max_downloads": 0}, (403, "link_refused")),
        ({"pin": "12"}, (403, "link_refused")),
        ({"size": "5"}, (400, "bad_request")),
        ({"later": 5}, (400, "bad_request")),
    ],
)
def test_what_a_token_may_not_link_is_refused(
    broker: Broker, token: str, bucket: str, terms: dict[str, Any], refused: tuple[int, str]
) -> None:
    status, answer = put(broker, token, new_id(), **{"bucket": bucket, "key": "one/a", **terms})
    assert (status, answer["error"]["code"]) == refused


def test_a_token_without_the_operation_gets_and_revokes_no_link(broker: Broker, bucket: str) -> None:
    plain = broker.token("plain", bucket)
    status, answer = put(broker, plain, new_id(), bucket=bucket, key="plain/a")
    assert (status, answer["error"]["code"]) == (403, "operation_refused")
    for path, method, body in (
        ("/v1/links", "GET", None),
        (f"/v1/links/{new_id()}", "DELETE", None),
        ("/v1/links/revoke", "POST", {"ref": "x"}),
    ):
        assert broker.call(path, plain, body, method=method)[0] == 403
        assert broker.call(path, "", body, method=method)[0] == 401


def test_an_end_is_cut_to_what_the_token_may_have(broker: Broker, bucket: str) -> None:
    ends = (datetime.now(UTC) + timedelta(days=20)).replace(microsecond=0)
    limited = broker.token(
        "limited", bucket, operations=OPERATIONS, max_stable_link="30d", valid_until=ends.isoformat()
    )
    link = made(broker, limited, bucket=bucket, key="limited/a")
    assert datetime.fromisoformat(link["expires_at"]) == ends, "it ends with its token"
    sooner = ends - timedelta(days=1)
    link = made(broker, limited, bucket=bucket, key="limited/a", expires_at=sooner.isoformat())
    assert datetime.fromisoformat(link["expires_at"]) == sooner
    broker.token("limited", bucket, operations=OPERATIONS, max_stable_link="10d")


def test_me_tells_where_links_open(broker: Broker, bucket: str) -> None:
    limited = broker.token("me", bucket, operations=OPERATIONS, max_stable_link="90d")
    me = broker.call("/v1/me", limited)[1]
    assert (me["links_url"], me["max_stable_link"], me["operations"]) == (LINKS_URL, 90 * 86400, OPERATIONS)


# --- listing and revoking ----------------------------------------------------------------------------
def test_a_token_lists_its_own_links_without_what_opens_them(broker: Broker, bucket: str) -> None:
    lister = broker.token("lister", bucket, operations=OPERATIONS)
    links = [{"id": new_id(), "bucket": bucket, "key": f"lister/{n}"} for n in range(1000)]
    broker.call("/v1/links", lister, {"links": links})
    last = made(broker, lister, bucket=bucket, key="lister/last")
    found = listed(broker, lister)
    keys = [link["key"] for link in found.values()]
    assert (len(keys), set(keys)) == (1001, {*(f"lister/{n}" for n in range(1000)), "lister/last"})
    assert keys[-1] == "lister/last"
    text = json.dumps(list(found.values()))
    assert last["id"] not in text
    assert "url" not in found[last["ref"]]
    for unknown in ("x", "A" * 16):
        status, answer, _ = broker.call(f"/v1/links?after={unknown}", lister)
        assert (status, answer["error"]["code"]) == (404, "unknown_link")


def test_a_link_is_revoked_by_its_id_its_ref_or_its_object(broker: Broker, bucket: str) -> None:
    own = broker.token("own", bucket, operations=OPERATIONS)
    by_id, by_ref, by_object, stays = (made(broker, own, bucket=bucket, key=f"own/{n}") for n in range(4))
    ways: list[tuple[str, str, Document | None]] = [
        (f"/v1/links/{by_id['id']}", "DELETE", None),
        ("/v1/links/revoke", "POST", {"ref": by_ref["ref"]}),
        ("/v1/links/revoke", "POST", {"bucket": bucket, "key": "own/2"}),
    ]
    for path, method, body in ways:
        assert [broker.call(path, own, body, method=method)[0] for _ in range(2)] == [204, 204]
    states = {ref: link["state"] for ref, link in listed(broker, own).items()}
    assert states == {
        by_id["ref"]: "revoked",
        by_ref["ref"]: "revoked",
        by_object["ref"]: "revoked",
        stays["ref"]: "alive",
    }
    for link in (by_object, by_ref, by_id):
        assert len(told(broker, "link.revoked", link["ref"])) == 1
    status, again = put(broker, own, by_id["id"], bucket=bucket, key="own/0")
    assert (status, again["state"]) == (200, "revoked")


def test_a_token_asks_for_the_links_that_it_names(broker: Broker, bucket: str) -> None:
    own = broker.token("asker", bucket, operations=OPERATIONS)
    other = broker.token("stranger", bucket, operations=OPERATIONS)
    first, second, _ = (made(broker, own, bucket=bucket, key=f"asker/{n}") for n in range(3))
    foreign = made(broker, other, bucket=bucket, key="stranger/a")
    broker.call("/v1/links/revoke", own, {"ref": first["ref"]})
    named = ",".join((first["ref"], second["ref"], foreign["ref"], "x"))
    status, answer, _ = broker.call(f"/v1/links?refs={named}", own)
    states = {link["ref"]: link["state"] for link in answer["links"]}
    assert (status, answer["next"], states) == (200, None, {first["ref"]: "revoked", second["ref"]: "alive"})
    assert broker.call("/v1/links?refs=", own)[1]["links"] == []
    assert broker.call(f"/v1/links?refs={named}&after={named}", own)[0] == 404, "such a list has no next page"


def test_another_token_revokes_nothing(broker: Broker, token: str, bucket: str) -> None:
    link = made(broker, token, bucket=bucket, key="one/mine")
    thief = broker.token("thief", bucket, prefix="one/", operations=OPERATIONS)
    assert broker.call(f"/v1/links/{link['id']}", thief, method="DELETE")[0] == 204
    assert broker.call("/v1/links/revoke", thief, {"ref": link["ref"]})[0] == 204
    assert broker.call("/v1/links/revoke", thief, {"bucket": bucket, "key": "one/mine"})[0] == 204
    assert listed(broker, token)[link["ref"]]["state"] == "alive"


def test_a_call_that_is_no_revocation_is_refused(broker: Broker, token: str) -> None:
    for wrong in (
        {},
        {"ref": "x", "id": "y"},
        {"bucket": "b"},
        {"key": "k"},
        {"refs": ["x"]},
        {"bucket": "b", "key": "\0"},
    ):
        assert broker.call("/v1/links/revoke", token, wrong)[0] == 400


# --- tokens that go --------------------------------------------------------------------------------
def test_links_of_a_revoked_token_are_revoked_unless_they_are_kept(broker: Broker, bucket: str) -> None:
    for name, option, told in (("gone", [], "revoked its links: 2"), ("kept", ["--keep-links"], "outlive kept: 2")):
        secret = broker.token(name, bucket, operations=OPERATIONS)
        for _ in range(2):
            made(broker, secret, bucket=bucket, key=f"{name}/a")
        done = command("token", "revoke", name, "-c", broker.file, *option)
        assert done.returncode == 0, done.stderr
        assert told in done.stderr
        assert broker.call("/v1/me", secret)[0] == 401
        again = broker.token(name, bucket, operations=OPERATIONS)
        assert {link["state"] for link in listed(broker, again).values()} == {"alive" if option else "revoked"}
        broker.revoke(name)
    done = command("token", "revoke", "never", "-c", broker.file)
    assert done.returncode == 4
    assert done.stderr.startswith("presignd: there is no token 'never'"), "and nothing was revoked"


# --- the state is away, or there is none ----------------------------------------------------------------
def test_while_the_state_is_away_grants_go_on_and_links_come_back(
    seaweedfs: Store, bucket: str, tmp_path: Path, own_postgres: Postgres
) -> None:
    more = f'[links]\nurl = "{LINKS_URL}"\n[state]\nurl = "{own_postgres.new_database()}"'
    with broker_for(tmp_path, seaweedfs, more=more) as broker:
        broker.secrets.append("in-the-tests")
        secret = broker.token("one", bucket, operations=OPERATIONS)
        link = made(broker, secret, bucket=bucket, key="one/a")
        own_postgres.kill()
        status, answer, headers = broker.call(f"/v1/links/{link['id']}", secret, method="DELETE")
        assert (status, answer["error"]["code"]) == (503, "state_unreachable")
        assert int(headers["retry-after"]) > 0
        (grant,) = broker.grants(secret, {"operation": "get", "bucket": bucket, "key": "one/a", "expires": 60})
        assert grant["method"] == "GET"
        done = command("token", "revoke", "one", "-c", broker.file, "--keep-links")
        assert done.returncode == 3
        assert broker.call("/v1/me", secret)[0] == 200, "kept links first: the token stays where that fails"
        own_postgres.start()
        broker.until(lambda: put(broker, secret, link["id"], bucket=bucket, key="one/a")[0] == 200, "the link")
        broker.until(lambda: broker.events("state.back"), "state.back")
        assert len(broker.events("state.unreachable", "state.back")) == 2
        own_postgres.stop()
        done = command("token", "revoke", "one", "-c", broker.file)
        assert done.returncode == 3
        assert broker.call("/v1/me", secret)[0] == 401
        own_postgres.start()
        assert "revoked its links: 1" in command("token", "revoke", "one", "-c", broker.file).stderr


def test_a_killed_broker_remembers_every_link_it_answered_for(seaweedfs: Store, bucket: str, tmp_path: Path) -> None:
    with broker_for(tmp_path, seaweedfs, more=SQLITE) as broker:
        secret = broker.token("one", bucket, operations=OPERATIONS)
        links = [made(broker, secret, bucket=bucket, key=f"one/{n}") for n in range(20)]
        broker.kill()
        broker.start()
        assert set(listed(broker, secret)) == {link["ref"] for link in links}
        assert (tmp_path / "state" / "links.db").stat().st_mode & 0o777 == 0o600
        stored = b"".join(file.read_bytes() for file in (tmp_path / "state").iterdir())
        assert not [link for link in links if link["id"].encode() in stored]


def test_a_broker_without_links_says_so(seaweedfs: Store, bucket: str, tmp_path: Path) -> None:
    with broker_for(tmp_path, seaweedfs) as broker:
        secret = broker.token("one", bucket, operations=OPERATIONS)
        status, answer = put(broker, secret, new_id(), bucket=bucket, key="one/a")
        assert (status, answer["error"]["code"]) == (403, "operation_refused")
        assert "[links] url" in answer["error"]["message"]
        assert broker.call("/v1/links", "")[0] == 401
        assert broker.call("/v1/me", secret)[1]["links_url"] is None


def test_a_reload_says_that_links_and_state_take_a_restart(seaweedfs: Store, tmp_path: Path) -> None:
    with broker_for(tmp_path, seaweedfs, more=SQLITE) as broker:
        text = broker.file.read_text()
        broker.configure(text.replace(LINKS_URL, "https://other.example.org").replace("links.db", "other.db"))
        broker.reload()
        assert broker.events("config.reloaded")[-1]["restart_needed"] == ["links.url", "state"]


# --- presignd broker check ------------------------------------------------------------------------------
def checked(broker: Broker) -> list[tuple[str, str, str]]:
    done = command("check", "-c", broker.file, "--json")
    return [(each["outcome"], each["name"], each["detail"]) for each in json.loads(done.stdout)["checks"]]


@pytest.mark.parametrize(
    ("url", "shared"),
    [("{store}", "the store's address"), ("http://127.0.0.1:{port}", "the API's address"), (LINKS_URL, "")],
)
def test_check_warns_of_a_name_that_links_share(seaweedfs: Store, tmp_path: Path, url: str, shared: str) -> None:
    broker = Broker(tmp_path, seaweedfs)
    name = url.format(store=seaweedfs.endpoint, port=broker.port)
    broker.configure(broker.file.read_text() + f'\n[links]\nurl = "{name}"\n[state]\npath = "s.db"')
    found = checked(broker)
    warned = [detail for outcome, check, detail in found if (outcome, check) == ("warn", "links")]
    assert [detail.partition(": ")[0] for detail in warned if "is also" in detail] == (
        [f"links.url is also {shared}"] if shared else []
    )
    assert ("ok", "state", f"{tmp_path / 's.db'}, 0 links and 0 invitations that open") in found


def test_check_fails_where_the_state_cannot_be_used(seaweedfs: Store, tmp_path: Path) -> None:
    broker = Broker(tmp_path, seaweedfs)
    url = "postgresql://presignd:hush-hush@127.0.0.1:9/x"
    broker.configure(broker.file.read_text() + f'\n[links]\nurl = "http://files.example.org"\n[state]\nurl = "{url}"')
    found = checked(broker)
    assert [detail for outcome, name, detail in found if (outcome, name) == ("fail", "state")]
    assert [detail for outcome, name, detail in found if (outcome, name) == ("warn", "links")]
    assert "hush" not in str(found)
