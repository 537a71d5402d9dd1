"""The man pages and completions of the package have every command, option and key."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from package import manual
from presignd.config.options import MANY, SECTIONS, keys
from presignd.errors import ExitCode

ROOT = Path(__file__).parents[2]
PAGES = manual.pages()


def sections(page: str) -> dict[str, set[str]]:
    """Return the tags of each section of a page, without roff's escapes."""
    plain = page.replace("\\-", "-").replace("\\e", "\\").replace("\\&", "")
    found = dict[str, set[str]]()
    for part in re.split(r"^\.S[HS] ", plain, flags=re.MULTILINE)[1:]:
        name, _, text = part.partition("\n")
        found.setdefault(name, set()).update(re.findall(r"^\.TP\n\.B (.+)$", text, re.MULTILINE))
    return found


def test_every_command_has_its_part_of_the_page_with_every_option() -> None:
    found = sections(PAGES["presignd.1"])
    commands = dict(manual.commands())
    assert {"run", "broker token create", "broker invite revoke"} <= commands.keys()
    for words, command in commands.items():
        tags = " ".join(found[f"presignd {words}"])
        for parameter in command.params:
            names = (
                parameter.opts
                if parameter.param_type_name == "option"
                else [parameter.metavar or parameter.name.upper()]
            )
            assert all(name in tags for name in names), (words, names)


def test_every_key_of_a_configuration_is_in_its_page() -> None:
    found = sections(PAGES["presignd.toml.5"])
    for section in SECTIONS:
        assert found[f"[[{section}]]" if section in MANY else f"[{section}]"] == set(keys(section))


def test_every_key_of_the_brokers_example_is_in_its_page() -> None:
    example = tomllib.loads((ROOT / "broker.example.toml").read_text("utf-8"))
    found = sections(PAGES["presignd-broker.toml.5"])
    for section, table in example.items():
        keyed = table[0] if isinstance(table, list) else table
        assert keyed.keys() <= found[f"[[{section}]]" if isinstance(table, list) else f"[{section}]"]


def test_every_exit_code_has_its_meaning() -> None:
    assert list(manual.MEANINGS) == list(ExitCode)
    assert sections(PAGES["presignd.1"])["EXIT STATUS"] == {str(int(code)) for code in ExitCode}


def test_no_line_of_a_text_is_a_request_or_an_escape_of_roff() -> None:
    assert manual.roff(".a\n'b\n\\c-d") == "\\&.a\n\\&'b\n\\ec\\-d"


@pytest.mark.parametrize("value", [True, 10, 1.5, "a", ["a", "b"], {}])
def test_a_default_is_written_as_in_toml(value: object) -> None:
    assert tomllib.loads(f"key = {manual._toml(value)}")["key"] == value


@pytest.mark.needs("bash")
def test_the_files_are_written_and_bash_reads_its_completion(tmp_path: Path) -> None:
    manual.main(tmp_path / "made")
    assert {path.name for path in (tmp_path / "made").iterdir()} == set(PAGES)
    subprocess.run(["bash", "-n", tmp_path / "made" / "presignd.bash"], check=True)
    assert (tmp_path / "made" / "presignd.zsh").read_text().startswith("#compdef presignd")
    assert "complete" in (tmp_path / "made" / "presignd.fish").read_text()
