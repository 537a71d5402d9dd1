"""The Debian package, as a person has it: built, installed on a bare Debian, used, upgraded, purged.

One machine of each release serves all of these tests, in their order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.canary import assert_no_secrets
from tests.needs import need
from tests.recipes import block
from tests.stores import SeaweedFS
from tests.system.debian import PACKAGE, minimal_debian, run
from tests.system.host import CONFIGURED, Host, fetch, paused
from tests.system.machine import Machine, until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

NEWER = """
    cd /srv
    dpkg-deb -R presignd.deb newer
    sed -i 's/^Version: .*/&.1/' newer/DEBIAN/control
    dpkg-deb -Znone -b newer presignd-newer.deb
    rm -r newer
"""
APT = ("apt-get", "install", "-y", "-qq", "--no-install-recommends")
LEFT = r"find / -xdev \( -path /srv -o -path /var/log -o -path /proc \) -prune -o -name '*presignd*' -print"


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a minimal Debian 12 and 13."""
    return minimal_debian(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def deb(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the package."""
    out = tmp_path_factory.mktemp("deb")
    run(PACKAGE / "build-deb", out, BASE=str(base))
    (built,) = out.glob("presignd_*.deb")
    return built


@pytest.fixture(scope="module")
def host(base: Path, deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Yield a booted Debian with nothing but systemd on it, and the package in /srv; and a store."""
    need("systemd-nspawn")
    store = SeaweedFS(tmp_path_factory.mktemp("store"))
    machine = Machine(tmp_path_factory.mktemp("machine"), base)
    try:
        store.start()
        machine.chroot("apt-get", "update", "-qq")
        machine.chroot(
            *APT,
            "systemd-sysv",
            "dbus",
            environ={"DEBIAN_FRONTEND": "noninteractive", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        machine.copy(deb, "/srv/presignd.deb")
        machine.boot()
        machine.sh(NEWER)
        yield Host(machine, store)
    finally:
        machine.close()
        store.kill()


def version(host: Host) -> str:
    return host.run("dpkg-query", "-W", "-f", "${Version}", "presignd")


@pytest.mark.needs("lintian")
def test_lintian_finds_no_error(deb: Path) -> None:
    assert run("lintian", "--fail-on", "error", "--tag-display-limit", "0", deb).strip() == ""


def test_it_installs_by_apt_and_starts_nothing(host: Host) -> None:
    host.run(*APT, "/srv/presignd.deb")
    assert host.run("presignd", "--version").startswith("presignd ")
    for unit in ("presignd.service", "presignd-broker.service"):
        shown = host.machine.show(unit, "ActiveState", "UnitFileState", "LoadState")
        assert shown == {"ActiveState": "inactive", "UnitFileState": "disabled", "LoadState": "loaded"}
    said = host.machine.try_run(
        "systemd-analyze", "verify", "presignd.service", "presignd@x.service", "presignd-broker.service"
    )
    assert (said.stdout, said.stderr, said.returncode) == ("", "", 0)


def test_its_files_are_where_debian_has_them(host: Host) -> None:
    assert host.run("stat", "-c", "%a %U:%G", "/etc/presignd", "/etc/presignd-broker").splitlines() == [
        "750 root:presignd",
        "750 root:presignd-broker",
    ]
    files = host.run("dpkg", "-L", "presignd").splitlines()
    assert {
        "/usr/bin/presignd",
        "/usr/bin/presignd-copy-link",
        "/usr/share/kio/servicemenus/presignd-copy-link.desktop",
        "/usr/share/presignd/nautilus/Copy presignd link",
        "/usr/lib/systemd/user/presignd.service",
        "/usr/share/bash-completion/completions/presignd",
        "/usr/share/man/man1/presignd.1.gz",
        "/usr/share/man/man1/presignd-copy-link.1.gz",
        "/usr/share/man/man5/presignd.toml.5.gz",
        "/usr/share/man/man5/presignd-broker.toml.5.gz",
    } <= set(files)
    assert not [file for file in files if "__pycache__" in file]
    conffiles = host.run("dpkg-query", "-W", "-f", "${Conffiles}", "presignd").split()
    assert conffiles[::2] == ["/etc/default/presignd", "/etc/default/presignd-broker"]
    assert host.sh("ls /usr/lib/presignd/lib/python3*/site-packages/presignd/__pycache__ | head -n 1"), "no byte code"
    units = "/lib/systemd/system/presignd.service /lib/systemd/system/presignd-broker.service"
    assert not host.sh(f"grep -rl /opt/presignd /usr/lib/presignd/bin /usr/lib/presignd/pyvenv.cfg {units} || true")


def test_the_desktops_script_is_where_the_page_says(host: Host) -> None:
    host.sh(f"export HOME=/root; {block('desktop', 'desktop-debian')}")
    host.sh("test -x '/root/.local/share/nautilus/scripts/Copy presignd link'")
    assert "Exec=presignd-copy-link %F" in host.run("cat", "/usr/share/kio/servicemenus/presignd-copy-link.desktop")
    host.run("rm", "-r", "/root/.local/share/nautilus")


def test_init_writes_what_the_service_reads_and_says_how_to_start_it(host: Host) -> None:
    store = host.store
    answers = [store.endpoint, store.access_key, store.secret_key, store.bucket, "/srv/drop", "y", "1h"]
    done = host.machine.try_run("presignd", "init", stdin="".join(f"{line}\n" for line in answers))
    assert done.returncode == 0, done
    assert "To start: systemctl enable --now presignd" in done.stderr + done.stdout
    assert host.run("stat", "-c", "%a %U:%G", CONFIGURED).strip() == "640 root:presignd"
    host.run("systemctl", "enable", "--now", "presignd")
    host.until_active()


def test_a_dropped_file_gets_its_link(host: Host) -> None:
    host.write("/srv/drop/hello.txt", "hello")
    until(lambda: "hello.txt" in host.links("root"), "its link")
    assert fetch(host.links("root")["hello.txt"]) == "hello"
    assert host.events("watch.started")[0]["writer_check"] == "lease"


def test_the_environment_of_the_service_is_a_file_that_an_upgrade_keeps(host: Host) -> None:
    host.sh("echo PRESIGND_LOG__LEVEL=debug >> /etc/default/presignd; systemctl restart presignd")
    host.until_active()
    assert "PRESIGND_LOG__LEVEL=debug" in host.run("cat", f"/proc/{host.pid}/environ").split("\0")
    host.run(*APT, "--reinstall", "/srv/presignd.deb")
    assert "\nPRESIGND_LOG__LEVEL=debug\n" in host.run("cat", "/etc/default/presignd")
    host.sh("sed -i /^PRESIGND/d /etc/default/presignd; systemctl restart presignd")
    host.until_active()


def test_an_upgrade_lets_an_upload_in_flight_finish_and_starts_the_service_again(host: Host) -> None:
    before, pid = version(host), host.pid
    with ThreadPoolExecutor() as pool, paused(host.store):
        host.write("/srv/drop/flying.txt", "flying")
        until(lambda: json.loads(host.run("presignd", "status", "--json"))["in_flight"], "an upload in flight")
        upgrade = pool.submit(host.run, *APT, "/srv/presignd-newer.deb")
        until(lambda: host.show("ActiveState") == "deactivating" or upgrade.done(), "the drain", 120)
    upgrade.result()
    host.until_active()
    assert version(host) == f"{before}.1"
    assert host.pid != pid
    until(lambda: "flying.txt" in host.links("root"), "its link")
    assert fetch(host.links("root")["flying.txt"]) == "flying"
    assert [event["status"] for event in host.events("file.done")] == ["linked", "linked"]


def test_an_upgrade_starts_no_service_that_was_stopped(host: Host) -> None:
    host.run("systemctl", "stop", "presignd")
    host.run(*APT, "--reinstall", "/srv/presignd-newer.deb")
    assert host.show("ActiveState") == "inactive"
    host.run("systemctl", "start", "presignd")
    host.until_active()


def test_nothing_in_the_journal_is_secret(host: Host) -> None:
    assert_no_secrets(host.run("journalctl", "-o", "cat", "--no-pager"), host.store.secret_key)


def test_a_removal_keeps_what_was_configured_and_a_purge_leaves_nothing(host: Host) -> None:
    host.run("apt-get", "remove", "-y", "-qq", "presignd")
    assert host.show("ActiveState") == "inactive"
    assert (
        host.sh(
            f"test -e {CONFIGURED}; test -e /var/lib/presignd/links/links.jsonl; ls -d /usr/lib/presignd || true"
        ).strip()
        == ""
    )
    host.run("apt-get", "purge", "-y", "-qq", "presignd")
    assert host.run("sh", "-c", LEFT).splitlines() == []
    assert not re.findall("presignd.*", host.run("getent", "passwd") + host.run("getent", "group"))
    assert host.run("ls", "/srv/drop").split() == ["flying.txt", "hello.txt"], "files of the user stay"
