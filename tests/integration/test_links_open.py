"""``/l/``: what a stable link answers, to whom, how often, and with what the store answers then."""

from __future__ import annotations

import http.client
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from presignd.broker.state.links import hash_of
from tests.brokers import Document, command, served
from tests.postgres import Postgres
from tests.stable import BROWSER, OPERATIONS, Sharing, ask, sharing
from tests.stores import Store

BODY = b"what was shared\n" * 100


@pytest.fixture(scope="module")
def bucket(seaweedfs: Store) -> str:
    bucket = seaweedfs.new_bucket()
    seaweedfs.write(bucket, "one/a.txt", BODY)
    return bucket


@pytest.fixture(scope="module")
def broker(seaweedfs: Store, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharing]:
    with sharing(tmp_path_factory.mktemp("broker"), seaweedfs, bucket) as broker:
        yield broker


# --- redirects ----------------------------------------------------------------------------------------
def test_a_link_redirects_to_a_request_that_the_store_answers(broker: Sharing) -> None:
    link = broker.link("one/a.txt", filename="R\u00e9sum\u00e9.txt", content_type="text/plain")
    answer = ask(link["url"])
    assert answer.status == 302
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.body == b""
    found = ask(answer.location)
    assert (found.status, found.body) == (200, BODY)
    assert found.headers["content-disposition"] == (
        "attachment; filename=\"R_sum_.txt\"; filename*=UTF-8''R%C3%A9sum%C3%A9.txt"
    )
    assert found.headers["content-type"] == "text/plain; charset=utf-8"
    part = ask(answer.location, headers={"Range": "bytes=10-19"})
    assert (part.status, part.body) == (206, BODY[10:20])
    assert broker.opened(link) == 1


def test_a_head_gets_a_target_for_head_and_is_not_counted(broker: Sharing) -> None:
    link = broker.link("one/a.txt", content_type="text/plain")
    answer = ask(link["url"], "HEAD")
    assert answer.status == 302
    assert ask(answer.location).status == 403, "it is signed for HEAD alone"
    found = ask(answer.location, "HEAD")
    assert (found.status, found.headers["content-length"]) == (200, str(len(BODY)))
    assert broker.opened(link) == 0


def test_the_name_in_an_address_is_only_for_people(broker: Sharing) -> None:
    link = broker.link("one/a.txt")
    root = link["url"].rpartition("/")[0]
    assert [ask(url).status for url in (root, f"{root}/", f"{root}/other.exe", f"{root}/a/b?c=d", f"{root}/a%0Ab")] == [
        302
    ] * 5


def test_a_target_lives_as_long_as_was_configured(broker: Sharing, bucket: str) -> None:
    query = parse_qs(urlsplit(ask(broker.link("one/a.txt")["url"]).location).query)
    assert query["X-Amz-Expires"] == ["3600"]
    broker.secret, own = broker.token("short", bucket, operations=OPERATIONS, max_link_expires="10m"), broker.secret
    link = broker.link("short/a.txt")
    broker.secret = own
    assert parse_qs(urlsplit(ask(link["url"]).location).query)["X-Amz-Expires"] == ["600"]


@pytest.mark.parametrize(
    ("kind", "disposition"),
    [
        ("image/png", "inline"),
        ("application/pdf", "inline"),
        ("video/mp4", "inline"),
        ("text/plain", "inline"),
        ("text/html", "attachment"),
        ("image/svg+xml", "attachment"),
        ("application/javascript", "attachment"),
        ("text/xml", "attachment"),
        ("", "attachment"),
    ],
)
def test_only_what_runs_no_script_is_shown(broker: Sharing, kind: str, disposition: str) -> None:
    link = broker.link("one/a.txt", content_type=kind, disposition="inline")
    found = ask(ask(link["url"]).location)
    assert found.status == 200
    assert found.headers["content-disposition"].startswith(f"{disposition}; ")
    assert found.headers["content-type"].partition(";")[0] == (kind or "application/octet-stream")


