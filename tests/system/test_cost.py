"""The cost of one small file, counted: a change that doubles it fails here, on any machine and under any load.

Calls of functions (Python's and C's, in the event loop's thread) and SQL statements of the whole ledger, each a
file: the difference of two runs of the real command, so that its start and end don't count. The calls are those of a
burst. The statements are those of a file that comes alone, because a burst shares them by lists, whose length depends
on the machine's load.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from tests.faulty_s3 import FaultyS3

CALLS, STATEMENTS = 960, 19
"""At most: a tenth more than the most that were counted (552 to 870 calls, idle and busy; 17 statements)."""

COUNTED = """
import cProfile, json, pstats, sys
from itertools import count
from pathlib import Path
from presignd.system.sqlite import DatabaseFile

statements, connect = count(), DatabaseFile.connect

def counting(self, **how):
    connection = connect(self, **how)
    connection.set_trace_callback(lambda _statement: next(statements))
    return connection

DatabaseFile.connect = counting
from presignd.cli import main

out, sys.argv = Path(sys.argv[1]), ["presignd", "run", "-c", sys.argv[2]]
profile = cProfile.Profile()
profile.enable()
try:
    main()
finally:
    profile.disable()
    calls = sum(stat[1] for stat in pstats.Stats(profile).stats.values())
    out.write_text(json.dumps([calls, next(statements)]))
"""


async def counted(store: FaultyS3, folder: Path, files: int, *, together: bool) -> tuple[int, int]:
    """Return the calls and statements of a daemon's life in which so many files of 4 KiB were moved in.

    Together: all at once; otherwise each when the one before it is done.
    """
    (folder / "drop").mkdir(parents=True)
    (folder / "aside").mkdir()
    for number in range(files):
        (folder / "aside" / f"{files}-{number:04}").write_bytes(number.to_bytes(4096, "big"))
    config, out, log = folder / "config.toml", folder / "counted.json", folder / "log"
    config.touch(0o600)
    config.write_text(
        f"""
[presign]
endpoint = "{store.endpoint}"
region = "us-east-1"
access_key = "{store.access_key}"
secret_key = "{store.secret_key}"
[ledger]
path = "{folder}/state"
[[watch]]
name = "drop"
path = "{folder}/drop"
bucket = "{store.bucket}"
settle = "0s"
"""
    )
    with log.open("wb") as said:
        command = [sys.executable, "-c", COUNTED, os.fspath(out), os.fspath(config)]
        env = {**os.environ, "PRESIGND_SOCKET": os.fspath(folder / "control.sock")}
        child = await asyncio.create_subprocess_exec(*command, stdout=said, stderr=said, env=env)
    try:
        await _said(log, b'"daemon.ready"', 1)
        for number, path in enumerate(sorted((folder / "aside").iterdir())):
            if not together:
                await _said(log, b'"file.done"', number)
            path.rename(folder / "drop" / path.name)
        await _said(log, b'"file.done"', files)
        child.send_signal(signal.SIGTERM)
        assert await child.wait() == 0
    finally:
        if child.returncode is None:
            child.kill()
    calls, statements = json.loads(out.read_text())
    return calls, statements


async def _said(log: Path, event: bytes, count: int) -> None:
    async with asyncio.timeout(120):
        while log.read_bytes().count(event) < count:  # noqa: ASYNC110, ASYNC240 - a file tells nobody
            await asyncio.sleep(0.05)


async def test_a_small_file_of_a_burst_costs_no_more_calls_than_it_did(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    few, _ = await counted(faulty_s3, tmp_path / "few", 100, together=True)
    many, _ = await counted(faulty_s3, tmp_path / "many", 400, together=True)
    assert (many - few) / 300 <= CALLS


async def test_a_small_file_alone_costs_no_more_statements_than_it_did(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    _, few = await counted(faulty_s3, tmp_path / "few", 10, together=False)
    _, many = await counted(faulty_s3, tmp_path / "many", 60, together=False)
    assert (many - few) / 50 <= STATEMENTS
