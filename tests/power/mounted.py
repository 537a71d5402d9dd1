"""The disk that can lose its power, mounted in a folder by a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.needs import need
from tests.power.disk import Cut

CHECKOUT = Path(__file__).parents[2]
SECONDS = 20.0


class PowerDisk:
    """One mounted disk. All who have something open on it must be gone before it is cut or mounted again."""

    def __init__(self, target: Path) -> None:
        self.path = target
        self._kept = target.with_name(f"{target.name}.kept")
        target.mkdir(parents=True, exist_ok=True)
        self._server = self._mount()

    def _mount(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.power.server", os.fspath(self.path), os.fspath(self._kept)]
        server = subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + SECONDS
        while not self.path.is_mount():
            assert server.poll() is None, "the disk's process ended"
            assert time.monotonic() < deadline, "the disk was not mounted"
            time.sleep(0.01)
        return server

    def cut(self, how: Cut, seed: int) -> None:
        """Lose what was not synced, and come back with the rest."""
        self._tell("off")
        self._unmount()
        self._mount_again(f"keep {how} {seed}")

    def remount(self, meanwhile: Callable[[], object]) -> None:
        """Unmount it cleanly and mount it again, as it was; ``meanwhile`` may take its device number."""
        self._unmount()
        meanwhile()
        self._mount_again("keep all 0")

    def _mount_again(self, command: str) -> None:
        print(command, file=self._server.stdin, flush=True)
        assert self._server.wait(SECONDS) == 0
        self._let_go()
        self._server = self._mount()

    def die(self) -> None:
        """End its server: all that leads to it answers ENOTCONN."""
        self._server.kill()
        self._server.wait(SECONDS)
        self._let_go()

    def come_back(self) -> None:
        """Mount it anew after its server's end, with what was there when it was last cut or remounted."""
        subprocess.run(["umount", "--lazy", self.path], check=True)
        self._server = self._mount()

    def fail(self, name: str) -> None:
        """Make each read of files with this name fail (EIO); "" ends that."""
        self._tell(f"fail {name}" if name else "heal")

    def close(self) -> None:
        """Unmount it for good."""
        try:
            self._unmount()
        finally:
            subprocess.run(["umount", "--lazy", self.path], check=False, capture_output=True)
            self._let_go()
            self._server.wait(SECONDS)

    def _let_go(self) -> None:
        """Close what leads to the server, which ends it."""
        for pipe in (self._server.stdin, self._server.stdout):
            if pipe is not None:
                pipe.close()

    def _tell(self, command: str) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(command, file=self._server.stdin, flush=True)
        assert self._server.stdout.readline() == "ok\n"

    def _unmount(self) -> None:
        """Unmount; who has just ended may still hold it for a moment."""
        deadline = time.monotonic() + SECONDS
        while (done := subprocess.run(["umount", self.path], check=False, capture_output=True, text=True)).returncode:
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.05)


@contextmanager
def power_disk(target: Path) -> Iterator[PowerDisk]:
    """Mount one, or skip the test."""
    need("fuse", "libfuse")
    disk = PowerDisk(target)
    try:
        yield disk
    finally:
        disk.close()