def test_what_a_target_answers_with_is_bound_by_its_signature(broker: Sharing) -> None:
    location = ask(broker.link("one/a.txt", content_type="text/html")["url"]).location
    for before, after in (("attachment", "inline"), ("text%2Fhtml", "text%2Fplain")):
        assert before in location
        assert ask(location.replace(before, after)).status == 403
    without = re.sub(r"&response-content-disposition=[^&]*", "", location)
    assert ask(without).status == 403


def test_a_link_opens_the_version_it_was_made_for(broker: Sharing, seaweedfs: Store) -> None:
    link = broker.link("one/a.txt", version_id="7")
    assert "versionId=7" in ask(link["url"]).location


# --- links that do not open ---------------------------------------------------------------------------
def refusals(broker: Sharing, link: Document) -> set[int]:
    """Return the statuses of every kind of request for a link."""
    return {
        *(ask(link["url"], method).status for method in ("GET", "HEAD", "POST")),
        ask(link["url"], headers=BROWSER).status,
    }


def test_a_revoked_link_is_refused_at_once(broker: Sharing) -> None:
    link = broker.link("one/a.txt")
    location = ask(link["url"]).location
    broker.revoke_link(link)
    assert refusals(broker, link) == {410}
    assert ask(location).status == 200, "a target that was handed out lives to its end"
    answer = ask(link["url"], headers=BROWSER)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "This link was revoked" in answer.text
    assert ask(link["url"]).text.startswith("This link was revoked.")


def test_an_expired_link_is_refused(broker: Sharing) -> None:
    link = broker.link("one/a.txt", expires_at="2020-01-01T00:00:00Z")
    assert refusals(broker, link) == {410}
    assert "expired" in ask(link["url"]).text


def changed(seconds: float = 0.3) -> None:
    """Wait until a changed token counts for links: a quarter of a second."""
    time.sleep(seconds)


def test_a_link_goes_with_its_token_and_its_rights(broker: Sharing, bucket: str) -> None:
    def link_of(secret: str) -> Document:
        broker.secret, kept = secret, broker.secret
        try:
            return broker.link("two/a.txt")
        finally:
            broker.secret = kept

    link = link_of(broker.token("two", bucket, operations=OPERATIONS))
    assert ask(link["url"]).status == 302
    lacking: list[dict[str, Any]] = [
        {"operations": ["get", "link"], "prefix": "elsewhere/"},
        {"operations": ["link"]},
        {"operations": ["get"]},
        {"operations": OPERATIONS, "valid_until": "2020-01-01T00:00:00Z"},
    ]
    for rights in lacking:
        broker.token("two", bucket, **rights)
        changed()
        assert refusals(broker, link) == {410}, rights
    secret = broker.token("two", bucket, operations=OPERATIONS)
    changed()
    assert ask(link["url"]).status == 302
    broker.secret, kept = secret, broker.secret
    assert broker.opened(link) == 2, "what was refused is not counted"
    broker.secret = kept
    broker.revoke("two")
    changed()
    assert refusals(broker, link) == {410}


def test_a_token_file_that_cannot_be_read_is_no_revocation(broker: Sharing, bucket: str) -> None:
    broker.secret, kept = broker.token("three", bucket, operations=OPERATIONS), broker.secret
    link = broker.link("three/a.txt")
    broker.secret = kept
    file = broker.folder / "tokens.d" / "three.toml"
    text = file.read_text()
    file.write_text("[[token]\n")
    changed()
    answer = ask(link["url"])
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")
    file.write_text(text)
    changed()
    assert ask(link["url"]).status == 302


def test_unknown_and_malformed_ids_are_alike(broker: Sharing) -> None:
    unknown = f"{broker.links_url}/l/{'A' * 22}/a.txt"
    answers = [ask(url) for url in (unknown, f"{broker.links_url}/l/short", f"{broker.links_url}/l/")]
    assert {(answer.status, answer.body) for answer in answers} == {
        (404, b"There is no such link. Check that the address is complete, or ask whoever sent it.\n")
    }
    page = ask(unknown, headers=BROWSER)
    assert "<h1>There is no such link</h1>" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


