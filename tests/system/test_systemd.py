"""The units under a real systemd: installed as documented, booted, used, reloaded, killed, wedged, rebooted.

One machine serves all of these tests, in their order; each leaves it running as it found it.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from presignd.demo.seaweedfs import free_ports
from tests.canary import assert_no_secrets
from tests.system.host import CONFIG, DROPIN, INSTALL, Host, fetch, paused
from tests.system.machine import until

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Yield a machine on which the documented sequence was run, booted."""
    with Host.booted(tmp_path_factory) as host:
        yield host


# --- installed -------------------------------------------------------------------------------------
def test_installing_says_what_it_did_and_once_more_changes_nothing(host: Host) -> None:
    first, second, third = host.said
    assert "installed presignd" in first
    assert "wrote /etc/systemd/system/presignd.service" in first
    assert "next: presignd init /etc/presignd/config.toml" in first
    assert "(0640)" in second
    assert "enabled presignd.service" in second
    assert "wrote" not in second
    assert [line.partition(": ")[2][:15] for line in third.splitlines()] == ["systemd does no", "all is in place"]


def test_the_configuration_is_the_daemons_to_read_and_draws_no_warning(host: Host) -> None:
    assert host.run("stat", "-c", "%a %U:%G", "/etc/presignd/config.toml").strip() == "640 root:presignd"
    assert "can be read by others" not in host.run("journalctl", "-u", "presignd", "-o", "cat")


def test_systemd_finds_nothing_wrong_with_the_units(host: Host) -> None:
    """``verify`` exits 0 on unknown keys and bad values: only silence is good."""
    done = host.machine.try_run("systemd-analyze", "verify", "presignd.service", "presignd@x.service")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize("unit", ["presignd.service", "presignd@.service"])
def test_the_exposure_of_the_units_is_at_most_1_4(host: Host, unit: str) -> None:
    host.run("systemd-analyze", "security", "--offline=true", "--threshold=14", f"/etc/systemd/system/{unit}")


# --- running ---------------------------------------------------------------------------------------
def test_after_the_boot_it_is_ready_and_says_how_the_queue_is(host: Host) -> None:
    until(lambda: host.status == "0 uploading, 0 queued, 0 settling", f"a quiet status line: {host.status}")
    assert host.events("daemon.ready")
    modes = {event["watch"]: event["writer_check"] for event in host.events("watch.started")}
    assert modes == {"drop": "lease", "gone": "lease"}, "CAP_LEASE should work on another user's files"


def test_a_dropped_file_gets_its_link(host: Host) -> None:
    host.drop("hello.txt", "hello")
    host.until_linked("hello.txt")
    assert fetch(host.links()["hello.txt"]) == "hello"


def test_a_folder_to_be_changed_is_named_in_a_drop_in(host: Host) -> None:
    host.drop("away.txt", folder="/srv/gone")
    host.until_linked("gone/away.txt")
    until(lambda: host.run("ls", "/srv/gone") == "", "deleted file")


def test_operators_see_the_links_and_readers_of_the_journal_do_not(host: Host) -> None:
    assert "hello.txt" in host.links("olga")
    refused = host.machine.try_run("presignd", "links", "--json", user="rita")
    assert (refused.returncode, refused.stdout) == (3, "")
    said = host.run("journalctl", "-u", "presignd", "-o", "cat", user="rita")
    assert '"file.done"' in said
    assert "X-Amz-Signature=" not in said
    assert host.run("stat", "-c", "%a %U:%G", "/var/lib/presignd/links").strip() == "2750 presignd:presignd-links"
    assert host.run("stat", "-c", "%a %G", "/var/lib/presignd/links/links.jsonl").strip() == "640 presignd-links"


def test_the_journal_knows_each_lines_level_and_holds_json(host: Host) -> None:
    everything = [event for name in ("daemon.ready", "file.done") for event in host.events(name)]
    assert {event["priority"] for event in everything} == {"6"}
    host.sh("mv /srv/drop /srv/elsewhere")
    until(lambda: host.events("watch.lost"), "watch.lost")
    until(lambda: "the folder of watch drop is away" in host.status, "the trouble in the status line")
    host.sh("mv /srv/elsewhere /srv/drop")
    said = host.run("journalctl", "-u", "presignd", "-p", "warning", "-o", "cat").splitlines()
    assert [json.loads(line)["event"] for line in said] == ["watch.lost"]
    until(lambda: "away" not in host.status, "the end of the trouble")


