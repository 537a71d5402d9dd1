"""``presignd init --with-broker``: broker and daemon on one machine, set up and run as a user does."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
import tomllib
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from presignd.demo.seaweedfs import LOOPBACK, free_ports
from tests.canary import assert_no_secrets
from tests.stores import Store
from tests.system.harness import COMMAND, fetch
from tests.terminal import shown_until, terminal

ADDRESS = f"{LOOPBACK}:8420"


class Machine:
    """A home folder with a daemon's and a broker's configuration, and what runs by them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.config, self.broker = home / "etc/config.toml", home / "etc/broker.toml"
        self.environ = {
            "PATH": os.defpath,
            "HOME": str(home),
            "PRESIGND_SOCKET": str(home / "control.sock"),
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.log = home / "log"
        self._running: list[subprocess.Popen[bytes]] = []

    def run(self, *arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments],
            env=self.environ,
            cwd="/",
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def init(self, *answers: str, options: tuple[str, ...] = ("--with-broker",)) -> subprocess.CompletedProcess[str]:
        return self.run("init", self.config, *options, stdin="".join(f"{answer}\n" for answer in answers))

    def move_broker(self) -> str:
        """Give the broker a port that is free in this test; return the address of links."""
        address = f"{LOOPBACK}:{free_ports(1)[0]}"
        for file in (self.config, self.broker):
            file.write_text(file.read_text("utf-8").replace(ADDRESS, address), "utf-8")
        return f"http://{address}"

    def start(self, command: str) -> None:
        """Start a command that ``init`` printed."""
        program, *arguments = command.split()
        assert program == "presignd"
        with self.log.open("ab") as log:
            started = subprocess.Popen(
                [COMMAND, *arguments], env=self.environ, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._running.append(started)

    def until(self, true: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 60
        while not true():
            assert all(each.poll() is None for each in self._running), self.log.read_text("utf-8")
            assert time.monotonic() < deadline, f"no {what}: {self.log.read_text('utf-8')}"
            time.sleep(0.05)

    def end(self) -> None:
        for each in self._running:
            each.terminate()
        for each in self._running:
            each.wait(60)

    @property
    def files(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The daemon's and the broker's configuration."""
        return tomllib.loads(self.config.read_text("utf-8")), tomllib.loads(self.broker.read_text("utf-8"))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.end()


def test_both_are_set_up_by_one_command_and_run_by_the_commands_that_it_prints(
    machine: Machine, seaweedfs: Store
) -> None:
    store, bucket, drop = seaweedfs, seaweedfs.new_bucket(), machine.home / "drop"
    keys = (store.access_key, store.secret_key)
    done = machine.init(store.endpoint, *keys, bucket, str(drop), "y", f"http://{ADDRESS}", "90d")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [machine.config.stat().st_mode & 0o777, machine.broker.stat().st_mode & 0o777] == [0o600, 0o600]
    assert not [key for key in keys if key in machine.config.read_text("utf-8")], "the broker alone has keys"
    token = machine.files[0]["presign"]["token"]
    assert token not in machine.broker.read_text("utf-8")
    assert f"ok   bucket {bucket}/" in done.stdout
    assert "FAIL" not in done.stdout
    broker_run, daemon_run, again, links = [line.partition(": ")[2] for line in done.stderr.splitlines()[-4:]]
    assert links == "presignd links"
    assert again == f"presignd broker check -c {machine.broker}"
    assert_no_secrets(done.stdout + done.stderr, store.secret_key, token)

    links_url = machine.move_broker()
    machine.start(daemon_run)  # it waits for the broker
    machine.start(broker_run)
    (drop / "Report.pdf").write_bytes(b"hello")
    machine.until(lambda: machine.run("wait", drop / "Report.pdf", "--timeout", "5s").returncode == 0, "link")
    link = json.loads(machine.run("links", "--json").stdout)
    assert link["url"].startswith(f"{links_url}/l/")
    assert link["key"] == "Report.pdf"
    assert link["expires_at"][:4] > "2000"
    assert fetch(link["url"]) == b"hello"
    assert machine.run("unlink", drop / "Report.pdf").returncode == 0
    with pytest.raises(urllib.error.HTTPError, match="410"):
        fetch(link["url"])
    [issued] = [json.loads(line) for line in machine.run("links", "--issued", "--json").stdout.splitlines()]
    assert issued["state"] == "revoked"
    assert_no_secrets(machine.log.read_text("utf-8"), store.secret_key, token, link["url"].split("/")[4])


def test_links_under_a_name_of_their_own_are_behind_a_proxy_and_may_have_no_end(machine: Machine) -> None:
    done = machine.init("http://127.0.0.1:1", "", "test-bucket", str(machine.home), "https://files.example.org/", "")
    assert done.returncode == 3, "no store is there"
    assert f"A check failed: correct {machine.broker} or {machine.config}, then go on." in done.stderr
    assert f"To start the broker: presignd broker run -c {machine.broker}" in done.stderr
    daemon, broker = machine.files
    assert "link_expires" not in daemon["watch"][0]
    assert broker["links"]["url"] == "https://files.example.org"
    assert broker["broker"]["behind_proxy"] is True
    assert daemon["presign"]["url"] == broker["broker"]["url"] == f"http://{ADDRESS}"
    assert "access_key" not in broker["store"], "they come from a usual source"


def test_a_brokers_file_that_is_there_is_never_touched(machine: Machine) -> None:
    machine.broker.parent.mkdir()
    machine.broker.write_text("mine")
    done = machine.init()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{machine.broker} exists and was not changed" in done.stderr
    assert machine.broker.read_text() == "mine"
    assert not machine.config.exists()


def test_a_broker_without_a_daemon_is_not_left_behind(machine: Machine) -> None:
    machine.config.mkdir(parents=True)
    done = machine.init("y", "http://127.0.0.1:1", "", "test-bucket", str(machine.home), "", "")
    assert done.returncode == 2, done.stderr
    assert "config.toml can't be written" in done.stderr
    assert not machine.broker.exists()


@pytest.mark.parametrize(
    ("file", "options", "told"),
    [
        ("config.toml", ("--with-broker", "--broker", "https://b:1"), "give one of them"),
        ("broker.toml", ("--with-broker",), "is where the broker's configuration goes"),
    ],
)
def test_what_can_not_be_meant_is_told_before_a_question(
    machine: Machine, file: str, options: tuple[str, ...], told: str
) -> None:
    machine.config = machine.config.with_name(file)
    done = machine.init(options=options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert told in done.stderr
    assert not machine.config.parent.exists()


@pytest.mark.parametrize("answer", ["y", ""])
async def test_in_a_terminal_init_asks_whether_there_shall_be_a_broker(machine: Machine, answer: str) -> None:
    questions = {
        "endpoint": "http://127.0.0.1:1",
        "Access key": "",
        "Bucket": "",
        "Folder": str(machine.home),
        "revoke": answer,
        **({"Address of links": "", "How long": ""} if answer else {"How long": ""}),
    }
    with terminal(200) as (user, command):
        process = await asyncio.create_subprocess_exec(
            *("timeout", "60", COMMAND, "init", machine.config),
            stdin=command,
            stdout=command,
            stderr=command,
            env=machine.environ,
        )
        for question, given in questions.items():
            await shown_until(rf"{question}[^\n]*: $", user)
            os.write(user, f"{given}\n".encode())
        await shown_until("FAIL", user)
        assert await process.wait() in {2, 3}, "there is no store"
    assert machine.config.exists()
    assert machine.broker.exists() is bool(answer)
