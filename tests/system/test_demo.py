"""``presignd demo`` as the README runs it: a drop, a link, and Ctrl-C that leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError

import pytest

from presignd.demo.seaweedfs import LOOPBACK
from tests.canary import assert_no_secrets
from tests.guests import Guest
from tests.links import whole_lines
from tests.mounts import tmpfs
from tests.system.guest_tabs import GuestPage, tab_of
from tests.system.harness import COMMAND, fetch
from tests.system.processes import NOTHING, Held, held_by


class Demo:
    """``presignd demo`` in a process group of its own, as a shell starts it; PATH doesn't find the command."""

    def __init__(self, folder: Path, *arguments: str, stdout: Path | None = None) -> None:
        self._folder, self._arguments = folder, arguments
        self._out, self._err = stdout or folder / "stdout", folder / "stderr"
        self._environ = {"PATH": os.defpath, "HOME": str(folder)}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [COMMAND, "demo", *arguments],
                cwd=folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.held: Held = NOTHING

    @property
    def said(self) -> list[str]:
        return self._err.read_text("utf-8").splitlines()

    @property
    def links(self) -> list[str]:
        return self._out.read_text("utf-8").splitlines()

    def until(self, true: Callable[[], object], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None, f"it ended before {what}: {self.said}"
            assert time.monotonic() < deadline, f"no {what}: {self.said}"
            time.sleep(0.02)

    def ready(self) -> Demo:
        """Return once it has said all; from then on it is known what it holds."""
        self.until(lambda: len(self.said) >= 4, "four lines")
        self.until(lambda: self.ask().returncode == 0, "daemon that answers")
        self.held = held_by(self.process.pid)
        return self

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a line as the user types it in another terminal, in the same folder."""
        return subprocess.run(
            ["sh", "-c", command], cwd=self._folder, env=self._environ, capture_output=True, text=True, check=False
        )

    def ask(self) -> subprocess.CompletedProcess[str]:
        """Run the command of the third line."""
        return self.shell(self._asking)

    def unlink(self, file: str) -> subprocess.CompletedProcess[str]:
        """Revoke the links of a file, as the third line says."""
        return self.shell(f"{self._asking.removesuffix(' status')} unlink {file}")

    @property
    def _asking(self) -> str:
        return self.said[2].removeprefix("Ask:").partition("   ")[0]

    def link_of(self, name: str) -> str:
        """Drop a file by the second line's command, under ``name``, and return the link that is printed."""
        before = len(self.links)
        command = self.said[1].removeprefix("Try:").partition("   ")[0]
        assert self.shell(command.replace("hi.txt", name)).returncode == 0
        self.until(lambda: len(self.links) > before, "link")
        return self.links[before]

    @property
    def address(self) -> str:
        """The address of its invitation."""
        return self.said[3].split()[1]

    @property
    def broker(self) -> Path:
        """The broker's folder."""
        return self._folder / (self._arguments[0] if self._arguments else "presignd-demo") / "broker"

    @property
    def broker_port(self) -> int:
        return int((self.broker / "port").read_text("ascii"))

    def ctrl_c(self) -> None:
        """Send SIGINT to the process group, as a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert_no_secrets(self._err.read_text("utf-8"))


Start = Callable[..., Demo]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Demo] = []

    def build(*arguments: str, stdout: Path | None = None) -> Demo:
        started.append(Demo(tmp_path, *arguments, stdout=stdout))
        return started[-1]

    yield build
    for demo in started:
        demo.end()


def test_a_drop_gets_a_link_and_ctrl_c_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    demo = start().ready()
    assert [line.partition(" ")[0] for line in demo.said] == ["Drop", "Try:", "Ask:", "Send:"]
    link = demo.link_of("hi.txt")
    assert link.startswith(f"http://{LOOPBACK}:{demo.broker_port}/l/")
    assert fetch(link) == b"hi\n"
    assert demo.unlink("presignd-demo/drop/hi.txt").returncode == 0
    with pytest.raises(HTTPError, match="410"):
        fetch(link)
    assert demo.said[4:] == ["hi.txt  (3 bytes)"]
    held = demo.held
    assert len(held.processes) == 2
    assert len(held.ports) >= 11  # the store's, and the broker's
    assert {demo.broker_port} <= {port for port, _ in held.ports}
    control = tmp_path / "presignd-demo/state/control.sock"  # below a long path it is bound by another name
    assert control.is_socket()
    assert demo.broker.stat().st_mode & 0o777 == 0o700
    assert control.name in {path.name for path in held.sockets}
    demo.ctrl_c()
    assert demo.process.wait(30) == 0
    assert held.left() == NOTHING
    assert not control.exists()
    [refused] = demo.said[5:]
    assert '"link.refused"' in refused
    assert link.split("/")[4] not in refused


@pytest.mark.long
def test_a_second_start_on_the_same_folder_goes_on(start: Start) -> None:
    """Files there are not uploaded again, and what is dropped meanwhile gets its link."""
    first = start("with a space").ready()
    first.link_of("one.txt")
    first.ctrl_c()
    assert first.process.wait(30) == 0
    first.shell("echo meanwhile > 'with a space/drop/two.txt'")
    port = first.broker_port
    second = start("with a space")
    second.until(lambda: second.links, "link")
    assert second.broker_port == port
    assert fetch(second.links[0]) == b"meanwhile\n"
    assert fetch(second.ready().link_of("three.txt")) == b"hi\n"
    assert len(second.links) == 2
    second.ctrl_c()
    assert second.process.wait(30) == 0
    assert second.held.left() == NOTHING


def test_sigkill_leaves_no_server_and_a_start_at_once_waits_for_its_end(start: Start) -> None:
    demo = start("here").ready()
    before = demo.link_of("before.txt")
    demo.process.kill()
    demo.process.wait()
    again = start("here").ready()
    # Of weed's sockets in /tmp some stay: nobody is left to remove them.
    left = replace(demo.held, sockets=frozenset()).gone_within(20)
    assert left == NOTHING
    assert fetch(again.link_of("hi.txt")) == b"hi\n"
    assert fetch(before) == b"hi\n", "it is a link for every start"


def test_its_broker_signs_at_another_port_if_its_own_is_taken_and_keeps_no_token(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "presignd-demo/broker"
    folder.mkdir(parents=True)
    with socket.create_server((LOOPBACK, 0)) as other:
        taken = other.getsockname()[1]
        (folder / "port").write_text(f"{taken}\n", "ascii")
        demo = start().ready()
        assert fetch(demo.link_of("hi.txt")) == b"hi\n"
    assert demo.broker_port != taken
    assert b'operation="put"' in fetch(f"http://{LOOPBACK}:{demo.broker_port}/metrics")
    assert b"psd_" not in b"".join(path.read_bytes() for path in folder.parent.rglob("*") if path.is_file())


@pytest.mark.long
def test_a_stdout_that_takes_no_link_stops_nothing(start: Start, tmp_path: Path) -> None:
    demo = start(stdout=Path("/dev/full")).ready()
    links = tmp_path / "presignd-demo/state/links/links.jsonl"
    for number in range(1, 3):
        assert demo.shell(f"echo hi > presignd-demo/drop/{number}").returncode == 0
        demo.until(lambda number=number: len(whole_lines(links)) == number, "link")  # type: ignore[misc] # bound by its default
    demo.ctrl_c()
    assert demo.process.wait(30) == 0
    [lost] = [line for line in demo.said if "stdout" in line]
    assert "No space left on device" in lost


def test_ctrl_c_while_it_starts_leaves_nothing_behind(start: Start) -> None:
    demo = start()
    demo.until(lambda: len(held_by(demo.process.pid).ports) > 0, "listening port")
    held = held_by(demo.process.pid)
    demo.ctrl_c()
    assert demo.process.wait(30) in (0, 130)
    assert held.left() == NOTHING
    assert "Traceback" not in "".join(demo.said)


def test_ctrl_c_twice_leaves_nothing_behind(start: Start) -> None:
    demo = start().ready()
    demo.ctrl_c()
    time.sleep(0.3)
    demo.ctrl_c()
    assert demo.process.wait(30) in (0, 130)
    assert demo.held.gone_within(20) == NOTHING
    assert "Traceback" not in "".join(demo.said)


def test_a_store_that_ends_by_itself_ends_the_demo_and_is_told(start: Start, tmp_path: Path) -> None:
    demo = start().ready()
    weed = next(pid for pid, _ in demo.held.processes if pid != demo.process.pid)
    os.kill(weed, signal.SIGKILL)
    assert demo.process.wait(30) == 3
    [line] = demo.said[4:]
    assert line.startswith("presignd: SeaweedFS ended: ")
    assert f"look at {tmp_path / 'presignd-demo/store/run/weed.log'}" in line
    assert demo.held.left() == NOTHING


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "256k"):
        with (tmp_path / "disk" / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            file.writelines([b"x" * 4096] * 100)
        demo = Demo(tmp_path, "disk/demo")
        assert demo.process.wait(60) == 3
    assert demo.said == [
        (
            f"presignd: SeaweedFS can't be started in {tmp_path}/disk/demo/store: No space left on device"
            " (correct that, or name another folder)"
        )
    ]


def test_what_a_guest_sends_appears_as_a_file_and_a_link_and_the_address_stays(start: Start, tmp_path: Path) -> None:
    demo = start().ready()
    address, body = demo.address, b"from a browser"
    (ticket,) = Guest(address).tickets(("Scans/a.txt", len(body)))
    assert Guest(address).put(ticket, body).status == 200
    assert Guest(address).done(ticket)[0] == 200
    demo.until(lambda: demo.links, "a link")
    assert (tmp_path / "presignd-demo/inbox/Scans/a.txt").read_bytes() == body
    assert fetch(demo.links[0]) == body
    assert demo.said[4].startswith("a.txt  (14 bytes) came in: ")
    demo.ctrl_c()
    assert demo.process.wait(30) == 0
    again = start().ready()
    assert again.address == address
    again.ctrl_c()
    assert again.process.wait(30) == 0


@pytest.mark.needs("chromium")
async def test_what_a_browser_drops_at_the_invitation_appears_as_a_file_and_a_link(
    start: Start, tmp_path: Path
) -> None:
    demo = await asyncio.to_thread(lambda: start().ready())
    folder, body = tmp_path / "Scans", b"from a browser"
    folder.mkdir()
    (folder / "\u00fc.txt").write_bytes(body)
    async with tab_of("chromium") as tab:
        page = GuestPage(tab, demo.address)
        await page.open()
        await tab.drop(folder)
        await page.all_received()
        receipt = await page.receipt()
    await asyncio.to_thread(demo.until, lambda: demo.links, "a link")
    assert [(each["path"], each["size"]) for each in receipt["files"]] == [("Scans/\u00fc.txt", len(body))]
    assert (tmp_path / "presignd-demo/inbox/Scans/\u00fc.txt").read_bytes() == body
    assert await asyncio.to_thread(fetch, demo.links[0]) == body
    demo.ctrl_c()
    assert await asyncio.to_thread(demo.process.wait, 30) == 0
