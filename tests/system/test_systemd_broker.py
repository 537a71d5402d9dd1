"""``presignd init --with-broker`` under a real systemd: daemon and broker as two services of one machine.

One machine serves both tests: as the administrator's services, and as a user's own, without root.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from presignd.cli.beside import LISTEN
from presignd.demo.seaweedfs import LOOPBACK, free_ports
from tests.canary import assert_no_secrets
from tests.stable import ask
from tests.system.host import INSTALL, Host, copy_checkout, fetch

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

PEOPLE = """
for user in ann olga; do useradd --create-home $user; done
usermod -aG presignd-links olga
install -d -o ann -g presignd -m 2770 /srv/drop
"""
INIT = """
presignd=$1; listen=$2; port=$3; shift 3
printf '%s\\n' "$@" | "$presignd" init --with-broker
for file in ~/.config/presignd/*.toml /etc/presignd/config.toml /etc/presignd-broker/broker.toml; do
  if [ -w "$file" ]; then sed -i "s/$listen/$port/" "$file"; fi
done
"""
"""The tests' machines share this host's ports: each broker takes a free one."""
BROKER = "presignd-broker"


class Both(Host):
    """A host whose daemon has a broker beside it."""

    def set_up(self) -> None:
        """Install both, set them up by one command, and start both at the next boot: as docs/broker.md says."""
        copy_checkout(self.machine)
        environ = {**os.environ, "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        for options in ((), ("--broker",)):
            self.machine.chroot(INSTALL, *options, environ=environ)
        self.machine.chroot("sh", "-euc", PEOPLE)
        self.said.append(self.machine.chroot("sh", "-euc", INIT, "sh", *self.asked("/srv/drop"), environ=environ))
        for options in (("--broker",), ()):
            self.machine.chroot(INSTALL, *options, environ=environ)

    def asked(self, folder: str, program: str = "presignd") -> list[str]:
        """Return the arguments of ``INIT``: the program, the broker's new address, and the answers."""
        store, port = self.store, f"{LOOPBACK}:{free_ports(1)[0]}"
        answers = [store.endpoint, store.access_key, store.secret_key, store.bucket, folder, f"http://{LISTEN}", ""]
        return [program, LISTEN, port, *answers]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Yield the booted machine."""
    with Both.booted(tmp_path_factory) as host:
        host.until_active(BROKER)
        yield host


def test_links_outlive_a_restart_of_the_broker_and_end_with_unlink(host: Both) -> None:
    host.drop("one.txt")
    host.until_linked("one.txt")
    one = host.links()["one.txt"]
    assert fetch(one) == "one.txt"
    host.run("systemctl", "restart", BROKER)
    host.drop("two.txt")
    host.until_linked("two.txt")
    assert [fetch(one), fetch(host.links()["two.txt"])] == ["one.txt", "two.txt"]
    host.run("presignd", "unlink", "/srv/drop/one.txt", user="olga")
    assert [ask(one).status, ask(host.links()["two.txt"]).status] == [410, 302]
    host.machine.power_off()
    host.machine.boot()
    host.until_active()
    assert [ask(one).status, ask(host.links()["two.txt"]).status] == [410, 302]
    said = host.run("journalctl", "-u", "presignd", "-u", BROKER, "-o", "cat")
    assert '"link.created"' in said
    assert_no_secrets(said, host.store.secret_key, one.split("/")[4])


INVITERS = """
groupadd inviters
usermod -aG inviters olga
mkdir -p /etc/systemd/system/presignd-broker.service.d
printf '[Service]\nPrivateUsers=no\nSupplementaryGroups=inviters\n' \
  > /etc/systemd/system/presignd-broker.service.d/inviters.conf
printf '\n[control]\ngroup = "inviters"\n' >> /etc/presignd-broker/broker.toml
systemctl daemon-reload
systemctl restart presignd-broker
"""
"""As docs/broker.md says. A user namespace of its own would not know the group."""


def test_a_group_invites_guests_and_reads_no_secret(host: Both) -> None:
    host.run("sh", "-euc", INVITERS)
    terms = ("--bucket", host.store.bucket, "--prefix", "in/", "--json")
    made = json.loads(host.run("presignd", "broker", "invite", "create", "march", *terms, user="olga"))
    assert ask(made["url"], headers={"Accept": "application/json"}).status == 200
    assert "march" in host.run("presignd", "broker", "invite", "list", user="olga")
    other = host.machine.try_run("presignd", "broker", "invite", "list", user="ann")
    assert (other.returncode, "is not open to you" in other.stderr) == (3, True)
    for file in ("/etc/presignd-broker/broker.toml", "/var/lib/presignd-broker/state.db"):
        assert host.machine.try_run("cat", file, user="olga").returncode != 0
    host.run("presignd", "broker", "invite", "revoke", "march", user="olga")
    assert ask(made["url"]).status == 410
    said = host.run("journalctl", "-u", BROKER, "-o", "cat")
    assert '"invitation.made"' in said
    assert_no_secrets(said, made["url"].rpartition("/")[2])


DESKTOP = """
mkdir -p ~/drop ~/.config/systemd/user ~/.local/bin
ln -s /opt/presignd/bin/presignd ~/.local/bin/
cp /srv/checkout/systemd/user/*.service ~/.config/systemd/user/
"""


def test_a_user_runs_both_without_root(host: Both) -> None:
    uid = host.run("id", "-u", "ann").strip()
    host.run("systemctl", "start", f"user@{uid}")
    home = ("env", "HOME=/home/ann", f"XDG_RUNTIME_DIR=/run/user/{uid}")

    def run(*command: str) -> str:
        return host.run(*home, *command, user="ann")

    run("sh", "-euc", DESKTOP)
    run("sh", "-euc", INIT, "sh", *host.asked("/home/ann/drop", "/home/ann/.local/bin/presignd"))
    done = host.machine.try_run(*home, "systemd-analyze", "--user", "verify", f"{BROKER}.service", user="ann")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    run("systemctl", "--user", "enable", "--now", BROKER, "presignd")
    host.drop("mine.txt", folder="/home/ann/drop")
    run("presignd", "wait", "/home/ann/drop/mine.txt")
    link = json.loads(run("presignd", "links", "--json"))["url"]
    assert "/l/" in link
    assert fetch(link) == "mine.txt"
    run("systemctl", "--user", "restart", BROKER)
    assert fetch(link) == "mine.txt"
    run("presignd", "unlink", "/home/ann/drop/mine.txt")
    assert ask(link).status == 410
    run("systemctl", "--user", "disable", "--now", BROKER, "presignd")
