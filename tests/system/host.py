"""presignd on a test machine: its installation and its use."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from tests.needs import need
from tests.stores import SeaweedFS, Store
from tests.system.machine import Machine, until

CHECKOUT = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "README.md", "LICENSE", "presignd", "systemd", "desktop")
INSTALL = "/srv/checkout/systemd/install.sh"
CONFIGURED = "/etc/presignd/config.toml"
DROPIN = "/etc/systemd/system/presignd.service.d"
WATCHDOG = "WatchdogTimestampMonotonic"
FOLDERS = "[Service]\nReadWritePaths=-/srv/gone\n"

CONFIG = """
[presign]
endpoint = "{endpoint}"
[links]
group = "presignd-links"
[control]
group = "presignd-links"
[upload]
drain_timeout = "2s"
[[watch]]
name = "drop"
path = "/srv/drop"
bucket = "{bucket}"
{more}
[[watch]]
name = "gone"
path = "/srv/gone"
bucket = "{bucket}"
key = "gone/{{path}}"
after = "delete"
"""


class Host:
    """The machine with presignd on it, and its store."""

    def __init__(self, machine: Machine, store: Store) -> None:
        self.machine, self.store = machine, store
        self.run, self.sh, self.write = machine.run, machine.sh, machine.write
        self.said: list[str] = []

    @classmethod
    @contextmanager
    def booted(cls, factory: pytest.TempPathFactory) -> Iterator[Self]:
        """Yield a booted machine with its own store and presignd."""
        need("mount", "systemd-nspawn")
        store = SeaweedFS(factory.mktemp("store"))
        machine = Machine(factory.mktemp("machine"))
        host = cls(machine, store)
        try:
            store.start()
            host.set_up()
            machine.boot()
            host.until_active()
            yield host
        finally:
            machine.close()
            store.kill()

    def set_up(self) -> None:
        """Bring presignd onto the machine that is off, as the README says: script, configuration, script again."""
        copy_checkout(self.machine)
        self.install()
        prepare(self)
        self.install()
        self.install()

    def text(self, more: str = "") -> str:
        """Return the configuration."""
        return CONFIG.format(endpoint=self.store.endpoint, bucket=self.store.bucket, more=more)

    def configure(self, more: str = "") -> None:
        """Write the configuration where the daemon reads it."""
        self.write(CONFIGURED, self.text(more))

    def install(self) -> str:
        """Run the script in the machine that is off, with the network of this host, and return what it said."""
        environ = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        self.said.append(self.machine.chroot(INSTALL, environ=environ))
        return self.said[-1]

    def show(self, name: str, unit: str = "presignd") -> str:
        return self.machine.show(unit, name)[name]

    @property
    def status(self) -> str:
        return self.show("StatusText")

    @property
    def pid(self) -> int:
        return int(self.show("MainPID"))

    def until_active(self, unit: str = "presignd", restarts: str = "0") -> None:
        until(
            lambda: (self.show("ActiveState", unit), self.show("NRestarts", unit)) == ("active", restarts),
            f"active {unit} after {restarts} restarts",
        )

    def until_fed(self, times: int = 1) -> None:
        """Wait until the watchdog was fed this often."""
        for _ in range(times):
            self._until_other(self.show(WATCHDOG))

    def _until_other(self, fed: str) -> None:
        until(lambda: self.show(WATCHDOG) != fed, "a fed watchdog")

    def drop(self, name: str, content: str = "", folder: str = "/srv/drop") -> None:
        """Drop a file as the user ann."""
        self.run("sh", "-euc", 'cat > "$1"', "sh", f"{folder}/{name}", user="ann", stdin=content or name)

    def links(self, user: str = "olga") -> dict[str, str]:
        """Return the links by key, as olga gets them, an operator in the group presignd-links."""
        said = self.run("presignd", "links", "--json", user=user).splitlines()
        return {link["key"]: link["url"] for link in map(json.loads, said)}

    def until_linked(self, *keys: str, seconds: float = 30) -> None:
        until(lambda: set(keys) <= set(self.links()), f"links of {keys}; {self.status}", seconds)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the unit's events of this name, with journald's priority as ``priority``."""
        entries = self.machine.journal("presignd")
        lines = [(entry["MESSAGE"], entry["PRIORITY"]) for entry in entries if str(entry["MESSAGE"]).startswith("{")]
        events = [{**json.loads(message), "priority": priority} for message, priority in lines]
        return [event for event in events if event["event"] == name]

    def restart(self) -> None:
        """Restart the unit, with its counters reset."""
        self.sh("systemctl daemon-reload; systemctl reset-failed presignd || true")
        done = self.machine.try_run("systemctl", "restart", "presignd")
        assert done.returncode == 0, self.run("journalctl", "-u", "presignd", "-n", "5", "-o", "cat")
        self.until_active()

    @contextmanager
    def drop_in(self, text: str) -> Iterator[None]:
        """Run the unit with more settings, and then without them."""
        self.write(f"{DROPIN}/test.conf", f"[Service]\n{text}\n")
        self.restart()
        try:
            yield
        finally:
            self.run("rm", "-f", f"{DROPIN}/test.conf")
            self.restart()


def copy_checkout(machine: Machine) -> None:
    """Copy this checkout to the machine, without files that are not part of it."""
    machine.chroot("mkdir", "-p", "/srv/checkout")
    for part in PARTS:
        machine.copy(CHECKOUT / part, "/srv/checkout/")


def prepare(host: Host) -> None:
    """Do the administrator's work: users, folders, keys, the configuration."""
    setup = """
        for user in ann olga rita; do useradd --create-home $user; done
        usermod -aG presignd-links olga; usermod -aG systemd-journal rita
        install -d -o ann -g presignd -m 2770 /srv/drop /srv/gone
        printf %s "$1" > /etc/presignd/config.toml
        mkdir -p "$4" /etc/credstore; printf %s "$5" > "$4/folders.conf"
        umask 077
        printf %s "$2" > /etc/credstore/presignd.access_key
        printf %s "$3" > /etc/credstore/presignd.secret_key
    """
    keys = (host.store.access_key, host.store.secret_key)
    host.machine.chroot("sh", "-euc", setup, "sh", host.text(), *keys, DROPIN, FOLDERS)


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        content: bytes = answer.read()
    return content.decode()


@contextmanager
def paused(store: Store) -> Iterator[None]:
    """Pause the store: it answers nothing during the block."""
    assert store.pid is not None
    os.kill(store.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(store.pid, signal.SIGCONT)
