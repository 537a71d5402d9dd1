"""``presignd links`` as a process, against a real control socket: each link at least once, in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from presignd.control import server as control
from presignd.links import Cursor, LinksFile, answer_links, encode, load_cursor
from tests.links import batch, config, link

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from presignd.config import LinksConfig

__all__ = ["config"]
DEADLINE = 60


@dataclass
class Daemon:
    """What of a daemon this command meets: its socket and its links file."""

    config: LinksConfig
    socket: Path
    base: Path
    answer_timeout: float = control.ANSWER_TIMEOUT
    started: list[asyncio.subprocess.Process] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async def answering(request: Mapping[str, Any], *_: object) -> AsyncIterator[dict[str, Any]]:
            async with contextlib.aclosing(answer_links(self.config.file, request)) as answers:  # type: ignore[type-var]  # it is an async generator
                async for answer in answers:
                    yield answer

        async with control.serve(self.socket, "", answering, answer_timeout=self.answer_timeout):  # type: ignore[arg-type]  # a narrower request
            yield

    def issue(self, *numbers: int) -> None:
        links, past = LinksFile.open(self.config, None)
        list(past)
        links.append(batch(*numbers))
        links.close()

    async def start(self, *args: str, stdout: int = asyncio.subprocess.PIPE) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", "presignd", "links", *args]
        env = {**os.environ, "PRESIGND_SOCKET": str(self.socket), "HOME": str(self.base)}
        env |= {"XDG_CONFIG_HOME": str(self.base), "XDG_RUNTIME_DIR": str(self.base)}
        process = await asyncio.create_subprocess_exec(*command, stdout=stdout, stderr=asyncio.subprocess.PIPE, env=env)
        self.started.append(process)
        return process

    async def end(self) -> None:
        """End what a failed test left running."""
        for process in self.started:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def run(self, *args: str) -> tuple[int, str, str]:
        process = await self.start(*args)
        out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
        return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
def answer_timeout() -> float:
    return control.ANSWER_TIMEOUT


@pytest.fixture
async def daemon(config: LinksConfig, tmp_path: Path, answer_timeout: float) -> AsyncIterator[Daemon]:
    found = Daemon(config, tmp_path / "control.sock", tmp_path, answer_timeout)
    async with found.running():
        yield found
    await found.end()


def urls(*numbers: int) -> str:
    return "".join(link(number).url + "\n" for number in numbers)


def script(tmp_path: Path, text: str) -> Sequence[str]:
    """Return a CMD that runs ``text`` with sh; ``$OUT`` is a file it may write to."""
    return ["--exec", "sh", "-c", f"OUT={tmp_path}/out; {text}"]


async def test_links_are_printed_oldest_first_one_a_line(daemon: Daemon) -> None:
    daemon.issue(1, 2, 3)
    assert await daemon.run() == (0, urls(1, 2, 3), "")


async def test_no_links_are_no_failure(daemon: Daemon) -> None:
    assert await daemon.run() == (0, "", "")


async def test_json_is_the_line_of_the_file(daemon: Daemon) -> None:
    daemon.issue(1, 2)
    code, out, _ = await daemon.run("--json")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [json.loads(encode(link(n))) for n in (1, 2)]


async def test_with_a_cursor_file_it_goes_on_where_it_stopped(daemon: Daemon, tmp_path: Path) -> None:
    daemon.issue(1, 2)
    seen = ("--cursor-file", str(tmp_path / "seen"))
    assert (await daemon.run(*seen))[1] == urls(1, 2)
    assert (await daemon.run(*seen))[1] == ""
    daemon.issue(3)
    assert (await daemon.run(*seen))[1] == urls(3)


async def test_a_gap_is_told_on_stderr(daemon: Daemon, tmp_path: Path) -> None:
    daemon.issue(1)
    (tmp_path / "seen").write_text(json.dumps(Cursor(1, 5, "gone").to_json()))
    code, out, err = await daemon.run("--cursor-file", str(tmp_path / "seen"))
    assert (code, out) == (0, urls(1))
    assert "raise links.keep" in err


async def test_a_command_gets_each_link_on_stdin_and_none_in_its_arguments(daemon: Daemon, tmp_path: Path) -> None:
    daemon.issue(1, 2)
    note = 'cat >> "$OUT"; tr "\\0" " " < /proc/$$/cmdline >> "$OUT.args"; env >> "$OUT.args"'
    code, out, err = await daemon.run(*script(tmp_path, note))
    assert (code, out, err) == (0, "", "")
    assert (tmp_path / "out").read_bytes().splitlines() == [
        json.dumps(json.loads(encode(link(n)))).encode() for n in (1, 2)
    ]
    assert "Signature" not in (tmp_path / "out.args").read_text()


async def test_all_behind_exec_is_the_commands(daemon: Daemon, tmp_path: Path) -> None:
    """Also what looks like options of ours."""
    daemon.issue(1)
    note = 'printf "%s\\n" "$@" > "$OUT"'
    code, _, err = await daemon.run(*script(tmp_path, note), "sh", "--json", "-c", "--follow", "--", "--exec")
    assert (code, err) == (0, "")
    assert (tmp_path / "out").read_text().split() == ["--json", "-c", "--follow", "--", "--exec"]


async def test_a_command_that_reads_nothing_is_fine(daemon: Daemon) -> None:
    daemon.issue(*range(100))
    assert await daemon.run("--exec", "true") == (0, "", "")


async def test_a_failed_command_ends_it_with_4_and_gets_that_link_again(daemon: Daemon, tmp_path: Path) -> None:
    daemon.issue(1, 2, 3)
    seen = ["--cursor-file", str(tmp_path / "seen")]
    fails = 'grep -q id-000002 "$OUT.in" && mkdir "$OUT.d" 2>/dev/null && exit 7; :'
    fails_once = f'cat > "$OUT.in"; cat "$OUT.in" >> "$OUT"; {fails}'
    code, _, err = await daemon.run(*seen, *script(tmp_path, fails_once))
    assert code == 4
    assert "sh exited with 7 for /srv/drop/2.txt (file_id id-000002)" in err
    assert "Signature" not in err
    code, _, err = await daemon.run(*seen, *script(tmp_path, fails_once))
    assert (code, err) == (0, "")
    sizes = [json.loads(line)["size"] for line in (tmp_path / "out").read_text().splitlines()]
    assert sizes == [1, 2, 2, 3]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--exec"], "no command given"),
        (["--exec", "no-such-command-here"], "no command 'no-such-command-here' in PATH"),
        (["stray"], "unexpected argument 'stray'"),
        (["--cursor-file", "/no/such/folder/seen"], "--cursor-file"),
    ],
)
async def test_wrong_usage_is_exit_2_and_one_line(daemon: Daemon, args: list[str], told: str) -> None:
    code, out, err = await daemon.run(*args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err


async def seen_on(stream: asyncio.StreamReader | None, count: int) -> list[str]:
    assert stream is not None
    return [(await asyncio.wait_for(stream.readline(), DEADLINE)).decode().strip() for _ in range(count)]


@pytest.fixture
async def stopped(config: LinksConfig, tmp_path: Path) -> AsyncIterator[Daemon]:
    found = Daemon(config, tmp_path / "control.sock", tmp_path)
    yield found
    await found.end()


async def test_follow_prints_links_as_they_come_over_a_restart_of_the_daemon(stopped: Daemon) -> None:
    daemon = stopped
    async with daemon.running():
        daemon.issue(1)
        process = await daemon.start("--follow")
        assert await seen_on(process.stdout, 1) == [link(1).url]
        daemon.issue(2)
        assert await seen_on(process.stdout, 1) == [link(2).url]
    assert "waiting for it" in (await seen_on(process.stderr, 1))[0]
    daemon.issue(3)
    async with daemon.running():
        assert await seen_on(process.stdout, 1) == [link(3).url]
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), DEADLINE) == 130


async def test_follow_tries_a_failed_command_again_before_it_goes_on(daemon: Daemon, tmp_path: Path) -> None:
    daemon.issue(1, 2)
    fails_once = 'cat; mkdir "$OUT.d" 2>/dev/null && exit 1; :'
    process = await daemon.start("--follow", *script(tmp_path, fails_once))
    lines = await seen_on(process.stdout, 3)
    assert [json.loads(line)["size"] for line in lines] == [1, 1, 2]
    assert "again in 1 s" in (await seen_on(process.stderr, 1))[0]
    process.terminate()
    await process.wait()


async def test_interrupted_it_ends_with_130_its_command_too_and_the_cursor_stands_before_it(
    daemon: Daemon, tmp_path: Path
) -> None:
    daemon.issue(1, 2)
    slow = 'cat > "$OUT.in"; if grep -q id-000002 "$OUT.in"; then echo $$; exec sleep 600; fi'
    seen = tmp_path / "seen"
    process = await daemon.start("--cursor-file", str(seen), *script(tmp_path, slow))
    (pid,) = await seen_on(process.stdout, 1)
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), DEADLINE) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    cursor = load_cursor(seen)
    assert cursor is not None
    assert cursor.file_id == "id-000001"


async def test_a_printing_follower_that_is_interrupted_remembers_its_place(daemon: Daemon, tmp_path: Path) -> None:
    daemon.issue(1, 2)
    process = await daemon.start("--follow", "--cursor-file", str(tmp_path / "seen"))
    await seen_on(process.stdout, 2)
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), DEADLINE) == 130
    cursor = load_cursor(tmp_path / "seen")
    assert cursor is not None
    assert cursor.file_id == "id-000002"


async def test_a_reader_that_goes_away_is_no_failure(daemon: Daemon) -> None:
    """As in ``presignd links | head -1``."""
    daemon.issue(*range(5000))
    read, write = os.pipe()
    process = await daemon.start(stdout=write)
    os.close(write)
    assert await asyncio.to_thread(os.read, read, 10)
    os.close(read)
    _, err = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert (process.returncode, err) == (0, b"")


@pytest.mark.parametrize("answer_timeout", [0.2])
async def test_a_slow_reader_gets_every_link_once_though_the_daemon_gave_it_up(daemon: Daemon) -> None:
    """A pager, or a slow CMD: the daemon cuts the connection, and that is not the end of the links."""
    numbers = range(4000)
    daemon.issue(*numbers)
    process = await daemon.start()
    await asyncio.sleep(2)
    out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert (process.returncode, err) == (0, b"")
    assert out.decode() == urls(*numbers)