def test_what_a_stolen_state_holds_opens_nothing(broker: Sharing) -> None:
    link = broker.link("one/a.txt", pin="not a usual PIN")
    digest = hash_of(link["id"])
    stored = b"".join(file.read_bytes() for file in broker.folder.glob("state.db*"))
    assert digest in stored
    for secret in (link["id"].encode(), urlsafe_b64decode(f"{link['id']}=="), b"not a usual PIN"):
        assert secret not in stored
    address = link["url"].replace(link["id"], "{}")
    for stolen in (link["ref"], urlsafe_b64encode(digest)[:22].decode(), digest.hex()[:22], digest.hex()):
        assert ask(address.format(stolen)).status == 404


def test_a_guesser_is_stopped_and_others_are_not(seaweedfs: Store, bucket: str, tmp_path: Path) -> None:
    with sharing(tmp_path, seaweedfs, bucket, state='path = "s.db"') as broker:
        broker.configure(broker.file.read_text().replace("[broker]", "[broker]\nbehind_proxy = true"))
        broker.stop()
        broker.start()
        link = broker.link("one/a.txt")
        guesser = {"X-Forwarded-For": "192.0.2.1"}
        statuses = [ask(f"{broker.links_url}/l/{'A' * 22}", headers=guesser).status for _ in range(61)]
        assert statuses == [404] * 60 + [429]
        stopped = ask(link["url"], headers=guesser)
        assert stopped.status == 429
        assert 0 < int(stopped.headers["retry-after"]) <= 60
        assert ask(link["url"], headers={"X-Forwarded-For": "192.0.2.2"}).status == 302


# --- limits and PINs ----------------------------------------------------------------------------------
def test_looking_at_a_limited_link_spends_nothing(broker: Sharing) -> None:
    link = broker.link("one/a.txt", max_downloads=5, size=len(BODY), note="For the board")
    for method in ("GET", "HEAD"):
        for headers in ({}, BROWSER, {"User-Agent": "Slackbot-LinkExpanding 1.0"}):
            answer = ask(link["url"], method, headers)
            assert answer.status == 200
            assert "location" not in answer.headers
    page = ask(link["url"], headers=BROWSER)
    assert all(text in page.text for text in ("a.txt", "1.6 kB", "For the board", "5 of 5", 'method="post"'))
    assert f"form-action 'self' http://127.0.0.1:{store_port(broker)}" in page.headers["content-security-policy"]
    assert link["id"] not in page.text, "the page holds no address to copy"
    assert broker.opened(link) == 0


def store_port(broker: Sharing) -> int:
    found = re.search(r'endpoint = "http://127\.0\.0\.1:(\d+)"', broker.file.read_text())
    assert found
    return int(found[1])


def test_the_sixth_opening_of_five_says_so(broker: Sharing) -> None:
    link = broker.link("one/a.txt", max_downloads=5)
    for spent in range(5):
        assert f"{5 - spent} of 5" in ask(link["url"]).text
        answer = ask(link["url"], "POST")
        assert answer.status == 303
        assert ask(answer.location).body == BODY
    assert ask(link["url"], "POST").status == 410
    page = ask(link["url"], headers=BROWSER)
    assert page.status == 410
    assert "This link is used up" in page.text
    assert broker.opened(link) == 5


def test_the_browser_that_opened_a_link_opens_it_again_without_spending(broker: Sharing) -> None:
    link, other = broker.link("one/a.txt", max_downloads=1), broker.link("one/a.txt", max_downloads=1)
    first = ask(link["url"], "POST")
    given = first.headers["set-cookie"]
    assert f"Path=/l/{link['id']}" in given
    assert all(flag in given for flag in ("HttpOnly", "SameSite=Lax", "Max-Age=3600"))
    known = {"Cookie": first.cookie}
    page = ask(link["url"], headers={**BROWSER, **known})
    assert page.status == 200
    assert "not counted" in page.text
    again = ask(link["url"], "POST", known)
    assert again.status == 303
    assert "set-cookie" not in again.headers, "a pass does not renew itself"
    assert ask(link["url"], "POST").status == 410
    assert broker.opened(link) == 1
    assert ask(other["url"], "POST", known).status == 303
    assert broker.opened(other) == 1, "it is counted: the pass is another link's"
    for forged in ("presignd-pass=9999999999.", "presignd-pass=9999999999.00", "presignd-pass=x.y", "presignd-pass="):
        assert ask(link["url"], "POST", {"Cookie": forged}).status == 410
    broker.revoke_link(link)
    assert ask(link["url"], "POST", known).status == 410