# --- the sandbox -----------------------------------------------------------------------------------
PROBE = """
import ctypes, json, mmap, os, socket
def tried(what):
    try:
        return what() or "done"
    except OSError as error:
        return error.strerror
def unshare():
    return ctypes.CDLL(None, use_errno=True).unshare(0x10000000) and os.strerror(ctypes.get_errno())
def mine(pid):
    return os.stat("/proc/" + pid).st_uid == os.getuid()
def caps():
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff"))
found = {
    "write /etc": tried(lambda: open("/etc/x", "w")),
    "write /opt/presignd": tried(lambda: open("/opt/presignd/x", "w")),
    "write the watched folder": tried(lambda: open("/srv/drop/x", "w")),
    "read /home": tried(lambda: os.listdir("/home/ann")),
    "read the key's source": tried(lambda: open("/etc/credstore/presignd.secret_key")),
    "packet socket": tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "netlink socket": tried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "become root": tried(lambda: os.setuid(0)),
    "setuid file": tried(lambda: os.chmod(os.environ["STATE_DIRECTORY"], 0o4711)),
    "writable code": tried(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)),
    "namespace": tried(unshare),
    "devices": sorted(set(os.listdir("/dev")) & {"sda", "vda", "kmsg", "mem", "null"}),
    "others' processes": [pid for pid in os.listdir("/proc") if pid.isdigit() and not mine(pid)],
    "capabilities": caps(),
    "umask": oct(os.umask(0o77)),
}
print(json.dumps(found), file=open(os.environ["STATE_DIRECTORY"] + "/probe.json", "w"))
"""


def test_what_runs_in_the_unit_can_do_nothing_but_its_work(host: Host) -> None:
    """Tried from inside: ExecStartPre runs in the very sandbox of the daemon."""
    host.write("/srv/probe.py", PROBE)
    with host.drop_in("ExecStartPre=/opt/presignd/bin/python /srv/probe.py"):
        found = json.loads(host.run("cat", "/var/lib/presignd/probe.json"))
    host.sh("rm /var/lib/presignd/probe.json")
    assert found == {
        "write /etc": "Read-only file system",
        "write /opt/presignd": "Read-only file system",
        "write the watched folder": "Read-only file system",
        "read /home": "Permission denied",
        "read the key's source": "Permission denied",
        "packet socket": "Address family not supported by protocol",
        "netlink socket": "Address family not supported by protocol",
        "become root": "Operation not permitted",
        "setuid file": "Operation not permitted",
        "writable code": "Operation not permitted",
        "namespace": "Operation not permitted",
        "devices": ["null"],
        "others' processes": [],
        "capabilities": f"{1 << 28:016x}",  # CAP_LEASE alone
        "umask": "0o77",
    }


# --- reloads ---------------------------------------------------------------------------------------
def test_a_reload_takes_a_new_watch_and_keeps_the_process(host: Host) -> None:
    before = host.pid
    host.sh("install -d -o ann -g presignd -m 2770 /srv/extra")
    extra = f'[[watch]]\nname = "extra"\npath = "/srv/extra"\nbucket = "{host.store.bucket}"\nkey = "extra/{{path}}"\n'
    host.configure(extra)
    host.drop("there.txt", folder="/srv/extra")
    host.run("systemctl", "reload", "presignd")
    host.until_linked("extra/there.txt")
    until(lambda: host.show("SubState") == "running", "an end of the reload")
    assert host.pid == before
    (event,) = host.events("config.reloaded")
    assert event["added"] == ["extra"]


def test_a_broken_configuration_is_refused_whole_and_the_old_one_stays(host: Host) -> None:
    before = host.pid
    host.configure('afer = "keep"')
    host.run("systemctl", "reload", "presignd")
    until(lambda: host.events("config.refused"), "config.refused")
    until(lambda: host.show("SubState") == "running", "an end of the reload")
    (event,) = host.events("config.refused")
    assert event["priority"] == "3"
    assert "afer" in str(event["problems"])
    host.drop("still.txt", folder="/srv/extra")
    host.until_linked("extra/still.txt")
    host.configure()
    host.run("systemctl", "reload", "presignd")
    until(lambda: len(host.events("config.reloaded")) == 2, "config.reloaded")
    assert host.pid == before


