"""A later systemd (Debian's backports), the program from a wheel, what is pulled away, and a desktop's own manager.

One machine serves all of these tests; each leaves it running as it found it.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from presignd.demo.seaweedfs import LOOPBACK, free_ports
from tests.system.host import CONFIGURED, DROPIN, Host, copy_checkout, fetch, prepare
from tests.system.machine import until

pytestmark = pytest.mark.long

BACKPORTS = """
[ "$(systemctl --version | sed -n '1s/^systemd \\([0-9]*\\).*/\\1/p')" -lt 253 ] || exit 0
. /etc/os-release
uri=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $VERSION_CODENAME" 'Created-By: Packages' | head -n 1)
echo "deb $uri $VERSION_CODENAME-backports main" > /etc/apt/sources.list.d/backports.list
apt-get update -qq
apt-get install -y -qq --no-install-recommends -t "$VERSION_CODENAME-backports" systemd systemd-sysv \
  libpam-systemd dbus-user-session >/dev/null
"""
FROM_WHEEL = """
python3 -m venv /opt/presignd
cd /opt/presignd/bin
./pip wheel --quiet --no-deps --wheel-dir /srv /srv/checkout
rm -r /srv/checkout
./pip install --quiet /srv/presignd-*.whl
sh /opt/presignd/share/presignd/systemd/install.sh
"""
INSTALL = "/opt/presignd/share/presignd/systemd/install.sh"
SMALL = """
mkdir -p /srv/small
mount -t tmpfs -o size=16m,mode=0711,uid=presignd,gid=presignd tmpfs /srv/small
install -d -o presignd -g presignd-links -m 2750 /srv/links /srv/small/links
"""
SMALL_DISK = "ReadWritePaths=-/srv/small"
FILL = "dd if=/dev/zero of=/srv/small/filler bs=64k 2>/dev/null || true"


class Later(Host):
    """A host whose status page listens, and that has a bucket to lose."""

    page: str = ""
    spare: str = ""

    def set_up(self) -> None:
        """Bring a later systemd, and presignd from a wheel."""
        self.page, self.spare = f"{LOOPBACK}:{free_ports(1)[0]}", self.store.new_bucket()
        machine, environ = self.machine, {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        machine.chroot("sh", "-euc", BACKPORTS, environ={**environ, "DEBIAN_FRONTEND": "noninteractive"})
        copy_checkout(machine)
        self.said.append(machine.chroot("sh", "-euc", FROM_WHEEL, environ=environ))
        prepare(self)
        watchdog = "[Service]\nWatchdogSec=4s\n"
        spare = 'install -d -o ann -g presignd -m 2770 /srv/spare; printf %s "$1" > "$2/watchdog.conf"'
        machine.chroot("sh", "-euc", spare, "sh", watchdog, DROPIN)
        self.said.append(machine.chroot("sh", INSTALL, environ=environ))

    def text(self, more: str = "") -> str:
        web = f'[web]\nlisten = "{self.page}"\n'
        spare = f'[[watch]]\nname = "spare"\npath = "/srv/spare"\nbucket = "{self.spare}"\n'
        return web + super().text(spare + more)

    def ready(self) -> int:
        """Return what ``/readyz`` answers."""
        try:
            with urllib.request.urlopen(f"http://{self.page}/readyz", timeout=30) as answer:
                status: int = answer.status
        except urllib.error.HTTPError as refused:
            return refused.code
        return status

    def until_waiting(self, status: str) -> None:
        """Expect ``status`` in STATUS, a 503 of ``/readyz``, and a watchdog that is fed all the same."""
        until(lambda: status in self.status, f"{status!r} in the status line: {self.status}")
        until(lambda: self.ready() == 503, "a 503 of /readyz")
        self.until_fed()

    def until_well(self) -> None:
        """Expect an empty queue, and a 200 of ``/readyz``."""
        until(lambda: self.status.startswith("0 uploading, 0 queued"), f"all well again: {self.status}")
        until(lambda: self.ready() == 200, "a 200 of /readyz")
        self.until_active()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Later]:
    """Yield a machine with a later systemd, on which a wheel was installed, booted."""
    with Later.booted(tmp_path_factory) as host:
        yield host


# --- from a wheel, under a later systemd ------------------------------------------------------------
def test_a_wheel_brings_the_units_and_their_installer(host: Later) -> None:
    first, second = host.said
    assert "wrote /etc/systemd/system/presignd.service.d/notify-reload.conf" in first
    assert "enabled presignd.service" in second
    host.drop("from-a-wheel.txt")
    host.until_linked("from-a-wheel.txt")


def test_the_later_systemd_finds_nothing_wrong_either(host: Later) -> None:
    done = host.machine.try_run("systemd-analyze", "verify", "presignd.service", "presignd@x.service")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    host.run("systemd-analyze", "security", "--threshold=14", "presignd.service")


def test_a_reload_returns_once_the_new_configuration_holds(host: Later) -> None:
    """Type=notify-reload: systemd waits for RELOADING, and for READY with a later MONOTONIC_USEC."""
    assert host.show("Type") == "notify-reload"
    before = host.pid
    host.sh("install -d -o ann -g presignd -m 2770 /srv/extra")
    host.configure(f'[[watch]]\nname = "extra"\npath = "/srv/extra"\nbucket = "{host.spare}"\nkey = "x/{{path}}"\n')
    host.run("systemctl", "reload", "presignd")
    until(lambda: host.events("config.reloaded"), "config.reloaded")
    assert [event["added"] for event in host.events("config.reloaded")] == [["extra"]]
    host.configure('afer = "keep"')
    host.run("systemctl", "reload", "presignd")
    until(lambda: host.events("config.refused"), "config.refused")
    assert "afer" in str(host.events("config.refused")[0]["problems"])
    host.configure()
    host.run("systemctl", "reload", "presignd")
    until(lambda: len(host.events("config.reloaded")) == 2, "config.reloaded")
    assert (host.pid, host.show("ActiveState")) == (before, "active")


# --- what is pulled away: the table of docs/architecture.md -----------------------------------------
@contextmanager
def no_store(host: Later) -> Iterator[str]:
    host.store.stop()
    host.drop("no-store.txt")
    yield "waiting for the store (connection_refused)"
    host.store.start()


@contextmanager
def no_bucket(host: Later) -> Iterator[str]:
    client = host.store.client
    client.delete_bucket(Bucket=host.spare)
    host.drop("no-bucket.txt", folder="/srv/spare")
    yield "waiting for the bucket of watch spare (no_such_bucket)"
    client.create_bucket(Bucket=host.spare)


@contextmanager
def no_keys(host: Later) -> Iterator[str]:
    """Change the secret key by a reload."""
    keys = f'[presign]\naccess_key = "{host.store.access_key}"\nsecret_key = "another-secret-key"\n'
    host.write(CONFIGURED, host.text().replace("[presign]\n", keys))
    host.run("systemctl", "reload", "presignd")
    host.drop("no-keys.txt")
    yield "waiting for the bucket of watch drop (signature_mismatch)"
    host.configure()
    host.run("systemctl", "reload", "presignd")


@contextmanager
def no_folder(host: Later) -> Iterator[str]:
    host.sh("mv /srv/drop /srv/elsewhere")
    yield "the folder of watch drop is away"
    host.sh("mv /srv/elsewhere /srv/drop")


@pytest.mark.parametrize("pull", [no_store, no_bucket, no_keys, no_folder])
def test_what_is_pulled_away_is_named_and_waited_for(
    host: Later, pull: Callable[[Later], AbstractContextManager[str]]
) -> None:
    before = host.pid
    with pull(host) as status:
        host.until_waiting(status)
    host.until_well()
    assert host.pid == before


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ('[ledger]\npath = "/srv/small/ledger"\n[links]\nfile = "/srv/links/links.jsonl"\n', "the ledger"),
        ('[links]\nfile = "/srv/small/links/links.jsonl"\n', "the links file"),
    ],
)
def test_a_full_disk_is_named_and_waited_for(host: Later, section: str, named: str) -> None:
    host.sh(SMALL)
    host.write(CONFIGURED, host.text().replace("[links]\n", section))
    with host.drop_in(f"{SMALL_DISK} -/srv/links"):
        until(lambda: host.ready() == 200, "a daemon that is ready")
        host.sh(FILL)
        for number in range(40):  # what SQLite has left over in its pages is used up first
            host.drop(f"full-{section[1:4]}-{number}.txt", "x" * 200)
        host.until_waiting(f"waiting for {named} (disk_full)")
        host.sh("rm /srv/small/filler")
        host.until_well()
        host.configure()
    host.sh("umount -l /srv/small")


def test_without_a_presigner_it_is_ready_and_says_for_what_it_waits(host: Later) -> None:
    away = "LoadCredential=\nEnvironment=AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:1/"
    with host.drop_in(away):
        until(lambda: "waiting for the presigner (" in host.status, f"the presigner in STATUS: {host.status}")
        until(lambda: host.ready() == 503, "a 503 of /readyz")


def test_a_damaged_ledger_ends_it_and_it_is_not_started_again(host: Later) -> None:
    ledger = "/var/lib/presignd/ledger.sqlite3"
    host.sh(f"systemctl stop presignd; cp -p {ledger} /srv/; dd if=/dev/urandom of={ledger} bs=4k count=4 conv=notrunc")
    assert host.machine.try_run("systemctl", "start", "presignd").returncode != 0
    assert (host.show("ExecMainStatus"), host.show("NRestarts")) == ("2", "0")
    host.sh(f"rm {ledger}*; mv /srv/ledger.sqlite3 {ledger}")
    host.restart()


# --- on a desktop ------------------------------------------------------------------------------------
DESKTOP = """
mkdir -p ~/drop ~/.config/presignd ~/.config/systemd/user ~/.local/bin
ln -s /opt/presignd/bin/presignd ~/.local/bin/
cp /opt/presignd/share/presignd/systemd/user/presignd.service ~/.config/systemd/user/
umask 077; cat > ~/.config/presignd/config.toml
"""
OWN = """
[presign]
endpoint = "{store.endpoint}"
access_key = "{store.access_key}"
secret_key = "{store.secret_key}"
[[watch]]
name = "mine"
path = "/home/ann/drop"
bucket = "{store.bucket}"
key = "mine/{{path}}"
"""


def test_a_user_runs_it_without_root(host: Later) -> None:
    """The program in ~/.local/bin, a configuration, the unit, enable --now; a reload, and the links."""
    uid = host.run("id", "-u", "ann").strip()
    host.run("systemctl", "start", f"user@{uid}")
    home = ("env", "HOME=/home/ann", f"XDG_RUNTIME_DIR=/run/user/{uid}")
    host.run(*home, "sh", "-euc", DESKTOP, user="ann", stdin=OWN.format(store=host.store))
    host.run(*home, "systemctl", "--user", "enable", "--now", "presignd", user="ann")
    host.drop("desktop.txt", folder="/home/ann/drop")
    host.run(*home, "presignd", "wait", "/home/ann/drop/desktop.txt", user="ann")
    host.run(*home, "systemctl", "--user", "reload", "presignd", user="ann")
    (link,) = host.run(*home, "presignd", "links", "--json", user="ann").splitlines()
    assert fetch(json.loads(link)["url"]) == "desktop.txt"
    status = (*home, "systemctl", "--user", "show", "--property=StatusText", "presignd")
    until(lambda: "=0 uploading" in host.run(*status, user="ann"), "the queue in STATUS")
    host.run(*home, "systemctl", "--user", "disable", "--now", "presignd", user="ann")
