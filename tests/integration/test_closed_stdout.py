"""A stdout that can't be written ends every command with one line and a code; a reader that left ends it quietly."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from presignd import cli
from presignd.states import Event
from tests.canary import assert_no_secrets
from tests.served import DONE, SECRET, Served, recorded, served

__all__ = ["served"]

PRINTING = {
    "help": ["--help"],
    "help of a command": ["links", "--help"],
    "version": ["--version"],
    "put": ["put", "FILE"],
    "put --json": ["put", "--json", "FILE"],
    "put of what is not there": ["put", "--json", "absent"],
    "status": ["status"],
    "status --json": ["status", "--json"],
    "status of a file": ["status", "FILE"],
    "wait": ["wait", "--json", "FILE"],
    "links": ["links"],
    "links --json": ["links", "--json"],
    "links --follow": ["links", "--follow"],
    "status --follow": ["status", "--follow", "--json"],
    "link": ["link", "FILE"],
    "link --json": ["link", "--json", "FILE"],
    "retry": ["retry", "--error", "unreadable"],
    "retry --json": ["retry", "--json", "--error", "unreadable"],
    "verify": ["verify", "FILE"],
    "verify --json": ["verify", "--json", "FILE"],
    "web": ["web"],
    "web --json": ["web", "--json"],
    "config": ["config"],
    "config --json": ["config", "--json"],
    "config --schema": ["config", "--schema"],
    "check": ["check", "--offline"],
    "check --json": ["check", "--offline", "--json"],
    "dry run": ["run", "--dry-run"],
    "a new token": ["broker", "token", "create", "t", "--bucket", "test-bucket"],
    "a new token --json": ["broker", "token", "create", "t", "--bucket", "test-bucket", "--json"],
    "tokens": ["broker", "token", "list", "-c", "broker.toml"],
    "tokens --json": ["broker", "token", "list", "--json", "-c", "broker.toml"],
    "broker check": ["broker", "check", "-c", "broker.toml"],
    "init": ["init", "init.toml"],
}
UNTRIED = {"demo", "health", "unlink", "webhook"}
"""``demo`` runs on without its stdout, as ``run --print-links`` does: tests/system/test_demo.py, test_stopping.py.
``unlink`` prints nothing there, ``health`` nothing at all, and ``webhook`` needs one that is configured."""

ANSWERS = "http://127.0.0.1:1\naccess\nsecretkey\ntest-bucket\n{folder}\n15m\n"
"""What ``init`` reads from stdin."""


async def run(
    served: Served, folder: Path, arguments: list[str], to: str = "", stdout: int | None = None, **environ: str
) -> tuple[int, str]:
    """Run a command with its stdout where the shell's ``to`` says; return its code and stderr."""
    (folder / "broker.toml").write_text(
        f'[broker]\nlisten = "127.0.0.1:0"\ntoken_files = ["{folder}/*.tok.toml"]\n'
        '[store]\nendpoint = "http://127.0.0.1:1"\nregion = "r"\naccess_key = "access"\nsecret_key = "secretkey"\n'
    )
    (folder / "broker.toml").chmod(0o600)
    (folder / "t.tok.toml").write_text(
        f'[[token]]\nname = "t"\nbucket = "b-b"\nprefix = "t/"\nhash = "sha256:{"0" * 64}"\n'
    )
    (folder / "t.tok.toml").chmod(0o600)
    file = str(served.view.config.watches[0].path / "a")
    words = [file if word == "FILE" else word for word in arguments]
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", f'exec "$0" -m presignd "$@" {to}', sys.executable, *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("PRESIGND_", "XDG_"))},
            "PRESIGND_SOCKET": str(served.path),
            "PYTHONPATH": str(Path.cwd()),
            "HOME": str(folder),
            "PRESIGND_WATCH__DROP__PATH": str(folder / "drop"),
            "PRESIGND_WATCH__DROP__BUCKET": "test-bucket",
            "PRESIGND_PRESIGN__ACCESS_KEY": "access",
            "PRESIGND_PRESIGN__SECRET_KEY": "secretkey",
            "PRESIGND_PRESIGN__ENDPOINT": "http://127.0.0.1:1",
            **environ,
        },
        cwd=folder,
    )
    _, told = await process.communicate(ANSWERS.format(folder=folder).encode() if arguments[0] == "init" else None)
    assert_no_secrets(told, SECRET)
    return process.returncode or 0, told.decode()


