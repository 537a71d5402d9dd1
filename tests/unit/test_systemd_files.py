"""The files in systemd/ agree with each other and with the program; tests/system/test_systemd.py tests what they do."""

from __future__ import annotations

import configparser
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from presignd.broker.config import SYSTEM_FILE as BROKER_FILE
from presignd.broker.config import SYSTEM_STATE as BROKER_STATE
from presignd.cli.beside import broker_file, next_steps
from presignd.cli.init import LINKS_GROUP, PACKAGE, SYSTEM_FILE, Answers, links_group, render, start_command, write
from presignd.config.signing import GROUPS
from presignd.system import trust

SYSTEMD = Path(__file__).parents[2] / "systemd"


def lines(name: str) -> list[str]:
    """Return a unit's settings, without its comments."""
    return [line for line in (SYSTEMD / name).read_text("utf-8").splitlines() if line and not line.startswith("#")]


def test_the_template_is_the_unit_but_for_what_each_instance_has_for_itself() -> None:
    template = [line for line in lines("presignd@.service") if not line.startswith("ExecStartPre=")]
    told = [line for line in template if "%i" in line]
    assert [line for line in lines("presignd.service") if line in template] == [
        line for line in template if line not in told
    ]
    plain = [re.sub(r":presignd-%i\.\w+$| \(%i\)$|-%i$", "", line).replace("/%i.toml", "/config.toml") for line in told]
    assert plain == [line for line in lines("presignd.service") if line not in template]


def test_the_units_name_the_files_groups_and_credentials_of_the_program() -> None:
    unit = lines("presignd.service")
    assert f"ExecStart=/opt/presignd/bin/presignd run -c {SYSTEM_FILE}" in unit
    assert "Group=presignd" in unit
    assert {line for line in unit if line.startswith("LoadCredential=")} == {
        f"LoadCredential=presignd.{secret}" for secret in GROUPS
    }
    assert f"m presignd {LINKS_GROUP}" in lines("presignd.sysusers.conf")
    assert f"d /var/lib/presignd/links 2750 presignd {LINKS_GROUP}" in lines("presignd.tmpfiles.conf")


def test_the_brokers_unit_names_the_files_user_and_credentials_of_the_program() -> None:
    unit = lines("presignd-broker.service")
    assert f"ExecStart=/opt/presignd/bin/presignd broker run -c {BROKER_FILE}" in unit
    assert "User=presignd-broker" in unit
    assert f"StateDirectory={BROKER_STATE.relative_to('/var/lib')}" in unit
    assert {line for line in unit if line.startswith("LoadCredential=")} == {
        f"LoadCredential=presignd.{secret}:presignd-broker.{secret}" for secret in GROUPS if secret != "token"
    }


def test_the_broker_is_hardened_as_the_daemon_and_has_no_capability() -> None:
    both = ("Protect", "Restrict", "Private", "Memory", "Lock", "Keyring", "RemoveIPC", "NoNew", "Device", "SystemCall")
    daemon = {line for line in lines("presignd.service") if line.startswith(both)} - {"SystemCallFilter=@chown"}
    broker = lines("presignd-broker.service")
    assert daemon <= set(broker)
    assert {"PrivateUsers=yes", "AmbientCapabilities=", "CapabilityBoundingSet="} <= set(broker)


@pytest.mark.parametrize("unit", ["presignd.service", "presignd@.service"])
def test_the_one_capability_is_cap_lease(unit: str) -> None:
    found = [line for line in lines(unit) if "apabilit" in line]
    assert found == ["AmbientCapabilities=CAP_LEASE", "CapabilityBoundingSet=CAP_LEASE"]


@pytest.mark.parametrize("unit", [str(path.relative_to(SYSTEMD)) for path in SYSTEMD.rglob("*.service")])
def test_no_core_dump_is_left_of_what_holds_keys_and_links(unit: str) -> None:
    """The watchdog ends a process by SIGABRT, whose core systemd-coredump would keep."""
    assert "LimitCORE=0" in lines(unit)


