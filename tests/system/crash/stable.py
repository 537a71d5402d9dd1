"""Stable links in a run of the harness: their broker dies as the daemon does, and so does the database behind it."""

from __future__ import annotations

import random
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

from presignd.broker.state.links import hash_of, ref_of
from presignd.ledger.ledger import FILE
from presignd.presign.stable import id_in
from tests.brokers import OneToken
from tests.postgres import Postgres
from tests.stores import Store
from tests.system.crash.signers import LATEST_DEATH, LONGEST_ABSENCE, ByBroker

LinkState = Literal["", "sqlite", "postgresql"]
_ID = re.compile(rb"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{22}(?![A-Za-z0-9_-])")


class StableLinks(ByBroker):
    """A broker signs and makes the links; its state is in ``postgres``, or in SQLite."""

    watch = 'links = "stable"'

    def __init__(self, store: Store, folder: Path, endpoint: str, postgres: Postgres | None) -> None:
        self._postgres = postgres
        super().__init__(store, folder, endpoint)

    def _made(self, folder: Path, store: Store, endpoint: str) -> OneToken:
        operations = ["put", "multipart", "head", "get", "link"]
        broker = OneToken(folder, store, self._bucket, prefix=self.PREFIX, endpoint=endpoint, operations=operations)
        state = f'url = "{self._postgres.new_database()}"' if self._postgres else 'path = "links.db"'
        links = f'[links]\nurl = "http://localhost:{broker.port}"\n[state]\n{state}\n'
        broker.configure(broker.file.read_text("utf-8") + links)
        return broker

    @contextmanager
    def dying(self, rng: random.Random) -> Iterator[None]:
        """Kill the broker, and the database at another moment, somewhere in the daemon's life; start them again."""
        pauses = rng.uniform(0, LATEST_DEATH), rng.uniform(0, LONGEST_ABSENCE)
        with super().dying(rng):
            if self._postgres is None:
                yield
                return
            killer = threading.Thread(target=self._state_dies, args=(self._postgres, *pauses), name="database killer")
            killer.start()
            try:
                yield
            finally:
                killer.join()

    def _state_dies(self, postgres: Postgres, before: float, away: float) -> None:
        time.sleep(before)
        postgres.kill()
        time.sleep(away)
        postgres.start()
        self.state_deaths += 1

    def violations(self, lines: list[dict[str, Any]], ledger: Path) -> Iterator[str]:
        """Compare ``links.jsonl``, the ledger and the broker: each file has one link that opens, and no file's is none.

        Only audits call it: the broker and its state run, and the daemon is idle.
        """
        ids = {id_in(line["url"]): line for line in lines}
        if "" in ids:
            yield f"links: {ids.pop('')['file_id']} has a link that is not stable"
        at_broker = {link["ref"]: link for link in self._listed()}
        refs = {ref_of(hash_of(link_id)): line for link_id, line in ids.items()}
        yield from _wrong(refs, at_broker)
        committed = {ref_of(hash_of(link_id)): file_id for link_id, file_id in _committed(ledger).items()}
        for ref in at_broker.keys() - committed.keys():
            yield f"broker: the link {ref} to {at_broker[ref]['key']} is of no file in the ledger"
        for ref in (at_broker.keys() & committed.keys()) - refs.keys():
            yield f"broker: the link {ref} of {committed[ref]} has no line"
        objects = Counter(line["url"] for line in lines)
        yield from (f"links: {number} files have one link" for number in objects.values() if number > 1)
        told = {found[0].decode() for found in _ID.finditer(self._broker.log.read_bytes())} & ids.keys()
        yield from (f"broker's log: it tells the id of {ids[link_id]['file_id']}" for link_id in told)

    def _listed(self) -> Iterator[dict[str, Any]]:
        after: str | None = ""
        while after is not None:
            status, page, _ = self._broker.call(f"/v1/links?after={after}", self._broker.secret)
            assert status == 200, page
            yield from page["links"]
            after = page["next"]


def _wrong(lines: dict[str, dict[str, Any]], at_broker: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Compare each line with the broker's link of the same ``ref``."""
    for ref, line in lines.items():
        link = at_broker.get(ref)
        if link is None:
            yield f"broker: it has no link of {line['file_id']}"
        elif (link["state"], link["key"], link["size"]) != ("alive", line["key"], line["size"]):
            yield f"broker: the link of {line['file_id']} is {link}, its line has {line['key']}, {line['size']} B"


def _committed(ledger: Path) -> dict[str, str]:
    """Return the ids of links in the ledger, and whose they are."""
    with closing(sqlite3.connect(f"file:{ledger / FILE}?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT link_id, file_id FROM version WHERE link_id <> ''"))
