"""No message is lost, and a file's come in order, however often the daemon is killed and its receiver fails."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from presignd.ledger import FILE
from tests.canary import assert_no_secrets
from tests.faulty_s3 import FaultyS3
from tests.receivers import PATH, SECRET, Got, Receiver, receiver

ROOT = Path(__file__).parents[2]
ENDED = ("finished", "vanished", "superseded")


class Fleet:
    """A daemon that is started again after each kill; ``log`` is all that it said."""

    def __init__(self, folder: Path, store: FaultyS3, receives: str) -> None:
        self.folder, self.log, self.kills = folder, folder / "log", 0
        self.drop = folder / "drop"
        self.drop.mkdir()
        (folder / "secret").write_text(SECRET)
        (folder / "url").write_text(receives)
        for name in ("secret", "url"):
            (folder / name).chmod(0o600)
        (folder / "config.toml").write_text(
            f'[presign]\nendpoint = "{store.endpoint}"\naccess_key = "{store.access_key}"\n'
            f'secret_key = "{store.secret_key}"\nregion = "us-east-1"\n'
            f'[ledger]\npath = "{folder}/state"\n[control]\nsocket = "{folder}/s"\n[log]\nformat = "json"\n'
            f'[[watch]]\nname = "drop"\npath = "{self.drop}"\nbucket = "{store.bucket}"\nsettle = "0s"\n'
            f'[[webhook]]\nname = "chat"\nurl_file = "url"\nsecret_file = "secret"\n'
        )
        (folder / "config.toml").chmod(0o600)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as said:
            environ = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(self.folder)}
            command = [sys.executable, "-m", "tests.system.hooked", str(self.folder / "config.toml")]
            self._process = subprocess.Popen(command, stdout=said, stderr=said, env=environ, cwd=ROOT)

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self.kills += 1

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        assert self._process.wait(60) == 0, self.log.read_text()[-3000:]

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{self.folder}/state/{FILE}?mode=ro", uri=True)) as ledger:
            return ledger.execute(sql).fetchall()

    def is_idle(self) -> bool:
        """Return whether every version ended or stopped, and every message was delivered."""
        states = ", ".join(f"'{state}'" for state in (*ENDED, "quarantined"))
        try:
            [(known, over)] = self.rows(f"SELECT count(*), count(*) FILTER (WHERE state IN ({states})) FROM version")
            [(waiting,)] = self.rows("SELECT count(*) FROM message")
        except sqlite3.OperationalError:  # it has no tables yet
            return False
        return known == over and known >= len([*self.drop.iterdir()]) and not waiting


@contextmanager
def fleet(folder: Path, store: FaultyS3, receives: str) -> Iterator[Fleet]:
    made = Fleet(folder, store, receives)
    made.start()
    try:
        yield made
    finally:
        if made._process is not None and made._process.poll() is None:
            made._process.kill()
            made._process.wait()


class Restarting:
    """A receiver that refuses half of what comes, and listens anew after each ``every`` tries."""

    def __init__(self, every: int, seed: int) -> None:
        self.every, self.random = every, random.Random(seed)
        self.got: list[Got] = []
        self.url, self.ready, self.restarts = "", asyncio.Event(), 0
        self.ended = False

    async def run(self) -> None:
        port = 0
        while not self.ended:
            async with receiver(port) as found:
                port, found.got = int(found.base.rpartition(":")[2]), self.got
                found.answer = lambda _: self.random.choice([204, 503])
                self.url = found.base + PATH
                self.ready.set()
                await self._until_enough(found)
            self.restarts += 1

    async def _until_enough(self, found: Receiver) -> None:
        before = len(found.got)
        while len(found.got) < before + self.every and not self.ended:  # noqa: ASYNC110 - it counts what came
            await asyncio.sleep(0.02)


def enough(receiving: Restarting, fleet: Fleet, wanted: int) -> bool:
    return len(receiving.got) >= wanted or fleet.is_idle()


async def until(true: Callable[[], bool], what: str, seconds: float, fleet: Fleet) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(true):
        assert time.monotonic() < deadline, f"no {what}: {fleet.log.read_text()[-3000:]}"
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("files", "again", "kills"),
    [
        pytest.param(60, 10, 4, id="few"),
        pytest.param(900, 50, 10, id="1,000", marks=pytest.mark.long),
        pytest.param(9000, 500, 50, id="10,000", marks=pytest.mark.series),
    ],
)
@pytest.mark.timeout(1800)
async def test_each_message_is_delivered_in_order_over_kills_of_the_daemon(
    tmp_path: Path, faulty_s3: FaultyS3, files: int, again: int, kills: int
) -> None:
    receiving = Restarting(every=(files + 2 * again) // 3, seed=7)
    serving = asyncio.create_task(receiving.run())
    await receiving.ready.wait()
    messages = files + 2 * again
    with fleet(tmp_path, faulty_s3, receiving.url) as daemon:
        for number in range(files):
            (daemon.drop / f"{number}.txt").write_text(f"first {number}")
        for turn in range(1, kills + 1):
            # Each try counts, refused or not: about two for each message.
            wanted = turn * messages // kills
            await until(partial(enough, receiving, daemon, wanted), "tries", 600, daemon)
            if turn in {kills // 3, 2 * kills // 3}:
                for number in range(again):
                    (daemon.drop / f"{number}.txt").write_text(f"again {turn} {number}")
            daemon.kill()
            daemon.start()
        await until(daemon.is_idle, "end", 900, daemon)
        versions = daemon.rows("SELECT file_id, path, state FROM version")
        daemon.stop()
    receiving.ended = True
    await serving
    taken = [got for got in receiving.got if got.status == 204]
    assert daemon.kills == kills
    assert receiving.restarts >= 2
    ended = {file_id for file_id, _, state in versions if state in ENDED}
    assert len(ended) >= files
    assert ended <= {got.data["file_id"] for got in taken if got.type == "file.done"}
    assert {file_id for file_id, _, state in versions if state == "quarantined"} <= {
        got.data["file_id"] for got in taken if got.type == "file.quarantined"
    }
    assert_in_order(taken)
    assert_no_secrets(daemon.log.read_bytes(), SECRET, receiving.url)


def assert_in_order(taken: list[Got]) -> None:
    """Check that the messages of each path were first delivered in the order of their events."""
    of_path = defaultdict[str, list[str]](list)
    seen: set[str] = set()
    for got in taken:
        if got.id not in seen:
            seen.add(got.id)
            of_path[got.data["path"]].append(got.document["timestamp"])
    assert any(len(times) > 1 for times in of_path.values())
    assert all(times == sorted(times) for times in of_path.values())
