"""Common to all tables: data, separate servers and clients, measuring whole processes, ratios within one run.

The server runs on core 0, with this harness, and the client on core 1. Contenders take turns, round by round,
on the same data with warm caches, each with a server that has stored nothing yet.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import presignd
from benchmarks.servers import ROOT, Seaweed, Server, Sink, StartedServer
from benchmarks.tls import OverTls
from presignd.demo.seaweedfs import find_program

SERVER_CORE, CLIENT_CORE = 0, 1
SHARING = frozenset({"seaweedfs", "seaweedfs-https"})
"""Servers that share all cores with their clients, as on one machine. The sink has a core of its own."""
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Usage:
    """What one contender took: seconds of wall time and CPU (children included), peak RSS in bytes.

    The RSS is that of the largest process of a tree. ``more`` has a contender's other figures.
    """

    wall: float
    cpu: float
    rss: int
    more: Mapping[str, float] = field(default_factory=dict)


SERVERS: dict[str, Callable[[Path], StartedServer]] = {
    "sink": Sink,
    "seaweedfs": Seaweed,
    "sink-https": lambda folder: OverTls(Sink(folder), folder),
    "seaweedfs-https": lambda folder: OverTls(Seaweed(folder), folder),
}


@contextmanager
def bench_folder(parent: Path | None) -> Iterator[Path]:
    """Give a folder for data and servers, and stay on the servers' core meanwhile: servers inherit it."""
    os.sched_setaffinity(0, {SERVER_CORE})
    with tempfile.TemporaryDirectory(prefix="presignd-bench-", dir=parent) as folder:
        yield Path(folder)


def make_files(folder: Path, count: int, size: int, prefix: str = "file") -> list[Path]:
    """Make ``count`` files of ``size`` random bytes, written to the disk, and left in the page cache."""
    folder.mkdir(exist_ok=True)
    made = [folder / f"{prefix}-{number:06}.bin" for number in range(count)]
    for path in made:
        with path.open("wb") as file:
            for start in range(0, size, BLOCK):
                file.write(os.urandom(min(BLOCK, size - start)))
            file.flush()
            os.fsync(file.fileno())  # else its writing back falls into somebody's time
    return made


def warm(paths: Sequence[Path]) -> None:
    """Read the files, so that every contender finds them in the page cache."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(BLOCK):
                pass


def place_server(name: str) -> None:
    """Choose the cores for the servers from now on, and for this process, from which they inherit them."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1) if name in SHARING else {SERVER_CORE})


def on_client_core(argv: Sequence[str | Path]) -> list[str]:
    """Return the command line that runs ``argv`` on the client's core, or on all cores if the server has all."""
    sharing = os.sched_getaffinity(0) != {SERVER_CORE}
    return [*map(str, argv)] if sharing else ["taskset", "-c", str(CLIENT_CORE), *map(str, argv)]


def measure(argv: Sequence[str | Path], env: Mapping[str, str], *, stdin: bytes = b"") -> Usage:
    """Run a command on the client's core to its end; raise ``RuntimeError`` when it fails."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        child = subprocess.Popen(on_client_core(argv), env=dict(env), stdin=given, stdout=said, stderr=said)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            raise RuntimeError(f"{argv[0]} ended with {child.returncode}: {said.read()[-2000:].decode()}")
    return Usage(wall, used.ru_utime + used.ru_stime, used.ru_maxrss << 10)


# --- tables -----------------------------------------------------------------------------------

Contender = Callable[[Server], Usage]
Rounds = dict[str, list[Usage]]


def run_rounds(server: str, contenders: Mapping[str, Contender], rounds: int, folder: Path) -> Rounds:
    """Run the contenders in turn, ``rounds`` times, each with a fresh server."""
    found: Rounds = {name: [] for name in contenders}
    for number in range(rounds):
        for name, contender in contenders.items():
            with SERVERS[server](folder) as fresh:
                found[name].append(contender(fresh))
            one = found[name][-1]
            told = f"{one.wall:.2f} s wall, {one.cpu:.2f} s CPU, {one.rss >> 20} MiB"
            print(f"  round {number + 1} {name}: {told}", file=sys.stderr, flush=True)
    return found


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio of presignd to a peer: of ``what`` (a number of a ``Usage``), at most ``most``."""

    words: str
    peer: str
    what: Callable[[Usage], float]
    most: float | None = None
    inverse: bool = False
    """True where more is better (files a second): the ratio is then at least ``most``."""


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Return min / median / max."""
    return " / ".join(form.format(value) for value in (min(values), statistics.median(values), max(values)))


def print_usages(rounds: Rounds, columns: Mapping[str, Callable[[Usage], float]]) -> None:
    """Print each contender's figures as a Markdown table: min / median / max of its rounds."""
    print(f"| | {' | '.join(columns)} |")
    print("| --- |" + " --- |" * len(columns))
    for name, usages in rounds.items():
        print(f"| {name} | {' | '.join(spread([of(u) for u in usages]) for of in columns.values())} |")
    print()


def print_goals(rounds: Rounds, goals: Sequence[Goal], mine: str = "presignd") -> None:
    """Print presignd's ratios to its peers, each of the same round, with the goals: met by the median or not."""
    print("| presignd to its peer | min / median / max | goal | |")
    print("| --- | --- | --- | --- |")
    for goal in goals:
        if goal.peer not in rounds:
            continue
        pairs = zip(rounds[mine], rounds[goal.peer], strict=True)
        ratios = [goal.what(ours) / goal.what(theirs) for ours, theirs in pairs]
        print(f"| {goal.words} | {spread(ratios)} | {_judged(goal, statistics.median(ratios))} |")
    print()


def _judged(goal: Goal, median: float) -> str:
    if goal.most is None:
        return "| "
    met = median >= goal.most if goal.inverse else median <= goal.most
    return f"{'≥' if goal.inverse else '≤'} {goal.most} | {'met' if met else '**not met**'}"


def print_head(title: str, rounds: int) -> None:
    """Print what was measured, with what, and on what kind of machine."""
    print(f"## {title}\n")
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    print(f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC; {versions}.")
    load = ", ".join(f"{one:.2f}" for one in os.getloadavg())
    machine = f"{_processor()}, {os.cpu_count()} cores, Linux {platform.release()}"
    print(f"{machine}; load average at the start {load}; {rounds} rounds.\n", flush=True)


def _versions() -> dict[str, str]:
    told = {"presignd": f"{presignd.__version__} ({_commit()})", "Python": platform.python_version()}
    asked = {"s5cmd": ["version"], "rclone": ["version"], "curl": ["--version"], "aws": ["--version"]}
    for name, arguments in {**asked, "weed": ["version"]}.items():
        if program := find_program(name):
            done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
            told[name] = _version_in(done.stdout)
    return told


def _version_in(text: str) -> str:
    """Return the first word with a digit and a dot in it."""
    return next((word for word in text.split() if "." in word and any(c.isdigit() for c in word)), "?")


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "no commit"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a processor")
