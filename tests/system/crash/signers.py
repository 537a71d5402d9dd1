"""Who signs in a run of the harness: the daemon itself, or a broker that is killed as often as the daemon."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tests.brokers import OneToken
from tests.stores import Store

Presigner = Literal["local", "broker"]
LATEST_DEATH, LONGEST_ABSENCE = 2.0, 0.5
"""Seconds: when in a daemon's life its broker is killed, and how long it stays away before it is started."""


class OwnKeys:
    """The daemon holds the store's keys; each watch has a bucket of its own."""

    deaths = 0
    state_deaths = 0
    """How often the database was killed."""
    problem = ""
    watch = ""
    """What stands in each [[watch]]."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.secrets: tuple[str, ...] = (store.secret_key,)

    @property
    def presign(self) -> str:
        """What stands in [presign] beside the endpoint."""
        return f'access_key = "{self._store.access_key}"\nsecret_key = "{self._store.secret_key}"'

    def place(self, _name: str) -> tuple[str, str, str]:
        """Return a watch's bucket, what its key template begins with, and what that becomes."""
        return self._store.new_bucket(), "", ""

    @contextmanager
    def dying(self, _rng: random.Random) -> Iterator[None]:
        """Let one life of the daemon go by."""
        yield

    def wait(self) -> None:
        """Wait until it signs."""

    def violations(self, _lines: list[dict[str, Any]], _ledger: Path) -> Iterable[str]:
        """Return what is wrong with the links in ``links.jsonl`` and the ledger, in the eyes of who made them."""
        return ()

    def end(self) -> None:
        """End it; look for secrets in what it wrote."""


class ByBroker(OwnKeys):
    """A broker signs. Its token is for one bucket, so each watch has a folder of it."""

    PREFIX = "box-1/"

    def __init__(self, store: Store, folder: Path, endpoint: str) -> None:
        super().__init__(store)
        self._bucket = store.new_bucket()
        self._broker = self._made(folder / "broker", store, endpoint)
        self._broker.start()
        self.secrets = (store.secret_key, self._broker.secret)

    def _made(self, folder: Path, store: Store, endpoint: str) -> OneToken:
        return OneToken(folder, store, self._bucket, prefix=self.PREFIX, endpoint=endpoint)

    @property
    def presign(self) -> str:
        """What stands in [presign] beside the endpoint: no key."""
        return self._broker.presign

    def place(self, name: str) -> tuple[str, str, str]:
        """Give each watch a folder below the token's prefix."""
        return self._bucket, f"{{prefix}}{name}/", f"{self.PREFIX}{name}/"

    @contextmanager
    def dying(self, rng: random.Random) -> Iterator[None]:
        """Kill the broker somewhere in the daemon's life, and start it again."""
        pauses = rng.uniform(0, LATEST_DEATH), rng.uniform(0, LONGEST_ABSENCE)
        killer = threading.Thread(target=self._die_and_come_back, args=pauses, name="broker killer")
        killer.start()
        try:
            yield
        finally:
            killer.join()

    def _die_and_come_back(self, before: float, away: float) -> None:
        time.sleep(before)
        if self._broker.process is None or self._broker.process.poll() is not None:
            self.problem = f"the broker ended by itself:\n{self._broker.log.read_text('utf-8', 'replace')[-3000:]}"
            return
        self._broker.kill()
        time.sleep(away)
        self._broker.start(ready=False)
        self.deaths += 1

    def wait(self) -> None:
        """Wait until it serves."""
        self._broker.wait()

    def end(self) -> None:
        """End it, and look for secrets in its log."""
        self._broker.end()
