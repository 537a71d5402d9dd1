"""Three brokers behind nginx, one killed and restarted under load: every client gets a correct answer."""

from __future__ import annotations

import json
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from presignd.demo.seaweedfs import LOOPBACK
from tests.brokers import Broker, broker_for
from tests.canary import assert_no_secrets
from tests.stores import Store
from tests.system.behind_nginx import LINKS, BehindNginx
from tests.system.host import fetch
from tests.system.machine import until

pytestmark = pytest.mark.needs("nginx")


class Site(BehindNginx):
    """The example's nginx over three brokers that share a folder of tokens."""

    def ask(self, secret: str, key: str) -> tuple[int, dict[str, str]]:
        """Ask for a link; return the status, and the answer to the one grant."""
        asked = {"operation": "get", "bucket": "test-bucket", "key": key, "expires": 60}
        request = urllib.request.Request(
            f"https://{LOOPBACK}:{self.port}/v1/grants",
            data=json.dumps({"grants": [asked]}).encode(),
            headers={
                "Authorization": f"Bearer {secret}",
                "Content-Type": "application/json",
                "X-Forwarded-For": "192.0.2.9",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.context) as answer:
                return answer.status, json.loads(answer.read())["grants"][0]
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, {}

    def ask_until_answered(self, secret: str, key: str) -> dict[str, str]:
        """Ask as a client does: again, after what says that it is for now."""
        deadline = time.monotonic() + 60
        while True:
            try:
                status, grant = self.ask(secret, key)
                if status == 200:
                    return grant
                assert status in {502, 503, 504}, status
            except (OSError, ValueError):
                pass  # cut off in the middle
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def site(tmp_path: Path, seaweedfs: Store) -> Iterator[Site]:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    with ExitStack() as stack:
        brokers = []
        for number in range(3):
            folder = tmp_path / f"broker{number}"
            folder.mkdir()
            (folder / "tokens.d").symlink_to(tokens)
            links = f'[links]\nurl = "https://{LINKS}"\n[state]\npath = "{tmp_path}/state.db"'
            running = broker_for(folder, seaweedfs, options="behind_proxy = true", more=links)
            brokers.append(stack.enter_context(running))
        site = Site(tmp_path, brokers)
        stack.callback(site.end)
        yield site


def issued(broker: Broker) -> int:
    return len(broker.events("grant.issued"))


def until_it_issues_more(broker: Broker) -> None:
    """Wait for its share of the load."""
    before = issued(broker)
    broker.until(lambda: issued(broker) > before + 5, "its share of the load")


@pytest.mark.long
def test_killing_and_restarting_a_broker_costs_no_client_its_answer(site: Site, seaweedfs: Store) -> None:
    secret = site.brokers[0].token("one", "test-bucket")
    for broker in site.brokers:
        broker.secrets.append(secret)
    site.ask_until_answered(secret, "one/first")
    done, answered, wrong = threading.Event(), [0] * 4, []

    def load(worker: int) -> None:
        while not done.is_set():
            key = f"one/{worker}/{answered[worker]}"
            grant = site.ask_until_answered(secret, key)
            if f"/test-bucket/{key}?" not in grant.get("url", ""):
                wrong.append((key, grant))
            answered[worker] += 1

    workers = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    try:
        for broker in site.brokers:
            until_it_issues_more(broker)
            broker.kill()
            asked = sum(answered)
            until(lambda asked=asked: sum(answered) > asked + 20, "answers without it")  # type: ignore[misc] # each turn its own
            broker.start()
            until_it_issues_more(broker)
    finally:
        done.set()
        for worker in workers:
            worker.join(60)
    assert wrong == []
    assert min(answered) > 0
    seaweedfs.write("test-bucket", "one/object", b"fetched")
    assert fetch(site.ask_until_answered(secret, "one/object")["url"]) == "fetched"


def test_what_one_broker_is_told_all_of_them_know(site: Site) -> None:
    """A revoked token is refused by each at once; who asks is the proxy's word, not the client's."""
    secret = site.brokers[0].token("one", "test-bucket")
    for broker in site.brokers:
        broker.secrets.append(secret)
    site.ask_until_answered(secret, "one/a")
    assert {site.ask(secret, "one/a")[0] for _ in range(12)} == {200}
    for broker in site.brokers:
        broker.until(lambda broker=broker: issued(broker), "a line of its own")  # type: ignore[misc] # bound by its default
    site.brokers[0].revoke("one")
    assert {site.ask(secret, "one/a")[0] for _ in range(12)} == {401}
    assert {event["client"] for broker in site.brokers for event in broker.events("grant.issued")} == {LOOPBACK}


def test_a_drained_broker_costs_no_client_its_answer(site: Site) -> None:
    secret = site.brokers[0].token("one", "test-bucket")
    for broker in site.brokers:
        broker.secrets.append(secret)
    site.ask_until_answered(secret, "one/a")
    for broker in site.brokers[:2]:
        assert broker.stop() == 0
        assert {site.ask(secret, "one/a")[0] for _ in range(6)} == {200}


# --- stable links -----------------------------------------------------------------------------------
def test_links_open_behind_nginx_whose_logs_hold_no_id(site: Site, tmp_path: Path) -> None:
    secret = site.brokers[0].token("one", "test-bucket", operations=["get", "link"])
    ids = [secrets.token_urlsafe(16) for _ in range(6)]
    for broker in site.brokers:
        broker.secrets += [secret, *ids]
    for number, link_id in enumerate(ids):
        terms = {"bucket": "test-bucket", "key": f"one/{number}", "max_downloads": 2 if number == 5 else None}
        asked = site.brokers[number % 3].call(f"/v1/links/{link_id}", secret, terms, method="PUT")
        assert asked[0] == 201
    assert [site.open_link(f"/l/{link_id}/name") for link_id in ids[:5]] == [302] * 5
    assert [site.open_link(f"/l/{ids[5]}", "POST") for _ in range(4)] == [303, 303, 410, 410]
    assert site.open_link("/v1/me") == 404
    site.brokers[0].kill()
    assert [site.open_link(f"/l/{link_id}") for link_id in ids[:5]] == [302] * 5
    assert site.brokers[1].call(f"/v1/links/{ids[0]}", secret, method="DELETE")[0] == 204
    assert [site.open_link(f"/l/{ids[0]}") for _ in range(4)] == [410] * 4
    until(lambda: "/l/REDACTED/name" in (tmp_path / "nginx-links.log").read_text(), "nginx's log")
    for file in tmp_path.glob("nginx*.log"):
        assert_no_secrets(file.read_bytes(), *ids)