@pytest.fixture
async def one_link(served: Served) -> Served:
    """Serve a file with its link, and one that is quarantined."""
    await recorded(served, "a", *DONE)
    await recorded(served, "b", Event.QUARANTINE, error_code="unreadable")
    line = b'{"time": "2026-01-02T00:00:00.000000Z", "file_id": "id-a", "key": "a", "url": "http://h/a"}\n'
    served.view.config.links.file.write_bytes(line)
    return served


@pytest.mark.parametrize("to", [">/dev/full", ">&-"])
@pytest.mark.parametrize("arguments", PRINTING.values(), ids=PRINTING)
async def test_what_can_not_be_printed_is_told_in_one_line(
    one_link: Served, tmp_path: Path, arguments: list[str], to: str
) -> None:
    code, told = await run(one_link, tmp_path, arguments, to)
    lines = [line for line in told.splitlines() if "to stdout" in line]
    why = "No space left on device" if "full" in to else "Bad file descriptor"
    fix = "redirect it to a place that can be written; what the command did is done"
    assert lines == [f"presignd: the result can't be written to stdout: {why} ({fix})"]
    assert code == 3
    assert "Traceback" not in told
    assert "Exception ignored" not in told


@pytest.mark.parametrize("arguments", PRINTING.values(), ids=PRINTING)
async def test_a_reader_that_went_away_ends_it_quietly(one_link: Served, tmp_path: Path, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code, told = await run(one_link, tmp_path, arguments, stdout=writer)
    os.close(writer)
    assert "Traceback" not in told
    assert "stdout" not in told
    assert "Exception ignored" not in told
    assert code == (1 if arguments[-1] in {"--help", "--version"} else 0)  # the former are typer's own


@pytest.mark.parametrize("command", ["links", "status"])
async def test_following_ends_as_soon_as_its_reader_has_enough(one_link: Served, tmp_path: Path, command: str) -> None:
    """``links --follow | head -1`` needs no second link to notice."""
    async with asyncio.timeout(60):
        code, told = await run(one_link, tmp_path, [command, "--follow", "--json"], "| head -n 1")
    assert (code, told) == (0, "")


@pytest.mark.parametrize("arguments", [["links"], ["status", "--json"]], ids=" ".join)
async def test_a_pipe_stays_one_that_waits_for_a_slow_reader(
    one_link: Served, tmp_path: Path, arguments: list[str]
) -> None:
    """Its flags belong to all that hold it; one made non-blocking refuses the links that find no room."""
    reader, writer = os.pipe()
    try:
        assert await run(one_link, tmp_path, arguments, stdout=writer) == (4 if "status" in arguments else 0, "")
        assert os.get_blocking(writer)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"]], ids=" ".join)
async def test_a_name_that_stdout_s_encoding_lacks_is_escaped(
    served: Served, tmp_path: Path, arguments: list[str], encoding: str
) -> None:
    """As under LANG=en_US without UTF-8."""
    await recorded(served, "\u6f22\U0001f600.txt", Event.QUARANTINE, error_code="unreadable")
    code, told = await run(served, tmp_path, arguments, ">out", PYTHONIOENCODING=encoding)
    assert code == 4
    assert "Traceback" not in told
    found = (tmp_path / "out").read_text(encoding)
    if "--json" in arguments:
        assert json.loads(found)["quarantined"][0]["path"].endswith("/\u6f22\U0001f600.txt")
    else:
        assert ("\u6f22\U0001f600.txt" if encoding == "utf-8" else r"\u6f22\ud83d\ude00.txt") in found


def test_every_command_that_prints_is_tried() -> None:
    tried = {words[0] for words in PRINTING.values()}
    assert set(cli.COMMANDS) - tried == UNTRIED
