"""The command line: help, exit codes, error lines, and no slow imports before they are needed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
import typer
from typer.testing import CliRunner

from presignd import __version__, cli
from presignd.cli import guard, options, show
from presignd.cli.wait import REQUEST_BYTES, batches
from presignd.errors import Refused, TimedOut, Unavailable, UsageError, fault
from presignd.ledger.lock import DaemonLock

if TYPE_CHECKING:
    from pathlib import Path

    from presignd.model import Link


def ended(error: BaseException) -> int:
    """Return the exit code that a command ends with when ``error`` leaves it."""

    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        guard.guarded(command)()
    return int(end.value.code or 0)


def test_help_names_every_command_with_its_line() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"]).output
    for name, (_, line) in cli.COMMANDS.items():
        assert name in shown
        assert line in shown


def test_version_is_told() -> None:
    assert CliRunner().invoke(cli.app, ["--version"]).output == f"presignd {__version__}\n"


def test_without_docstrings_a_command_has_no_help_and_runs() -> None:
    """PYTHONOPTIMIZE=2 removes them."""
    command = [sys.executable, "-OO", "-m", "presignd", "config", "-c", "/nonexistent.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("presignd: /nonexistent.toml: ")


def test_help_needs_no_heavy_library() -> None:
    """Completion runs the command at each press of Tab."""
    heavy = "{'aiohttp', 'minio', 'pydantic', 'structlog', 'watchfiles', 'sqlite3', 'asyncio'}"
    program = f"import sys, presignd.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_start_loads_neither_http_client_nor_what_only_terminals_and_other_systems_need() -> None:
    """They would take half of its time. The HTTP client is loaded after the first scans, or by the first request."""
    late = "{'aiohttp', 'yarl', 'minio', 'watchfiles', 'anyio', 'segno'}"
    program = f"""
import sys
from presignd.cli.run import daemon
from presignd.config import PresignConfig, UploadConfig
from presignd.store.client import StoreClient
print(sorted({late} & set(sys.modules)))
StoreClient(PresignConfig(), UploadConfig()).load()
print('aiohttp' in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nTrue\n"


def test_an_unknown_command_is_usage_and_names_the_nearest() -> None:
    done = CliRunner().invoke(cli.app, ["sttus"])
    assert done.exit_code == 2
    assert "status" in done.output


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_shows_an_example_on_a_line_that_can_be_copied(name: str) -> None:
    shown = CliRunner().invoke(cli.app, [name, "--help"])
    assert shown.exit_code == 0
    (example,) = [line for line in shown.output.splitlines() if line.startswith("  Example: ")]
    assert f"presignd {name}" in example
    assert example.count("'") % 2 == 0, "it was wrapped"


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name not in {"demo", "init", "broker", "webhook"}])
def test_the_configuration_file_is_named_the_same_way_everywhere(name: str) -> None:
    assert "-c, --config FILE " in CliRunner().invoke(cli.app, [name, "--help"]).output


