"""No command prints a secret that it was given: as an argument, in an option, or in its input."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from presignd import cli
from tests.canary import assert_no_secrets

SIGNATURE = "c0ffee15" * 8
SIGNED = (
    "http://h:9000/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=CANARYKEY0123456%2F20261128%2Fr%2Fs3%2F"
    f"aws4_request&X-Amz-Date=20261128T000000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Signature={SIGNATURE}"
)
TOKEN = "psd_canary-token-0123456789abcdefghijklmnopqrs"
SECRET_KEY = "Canary0secret/key+of40characters0123ABCD"
PRIVATE_KEY = (
    "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n-----END PRIVATE KEY-----\n"
)
ROOT = Path(__file__).parents[3]
CANARIES = {"signed URL": SIGNED, "token": TOKEN}
HIDDEN = (SIGNATURE, "CANARYKEY0123456", TOKEN[4:], SECRET_KEY)

CONFIG = """
[presign]
endpoint = "http://127.0.0.1:1"
region = "r"
access_key = "access"
secret_key = "secretkey"
[[watch]]
name = "drop"
path = "{folder}/drop"
bucket = "test-bucket"
[ledger]
path = "{folder}/state"
[control]
socket = "{folder}/control.sock"
"""
BROKER = """
[broker]
listen = "127.0.0.1:0"
token_files = ["{folder}/tokens.d/*.toml"]
[store]
endpoint = "http://127.0.0.1:1"
region = "r"
access_key = "access"
secret_key = "secretkey"
"""


def leaves(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return every command that does something, by the words that call it."""
    if not hasattr(command, "commands"):
        return {path: command}
    found: dict[tuple[str, ...], Any] = {}
    for name, below in command.commands.items():
        found |= leaves(cli.load(name) if not path else below, (*path, name))
    return found


COMMANDS = leaves(typer.main.get_command(cli.app))


def mistakes() -> list[tuple[str, ...]]:
    """Return ways to call each command with SECRET where it takes a value, and where it takes none."""
    found: list[tuple[str, ...]] = [("SECRET",), ("--SECRET",), ("broker", "SECRET"), ("broker", "token", "SECRET")]
    for path, command in COMMANDS.items():
        needed = [word for one in command.params if one.required for word in _given(one, "x")]
        found += [(*path, *needed, "--SECRET"), (*path, *needed, "--json=SECRET"), (*path, "SECRET", "SECRET")]
        for one in command.params:
            if getattr(one, "is_flag", False) and one.param_type_name == "option":
                continue
            rest = [other for other in command.params if other.required and other is not one]
            others = [word for other in rest for word in _given(other, "x")]
            found.append((*path, *others, *_given(one, "SECRET")))
    # These would begin their work, for they take any name.
    return [each for each in found if each[:2] != ("demo", "SECRET")]


