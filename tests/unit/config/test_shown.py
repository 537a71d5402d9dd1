"""The configuration is shown correctly: the example, the schema, and ``presignd config``."""

from __future__ import annotations

import json
import os
import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from presignd.cli.config import config_command
from presignd.config import load
from presignd.config.options import SECTIONS, defaults, json_schema
from presignd.units import format_duration, parse_duration

EXAMPLE = Path(__file__).parents[3] / "config.example.toml"
NEEDED = {
    "watch": {"name", "path", "bucket"},
    "inbox": {"name", "path", "invitation"},
    "webhook": {"name", "url", "secret"},
}


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """Return the example, with the sections of many that it has as comments."""
    return tomllib.loads(re.sub(r"^#(?=\[\[|\w+ = )", "", EXAMPLE.read_text(), flags=re.MULTILINE))


def tables(example: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: table[0] if isinstance(table, list) else table for name, table in example.items()}


def test_the_example_holds_every_option_and_no_other_in_the_models_order(example: dict[str, Any]) -> None:
    assert {name: list(table) for name, table in tables(example).items()} == {
        name: list(model.model_fields) for name, model in SECTIONS.items()
    }


def test_the_example_gives_every_default(example: dict[str, Any]) -> None:
    for name, table in tables(example).items():
        given = {key: canonical(value) for key, value in table.items() if key not in NEEDED.get(name, ())}
        assert given == defaults(SECTIONS[name])


def canonical(value: object) -> object:
    """Return a duration as the models write it: "60s" and "1m" are the same default."""
    try:
        return format_duration(parse_duration(value)) if isinstance(value, str) else value
    except ValueError:
        return value


def test_the_example_explains_every_option() -> None:
    """Each option, or the group it stands in, has its comment right above."""
    lines = EXAMPLE.read_text().splitlines()
    for above, line in pairwise(lines):
        if "=" in line and not line.startswith("#"):
            assert above.startswith("#") or "=" in above, line


def test_the_example_loads_as_it_stands(tmp_path: Path) -> None:
    loaded = load(EXAMPLE, environ={"HOME": str(tmp_path)})
    assert loaded.config.watches[0].bucket == "test-bucket"
    assert loaded.warnings == ()


def test_the_schema_has_the_files_names_defaults_and_descriptions() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(SECTIONS)
    assert schema["additionalProperties"] is False
    for name, model in SECTIONS.items():
        section = schema["$defs"][model.__name__]
        assert set(section["properties"]) == set(model.model_fields)
        assert set(section["required"]) == NEEDED.get(name, set())
        for key, default in defaults(model).items():
            assert section["properties"][key]["default"] == default
        assert all(option["description"] for option in section["properties"].values())


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in os.environ:
        if variable.startswith(("AWS_", "PRESIGND_", "SSL_", "XDG_", "STATE_", "CREDENTIALS_")):
            monkeypatch.delenv(variable)


def run(*args: str, **environ: str) -> Result:
    app = typer.Typer()
    app.command()(config_command)
    return CliRunner().invoke(app, args, env=environ, catch_exceptions=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(
        '[presign]\naccess_key = "AKIASECRET"\nsecret_key = "hunter2-SECRET"\n'
        '[[watch]]\nname = "drop"\npath = "/srv/drop"\nbucket = "test-bucket"\nignore = ["a\\"b", "\\u00e9"]\n'
        'headers = { "x-amz-meta-a" = "1" }\nsettle = "2s"\n[ledger]\npath = "/l"\n'
    )
    file.chmod(0o644)
    return file


def test_config_shows_each_value_with_its_source_and_no_secret(file: Path) -> None:
    result = run("-c", str(file), PRESIGND_UPLOAD__CONCURRENCY="3")
    lines = [line.split("  # ") for line in result.stdout.splitlines()]
    shown = {line[0].strip(): line[1] for line in lines if len(line) == 2}
    assert shown['secret_key = "********"'] == f"from file {file}"
    assert shown["concurrency = 3"] == "from environment PRESIGND_UPLOAD__CONCURRENCY"
    assert shown['put_expires = "1h"'] == "default"
    assert "SECRET" not in result.output
    assert f"chmod 600 {file}" in result.stderr


def test_what_config_shows_is_the_same_configuration_but_for_secrets(file: Path, tmp_path: Path) -> None:
    shown = tmp_path / "shown.toml"
    shown.write_text(run("-c", str(file)).stdout)
    environ = {"HOME": str(tmp_path)}
    again, first = load(shown, environ=environ).config, load(file, environ=environ).config
    assert again.model_dump(exclude={"presign": {"access_key", "secret_key"}}) == first.model_dump(
        exclude={"presign": {"access_key", "secret_key"}}
    )


def test_config_as_json_is_one_document(file: Path) -> None:
    document = json.loads(run("-c", str(file), "--json").stdout)
    assert document["file"] == str(file)
    assert document["config"]["watch"][0]["settle"] == "2s"
    assert document["sources"]["watch.drop.settle"] == f"file {file}"
    assert "SECRET" not in json.dumps(document)


def test_config_prints_the_schema_without_any_configuration(tmp_path: Path) -> None:
    result = run("--schema", HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path))
    assert json.loads(result.stdout) == json_schema()
