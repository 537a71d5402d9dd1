"""``presignd verify --all`` at a daemon: files a second, CPU and memory, compared with ``rclone check``.

``python -m benchmarks.verify [--files 100000] [--rounds 3]``; ``--files 1000000`` is the largest. Files, ledger and
sink are those of ``benchmarks.start``. ``rclone check`` lists the bucket, a thousand objects in each answer; presignd
asks for each object with a HEAD, as no token allows a list.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from benchmarks import peers
from benchmarks.dropped import COMMAND, Daemon
from benchmarks.harness import Rounds, Usage, bench_folder, measure, print_head, print_usages
from benchmarks.options import options
from benchmarks.servers import BUCKET, Sink
from benchmarks.start import uploaded


def main() -> None:
    """Measure, and print the table."""
    asked = options(__doc__, files=100_000, size=1, rounds=3)
    with bench_folder(asked.folder) as folder:
        print_head(f"verify --all of {asked.files} files", asked.rounds)
        server = Sink(folder)
        daemon = uploaded(folder, server, asked.files, asked.size)
        with server:
            found: Rounds = {"presignd verify --all": [], "rclone check": []}
            daemon.start()
            for _ in range(asked.rounds):
                found["presignd verify --all"].append(_verified(daemon))
                found["rclone check"].append(_checked(server, daemon))
                print(f"  {found['presignd verify --all'][-1].wall:.1f} s", file=sys.stderr, flush=True)
            daemon.stop()
        print_usages(
            found,
            {
                "files/s": lambda u: asked.files / u.wall,
                "CPU ms a file": lambda u: 1000 * u.cpu / asked.files,
                "peak RSS MiB": lambda u: u.rss / (1 << 20),
            },
        )
        grown = max(usage.more["grown"] for usage in found["presignd verify --all"])
        print(f"The daemon's RSS grew by {grown / (1 << 20):.1f} MiB at most.\n")


def _verified(daemon: Daemon) -> Usage:
    """Return what the command and the daemon took together."""
    cpu, before = daemon.cpu(), daemon.memory()
    environ = {"PATH": os.environ["PATH"], "HOME": str(daemon.folder)}
    environ["PRESIGND_SOCKET"] = str(daemon.folder / "control.sock")
    time.sleep(1.0)
    usage = measure([COMMAND, "verify", "--all"], environ)
    rss = daemon.memory("VmHWM") + usage.rss
    return Usage(usage.wall, usage.cpu + daemon.cpu() - cpu, rss, {"grown": daemon.memory() - before})


def _checked(server: Sink, daemon: Daemon) -> Usage:
    argv: list[str | Path] = [peers.program("rclone"), "check", "--one-way", daemon.drop, f":s3:{BUCKET}"]
    return measure(argv, {**peers.environ(server), **peers.rclone_settings(server)})


if __name__ == "__main__":
    main()