def test_a_limit_holds_however_many_open_at_once(broker: Sharing) -> None:
    link = broker.link("one/a.txt", max_downloads=7)
    with ThreadPoolExecutor(32) as threads:
        statuses = list(threads.map(lambda _: ask(link["url"], "POST").status, range(300)))
    assert sorted(set(statuses)) == [303, 410]
    assert statuses.count(303) == 7
    assert broker.opened(link) == 7


def test_a_pin_opens_a_link_and_a_wrong_one_does_not(broker: Sharing) -> None:
    link = broker.link("one/a.txt", pin="1234 \u00e4", max_downloads=2)
    assert 'type="password"' in ask(link["url"], headers=BROWSER).text
    wrong = ask(link["url"], "POST", BROWSER, pin="1234")
    assert wrong.status == 403
    assert "This PIN is wrong" in wrong.text
    assert ask(link["url"], "POST").status == 403
    right = ask(link["url"], "POST", pin="1234 \u00e4")
    assert right.status == 303
    assert ask(right.location).body == BODY
    known = {"Cookie": right.cookie}
    assert 'type="password"' not in ask(link["url"], headers={**BROWSER, **known}).text
    assert ask(link["url"], "POST", known).status == 303
    assert broker.opened(link) == 1


def test_pins_are_tried_ten_times_an_hour_for_each_link_and_client(
    seaweedfs: Store, bucket: str, tmp_path: Path
) -> None:
    with sharing(tmp_path, seaweedfs, bucket) as broker:
        broker.configure(broker.file.read_text().replace("[broker]", "[broker]\nbehind_proxy = true"))
        broker.stop()
        broker.start()
        link, other = (broker.link("one/a.txt", pin="123456") for _ in range(2))

        def tried(link: Document, client: int, pin: str) -> int:
            return ask(link["url"], "POST", {"X-Forwarded-For": f"192.0.2.{client}"}, pin=pin).status

        assert [tried(link, 1, "000000") for _ in range(10)] == [403] * 10
        assert tried(link, 1, "123456") == 429, "of this link, and of this client"
        assert tried(link, 2, "123456") == 429, "of this link"
        assert tried(other, 1, "123456") == 429, "of this client"
        assert tried(other, 2, "123456") == 303
        stopped = ask(link["url"], "POST", BROWSER, pin="123456")
        assert "Too many tries" in stopped.text
        assert 0 < int(stopped.headers["retry-after"]) <= 3600


@pytest.mark.parametrize(
    ("headers", "form"),
    [({"Content-Type": "application/json"}, {"pin": "1234"}), ({}, {"pin": "1234", "more": "x" * 5000})],
)
def test_a_form_that_is_none_is_refused(broker: Sharing, headers: dict[str, str], form: dict[str, str]) -> None:
    link = broker.link("one/a.txt", pin="1234")
    assert ask(link["url"], "POST", headers, **form).status == 400
    assert broker.opened(link) == 0


@pytest.mark.parametrize(("length", "status"), [(0, 303), (5000, 400)])
def test_a_form_may_come_in_chunks(broker: Sharing, length: int, status: int) -> None:
    """As some proxies and clients send it: nobody knows its length before its end."""
    link = broker.link("one/a.txt", pin="1234")
    connection = http.client.HTTPConnection("127.0.0.1", broker.port, timeout=30)
    headers = {"Host": f"localhost:{broker.port}", "Content-Type": "application/x-www-form-urlencoded"}
    try:
        pieces = iter([b"pin=", b"1234", b"&more=" + b"x" * length])
        connection.request("POST", urlsplit(link["url"]).path, pieces, headers, encode_chunked=True)
        assert connection.getresponse().status == status
    finally:
        connection.close()


