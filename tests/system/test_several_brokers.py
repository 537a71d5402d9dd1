"""Several brokers behind nginx on one PostgreSQL: stable links are the same at each of them, whatever is killed."""

from __future__ import annotations

import http.client
import json
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from presignd.broker.state.links import hash_of, ref_of
from tests.brokers import Broker, broker_for
from tests.postgres import Postgres
from tests.stable import ask
from tests.stores import Store
from tests.system.behind_nginx import LINKS, BehindNginx
from tests.system.machine import until

pytestmark = [pytest.mark.needs("nginx", "postgres"), pytest.mark.timeout(300)]

BUCKET = "test-bucket"
NOT_SURE = frozenset({0, 502, 503, 504})
"""Answers after which a client does not know whether its request was done; 0 is none."""
OPENERS, MOST = 300, 50


@dataclass
class Site:
    """Brokers, and a token of all of them with the operation ``link``."""

    nginx: BehindNginx
    postgres: Postgres
    secret: str = field(repr=False)

    @property
    def brokers(self) -> list[Broker]:
        return list(self.nginx.brokers)

    def new_id(self) -> str:
        link_id = secrets.token_urlsafe(16)
        for broker in self.brokers:
            broker.secrets.append(link_id)
        return link_id

    def made_at(self, broker: Broker, **terms: Any) -> str:
        """Make a link at one broker; return its id."""
        link_id = self.new_id()
        asked = {"bucket": BUCKET, "key": "one/file", **terms}
        assert broker.call(f"/v1/links/{link_id}", self.secret, asked, method="PUT")[0] == 201
        return link_id

    def statuses(self, link_id: str) -> list[int]:
        """Open a link at each broker that runs."""
        return [
            ask(f"{broker.url}/l/{link_id}", headers={"Host": LINKS}).status
            for broker in self.brokers
            if broker.process is not None
        ]

    def listed(self) -> dict[str, dict[str, Any]]:
        """Return the token's links by ``ref``."""
        found, after = dict[str, dict[str, Any]](), ""
        while after is not None:
            status, page, _ = self.brokers[0].call(f"/v1/links?after={after}", self.secret)
            assert status == 200
            found |= {link["ref"]: link for link in page["links"]}
            after = page["next"]
        return found

    def opened(self, link_id: str) -> int:
        """Return how often a link was opened, as the state has it."""
        return int(self.listed()[ref_of(hash_of(link_id))]["opened"])


@pytest.fixture
def site(tmp_path: Path, seaweedfs: Store, own_postgres: Postgres) -> Iterator[Site]:
    (tokens := tmp_path / "tokens").mkdir()
    more = f'[links]\nurl = "https://{LINKS}"\n[state]\nurl = "{own_postgres.new_database()}"\n'
    with ExitStack() as stack:
        brokers = []
        for number in range(3):
            folder = tmp_path / f"broker{number}"
            folder.mkdir()
            (folder / "tokens.d").symlink_to(tokens)
            running = broker_for(folder, seaweedfs, options="behind_proxy = true", more=more)
            brokers.append(stack.enter_context(running))
        nginx = BehindNginx(tmp_path, brokers)
        stack.callback(nginx.end)
        secret = brokers[0].token("one", BUCKET, operations=["get", "link"])
        for broker in brokers:
            broker.secrets.append(secret)
        until(lambda: _answers(nginx), "nginx")
        yield Site(nginx, own_postgres, secret)


def _answers(nginx: BehindNginx) -> bool:
    try:
        return nginx.open_link("/") == 404
    except OSError:
        return False


# --- what one is told, each knows -------------------------------------------------------------------


def test_a_link_made_at_one_broker_opens_at_each_at_once(site: Site) -> None:
    for broker in site.brokers:
        link_id = site.made_at(broker)
        assert site.statuses(link_id) == [302] * 3
        assert site.nginx.open_link(f"/l/{link_id}") == 302


def test_a_link_revoked_at_one_broker_is_refused_at_each_from_then_on(site: Site) -> None:
    """Once the revocation was answered, by the next opening: nothing is waited for."""
    for broker in site.brokers:
        link_id = site.made_at(broker)
        assert site.statuses(link_id) == [302] * 3
        assert broker.call(f"/v1/links/{link_id}", site.secret, method="DELETE")[0] == 204
        assert site.statuses(link_id) == [410] * 3


def test_links_of_a_token_that_was_removed_are_refused_at_each(site: Site) -> None:
    """Within ``NAMED_SECONDS``, as a test of the tokens has it by a clock of its own."""
    link_id = site.made_at(site.brokers[0])
    assert site.statuses(link_id) == [302] * 3
    site.brokers[0].revoke("one")
    until(lambda: site.statuses(link_id) == [410] * 3, "refusal")


