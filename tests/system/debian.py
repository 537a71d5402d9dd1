"""A minimal Debian in a folder: one of each release for a whole run of pytest."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from tests.needs import need

PACKAGE = Path(__file__).parents[2] / "package"
_PATH = {"PATH": "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"}


def minimal_debian(factory: pytest.TempPathFactory, suite: str = "bookworm") -> Path:
    """Return the root folder of a minimal Debian, made by the first who asks; tests must leave it as it is."""
    need("mount", "debootstrap")
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers
    root = shared / suite
    with (shared / f"{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / f"{suite}.made").exists():
            run(PACKAGE / "make-root", root, suite)
            (shared / f"{suite}.made").touch()
    return root


def run(*command: str | Path, timeout: float = 600, **environ: str) -> str:
    """Run a command that works, with more in its environment, and return what it printed."""
    env = {**os.environ, **_PATH, **environ}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout, env=env)
    assert done.returncode == 0, (command, done.returncode, done.stdout, done.stderr)
    return done.stdout
