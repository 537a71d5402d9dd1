"""The third kind of try: a whole daemon, and a process that comes back to files it has dropped a moment ago.

Every version gets a key of its own (``collision = "rename"``), so whatever was uploaded once stays an object:
each byte that the writer closed and did not destroy itself must be in an object or in a file at the end.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faulty_s3 import FaultyS3
from tests.running import config, running, watch
from tests.system.comeback.tries import Scene, Tally
from tests.system.comeback.writer import TOKEN, WAYS, Session, Writer, append_or_make, in_a_folder_that_moves

BATCH = 25
"""Files that are under way side by side."""

LATEST = 0.12
"""Seconds after its drop within which each is come back to: a file is gone by then, mostly."""

PATIENCE = 120.0


def served(scene: Scene, tries: int, seed: int) -> Tally:
    """Drop ``tries`` files and come back to each of them."""
    scene.clear()
    store = FaultyS3()
    store.start()
    try:
        return asyncio.run(_served(scene, store, tries, seed))
    finally:
        store.stop()


async def _served(scene: Scene, store: FaultyS3, tries: int, seed: int) -> Tally:
    watched = watch(scene.base, after=scene.after, move_to=scene.watch.move_to, collision="rename")
    async with running(config(scene.base, store, watched)) as daemon:
        told = await _drop_all(scene, tries, seed)
        owed, deadline = {token.encode() for token in told["owed"]}, time.monotonic() + PATIENCE
        while (lost := owed - _stored(store) - scene.found()) and time.monotonic() < deadline:
            await asyncio.to_thread(time.sleep, 1)  # it was looked for between two names
        tally = Tally(tries, ways=Counter(told["ways"]))
        tally.outcomes = Counter(event["status"] for event in daemon.events("file.done"))
        tally.violations += [f"lost {token.decode()}" for token in sorted(lost)]
        tally.violations += [f"quarantined: {code}" for code in daemon.codes("file.quarantined")]
    return tally


def _stored(store: FaultyS3) -> set[bytes]:
    return {token for stored in list(store.objects.values()) for token in TOKEN.findall(stored.body)}


async def _drop_all(scene: Scene, tries: int, seed: int) -> dict[str, Any]:
    command = ["-m", "tests.system.comeback.served", *map(str, (scene.drop, scene.elsewhere, tries, seed))]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    told: dict[str, Any] = json.loads(output)
    return told


# --- the other process ------------------------------------------------------------------------------


def _batch(drop: Path, elsewhere: Path, numbers: range, rng: random.Random) -> tuple[set[bytes], Counter[str]]:
    """Drop a file for each number, and come back to each once, or twice, at moments of its own."""
    writers = [Writer(drop / f"{number}.txt", number, elsewhere, waits=True) for number in numbers]
    ways = [rng.choice([way for way in WAYS if way is not in_a_folder_that_moves]) for _ in writers]
    due: list[tuple[float, int, Session]] = []
    for place, writer in enumerate(writers):
        for _ in append_or_make(writer):
            pass
        due.append((time.monotonic() + rng.uniform(0, LATEST), place, ways[place](writer)))
    while due:
        at, place, session = due.pop(due.index(min(due, key=lambda one: one[0])))
        time.sleep(max(0.0, at - time.monotonic()))
        if next(session, due) is not due:
            due.append((time.monotonic() + rng.choice((0, 0, 0.0002, 0.02)), place, session))
    return {token for writer in writers for token in writer.owed}, Counter(way.__name__ for way in ways)


def main() -> None:
    """Drop and come back, and tell what is owed."""
    drop, elsewhere, tries, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    rng, owed, ways = random.Random(seed), set[bytes](), Counter[str]()
    for first in range(0, tries, BATCH):
        tokens, used = _batch(drop, elsewhere, range(first, min(first + BATCH, tries)), rng)
        owed |= tokens
        ways += used
    print(json.dumps({"owed": [token.decode() for token in owed], "ways": ways}))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
