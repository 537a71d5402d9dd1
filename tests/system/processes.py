"""The resources of a process and its descendants, from /proc, to check that none is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"
"""TCP_LISTEN in /proc/net/tcp (include/net/tcp_states.h)."""


@dataclass(frozen=True)
class Held:
    """Processes (pid, start time), TCP ports listened on (port, inode), paths of Unix sockets.

    Pids and ports are reused, also by other tests, so each is kept with a value that is unique.
    """

    processes: frozenset[tuple[int, str]]
    ports: frozenset[tuple[int, str]]
    sockets: frozenset[Path]

    def left(self) -> Held:
        """Return what is still there."""
        return Held(
            frozenset(one for one in self.processes if _started(one[0]) == one[1]),
            self.ports & _listening(),
            frozenset(path for path in self.sockets if path.exists()),
        )

    def gone_within(self, seconds: float) -> Held:
        """Wait at most so long until nothing is left; return what is left."""
        deadline = time.monotonic() + seconds
        while (left := self.left()) != NOTHING and time.monotonic() < deadline:
            time.sleep(0.05)
        return left


NOTHING = Held(frozenset(), frozenset(), frozenset())


def held_by(pid: int) -> Held:
    """Return what ``pid`` and its descendants hold now."""
    pids = list(tree(pid))
    inodes = {inode for each in pids for inode in _socket_inodes(each)}
    return Held(
        frozenset((each, _started(each)) for each in pids),
        frozenset(one for one in _listening() if one[1] in inodes),
        frozenset(path for path, inode in _unix_sockets() if inode in inodes),
    )


def tree(pid: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from tree(int(child))


def _started(pid: int) -> str:
    """Return the start time in ticks since boot, "" when no such process runs (a zombie doesn't)."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    return ""


def _socket_inodes(pid: int) -> Iterator[str]:
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            target = str(fd.readlink())
            if target.startswith("socket:["):
                yield target[len("socket:[") : -1]


def _listening() -> frozenset[tuple[int, str]]:
    """Return the port and inode of each listening TCP socket."""
    found = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN:
                    found.add((int(fields[1].rpartition(":")[2], 16), fields[9]))
    return frozenset(found)


def _unix_sockets() -> Iterator[tuple[Path, str]]:
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7].startswith("/"):
            yield Path(fields[7]), fields[6]