# --- names ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        'a"; filename="evil.exe',
        "x\r\nSet-Cookie: a=b\r\n\r\n<script>alert(1)</script>",
        "\u202efdp.exe",
        "<img src=x onerror=alert(1)>",
        "../../etc/passwd",
        "%0d%0aX: y",
        "\u8cc7\u6599 \U0001f4c4.pdf",
        "a\\b;c=d",
        "x" * 1000,
    ],
)
def test_a_hostile_name_ends_no_header_and_is_no_markup(broker: Sharing, name: str) -> None:
    link = broker.link("one/a.txt", filename=name, max_downloads=1, note=f"{name[:100]!r}")
    assert link["url"].isascii()
    page = ask(link["url"], headers=BROWSER)
    assert page.status == 200
    assert "<script>" not in page.text
    assert "<img" not in page.text
    found = ask(ask(link["url"], "POST").location)
    assert found.status == 200
    assert "set-cookie" not in found.headers
    value = found.headers["content-disposition"]
    assert re.fullmatch(r"""attachment; filename="[^"\\\r\n]*"(; filename\*=UTF-8''[\w.!#$&+^`|~%-]+)?""", value)


# --- one name for one purpose ------------------------------------------------------------------------------
def test_the_links_name_serves_links_alone_and_no_other_does(broker: Sharing) -> None:
    link = broker.link("one/a.txt")
    for path in ("/v1/me", "/v1/grants", "/v1/links", "/openapi.json", "/healthz", "/metrics", "/"):
        answer = ask(broker.links_url + path, headers={"Authorization": f"Bearer {broker.secret}"})
        assert answer.status == 404, path
    assert "[broker] url" in ask(f"{broker.links_url}/v1/me").text
    path = urlsplit(link["url"]).path
    assert ask(f"{broker.url}{path}").status == 404
    assert ask(f"http://other.example.org:{broker.port}{path}").status == 404
    assert ask(link["url"], headers={"Host": "localhost"}).status == 302, "a proxy may leave out the port"
    for host in ("localhost.", f"LOCALHOST.:{broker.port}"):
        assert ask(link["url"], headers={"Host": host}).status == 302, "a name with its last dot is the same name"


def test_one_name_for_both_serves_both(seaweedfs: Store, bucket: str, tmp_path: Path) -> None:
    with sharing(tmp_path, seaweedfs, bucket, shared=True) as broker:
        assert ask(broker.link("one/a.txt")["url"]).status == 302
        assert broker.call("/v1/me", broker.secret)[0] == 200


def test_what_a_page_loads_is_served(broker: Sharing) -> None:
    for name, kind in (("style.css", "text/css"), ("icon.svg", "image/svg+xml")):
        answer = ask(f"{broker.links_url}/l/{name}")
        assert (answer.status, answer.headers["content-type"]) == (200, f"{kind}; charset=utf-8")


# --- the log -------------------------------------------------------------------------------------------------
def test_the_log_names_who_opened_what_and_no_id(broker: Sharing) -> None:
    link = broker.link("one/a.txt")
    ask(link["url"], headers={"User-Agent": "tests/1.0"})
    event = broker.told("link.opened", ref=link["ref"])
    assert (event["client"], event["agent"], event["key"]) == ("127.0.0.1", "tests/1.0", "one/a.txt")
    time.sleep(1.1)
    broker.revoke_link(link)
    ask(link["url"])
    broker.until(lambda: [e for e in broker.events("link.refused") if e.get("ref") == link["ref"]], "link.refused")
    assert link["id"] not in broker.log.read_text()
    assert "presignd_broker_link_requests_total" in broker.metrics()


# --- several brokers, and a state that is away ------------------------------------------------------------------
def test_brokers_on_one_database_share_links_counts_and_passes(
    seaweedfs: Store, bucket: str, tmp_path: Path, postgres: Postgres
) -> None:
    state = f'url = "{postgres.new_database()}"'
    with (
        sharing(tmp_path / "a", seaweedfs, bucket, state=state) as one,
        sharing(tmp_path / "b", seaweedfs, bucket, state=state) as two,
    ):
        for broker in (one, two):
            broker.secrets.append("in-the-tests")

        def at_two(link: Document) -> str:
            return str(link["url"]).replace(one.links_url, two.links_url)

        link = one.link("one/a.txt")
        assert ask(at_two(link)).status == 302
        one.revoke_link(link)
        assert ask(at_two(link)).status == 410
        limited = one.link("one/a.txt", max_downloads=1)
        opened = ask(limited["url"], "POST")
        assert ask(at_two(limited), "POST").status == 410
        assert ask(at_two(limited), "POST", {"Cookie": opened.cookie}).status == 303
        one.revoke_link(limited)
        assert ask(at_two(limited), "POST", {"Cookie": opened.cookie}).status == 410, "a pass opens no revoked link"


