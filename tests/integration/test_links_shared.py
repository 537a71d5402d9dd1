"""Two brokers on one PostgreSQL under load: one is killed, the database crashes, and no link and no count is lost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.brokers import Document
from tests.postgres import Postgres
from tests.stable import Sharing, ask, sharing
from tests.stores import Store

LIMIT = 150
OPENERS = 12


@pytest.fixture
def brokers(tmp_path: Path, seaweedfs: Store, own_postgres: Postgres) -> Iterator[list[Sharing]]:
    bucket = seaweedfs.new_bucket()
    state = f'url = "{own_postgres.new_database()}"'
    with ExitStack() as stack:
        found = [stack.enter_context(sharing(tmp_path / name, seaweedfs, bucket, state=state)) for name in ("a", "b")]
        for broker in found:
            broker.secrets.append("in-the-tests")
        yield found


class Openers:
    """Threads that open links at both brokers until ``done``; ``statuses`` counts the answers for each link."""

    def __init__(self, brokers: list[Sharing], limited: Document, free: Document) -> None:
        self.done = threading.Event()
        self.statuses: dict[str, Counter[int]] = {"limited": Counter(), "free": Counter()}
        self._urls = [
            (name, method, str(link["url"]).replace(brokers[0].links_url, broker.links_url))
            for name, method, link in (("limited", "POST", limited), ("free", "GET", free))
            for broker in brokers
        ]

    def open(self, number: int) -> None:
        while not self.done.is_set():
            name, method, url = self._urls[number % len(self._urls)]
            number += 1
            try:
                self.statuses[name][ask(url, method).status] += 1
            except OSError:
                time.sleep(0.05)  # this broker is killed


def test_a_killed_broker_and_a_crashed_database_lose_no_link_and_no_count(
    brokers: list[Sharing], own_postgres: Postgres
) -> None:
    one, two = brokers
    limited, free = one.link("one/a", max_downloads=LIMIT), one.link("one/b")
    openers = Openers(brokers, limited, free)
    with ThreadPoolExecutor(OPENERS) as threads:
        running = [threads.submit(openers.open, number) for number in range(OPENERS)]
        try:
            one.until(lambda: openers.statuses["limited"][303] > 20, "openings")
            own_postgres.kill()
            one.until(lambda: openers.statuses["free"][503] > 0, "an outage")
            own_postgres.start()
            before = openers.statuses["limited"][303]
            one.until(lambda: openers.statuses["limited"][303] > before, "openings after the outage")
            two.kill()
            two.start()
            one.until(lambda: openers.statuses["limited"][410] > 50, "the limit")
        finally:
            openers.done.set()
        for each in running:
            each.result()
    assert set(openers.statuses["limited"]) <= {303, 410, 503}
    assert set(openers.statuses["free"]) <= {302, 503}
    assert one.opened(limited) == LIMIT, "as many as were allowed, whatever happened"
    assert openers.statuses["limited"][303] <= LIMIT
    assert one.opened(free) >= openers.statuses["free"][302] > 0, "each that was answered was counted"
    assert ask(free["url"]).status == 302
    two.revoke_link(free)
    assert ask(free["url"]).status == 410
