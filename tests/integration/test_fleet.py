"""The fleet page of a broker in a process of its own: who sees it, what it shows, and that it stays up to date."""

from __future__ import annotations

import base64
import json
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from http.client import HTTPResponse
from pathlib import Path

import pytest
from pydantic import SecretStr

import presignd
from presignd.config import PresignConfig
from presignd.demo.seaweedfs import LOOPBACK
from presignd.presign.broker_client import BrokerClient
from presignd.system.clock import utcnow
from tests.brokers import Broker, Document, FleetBroker, command, get, path_of, served
from tests.stores import Store

EVERYTHING = ("/", "/events", "/api/fleet", "/metrics")


@pytest.fixture(scope="module")
def broker(seaweedfs: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetBroker]:
    with served(FleetBroker(tmp_path_factory.mktemp("fleet"), seaweedfs)) as broker:
        yield broker


# --- who sees it ------------------------------------------------------------------------------------
def test_without_the_token_nothing_is_shown(broker: FleetBroker) -> None:
    broker.token("secret-name", "bucket-x")
    wrong: list[dict[str, str]] = [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {broker.token('other', 'bucket-x')}"},
        {"Cookie": f"presignd-fleet-{broker.fleet_port}={broker.admin_token}"},
    ]
    for path in EVERYTHING:
        for headers in wrong:
            with broker.open(path, **headers) as answer:
                assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
                assert answer.read() == b"log in first: presignd broker fleet prints the address\n"


def test_the_broker_s_own_address_has_no_fleet_page(broker: FleetBroker) -> None:
    for path in ("/", "/login", "/events", "/api/fleet"):
        assert broker.call(path, broker.admin_token)[0] == 404


def test_a_command_prints_an_address_that_logs_in_once_and_holds_no_token(broker: FleetBroker) -> None:
    address = broker.address()
    assert address.startswith(f"http://{LOOPBACK}:{broker.fleet_port}/login?code=")
    assert broker.admin_token not in address
    with broker.open(path_of(address)) as first, broker.open(path_of(address)) as second:
        assert (first.status, second.status) == (303, 403)
        cookie = first.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
    assert broker.admin_token not in cookie
    assert json.loads(command("fleet", "-c", broker.file, "--json").stdout)["url"].startswith("http://")


def test_its_token_is_made_once_and_only_its_user_reads_it(broker: FleetBroker) -> None:
    assert stat.S_IMODE((broker.folder / "fleet.token").stat().st_mode) == 0o600
    assert len(broker.admin_token) >= 32


def test_a_foreign_host_name_is_refused(broker: FleetBroker) -> None:
    """A page of another site could have its name lead here."""
    with broker.open("/", Host="evil.example", Authorization=f"Bearer {broker.admin_token}") as answer:
        assert answer.status == 421


# --- what it shows ----------------------------------------------------------------------------------
def test_each_token_has_its_last_call_and_its_hour(broker: FleetBroker) -> None:
    secret = broker.token("scanner-1", "bucket-x", max_link_expires="1d")
    broker.token("scanner-2", "bucket-x")
    assert broker.fleet()["scanner-1"]["last_seen"] is None
    asked = [get("bucket-x", "scanner-1/a"), get("bucket-x", "scanner-1/b"), get("bucket-x", "scanner-2/a")]
    status, _, _ = broker.call("/v1/grants", secret, {"grants": asked}, User_Agent="presignd/0.0.7")
    assert status == 200
    found = broker.fleet()["scanner-1"]
    assert (found["granted"], found["refused"], found["last_refusal"]["code"]) == (2, 1, "outside_prefix")
    seen = found["last_seen"]
    assert (seen["client"], seen["daemon_version"], seen["clock_difference_seconds"]) == (LOOPBACK, "0.0.7", None)
    assert found["links_alive"] is None
    page = broker.read("/")
    for words in ("scanner-2", "not since the broker started", "0.0.7", "outside_prefix", "needs attention"):
        assert words in page
    assert broker.fleet()["scanner-2"]["last_seen"] is None


def test_calls_that_are_refused_as_a_whole_count_and_say_why(broker: FleetBroker) -> None:
    limited = broker.token("limited", "bucket-x", rate="1/h")
    asked = {"grants": [get("bucket-x", "limited/a")]}
    assert [broker.call("/v1/grants", limited, asked)[0] for _ in range(2)] == [200, 429]
    ended = broker.token("ended", "bucket-x", valid_until="2020-01-01")
    assert broker.call("/v1/me", ended)[0] == 401
    found = broker.fleet()
    assert (found["limited"]["granted"], found["limited"]["last_refusal"]["code"]) == (1, "rate_limited")
    assert (found["ended"]["refused"], found["ended"]["last_refusal"]["code"]) == (1, "token_expired")
    assert found["ended"]["last_seen"] is not None, "its machine still tries"


