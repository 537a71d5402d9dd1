"""The racing kind of try: the writer is a process of its own, and comes back whenever the kernel lets it.

It waits in ``open`` while presignd holds a lease, as most programs do. The moments that finish passes
(``presignd.runtime.crash_points``) and those at which the writer acts are noted by one clock, so the report can tell
how often somebody came back in each window.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import subprocess
import sys
import time
from bisect import bisect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from presignd.model import FileVersion
from presignd.pipeline.files.lease import has_writer
from presignd.pipeline.finish import remove as module
from presignd.pipeline.finish.remove import FinishOutcome
from tests.system.comeback.tries import Scene, Tally
from tests.system.comeback.writer import WAYS, Session, Writer, append

LATEST_NS = 80_000
"""Within so many nanoseconds of the point that finish passes the writer begins: a few system calls' time."""

SIGNAL = "signal"
POINTS = {
    "delete": ("called", "finish.aside.before", "finish.aside.after", "finish.compared", "finish.unlink.before"),
    "move": (
        *("called", "finish.aside.before", "finish.aside.after", "finish.compared", "finish.move.before"),
        *("finish.copy.written", "finish.copy.published"),
    ),
}
"""The points of ``presignd.runtime.crash_points`` that finish passes, at one of which the writer is let go."""

PAUSES_NS = (0, 0, 0, 5_000, 50_000, 300_000)
"""Between two system calls of the writer."""

HAMMER = 40
"""Appends in a row, each as soon as the last, by a writer that hits whatever it can."""

BUSY_PAUSE = 0.0005


def racing(scene: Scene, tries: int, seed: int) -> Tally:
    """Try, with a process that comes back at random moments."""
    tally = Tally()
    with _writer(scene) as writer, _on_one_core(min):
        for number in range(1, tries + 1):
            version, _ = scene.fresh(number)
            writer.say({"number": number, "seed": f"{seed}/{number}"})
            writer.wait_for(number)
            point = random.Random(f"{seed}/{number}/point").choice(POINTS[scene.after])
            outcome, moments = _finish(scene, version, point, partial(writer.let_go, number))
            told = writer.hear()
            tally.ways[told["way"]] += 1
            tally.windows.update(_windows(moments, told["acted"]))
            tally.judge(scene, {one.encode() for one in told["owed"]}, outcome, f"try {number}: {told['way']}")
    return tally


def _finish(
    scene: Scene, version: FileVersion, wanted: str, let_go: Callable[[], None]
) -> tuple[FinishOutcome, list[tuple[int, str]]]:
    moments: list[tuple[int, str]] = []

    def passed(point: str) -> None:
        moments.append((time.monotonic_ns(), point))
        if point in (wanted, "ended"):
            let_go()

    with patch.object(module, "passed", passed):
        passed("called")
        while (done := scene.finish(version, has_writer)).busy:
            passed("busy")
            time.sleep(BUSY_PAUSE)
            passed("called")
        passed("ended")
    return done.outcome, moments


def _windows(moments: list[tuple[int, str]], acted: list[int]) -> Iterator[str]:
    for at in acted:
        place = bisect(moments, (at, ""))
        yield f"after {moments[place - 1][1]}" if place else "before it was called"


# --- the other process ------------------------------------------------------------------------------


class _Other:
    def __init__(self, process: subprocess.Popen[str], signal: mmap.mmap) -> None:
        self._process, self._signal = process, signal

    def let_go(self, number: int) -> None:
        self._signal[:8] = number.to_bytes(8)

    def wait_for(self, number: int) -> None:
        while self._signal[8:] != number.to_bytes(8):
            time.sleep(0)

    def say(self, what: dict[str, Any]) -> None:
        assert self._process.stdin
        print(json.dumps(what), file=self._process.stdin, flush=True)

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told


@contextmanager
def _writer(scene: Scene) -> Iterator[_Other]:
    command = [sys.executable, "-m", "tests.system.comeback.racing", str(scene.base)]
    (scene.base / SIGNAL).write_bytes(bytes(16))
    with (
        _shared(scene.base / SIGNAL) as signal,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        yield _Other(process, signal)
        assert process.stdin
        process.stdin.close()


def _shared(path: Path) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 16)


@contextmanager
def _on_one_core(choose: Callable[[set[int]], int]) -> Iterator[None]:
    """Keep to one core, so that two processes that wake each other don't share it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {choose(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _hammer(writer: Writer) -> Session:
    for _ in range(HAMMER):
        for _step in append(writer):
            pass
    yield


def _come_back(base: Path, signal: mmap.mmap, task: dict[str, Any]) -> dict[str, Any]:
    rng = random.Random(task["seed"])
    writer = Writer(base / "drop/sub/a.txt", task["number"], base / "elsewhere", waits=True)
    way, go = rng.choice((*WAYS, _hammer)), task["number"].to_bytes(8)
    acted: list[int] = []
    signal[8:] = go  # it is ready, and waits for the same number
    while signal[:8] != go:
        pass
    _spin(rng.randrange(LATEST_NS))
    for _ in way(writer):
        acted.append(time.monotonic_ns())
        _spin(rng.choice(PAUSES_NS))
    return {"way": way.__name__, "owed": [token.decode() for token in writer.owed], "acted": acted}


def _spin(nanoseconds: int) -> None:
    end = time.monotonic_ns() + nanoseconds
    while time.monotonic_ns() < end:
        pass


def main() -> None:
    """Come back once for each line on stdin."""
    base = Path(sys.argv[1])
    with _on_one_core(max), _shared(base / SIGNAL) as signal:
        for line in sys.stdin:
            print(json.dumps(_come_back(base, signal, json.loads(line))), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