# --- ends ------------------------------------------------------------------------------------------
def test_after_sigkill_it_is_back_and_takes_what_was_dropped_meanwhile(host: Host) -> None:
    host.restart()
    host.run("kill", "-KILL", str(host.pid))
    host.drop("after-kill.txt")
    host.until_active(restarts="1")
    host.until_linked("after-kill.txt")


def test_a_configuration_error_is_told_at_its_level_and_not_tried_again(host: Host) -> None:
    host.configure(more='afer = "keep"')
    assert host.machine.try_run("systemctl", "restart", "presignd").returncode != 0
    assert (host.show("ExecMainStatus"), host.show("NRestarts")) == ("2", "0")
    said = host.run("journalctl", "-u", "presignd", "-p", "err", "-o", "cat")
    assert "afer" in said
    host.configure()
    host.restart()


def test_a_wedged_worker_trips_the_watchdog_and_the_next_start_carries_on(host: Host) -> None:
    with host.drop_in("WatchdogSec=5s\nEnvironment=PRESIGND_WEDGE_AT=finish.unlink.before"):
        host.drop("wedged.txt", folder="/srv/gone")
        until(lambda: host.events("daemon.wedged"), "daemon.wedged")
        host.sh(f"rm {DROPIN}/test.conf; systemctl daemon-reload")
        host.until_active(restarts="1")
        host.until_linked("gone/wedged.txt")
        until(lambda: host.run("ls", "/srv/gone") == "", "deleted file")
    (event,) = host.events("daemon.wedged")
    assert event["priority"] == "2"
    assert event["loops"][0].startswith("worker of ")
    assert "watchdog" in host.run("journalctl", "-u", "presignd", "-o", "cat")


def test_a_store_that_is_slow_or_away_trips_no_watchdog_and_is_named_in_the_status(host: Host) -> None:
    with host.drop_in("WatchdogSec=4s"):
        before = host.pid
        with paused(host.store):
            host.drop("slow.txt")
            host.until_fed(6)  # a quarter of WatchdogSec each
        host.until_linked("slow.txt")
        host.store.stop()
        host.drop("away.txt")
        until(lambda: "waiting for the store (connection_refused)" in host.status, "the store in the status line")
        host.until_fed()
        host.store.start()
        host.until_linked("away.txt")
        assert host.pid == before


def test_stopping_ends_within_its_deadline_while_the_store_hangs(host: Host) -> None:
    with paused(host.store):
        host.drop("cut-off.txt")
        until(lambda: host.status.startswith("1 uploading"), "an upload")
        began = time.monotonic()
        host.run("systemctl", "stop", "presignd")
        took = time.monotonic() - began
    assert took < 8, "drain_timeout is 2 s"
    assert (host.show("Result"), host.show("ExecMainStatus")) == ("success", "0")
    host.restart()
    host.until_linked("cut-off.txt")


@pytest.mark.parametrize("how", ["power_off", "cut_power"])
def test_work_that_was_pending_goes_on_after_a_reboot(host: Host, how: str) -> None:
    host.store.stop()
    names = [f"{how}-{number}.txt" for number in range(20)]
    for name in names:
        host.drop(name)
    until(lambda: "20 queued" in host.status, f"a queue: {host.status}")
    getattr(host.machine, how)()
    host.machine.boot()
    host.until_active()
    until(lambda: "waiting for the store" in host.status, f"a wait: {host.status}")
    host.store.start()
    host.until_linked(*names)


# --- the broker -------------------------------------------------------------------------------------
BROKER = """
[broker]
listen = "127.0.0.1:{port}"
token_files = ["tokens.d/*.toml"]
[store]
endpoint = "{endpoint}"
[fleet]
listen = "127.0.0.1:{fleet}"
"""
BROKER_UNIT = "presignd-broker"