async def test_a_daemon_s_version_and_clock_are_seen(broker: FleetBroker) -> None:
    secret = broker.token("late", "bucket-x")
    config = PresignConfig(kind="broker", url=broker.url, token=SecretStr(secret))
    client = BrokerClient(config, clock=lambda: utcnow() - timedelta(minutes=7))
    try:
        await client.ask("/v1/me")
    finally:
        await client.close()
    seen = broker.fleet()["late"]["last_seen"]
    assert seen["daemon_version"] == presignd.__version__
    assert -425 < seen["clock_difference_seconds"] < -415
    assert "Its clock is 7 min behind" in broker.read("/") or "Its clock is 6 min behind" in broker.read("/")


def test_a_revoked_token_is_gone(broker: FleetBroker) -> None:
    secret = broker.token("gone", "bucket-x")
    assert broker.call("/v1/me", secret)[0] == 200
    assert "gone" in broker.fleet()
    broker.revoke("gone")
    broker.until(lambda: "gone" not in broker.fleet(), "no such token")


def test_a_token_file_that_can_t_be_used_is_shown(broker: FleetBroker) -> None:
    broken = broker.folder / "tokens.d" / "broken.toml"
    broken.write_text("[[token]]\nname = 5\n")
    broker.until(lambda: "broken.toml" in broker.read("/"), "the problem")
    broken.unlink()
    broker.until(lambda: "broken.toml" not in broker.read("/"), "no problem")


def test_an_open_page_is_kept_up_to_date(broker: FleetBroker) -> None:
    secret = broker.token("live", "bucket-x")
    with broker.open("/events", **broker.log_in()) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        assert set(_news(stream)) == {"headline", "problems", "attention", "hour", "tokens", "about"}
        broker.grants(secret, get("bucket-x", "live/a"))
        parts = _news(stream)
        while "live" not in str(parts.get("tokens")):
            parts = _news(stream)
    assert "about" not in parts, "only what changed is sent"


def _news(stream: HTTPResponse) -> Mapping[str, list[str]]:
    while not (line := stream.readline()).startswith(b"data: "):
        assert line
    parts: Mapping[str, list[str]] = json.loads(line.removeprefix(b"data: "))["parts"]
    return parts


def test_prometheus_gets_the_same_with_the_token(broker: FleetBroker) -> None:
    secret = broker.token("measured", "bucket-x")
    before = time.time()
    broker.call("/v1/me", secret, User_Agent="presignd/0.0.7", Date="Fri, 02 Jan 2026 03:04:05 GMT")
    for text in (broker.read("/metrics"), broker.metrics()):
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if 'token="measured"' in line)
        assert samples['presignd_broker_token_client_info{token="measured",version="0.0.7"}'] == "1.0"
        assert float(samples['presignd_broker_token_last_seen_timestamp_seconds{token="measured"}']) >= before - 1
        assert float(samples['presignd_broker_token_clock_difference_seconds{token="measured"}']) < -86400


def test_the_links_that_open_are_counted(tmp_path: Path, seaweedfs: Store) -> None:
    links = '[links]\nurl = "http://127.0.0.1:8"\n[state]\npath = "state.sqlite"'
    with served(FleetBroker(tmp_path, seaweedfs, sections=links)) as broker:
        secret = broker.token("one", "bucket-x", operations=["get", "link"])
        broker.token("two", "bucket-x")
        ids = [base64.urlsafe_b64encode(bytes([number]) * 16).decode().rstrip("=") for number in range(3)]
        asked = [{"id": each, "bucket": "bucket-x", "key": "one/a"} for each in ids]
        status, made, _ = broker.call("/v1/links", secret, {"links": asked})
        assert (status, [set(each) & {"error"} for each in made["links"]]) == (200, [set()] * 3)
        broker.call("/v1/links/revoke", secret, {"id": ids[0]})
        assert {name: token["links_alive"] for name, token in broker.fleet().items()} == {"one": 2, "two": 0}
        sample = 'presignd_broker_token_links_alive{token="one"}'
        assert f"{sample} 2.0" in broker.read("/metrics")
        assert sample not in broker.metrics(), "they are counted only where somebody looks at the fleet"


