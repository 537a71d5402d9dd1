"""presignd as shipped, as a contender: files are moved into its folder, and it is done at the last link.

Ledger durable (each commit fsynced), Content-MD5 with each body, ETags compared, links written. Its log goes
to a file, at the level it ships with.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from benchmarks.harness import Usage, on_client_core
from benchmarks.servers import BUCKET, Server, until

COMMAND = Path(sys.executable).with_name("presignd")
TICK = os.sysconf("SC_CLK_TCK")


def local_keys(server: Server) -> str:
    """Return [presign] with the server's keys."""
    return f"""[presign]
endpoint = "{server.endpoint}"
access_key = "{server.access_key}"
secret_key = "{server.secret_key}"
region = "us-east-1"
ca_file = "{server.ca_file or ""}"
"""


class Daemon:
    """``presignd run`` on the client's core, with a new ledger, during a ``with``.

    ``watch`` and ``more`` are lines of TOML: the watch's options, and other sections. ``presign`` is [presign], which
    has the server's keys otherwise.
    """

    def __init__(
        self,
        folder: Path,
        server: Server,
        *,
        watch: str = "",
        more: str = "",
        presign: str = "",
        core: bool = True,
    ) -> None:
        self.folder = folder / "presignd"
        self.drop = self.folder / "drop"
        self._watch, self._more, self._core = watch, more, core
        self._presign = presign or local_keys(server)
        self._read = self._linked = self._heard = self._told = 0

    def __enter__(self) -> Self:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.drop.mkdir(parents=True)
        self.configure()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()

    def configure(self) -> None:
        """Write the configuration."""
        config = self.folder / "config.toml"
        config.touch(0o600)
        config.write_text(
            f"""
{self._presign}
[ledger]
path = "{self.folder}/state"
{self._more}
[[watch]]
name = "drop"
path = "{self.drop}"
bucket = "{BUCKET}"
settle = "0s"
{self._watch}
""",
            encoding="utf-8",
        )

    def start(self, environ: Mapping[str, str] | None = None) -> None:
        """Start it, and return once it is ready."""
        argv = [str(COMMAND), "run", "-c", str(self.folder / "config.toml")]
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), **(environ or {})}
        env["PRESIGND_SOCKET"] = str(self.folder / "control.sock")
        log = self.folder / "log"
        begun = log.stat().st_size if log.exists() else 0
        with log.open("ab") as said:
            command = on_client_core(argv) if self._core else argv
            self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        until(lambda: b'"daemon.ready"' in log.read_bytes()[begun:], "daemon.ready", 60)

    def cpu(self) -> float:
        """Return the CPU seconds used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def memory(self, what: str = "VmRSS") -> int:
        """Return its RSS in bytes, or by ``VmHWM`` the most that it ever was."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(next(line for line in status.splitlines() if line.startswith(what)).split()[1]) << 10

    def move_in(self, files: Sequence[Path]) -> float:
        """Move files into the watched folder; return the time (``perf_counter``) just before the first."""
        began = time.perf_counter()
        for path in files:
            path.rename(self.drop / path.name)
        return began

    def give_back(self, files: Sequence[Path]) -> None:
        """Move the files back."""
        for path in files:
            (self.drop / path.name).rename(path)

    def until_linked(self, count: int, seconds: float = 600, *, step: float = 0.004) -> float:
        """Return the time (``perf_counter``) at which the links file had ``count`` lines."""
        until(lambda: self._count() >= count, f"{count} links", seconds, step=step)
        return time.perf_counter()

    def _count(self) -> int:
        if self.process.poll() is not None:
            raise RuntimeError(f"presignd ended: {(self.folder / 'log').read_text(errors='replace')[-2000:]}")
        if self._links.exists() and self._links.stat().st_size != self._read:
            with self._links.open("rb") as lines:
                lines.seek(self._read)
                new = lines.read()
            self._read += len(new)
            self._linked += new.count(b"\n")
        return self._linked

    @property
    def _links(self) -> Path:
        return self.folder / "state" / "links" / "links.jsonl"

    def links(self) -> list[dict[str, Any]]:
        """Return the links so far, in their order. Reads the file: not while something is measured."""
        return [json.loads(line) for line in self._links.read_bytes().splitlines()]

    def said(self, what: bytes) -> int:
        """Return how many lines of the log so far contain ``what``, which must be the same in all calls."""
        with (self.folder / "log").open("rb") as log:
            log.seek(self._heard)
            whole = log.read().rpartition(b"\n")[0]
        self._heard += len(whole) + bool(whole)
        self._told += whole.count(what)
        return self._told

    def linked_at(self) -> dict[str, float]:
        """Return when each path got its link, in seconds since the epoch."""
        return {link["path"]: datetime.fromisoformat(link["time"]).timestamp() for link in self.links()}

    def stop(self) -> tuple[float, int]:
        """End it by SIGTERM; return its whole CPU seconds and its peak RSS in bytes."""
        self.process.send_signal(signal.SIGTERM)
        _, status, used = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode:
            raise RuntimeError(f"presignd ended with {self.process.returncode}")
        return used.ru_utime + used.ru_stime, used.ru_maxrss << 10


def dropped(
    folder: Path, server: Server, files: Sequence[Path], *, watch: str = "", more: str = "", presign: str = ""
) -> Usage:
    """Move ``files`` in and wait for all links.

    ``wall`` is from the move to the last link; ``cpu`` is that of the whole process, its start and its end
    included; ``more["cpu_at_work"]`` is without the start, to which the proof of the bucket belongs: one file goes
    before the others.
    """
    with Daemon(folder, server, watch=watch, more=more, presign=presign) as daemon:
        (daemon.drop / "first").write_bytes(b"first")
        daemon.until_linked(1)
        cpu_at_start = daemon.cpu()
        began = daemon.move_in(files)
        try:
            wall = daemon.until_linked(1 + len(files)) - began
            cpu, rss = daemon.stop()
        finally:
            daemon.give_back(files)
        return Usage(wall, cpu, rss, {"cpu_at_work": cpu - cpu_at_start})