def test_the_broker_is_a_service_of_its_own_user_ready_when_it_listens(host: Host) -> None:
    assert "write /etc/presignd-broker/broker.toml" in host.run(INSTALL, "--broker")
    port, fleet = free_ports(2)
    text = BROKER.format(port=port, fleet=fleet, endpoint=host.store.endpoint)
    host.write("/etc/presignd-broker/broker.toml", text)
    for name, key in (("access_key", host.store.access_key), ("secret_key", host.store.secret_key)):
        host.write(f"/etc/credstore/presignd-broker.{name}", key)
    host.sh("chmod 600 /etc/credstore/presignd-broker.*")
    said = host.run(INSTALL, "--broker")
    assert "broker.toml is root's, and the group presignd-broker may read it (0640)" in said
    assert "started presignd-broker.service" in said
    assert host.machine.show(BROKER_UNIT, "ActiveState")["ActiveState"] == "active"
    until(lambda: host.show("StatusText", BROKER_UNIT) == "0 tokens, 0 requests in flight", "a status line")
    assert host.run("stat", "-c", "%U", "/proc/" + host.show("MainPID", BROKER_UNIT)).strip() == "presignd-broker"
    done = host.machine.try_run("systemd-analyze", "verify", "presignd-broker.service")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_root_opens_the_fleet_page_of_the_service_and_nobody_else_does(host: Host) -> None:
    state = "/var/lib/presignd-broker"
    modes = host.run("stat", "-c", "%a %U", state, f"{state}/fleet.token").splitlines()
    assert modes == ["700 presignd-broker", "600 presignd-broker"]
    address = host.run("presignd", "broker", "fleet").strip()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with opener.open(address, timeout=60) as answer:
        assert "No tokens yet" in answer.read().decode()
    refused = host.machine.try_run("presignd", "broker", "fleet", user="rita")
    assert (refused.returncode, refused.stdout) == (2, "")


def test_the_installer_leaves_files_alone_that_have_another_place_or_name(host: Host) -> None:
    """What a symlink leads to, such as a certificate's key, is not the service's to give away."""
    host.sh(
        "mkdir -p /srv/keys/tokens.d; cd /srv/keys; touch privkey.pem other tokens.d/one.toml;"
        "chmod 700 tokens.d; chmod 600 privkey.pem other tokens.d/one.toml; cd /etc/presignd-broker;"
        "ln -s /srv/keys/privkey.pem broker.key; ln /srv/keys/other other; rmdir tokens.d; ln -s /srv/keys/tokens.d ."
    )
    stat = ["stat", "-c", "%n %a %U:%G", *(f"/srv/keys/{name}" for name in ("privkey.pem", "other", "tokens.d"))]
    before = host.run(*stat, "/srv/keys/tokens.d/one.toml")
    said = host.run(INSTALL, "--broker")
    assert host.run(*stat, "/srv/keys/tokens.d/one.toml") == before
    for name in ("broker.key", "tokens.d"):
        assert f"left /etc/presignd-broker/{name} alone, as it is a symlink" in said
    assert "left /etc/presignd-broker/other alone, as the file has another name elsewhere" in said
    host.sh("cd /etc/presignd-broker; rm broker.key other tokens.d; rm -r /srv/keys")
    host.run(INSTALL, "--broker")


def test_the_exposure_of_the_broker_is_less_than_the_daemons(host: Host) -> None:
    unit = "/etc/systemd/system/presignd-broker.service"
    host.run("systemd-analyze", "security", "--offline=true", "--threshold=12", unit)


def test_a_token_made_on_the_machine_uploads_through_the_service(host: Host) -> None:
    folder = "/etc/presignd-broker"
    created = ["presignd", "broker", "token", "create", "one", "--bucket", host.store.bucket, "--write"]
    secret = host.run(*created, f"{folder}/tokens.d").strip()
    owner = host.run("stat", "-c", "%a %U:%G", f"{folder}/tokens.d/one.toml").strip()
    assert owner == "640 root:presignd-broker", "the broker reads it, and writes it not"
    of_broker = '/^.broker/,/^listen/ s/^listen = "\\(.*\\)"/http:\\/\\/\\1/p'  # [fleet] has a listen, too
    url = host.run("sed", "-n", of_broker, f"{folder}/broker.toml").strip()
    asked = {"operation": "get", "bucket": host.store.bucket, "key": "one/x", "expires": 60}
    body = json.dumps({"grants": [asked]}).encode()
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/grants", data=body, headers=headers)
    host.store.write(host.store.bucket, "one/x", b"through the broker")
    with urllib.request.urlopen(request, timeout=60) as answer:
        (grant,) = json.loads(answer.read())["grants"]
    assert fetch(grant["url"]) == "through the broker"
    host.run("presignd", "broker", "token", "revoke", "one", "-c", f"{folder}/broker.toml")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=60)
    said = host.run("journalctl", "-u", BROKER_UNIT, "-o", "cat")
    assert '"grant.issued"' in said
    assert_no_secrets(said, secret, host.store.secret_key)