# --- limits -----------------------------------------------------------------------------------------


def test_a_limit_holds_for_hundreds_of_openers_at_once_over_all_brokers(site: Site) -> None:
    link_id = site.made_at(site.brokers[0], max_downloads=MOST)
    barrier, statuses = threading.Barrier(OPENERS), Counter[int]()

    def open_once() -> None:
        connection = site.nginx.connection()
        connection.connect()
        barrier.wait(120)
        statuses[_post(connection, link_id)] += 1

    with _threads([open_once] * OPENERS):
        pass
    not_sure = sum(statuses[status] for status in NOT_SURE)
    assert set(statuses) <= {303, 410, *NOT_SURE}
    assert statuses[303] <= MOST <= statuses[303] + not_sure
    assert statuses.total() == OPENERS
    assert site.opened(link_id) == MOST
    assert site.statuses(link_id) == [410] * 3
    assert all(broker.events("link.opened") for broker in site.brokers)


def _post(connection: http.client.HTTPConnection, link_id: str) -> int:
    """Spend one; return the status, 0 for none."""
    try:
        connection.request("POST", f"/l/{link_id}", headers={"Host": LINKS})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


# --- death under load -------------------------------------------------------------------------------


@dataclass
class Load:
    """Openers of one link that spend it, and makers of others, all through nginx; ``end`` is set for them to end."""

    site: Site
    counted: str = field(repr=False)
    end: threading.Event = field(default_factory=threading.Event)
    statuses: Counter[int] = field(default_factory=Counter)
    made: list[str] = field(default_factory=list, repr=False)

    def open(self) -> None:
        """Open until the end."""
        while not self.end.is_set():
            self.statuses[_post(self.site.nginx.connection(), self.counted)] += 1

    def make(self) -> None:
        """Make links until the end: each is asked for by its id until it is confirmed, as a daemon does."""
        while not self.end.is_set():
            link_id = self.site.new_id()
            while (status := self._put(link_id)) in NOT_SURE and not self.end.is_set():
                self.end.wait(0.05)
            if status not in NOT_SURE:
                assert status in {200, 201}
                self.made.append(link_id)

    def _put(self, link_id: str) -> int:
        connection = self.site.nginx.connection()
        headers = {"Authorization": f"Bearer {self.site.secret}", "Content-Type": "application/json"}
        try:
            body = json.dumps({"bucket": BUCKET, "key": f"one/{ref_of(hash_of(link_id))}"})
            connection.request("PUT", f"/v1/links/{link_id}", body, headers)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def goes_on(self) -> None:
        """Wait until links are opened and made again."""
        opened, made = self.statuses[303], len(self.made)
        until(lambda: self.statuses[303] > opened + 20 and len(self.made) > made + 5, "openings and new links", 60)


@pytest.mark.long
def test_a_killed_broker_and_a_restarted_database_lose_no_link_and_no_count(site: Site) -> None:
    load = Load(site, site.made_at(site.brokers[0], max_downloads=10**6))
    with _threads([load.open] * 6 + [load.make] * 2):
        try:
            for broker, die in ((site.brokers[1], site.postgres.kill), (site.brokers[2], site.postgres.stop)):
                load.goes_on()
                broker.kill()
                load.goes_on()
                refused = load.statuses[503]
                die()
                until(lambda refused=refused: load.statuses[503] > refused, "a 503 without the state")  # type: ignore[misc] # its own
                site.postgres.start()
                load.goes_on()
                broker.start()
                load.goes_on()
        finally:
            load.end.set()
    not_sure = sum(load.statuses[status] for status in NOT_SURE)
    assert set(load.statuses) <= {303, *NOT_SURE}
    assert load.statuses[303] <= site.opened(load.counted) <= load.statuses[303] + not_sure
    listed = site.listed()
    refs = {ref_of(hash_of(link_id)) for link_id in load.made}
    assert len(refs) == len(load.made)
    assert {listed[ref]["state"] for ref in refs} == {"alive"}
    assert {status for link_id in load.made[-50:] for status in site.statuses(link_id)} == {302}


@contextmanager
def _threads(work: list[Callable[[], None]]) -> Iterator[None]:
    """Run these beside the block; wait for their end, and raise what one of them raised."""
    failed: list[BaseException] = []

    def run(each: Callable[[], None]) -> None:
        try:
            each()
        except BaseException as error:  # noqa: BLE001 - told to the test's thread
            failed.append(error)

    threads = [threading.Thread(target=run, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(120)
    assert failed == []