# --- beside the broker ------------------------------------------------------------------------------
def test_after_a_restart_it_starts_anew_and_older_addresses_are_refused(tmp_path: Path, seaweedfs: Store) -> None:
    with served(FleetBroker(tmp_path, seaweedfs)) as broker:
        secret = broker.token("one", "bucket-x")
        broker.grants(secret, get("bucket-x", "one/a"))
        assert broker.fleet()["one"]["granted"] == 1
        token, address = broker.admin_token, broker.address()
        assert broker.stop() == 0
        broker.start()
        assert broker.admin_token == token
        with broker.open(path_of(address)) as answer:
            assert answer.status == 403, "it may have been used before the restart"
        assert broker.fleet()["one"]["granted"] == 0


def test_an_open_page_does_not_hold_up_the_end_of_the_broker(tmp_path: Path, seaweedfs: Store) -> None:
    with served(FleetBroker(tmp_path, seaweedfs)) as broker, broker.open("/events", **broker.log_in()) as stream:
        _news(stream)
        began = time.monotonic()
        assert broker.stop() == 0
        assert time.monotonic() - began < 5, "drain_timeout is 10 s"
        assert stream.read().count(b"data: ") <= 1, "and it ends as it should"


def test_where_its_port_is_taken_the_broker_signs_all_the_same(tmp_path: Path, seaweedfs: Store) -> None:
    broker = FleetBroker(tmp_path, seaweedfs)
    with socket.create_server((LOOPBACK, broker.fleet_port)):
        try:
            Broker.start(broker)
            broker.until(lambda: broker.events("fleet.unavailable"), "the warning")
            secret = broker.token("one", "bucket-x")
            assert "url" in broker.grants(secret, get("bucket-x", "one/a"))[0]
        finally:
            broker.end()
    (told,) = broker.events("fleet.unavailable")
    assert "Address already in use" in told["error"]


def test_a_reload_says_that_another_address_takes_a_restart(broker: FleetBroker) -> None:
    text = broker.file.read_text()
    broker.configure(text.replace(str(broker.fleet_port), "1"))
    broker.reload()
    assert broker.events("config.reloaded")[-1]["restart_needed"] == ["fleet.listen"]
    broker.configure(text)
    broker.reload()


# --- commands ---------------------------------------------------------------------------------------
def test_a_page_that_is_off_or_never_ran_has_no_address(tmp_path: Path, seaweedfs: Store) -> None:
    off = command("fleet", "-c", Broker(tmp_path / "off", seaweedfs).file)
    assert (off.returncode, off.stdout) == (4, "")
    assert "the fleet page is off" in off.stderr
    assert "fleet.listen" in off.stderr
    never = command("fleet", "-c", FleetBroker(tmp_path / "never", seaweedfs).file)
    assert (never.returncode, never.stdout) == (4, "")
    assert "fleet.token is not there yet" in never.stderr
    assert not (tmp_path / "never" / "fleet.token").exists()


@pytest.mark.parametrize(
    ("token", "mode", "outcome"),
    [
        ("", 0, "ok: made at the start"),
        ("t" * 32, 0o600, f"ok: at {LOOPBACK}:8422"),
        ("t" * 32, 0o644, "warn: can be read by every user"),
        ("short", 0o600, "fail: at least 16 characters"),
    ],
)
def test_check_looks_at_the_token_s_file(tmp_path: Path, seaweedfs: Store, token: str, mode: int, outcome: str) -> None:
    if token:
        (tmp_path / "fleet.token").write_text(token)
        (tmp_path / "fleet.token").chmod(mode)
    found = checked(tmp_path, seaweedfs, f'listen = "{LOOPBACK}:8422"')
    assert found["outcome"] == outcome.partition(": ")[0]
    assert outcome.partition(": ")[2] in found["detail"]
    assert "t" * 32 not in str(found)


def test_check_warns_where_the_token_would_travel_unencrypted(tmp_path: Path, seaweedfs: Store) -> None:
    found = checked(tmp_path, seaweedfs, 'listen = "0.0.0.0:8422"')
    assert (found["outcome"], "travels unencrypted" in found["detail"]) == ("warn", True)


def checked(folder: Path, store: Store, fleet: str) -> Document:
    """Return what ``presignd broker check`` says of the page."""
    printed = command("check", "--json", "-c", Broker(folder, store, options=f"[fleet]\n{fleet}").file)
    (found,) = [each for each in json.loads(printed.stdout)["checks"] if each["name"] == "fleet page"]
    return dict(found)


def test_check_names_the_folder_that_is_missing(tmp_path: Path, seaweedfs: Store) -> None:
    found = checked(tmp_path, seaweedfs, f'listen = "{LOOPBACK}:8422"\ntoken_file = "none/fleet.token"')
    assert (found["outcome"], "is not a folder" in found["detail"]) == ("fail", True)