def test_expire_is_accepted_for_expires() -> None:
    done = CliRunner().invoke(cli.app, ["put", "--expire", "8d", "x"])
    assert (done.exit_code, "7d" in done.output) == (2, True)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (Unavailable("x"), 3),
        (fault("connection_refused"), 3),
        (fault("access_denied"), 3),
        (fault("presigner_unreachable"), 3),
        (Refused("x"), 4),
        (fault("too_large"), 4),
        (TimedOut("x"), 5),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 0),
        (ZeroDivisionError(), 1),
        (ExceptionGroup("tasks", [Unavailable("x")]), 3),
    ],
)
def test_each_failure_has_the_exit_code_of_the_contract(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_reader_gone", lambda: sys.exit(0))
    assert ended(error) == code


@pytest.mark.parametrize("ending", [typer.Exit(4), typer.Abort(), typer.BadParameter("what")])
def test_what_typer_ends_a_command_by_is_left_to_typer(ending: Exception) -> None:
    """Taken for a bug, it would be told as exit 1 with a traceback."""

    def command() -> None:
        raise ending

    with pytest.raises(type(ending)):
        guard.guarded(command)()


def test_an_expected_failure_is_one_line_with_its_fix(capsys: pytest.CaptureFixture[str]) -> None:
    ended(Unavailable("the daemon is away", fix="start it"))
    assert capsys.readouterr() == ("", "presignd: the daemon is away (start it)\n")


def test_every_problem_stands_on_its_own_line() -> None:
    lines = guard.error_lines(UsageError("config", problems=("a.b: wrong", "c.d: wrong too"), fix="see the example"))
    assert lines == ["presignd: a.b: wrong", "presignd: c.d: wrong too", "presignd: see the example"]


def test_a_file_name_forges_no_line_and_no_colour() -> None:
    lines = guard.error_lines(Refused("put: a\nb\x1b[31m\udcff"))
    assert lines == ["presignd: put: a\\nb\\x1b[31m\\xff"]


def test_a_bug_shows_its_traceback_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    code = ended(
        RuntimeError("http://h/b/k?X-Amz-Signature=c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00")
    )
    told = capsys.readouterr().err
    assert code == 1
    assert "Traceback" in told
    assert "c0ffee" not in told


def test_a_command_that_can_not_be_loaded_shows_its_traceback_without_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails at import is no command yet: nothing has wrapped it."""

    def broken(_: str) -> None:
        raise ImportError("no module at http://h/b/k?X-Amz-Signature=0123456789abcdef")

    monkeypatch.setattr(cli, "import_module", broken)
    monkeypatch.setattr(sys, "argv", ["presignd", "status"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert "ImportError: no module at http://h/b/k?REDACTED" in told
    assert "0123456789abcdef" not in told


def test_a_daemons_bug_is_logged_and_ends_with_1_also_in_a_group() -> None:
    program = (
        "from presignd.cli.guard import logging_bugs\n"
        "with logging_bugs('broker.crashed'):\n"
        "    raise ExceptionGroup('loops', [RuntimeError('a bug')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert '"event": "broker.crashed"' in done.stderr
    assert "a bug" in done.stderr


def test_a_daemons_expected_failure_passes_as_it_is() -> None:
    with pytest.raises(Unavailable, match="taken"), guard.logging_bugs("broker.crashed"):
        raise Unavailable("the port is taken")


def test_a_reader_that_went_away_is_no_failure() -> None:
    program = "from presignd.cli.guard import guarded\nguarded(lambda: [print('x' * 1000) for _ in range(1000)])()"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(("text", "seconds"), [("15m", 900), ("7d", 604800), ("1s", 1), (None, None)])
def test_an_expiry_is_read_as_whole_seconds(text: str | None, seconds: int | None) -> None:
    assert options.expiry(text) == seconds


@pytest.mark.parametrize("text", ["8d", "0s", "soon", "-1s", ""])
def test_an_expiry_out_of_bounds_says_what_is_wrong(text: str) -> None:
    with pytest.raises(UsageError, match="--expires"):
        options.expiry(text)


def test_a_path_is_told_by_where_its_folder_really_is_and_its_own_name(tmp_path: Path) -> None:
    """A symlink as the last component is not followed: it is the symlink that was named."""
    (tmp_path / "real").mkdir()
    (tmp_path / "door").symlink_to("real")
    (tmp_path / "real/link").symlink_to("elsewhere")
    assert options.absolute(tmp_path / "door" / "link") == f"{tmp_path.resolve()}/real/link"
    assert options.absolute(tmp_path / "door/..") == str(tmp_path.resolve())


def test_requests_of_wait_stay_within_the_bound_and_lose_no_path() -> None:
    paths = [f"/{n:06}/" + "x" * 200 for n in range(5000)]
    parts = list(batches(paths))
    assert [path for part in parts for path in part] == paths
    assert max(sum(map(len, part)) for part in parts) <= REQUEST_BYTES


def test_json_keeps_names_readable_and_escapes_what_is_no_utf8(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show.document({"path": "é\udcff\n"}, indent=None)
    assert capsys.readouterr().out == '{"path": "é\\udcff\\n"}\n'


def test_tables_in_a_pipe_are_lines_with_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    show.table("watch", ("name",), [["a\tb", "c"]])
    assert capsys.readouterr().out == "watch\ta\\tb\tc\n"


def test_put_refuses_what_one_request_cannot_mean() -> None:
    for arguments in (["put", "--key", "k", "a", "b"], ["put", "-"], ["put", "a", "-"]):
        assert CliRunner().invoke(cli.app, arguments).exit_code == 2


def test_links_are_not_printed_into_the_journal(tmp_path: Path) -> None:
    """$JOURNAL_STREAM names the device and inode of the journal's stream (systemd.exec(5))."""
    from presignd.telemetry.log import is_journal  # noqa: PLC0415 - the command imports it late

    with (tmp_path / "out").open("wb") as out:
        found = os.fstat(out.fileno())
        assert is_journal(out.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        assert not is_journal(out.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
        assert not is_journal(out.fileno(), {})


def test_the_demo_names_itself_as_it_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from presignd.cli.demo import own_name  # noqa: PLC0415 - imports the daemon

    command = tmp_path / "bin/presignd"
    command.parent.mkdir()
    command.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(command), "demo"])
    monkeypatch.setenv("PATH", os.defpath)
    assert own_name() == str(command)
    monkeypatch.setenv("PATH", str(command.parent))
    assert own_name() == "presignd"
    monkeypatch.setattr(sys, "argv", ["/somewhere/__main__.py", "demo"])
    assert own_name() == "presignd"


def test_a_name_in_the_demo_forges_no_line_and_no_colour(capsys: pytest.CaptureFixture[str]) -> None:
    from presignd.cli.demo import show as show_link  # noqa: PLC0415 - imports the daemon

    show_link(cast("Link", SimpleNamespace(key="a\n\x9b31mb", size=1, url="http://link")))
    shown = capsys.readouterr()
    assert shown.err == "a\\n\\x9b31mb  (1 byte)\n"
    assert shown.out == "http://link\n"


def test_the_demo_starts_no_second_store_on_the_same_files(tmp_path: Path) -> None:
    from presignd.cli.demo import claim  # noqa: PLC0415 - imports the daemon

    claim(tmp_path / "demo")
    claim(tmp_path / "demo")
    with DaemonLock(tmp_path / "demo/state"), pytest.raises(Unavailable, match="in use by another presignd") as caught:
        claim(tmp_path / "demo")
    assert "name another DIR" in caught.value.fix


def test_a_demo_where_no_folder_can_be_made_is_usage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(cli.app, ["demo", str(tmp_path / "file")])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"presignd: demo: {tmp_path / 'file'} can't be used: ")


def test_a_named_socket_without_a_daemon_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not "no configuration": who sets PRESIGND_SOCKET has none, and needs none."""
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(import_module("presignd.config.load"), "_SYSTEM_FILE", tmp_path / "none.toml")
    monkeypatch.delenv("PRESIGND_CONFIG", raising=False)
    monkeypatch.setenv("PRESIGND_SOCKET", str(tmp_path / "gone.sock"))
    done = CliRunner().invoke(cli.app, ["status"])
    assert done.exit_code == 3
    assert f"no daemon answers at PRESIGND_SOCKET={tmp_path / 'gone.sock'}" in done.stderr
    monkeypatch.delenv("PRESIGND_SOCKET")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(import_module("presignd.control.location"), "SYSTEM", tmp_path / "system.sock")
    done = CliRunner().invoke(cli.app, ["status"])
    assert done.exit_code == 2
    assert "no configuration found" in done.stderr


@pytest.mark.parametrize("group", [["broker"], ["broker", "token"]])
def test_the_line_of_each_command_of_a_group_fits(group: list[str]) -> None:
    _, _, commands = CliRunner().invoke(cli.app, [*group, "--help"]).output.partition("Commands:")
    assert commands.strip()
    assert "..." not in commands
