"""A test machine: a real systemd, booted by systemd-nspawn over an overlay of this host, or of another Debian.

The host stays as it is: everything is written to a tmpfs in a mount namespace that ends with the machine.
The network is the host's, so that a store on loopback is the same there and here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_OF_NSPAWN = ("payload", "supervisor")
_PREPARE = """
set -e
mount -t tmpfs -o size=3g,mode=0755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
# Only what systemd itself brings: this host's own services are no part of the test.
rm -rf etc/systemd/system/*.wants etc/rc?.d etc/init.d var/log/journal/*
tr -d - < /proc/sys/kernel/random/uuid > etc/machine-id  # without one, first boot enables every unit
mkdir -p var/log/journal
for unit in console-getty getty@ systemd-networkd systemd-resolved systemd-timesyncd; do
  ln -sf /dev/null "etc/systemd/system/$unit.service"
done
echo ready
exec sleep infinity
"""

_CHROOT = """
set -e
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
root=$1
shift
exec chroot "$root" "$@"
"""

READY_SECONDS = 60.0

_CGROUPS = [Path("/sys/fs/cgroup", *more, name) for more in ((), ("systemd",), ("unified",)) for name in _OF_NSPAWN]
"""Where systemd-nspawn leaves empty control groups behind."""


class Machine:
    """Prepared when made; ``boot`` and ``power_off`` it any number of times, ``close`` it at the end.

    ``below`` is the root folder that it is an overlay of.
    """

    def __init__(self, folder: Path, below: Path = Path("/")) -> None:
        self._folder = folder
        self.root = folder / "root"
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", _PREPARE, "sh", str(folder), below],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n", "no overlay could be mounted"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._cgroups = [path for path in _CGROUPS if not path.exists()]

    # --- while it is off ------------------------------------------------------------------------
    def _here(self) -> list[str]:
        return ["nsenter", f"--target={self._holder.pid}", "--mount", "--"]

    def copy(self, source: Path, target: str) -> None:
        """Copy a file or folder of the host into it."""
        subprocess.run([*self._here(), "cp", "-a", source, f"{self.root}{target}"], check=True)

    def chroot(self, *command: str | Path, environ: Mapping[str, str] | None = None) -> str:
        """Run a command in it without a systemd, and return what it said."""
        inside = ["unshare", "--mount", "sh", "-c", _CHROOT, "sh", self.root, *command]
        return _said(_captured([*self._here(), *inside], env=environ), command)

    # --- while it is on -------------------------------------------------------------------------
    def boot(self) -> None:
        """Start it; return once systemd has started what is enabled."""
        self._nspawn = subprocess.Popen(
            [
                *self._here(),
                *("systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}", "--machine=presignd-test"),
                *("--register=no", "--keep-unit", "--console=pipe", "--system-call-filter=bpf"),
                *("--resolv-conf=off", "--timezone=off", "--link-journal=no"),
            ],
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        self._leader = 0
        until(self._is_up, "a booted systemd", READY_SECONDS)

    def _is_up(self) -> bool:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, "systemd-nspawn ended"
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text("ascii").split()
        if not children or not Path(f"/proc/{children[0]}/root/run/systemd/system").is_dir():
            return False
        self._leader = int(children[0])
        return self.try_run("systemctl", "is-system-running").stdout.strip() in {"running", "degraded"}

    def try_run(
        self, *command: str | Path, user: str = "", stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on it, as root or ``user``."""
        inside = ["nsenter", f"--target={self._leader}", *("-m", "-u", "-i", "-p", "-C"), "--"]
        as_user = ["setpriv", f"--reuid={user}", "--init-groups", "--regid=" + user] if user else []
        environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        return _captured([*inside, *as_user, *command], env=environ, input=stdin)

    def run(self, *command: str | Path, user: str = "", stdin: str | None = None) -> str:
        """Run a command on it, which works, and return what it said."""
        return _said(self.try_run(*command, user=user, stdin=stdin), command)

    def sh(self, script: str) -> str:
        """Run a shell script on it, which works, and return what it said."""
        return self.run("sh", "-euc", script)

    def write(self, path: str, text: str) -> None:
        """Write a file on it, with its folders."""
        self.run("sh", "-euc", 'mkdir -p "$(dirname "$1")"; cat > "$1"', "sh", path, stdin=text)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit."""
        said = self.run("systemctl", "show", unit, "--property", ",".join(properties))
        return dict(line.split("=", 1) for line in said.splitlines())

    def journal(self, unit: str, *more: str) -> list[dict[str, Any]]:
        """Return the journal's entries of a unit."""
        said = self.run("journalctl", "-u", unit, "-o", "json", "--no-pager", *more)
        return [json.loads(line) for line in said.splitlines()]

    def power_off(self) -> None:
        """Shut it down as an administrator would."""
        os.kill(self._leader, signal.SIGRTMIN + 4)
        self._ended()

    def cut_power(self) -> None:
        """End everything on it at once."""
        os.kill(self._leader, signal.SIGKILL)
        self._ended()

    def _ended(self) -> None:
        assert self._nspawn is not None
        self._nspawn.wait(60)
        self._nspawn = None

    def close(self) -> None:
        """End it and remove everything."""
        if self._nspawn is not None:
            with suppress(ProcessLookupError):
                os.kill(self._leader or self._nspawn.pid, signal.SIGKILL)
            self._ended()
        self._holder.kill()
        self._holder.wait(10)
        assert self._holder.stdout is not None
        self._holder.stdout.close()
        for _ in range(20):  # the last of its processes may not be gone yet
            for folder in (path for top in self._cgroups for path, _, _ in os.walk(top, topdown=False)):
                with suppress(OSError):
                    Path(folder).rmdir()
            if not any(path.exists() for path in self._cgroups):
                return
            time.sleep(0.1)


def _captured(command: Sequence[str | Path], **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=900, **more)


def _said(done: subprocess.CompletedProcess[str], command: Sequence[str | Path]) -> str:
    assert done.returncode == 0, (command, done.returncode, done.stdout, done.stderr)
    return done.stdout


def until(true: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Wait until ``true()``."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not in {seconds:.0f} s"
        time.sleep(0.05)