@pytest.mark.parametrize("name", ["notify-reload.conf", "folders.conf.example"])
def test_drop_ins_can_be_read(name: str) -> None:
    parser = configparser.RawConfigParser(strict=False, allow_no_value=False)
    parser.read_string((SYSTEMD / name).read_text("utf-8"))
    assert parser.sections() == ["Service"]


def test_the_script_is_plain_shell_and_refuses_what_it_does_not_know() -> None:
    script = SYSTEMD / "install.sh"
    assert script.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", script], check=True)
    done = subprocess.run(["sh", script, "--nonsense"], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "usage" in done.stderr or "as root" in done.stderr


def test_the_installer_sees_a_change_in_a_file_whose_name_has_spaces(tmp_path: Path) -> None:
    """desktop/ has such a file; an upgrade that changes only that one is installed, too."""
    [function] = re.findall(
        r"^source_sum\(\) \{.*?^\}$", (SYSTEMD / "install.sh").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )

    def checksum(content: str) -> str:
        (tmp_path / "Copy a link").write_text(content)
        command = ["sh", "-euc", f'{function}\nsource_sum "$1"', "sh", str(tmp_path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stderr == ""
        return done.stdout

    assert checksum("old") != checksum("new")


def test_init_gives_the_links_to_the_services_group_only_where_there_is_one(tmp_path: Path) -> None:
    answers = Answers("http://127.0.0.1:9000", "A", "S", "bucket", Path("/srv/drop"), "15m")
    assert links_group(tmp_path / "config.toml") == ""
    with_group = tomllib.loads(render(answers, group=LINKS_GROUP))
    assert (with_group["links"], with_group["control"]) == ({"group": LINKS_GROUP}, {"group": LINKS_GROUP})
    assert {"links", "control"}.isdisjoint(tomllib.loads(render(answers)))


def test_init_sets_up_the_brokers_service_and_names_the_user_whose_state_it_is() -> None:
    assert broker_file(SYSTEM_FILE) == BROKER_FILE
    start, status, again = next_steps(SYSTEM_FILE, BROKER_FILE)
    assert start.endswith(": systemd/install.sh --broker && systemd/install.sh")
    assert status.endswith(": systemctl status presignd-broker presignd")
    assert again.endswith(f": sudo -u presignd-broker presignd broker check -c {BROKER_FILE}")


def test_the_package_brings_the_units_so_init_says_how_to_enable_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(PACKAGE))
    assert next_steps(SYSTEM_FILE, BROKER_FILE)[0].endswith(": systemctl enable --now presignd-broker presignd")


def test_init_starts_a_service_only_where_it_is_installed_and_reads_this_file(tmp_path: Path) -> None:
    unit = tmp_path / "presignd.service"
    assert start_command(SYSTEM_FILE, unit) == f"presignd run -c {SYSTEM_FILE}"
    unit.touch()
    assert start_command(SYSTEM_FILE, unit) == "systemctl enable --now presignd"
    assert start_command(tmp_path / "my.toml", unit) == f"presignd run -c {tmp_path / 'my.toml'}"


@pytest.mark.needs("root")
def test_a_service_reads_what_init_writes_into_the_folder_of_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any group of this machine can stand for the service's."""
    monkeypatch.setattr(trust, "SERVICES", ("daemon",))
    for group, found in (("daemon", (0o640, "daemon")), ("nogroup", (0o600, "root"))):
        folder = tmp_path / group
        folder.mkdir()
        shutil.chown(folder, group=group)
        write(folder / "config.toml", "text", replace=False)
        file = folder / "config.toml"
        assert (stat.S_IMODE(file.stat().st_mode), file.group()) == found


@pytest.mark.parametrize("arguments", [["--broker", "--purge"], ["--broker", "--remove"], ["a.whl", "--purge"]])
def test_the_installer_never_takes_away_more_than_it_was_told(tmp_path: Path, arguments: list[str]) -> None:
    """``--broker --purge`` would be the end of the daemon's ledger beside it. Here nobody is root, to be sure."""
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    script = ["sh", str(SYSTEMD / "install.sh"), *arguments]
    done = subprocess.run(
        script, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "usage: " in done.stderr
