"""From a file's close to its link, one at a time: presignd compared with a common recipe.

``python -m benchmarks.latency [--server NAME] [--files 100]``
The recipe: ``inotifywait -m -e close_write,moved_to | xargs -P16 s5cmd cp`` (and the aws CLI), which makes no link:
there it is the time to the object. ``inotifywait`` is in Debian's ``inotify-tools``; a row whose program is missing is
left out.
"""

from __future__ import annotations

import os
import shlex
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks import peers
from benchmarks.dropped import Daemon
from benchmarks.harness import SERVERS, on_client_core
from benchmarks.options import each_server, options
from benchmarks.servers import BUCKET, Server, until
from presignd.demo.seaweedfs import find_program

SIZE, PAUSE, WARM = 4096, 0.05, 5
STEP = 0.0002
"""Seconds between two looks whether it is there: what is found is by half of it too long."""
AWS_FILES = 15


def main() -> None:
    """Measure, and print the tables."""
    asked = options(__doc__, files=100, size=SIZE, rounds=1)
    for server, folder in each_server(asked, f"From close to link, {asked.files} files of {asked.size} bytes,"):
        _measure(server, folder, asked.files, asked.size)


def _measure(server: str, folder: Path, count: int, size: int) -> None:
    print("| ms | median | p99 | worst |\n| --- | --- | --- | --- |")
    found = {}
    for name, settle, least in (("presignd, settle 0s", "0s", 0.0), ("presignd, settle 1s", "1s", 1.0)):
        few = count if not least else min(count, 20)
        with SERVERS[server](folder) as fresh, Daemon(folder, fresh, watch="") as daemon:
            _settle(daemon, settle)
            found[name] = _tell(
                name, _each(daemon.drop, few, size, partial(daemon.until_linked, seconds=30, step=STEP))
            )
    for tool, few in (("s5cmd", count), ("aws", AWS_FILES)):
        if find_program("inotifywait") and find_program(tool):
            with SERVERS[server](folder) as fresh, recipe(folder, fresh, tool) as (drop, until_there):
                found[tool] = _tell(f"inotifywait and {tool}", _each(drop, few, size, until_there))
    mine = found["presignd, settle 0s"]
    later = found["presignd, settle 1s"] - mine
    print(
        f"\nGoals: median of settle 0s ≤ 3.5 ms ({mine:.1f}); settle 1s, one second more and no more ({later:.0f} ms)",
        end="",
    )
    print(f"; to the recipe with s5cmd ≤ 0.25 ({mine / found['s5cmd']:.2f}).\n" if "s5cmd" in found else ".\n")


def _settle(daemon: Daemon, settle: str) -> None:
    """Set the daemon's ``settle``."""
    config = daemon.folder / "config.toml"
    config.write_text(config.read_text().replace('settle = "0s"', f'settle = "{settle}"'))
    daemon.stop()
    daemon.start()


def _each(drop: Path, count: int, size: int, until_there: Callable[[int], object]) -> list[float]:
    """Write one file after the other; return the milliseconds from each one's close, the first few left out."""
    took = []
    for number in range(count + WARM):
        with (drop / f"file-{number:04}").open("wb") as file:
            file.write(os.urandom(size))
        closed = time.perf_counter()
        until_there(number + 1)
        took.append(1000 * (time.perf_counter() - closed))
        time.sleep(PAUSE)
    return took[WARM:]


def _tell(name: str, took: list[float]) -> float:
    took.sort()
    p99 = took[min(len(took) - 1, int(len(took) * 0.99))]
    print(f"| {name} | {statistics.median(took):.1f} | {p99:.1f} | {took[-1]:.1f} |", flush=True)
    return statistics.median(took)


@contextmanager
def recipe(folder: Path, server: Server, tool: str) -> Iterator[tuple[Path, Callable[[int], object]]]:
    """Run the recipe over a new folder; yield the folder, and a function that waits for so many objects."""
    drop, done = folder / f"recipe-{tool}", folder / f"recipe-{tool}.done"
    drop.mkdir()
    done.touch()
    copy = {"s5cmd": f"{peers.program('s5cmd')} --endpoint-url {server.endpoint} --log error cp"}.get(
        tool, f"{find_program('aws')} --endpoint-url {server.endpoint} s3 cp --only-show-errors"
    )
    each = f'{copy} "$1" s3://{BUCKET}/ && echo >>{shlex.quote(str(done))}'
    watch = f"inotifywait -mq -e close_write,moved_to --format %w%f {shlex.quote(str(drop))}"
    script = f"{watch} | xargs -P16 -n1 sh -c {shlex.quote(each)} -"
    child = subprocess.Popen(
        on_client_core(["sh", "-c", script]),
        env=peers.environ(server),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(1.0)
        yield drop, lambda count: until(lambda: done.stat().st_size >= count, f"{count} objects", 60, step=STEP)
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait()


if __name__ == "__main__":
    main()
