"""Runs code as an unprivileged user, because root may read and lease everything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import needs

NOBODY = needs.NOBODY

_PRELUDE = """
import fcntl, os, sys
from pathlib import Path
import presignd.system.filesystem
from presignd.config import WatchConfig
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.ignore import Ignore
from presignd.pipeline.watch.scan import Scan
from presignd.pipeline.files.lease import has_writer, ignore_sigio, writer_check_of
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({nobody})
    os.setuid({nobody})
root = Path(sys.argv[1])
"""


@contextmanager
def without_rights() -> Iterator[None]:
    """Act as the user nobody if the tests run as root, who can read everything; else as the current user.

    A module or codec that is first asked for meanwhile must be readable: Python remembers what it did not find.
    """
    groups = os.getgroups()
    if as_root := os.geteuid() == 0:
        needs.need("another user")
        os.setgroups([])
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if as_root:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)


def as_nobody(*capabilities: str) -> list[str]:
    """Return the prefix for a command that root runs as an unprivileged user with at most these capabilities."""
    kept = ",".join(f"+{name}" for name in capabilities)
    rights = [f"--inh-caps={kept}", f"--ambient-caps={kept}"] if kept else []
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *rights, "--"]


@contextmanager
def world_readable() -> Iterator[Path]:
    """Yield a folder that other users can enter; they can't enter pytest's own."""
    with tempfile.TemporaryDirectory(prefix="presignd-test-") as name:
        root = Path(name)
        root.chmod(0o755)
        yield root


def unprivileged(root: Path, code: str) -> list[str]:
    """Run ``code`` (imports and ``root`` given) as nobody; return the lines it printed."""
    needs.need("another user")
    script = _PRELUDE.format(nobody=NOBODY) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script, root], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != -signal.SIGIO, "killed by SIGIO"
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