def test_while_the_state_is_away_links_wait_and_are_not_lost(
    seaweedfs: Store, bucket: str, tmp_path: Path, own_postgres: Postgres
) -> None:
    with sharing(tmp_path, seaweedfs, bucket, state=f'url = "{own_postgres.new_database()}"') as broker:
        broker.secrets.append("in-the-tests")
        link = broker.link("one/a.txt", max_downloads=5)
        ask(link["url"], "POST")
        own_postgres.kill()
        for method in ("GET", "HEAD", "POST"):
            answer = ask(link["url"], method)
            assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        assert "The link is not lost" in ask(link["url"], headers=BROWSER).text
        own_postgres.start()
        broker.until(lambda: ask(link["url"], "POST").status == 303, "the link")
        assert broker.opened(link) == 2


def test_what_cannot_be_signed_is_not_counted_and_not_spent(seaweedfs: Store, bucket: str, tmp_path: Path) -> None:
    broker = Sharing(tmp_path, seaweedfs, bucket)
    keys = [line for line in broker.file.read_text().splitlines() if line.startswith(("access_key", "secret_key"))]
    broker.configure("\n".join(line for line in broker.file.read_text().splitlines() if line not in keys))
    (tmp_path / ".aws").mkdir()
    credentials = tmp_path / ".aws" / "credentials"
    credentials.write_text("[default]\naws_access_key_id = half\n")
    with served(broker):
        links = [broker.link("one/a.txt"), broker.link("one/a.txt", max_downloads=1)]
        for link, method in zip(links, ("GET", "POST"), strict=True):
            assert ask(link["url"], method).status == 503
            assert broker.opened(link) == 0
        keys = [f"aws_access_key_id = {seaweedfs.access_key}", f"aws_secret_access_key = {seaweedfs.secret_key}"]
        credentials.write_text("\n".join(["[default]", *keys, ""]))
        broker.until(lambda: broker.call("/readyz")[0] == 200, "credentials")
        assert ask(links[1]["url"], "POST").status == 303


def test_a_link_that_ends_is_refused_from_its_end_on(broker: Sharing) -> None:
    ends = datetime.now(UTC) + timedelta(seconds=2)
    link = broker.link("one/a.txt", expires_at=ends.isoformat())
    assert ask(link["url"]).status == 302
    time.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()) + 0.05)
    assert ask(link["url"]).status == 410


def test_kept_links_open_without_their_token(broker: Sharing, bucket: str) -> None:
    broker.secret, own = broker.token("kept", bucket, operations=OPERATIONS, prefix="one/"), broker.secret
    link = broker.link("one/a.txt")
    broker.secret = own
    assert command("token", "revoke", "kept", "-c", broker.file, "--keep-links").returncode == 0
    assert ask(ask(link["url"]).location).body == BODY


def test_a_link_opens_on_the_juicefs_gateway(juicefs: Store, tmp_path: Path) -> None:
    bucket = juicefs.new_bucket()
    juicefs.write(bucket, "one/a.txt", BODY)
    with sharing(tmp_path, juicefs, bucket) as broker:
        link = broker.link("one/a.txt", filename="R\u00e9.txt", content_type="text/plain", disposition="inline")
        found = ask(ask(link["url"]).location)
        assert (found.status, found.body) == (200, BODY)
        assert found.headers["content-disposition"].startswith("inline; ")
        assert found.headers["content-type"] == "text/plain; charset=utf-8"
        head = ask(ask(link["url"], "HEAD").location, "HEAD")
        assert (head.status, head.headers["content-length"]) == (200, str(len(BODY)))