def test_what_runs_in_the_brokers_unit_can_do_nothing_but_its_work(host: Host) -> None:
    probe = PROBE.replace("STATE_DIRECTORY", "RUNTIME_DIRECTORY").replace(
        "/etc/credstore/", "/etc/presignd/../credstore/"
    )
    host.write("/srv/probe.py", probe)
    dropin = f"/etc/systemd/system/{BROKER_UNIT}.service.d/test.conf"
    host.write(dropin, "[Service]\nExecStartPre=/opt/presignd/bin/python /srv/probe.py\n")
    host.sh(f"systemctl daemon-reload; systemctl restart {BROKER_UNIT}")
    found = json.loads(host.run("cat", f"/run/{BROKER_UNIT}/probe.json"))
    host.sh(f"rm -r {dropin}; systemctl daemon-reload; systemctl restart {BROKER_UNIT}")
    assert found["capabilities"] == f"{0:016x}"
    assert found["others' processes"] == []
    assert found["devices"] == ["null"]
    assert {found[what] for what in ("write /etc", "write /opt/presignd")} == {"Read-only file system"}
    refused = ("become root", "setuid file", "writable code", "namespace")
    assert {found[what] for what in refused} <= {"Operation not permitted", "Invalid argument"}
    assert found["read the key's source"] == "Permission denied"
    assert {found[what] for what in ("packet socket", "netlink socket")} == {"Address family not supported by protocol"}


def test_the_broker_reloads_drains_and_is_started_again_when_killed(host: Host) -> None:
    before = host.show("MainPID", BROKER_UNIT)
    host.run("systemctl", "reload", BROKER_UNIT)
    until(lambda: '"config.reloaded"' in host.run("journalctl", "-u", BROKER_UNIT, "-o", "cat"), "config.reloaded")
    assert host.show("MainPID", BROKER_UNIT) == before
    host.run("kill", "-KILL", before)
    until(lambda: host.show("NRestarts", BROKER_UNIT) == "1", "a restart")
    host.until_active(BROKER_UNIT, restarts="1")
    host.run("systemctl", "stop", BROKER_UNIT)
    assert host.show("ExecMainStatus", BROKER_UNIT) == "0"
    host.run("systemctl", "start", BROKER_UNIT)


# --- more than one, and none -----------------------------------------------------------------------
def test_each_instance_has_a_configuration_and_a_state_of_its_own(host: Host) -> None:
    host.sh("install -d -o ann -g presignd -m 2770 /srv/second")
    text = CONFIG.format(endpoint=host.store.endpoint, bucket=host.store.bucket, more="").split("[[watch]]")[0]
    watch = f'[[watch]]\nname = "second"\npath = "/srv/second"\nbucket = "{host.store.bucket}"\n'
    host.write("/etc/presignd/second.toml", text + watch)
    for key in ("access_key", "secret_key"):
        host.sh(f"cp -p /etc/credstore/presignd.{key} /etc/credstore/presignd-second.{key}")
    host.sh("chgrp presignd /etc/presignd/second.toml; systemctl start presignd@second")
    host.until_active("presignd@second")
    host.drop("second.txt", folder="/srv/second")
    ask = ["env", "PRESIGND_SOCKET=/run/presignd-second/control.sock", "presignd", "wait", "/srv/second/second.txt"]
    host.run(*ask, user="olga")
    assert host.run("stat", "-c", "%a %G", "/var/lib/presignd-second/links").strip() == "2750 presignd-links"
    host.sh("systemctl stop presignd@second")


def test_removing_leaves_what_is_yours_and_purging_leaves_nothing(host: Host) -> None:
    said = host.run(INSTALL, "--remove")
    assert "stopped and disabled presignd.service" in said
    assert "stopped and disabled presignd-broker.service" in said
    assert host.sh("ls /etc/presignd/config.toml /var/lib/presignd/links/links.jsonl").count("\n") == 2
    assert host.machine.try_run("systemctl", "cat", "presignd").returncode != 0
    user, group = host.sh("id -u presignd; id -g presignd").split()
    said = host.run(INSTALL, "--purge")
    assert f"files of presignd elsewhere stay; to find them: find / -xdev -uid {user} -o -gid {group}" in said
    assert host.sh("find /etc /var /opt /usr/local -xdev \\( -nouser -o -nogroup \\) -print") == ""
    left = host.sh("ls -d /etc/presignd* /var/lib/presignd* /opt/presignd /usr/local/bin/presignd 2>/dev/null || true")
    assert left == ""
    assert {host.machine.try_run("id", user).returncode for user in ("presignd", "presignd-broker")} == {1}
    host.run(INSTALL, "--purge")
