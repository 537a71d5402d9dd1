"""What some tests need from the machine beyond Python packages. Without it they are skipped, with one line.

``@pytest.mark.needs("jq", "curl")`` and, in fixtures, ``need("fuse")`` name rows of ``NEEDS``. Where everything is
installed (``.ci/run``), ``PRESIGND_SKIP_NOTHING=1`` makes a run fail that skipped something. Elsewhere a run that
skipped something is not judged by its coverage: what the skipped tests would have run is not covered.
"""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from ctypes.util import find_library
from functools import cache, partial
from pathlib import Path
from typing import Any

import playwright
import pytest

NOBODY = 65534
STRICT = "PRESIGND_SKIP_NOTHING"
SKIPPED = "PRESIGND_SKIPPED"
"""A file to which a run writes the tests that it skipped: ``pytest @FILE`` runs them where nothing is missing."""
CHROMIUM = Path("/usr/bin/chromium")
FIREFOX = Path("/usr/bin/firefox-esr")
NODE = Path(playwright.__file__).parent / "driver" / "node"
"""A recent node that is always there: playwright's own."""
LIBFAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
QUEUE = Path("/proc/sys/fs/inotify/max_queued_events")


def find(program: str) -> str | None:
    """Return a program's path; an ordinary user's PATH may lack the system folders."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def runs(*command: str | os.PathLike[str], **who: Any) -> bool:
    """Return whether a command succeeds, run from a folder that every user can enter."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, cwd="/", timeout=60, **who)
    except OSError:
        return False
    return done.returncode == 0


def _root() -> bool:
    return os.geteuid() == 0


def _another_user() -> bool:
    """Run Python as another user, who can't read a Python or a checkout below root's home."""
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    return _root() and runs(sys.executable, "-c", "import presignd.cli", **who)


def _mount() -> bool:
    return _root() and runs("unshare", "--mount", "--propagation=private", "mount", "-t", "tmpfs", "tmpfs", "/tmp")


def _fuse() -> bool:
    return _mount() and os.access("/dev/fuse", os.R_OK | os.W_OK)


def _terminal() -> bool:
    try:
        ends = pty.openpty()
    except OSError:
        return False
    for end in ends:
        os.close(end)
    return True


def postgres_programs() -> Path:
    """Return the folder of PostgreSQL's newest programs: Debian puts only their clients into the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return found[-1] if found else Path(find("initdb") or "/nowhere/initdb").parent


def _program(name: str, package: str) -> tuple[Callable[[], bool], str]:
    return lambda: find(name) is not None, f"{name} (apt-get install {package})"


NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "root": (_root, "root, to be more than one user"),
    "another user": (
        _another_user,
        "root, and a Python and a checkout outside of home folders, which other users can run",
    ),
    "CAP_LEASE": (_root, "root, for CAP_LEASE"),
    "mount": (_mount, "root with the right to mount (a container: --privileged)"),
    "fuse": (_fuse, "root and /dev/fuse, with the right to mount (a container: --privileged)"),
    "libfuse": (lambda: bool(find_library("fuse3") or find_library("fuse")), "libfuse (apt-get install libfuse3-3)"),
    "inotify's queue": (partial(os.access, QUEUE, os.W_OK), f"root who may set {QUEUE} (a container: --privileged)"),
    "user namespaces": (partial(runs, "unshare", "--user", "--map-root-user", "true"), "user namespaces (unshare -U)"),
    "time namespaces": (
        partial(runs, "unshare", "--time", "--boottime=1", "--fork", "true"),
        "root and time namespaces (unshare -T)",
    ),
    "second filesystem": (
        lambda: os.access("/dev/shm", os.W_OK) and Path("/dev/shm").stat().st_dev != Path("/tmp").stat().st_dev,
        "another filesystem than /tmp's at /dev/shm",
    ),
    "terminal": (_terminal, "a terminal (mount /dev/pts)"),
    "bash": _program("bash", "bash"),
    "curl": _program("curl", "curl"),
    "wget": _program("wget", "wget"),
    "dash": _program("dash", "dash"),
    "jq": _program("jq", "jq"),
    "nginx": _program("nginx", "nginx-light"),
    "ip": _program("ip", "iproute2"),
    "rsync": _program("rsync", "rsync"),
    "samba": _program("smbd", "samba"),
    "smbclient": _program("smbclient", "smbclient"),
    "sshd": _program("sshd", "openssh-server"),
    "prometheus": _program("prometheus", "prometheus"),
    "zstd": _program("zstd", "zstd"),
    "desktop-file-validate": _program("desktop-file-validate", "desktop-file-utils"),
    "systemd-analyze": _program("systemd-analyze", "systemd"),
    "systemd-nspawn": _program("systemd-nspawn", "systemd-container"),
    "debootstrap": _program("debootstrap", "debootstrap"),
    "buildah": _program("buildah", "buildah"),
    "docker-compose": _program("docker-compose", "docker-compose"),
    "lintian": _program("lintian", "lintian"),
    "faketime": (lambda: LIBFAKETIME is not None, "libfaketime (apt-get install libfaketime)"),
    "chromium": (CHROMIUM.exists, f"{CHROMIUM} (apt-get install chromium)"),
    "firefox": (FIREFOX.exists, f"{FIREFOX} (apt-get install firefox-esr)"),
    "npm": _program("npm", "npm"),
    "ceph": (
        lambda: all(map(find, ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool"))),
        "Ceph (apt-get install ceph-common ceph-mon ceph-osd radosgw)",
    ),
    "postgres": (
        lambda: bool(find("initdb") or list(Path("/usr/lib/postgresql").glob("*/bin/initdb"))),
        "PostgreSQL (apt-get install --no-install-recommends postgresql)",
    ),
    "node": (partial(runs, NODE, "--version"), "what playwright's node needs (apt-get install libatomic1)"),
}


@cache
def why_not(*names: str) -> str:
    """Return in one line what is missing and how to install it, "" if nothing is."""
    return "; ".join(f"needs {line}" for here, line in (NEEDS[name] for name in names) if not here())


def need(*names: str) -> None:
    """Skip the test, or all tests that use the fixture, if one of these is missing."""
    if line := why_not(*names):
        pytest.skip(line)


# --- pytest's hooks, which conftest.py takes up -------------------------------------------------
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        need(*mark.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Place every skip for a need here: the summary then has one line for each, with the number of its tests."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and report.longrepr[2].startswith("Skipped: needs "):
        report.longrepr = (__file__, None, report.longrepr[2])  # type: ignore[assignment] # no line number is shown
    return report


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Judge a run by what it skipped; inside of pytest-cov's hook, which judges coverage after it."""
    result = yield
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    reports = reporter.stats.get("skipped", ()) if reporter else ()
    if reporter and (kept := os.environ.get(SKIPPED)):
        Path(kept).write_text("".join(f"{nodeid}\n" for nodeid in sorted({report.nodeid for report in reports})))
    if skipped := len(reports):
        if os.environ.get(STRICT):
            reporter.write_line(f"\nERROR: {skipped} skipped, and {STRICT} is set", red=True)
            session.testsfailed += 1
        elif coverage := session.config.pluginmanager.getplugin("_cov"):
            reporter.write_line(f"\n{skipped} skipped for what is missing here: coverage is shown, not judged")
            coverage.options.cov_fail_under = None
    return result