def _given(parameter: Any, value: str) -> list[str]:
    return [value] if parameter.param_type_name == "argument" else [parameter.opts[-1], value]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder to be in, with nothing of this machine's in sight."""
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PRESIGND_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("PRESIGND_SOCKET", str(tmp_path / "none.sock"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drop").mkdir()
    return tmp_path


def run(*arguments: str) -> Result:
    done = CliRunner().invoke(cli.app, list(arguments))
    shown = done.stdout + done.stderr
    assert "Traceback" not in shown
    assert_no_secrets(shown, *HIDDEN)
    return done


@pytest.mark.parametrize("secret", CANARIES)
@pytest.mark.parametrize(
    ("arguments", "configured"),
    [
        (arguments, configured)
        for configured in (False, True)
        for arguments in mistakes()
        if not (configured and arguments[0] == "run")  # it would serve
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else ["unconfigured", "configured"][value],
)
def test_no_mistake_is_told_with_the_secret_in_it(
    place: Path, arguments: tuple[str, ...], secret: str, *, configured: bool
) -> None:
    if configured:
        (place / "config.toml").write_text(CONFIG.format(folder=place))
        (place / "config.toml").chmod(0o600)
    done = run(*(word.replace("SECRET", CANARIES[secret]) for word in arguments))
    assert done.stdout + done.stderr or done.exit_code == 0, "something is said"


def test_every_command_is_tried() -> None:
    assert {path[0] for path in COMMANDS} == set(cli.COMMANDS)
    assert ("broker", "token", "revoke") in COMMANDS


def options(example: str) -> list[tuple[str, str]]:
    """Return section and name of each option in an example file."""
    tables = tomllib.loads((ROOT / example).read_text())
    first = {name: table[0] if isinstance(table, list) else table for name, table in tables.items()}
    return [(section, name) for section, table in first.items() for name in table]


SHAPED = {**CANARIES, "private key": PRIVATE_KEY}
SECRETS = {**SHAPED, "secret key": SECRET_KEY, "rooted key": f"/{SECRET_KEY[:30]}", "word": "hunter2-swordfish"}
PLACED = options("config.example.toml")


def misplaced(places: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Return each option with each secret: what has no shape is known where a file of secrets is to be named."""
    files = {"access_key_file", "secret_key_file", "token_file"}
    return [
        (section, name, which)
        for section, name in places
        for which in (SECRETS if name in files and section != "web" else SHAPED)
    ]


@pytest.mark.parametrize(("section", "name", "secret"), misplaced(PLACED))
def test_a_secret_in_the_wrong_option_is_not_told_again(place: Path, section: str, name: str, secret: str) -> None:
    """``run`` ends at it; where the value is allowed, ``config`` shows it masked."""
    value = SECRETS[secret]
    tables = tomllib.loads(CONFIG.format(folder=place))
    table = tables.setdefault(section, {})
    table = table[0] if isinstance(table, list) else table
    if name.startswith(("access_key", "secret_")):
        del table[name.split("_", maxsplit=1)[0] + "_key"]
    table[name] = value
    if name in {"url", "token", "token_file"}:
        table["kind"] = "broker"
    write(place / "config.toml", tables)
    for command in (("config",), ("config", "--json"), ("check", "--offline"), ("check", "--offline", "--json")):
        hides(run(*command), value)
    if run("config").exit_code:
        hides(run("run", "--dry-run"), value)


@pytest.mark.parametrize("secret", CANARIES)
@pytest.mark.parametrize(("section", "name"), PLACED)
def test_a_secret_in_a_variable_is_not_told_again(
    place: Path, section: str, name: str, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(place / "config.toml", tomllib.loads(CONFIG.format(folder=place)))
    watch = "DROP__" if section == "watch" else ""
    monkeypatch.setenv(f"PRESIGND_{section.upper()}__{watch}{name.upper()}", CANARIES[secret])
    run("config")
    run("check", "--offline")


@pytest.mark.parametrize(("section", "name", "secret"), misplaced(options("broker.example.toml")))
def test_a_secret_in_the_brokers_file_is_not_told_again(place: Path, section: str, name: str, secret: str) -> None:
    value = SECRETS[secret]
    tables = tomllib.loads(BROKER.format(folder=place))
    table = tables.setdefault(section, {})
    if section == "token":
        table = {"name": "t", "bucket": "test-bucket", "hash": "sha256:" + "0" * 64, "prefix": "t/"}
        tables["token"] = [table]
    if name.startswith(("access_key", "secret_")):
        table.pop(name.split("_", maxsplit=1)[0] + "_key", None)
    table[name] = value
    write(place / "broker.toml", tables)
    for command in (("token", "list"), ("token", "list", "--json"), ("token", "revoke", "x")):
        hides(run("broker", *command, "-c", "broker.toml"), value)


def test_a_file_that_is_missing_is_named_where_it_is_clearly_one(place: Path) -> None:
    tables = tomllib.loads(CONFIG.format(folder=place))
    del tables["presign"]["secret_key"]
    write(place / "config.toml", {**tables, "presign": {**tables["presign"], "secret_key_file": f"{place}/secret_key"}})
    assert f"presign.secret_key_file: {place}/secret_key can't be read: No such file" in run("config").stderr
    write(place / "config.toml", {**tables, "presign": {**tables["presign"], "secret_key_file": "hunter2-swordfish"}})
    told = run("config").stderr
    assert "presign.secret_key_file: names no file" in told
    assert "hunter2" not in told


@pytest.mark.parametrize("secret", CANARIES)
def test_names_and_sections_that_hold_a_secret_are_not_told_again(place: Path, secret: str) -> None:
    name = json.dumps(CANARIES[secret])
    for text in (f"{name} = 1\n", f"[{name}]\nx = 1\n", f"[presign]\n{name} = 1\n", f"[[watch]]\nname = {name}\n"):
        for file, command in (("config.toml", ["config"]), ("broker.toml", ["broker", "token", "list"])):
            (place / file).write_text(text)
            assert run(*command, "-c", file).exit_code == 2
    (place / "config.toml").write_text(f"[presign]\nendpoint = {CANARIES[secret]}\n")
    assert run("config").exit_code == 2


def write(file: Path, tables: dict[str, Any]) -> None:
    """Write TOML: JSON's values are among its own."""
    lines = []
    for name, table in tables.items():
        for one in table if isinstance(table, list) else [table]:
            lines += [f"[[{name}]]" if isinstance(table, list) else f"[{name}]"]
            lines += [f"{key} = {json.dumps(value)}" for key, value in one.items()]
    file.write_text("\n".join(lines))
    file.chmod(0o600)


def hides(done: Result, secret: str) -> None:
    """Fail where a whole secret, or a long piece of it, was printed."""
    shown = done.stdout + done.stderr
    for piece in [secret] if secret.startswith(("http:", "psd_")) else re.findall(r"\w{9,}", secret):
        assert piece not in shown
