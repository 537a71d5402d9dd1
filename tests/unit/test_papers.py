"""The documents match the code: each list that could drift is compared with its one source."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import presignd
from presignd.errors import CODES
from presignd.model import State
from presignd.states import TRANSITIONS, Event

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
ERRORS = ROOT / "docs" / "errors.md"
GUARANTEES = ROOT / "docs" / "guarantees.md"
BORN = (State.QUEUED, State.QUARANTINED, State.IGNORED)
"""A settled content is recorded in one of these (``Ledger.enqueue``)."""


def error_row(code: str) -> str:
    """Return the errors page's row for ``code``: the table is made of these."""
    entry = CODES[code]
    cells = (f"`{code}`", entry.cause, entry.fix)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def diagram(transitions: Mapping[State, Mapping[Event, State]]) -> str:
    """Return the mermaid state diagram of ``transitions``."""
    lines = [f"[*] --> {state}" for state in BORN]
    lines += [f"{old} --> {new}: {event}" for old, moves in transitions.items() for event, new in moves.items()]
    lines += [f"{state} --> [*]" for state, moves in transitions.items() if not moves]
    return "\n".join(["stateDiagram-v2", *(f"    {line}" for line in lines)])


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)


def project_files() -> Iterator[Path]:
    """Yield what belongs to the project, with or without git: all but what .gitignore names."""
    made = {line.strip("/") for line in (ROOT / ".gitignore").read_text("utf-8").split()} | {".git"}
    for folder, below, files in os.walk(ROOT):
        below[:] = [name for name in below if name not in made and not name.endswith(".egg-info")]
        yield from (Path(folder, name) for name in files if name not in made and not name.endswith(".pyc"))


def test_the_errors_page_has_a_row_for_every_error_code_and_no_other() -> None:
    page = ERRORS.read_text("utf-8")
    missing = [error_row(code) for code in CODES if error_row(code) not in page]
    assert not missing, "docs/errors.md lacks these rows:\n" + "\n".join(missing)
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", page, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert {code for code in rows if code not in CODES} == set(), "these rows name no error code"


def test_every_import_is_a_declared_dependency() -> None:
    """What another package brings along may go with its next version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    optional = [line for extra, lines in project["optional-dependencies"].items() if extra != "dev" for line in lines]
    declared = {re.split(r"[^\w-]", line)[0].lower() for line in project["dependencies"] + optional}
    owners = packages_distributions()
    trees = [ast.parse(path.read_bytes()) for path in (ROOT / "presignd").rglob("*.py")]
    found = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in found if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in found if isinstance(node, ast.ImportFrom)}
    used = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"presignd"}
    undeclared = {
        name for name in used if not declared & {each.lower().replace("_", "-") for each in owners.get(name, ())}
    }
    assert undeclared == set(), "pyproject.toml does not declare what these come from"


@pytest.mark.parametrize("copies", ["systemd/install.sh", "tests/system/host.py"])
def test_who_copies_a_checkout_to_install_it_copies_all_that_a_wheel_is_made_of(copies: str) -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {path.partition("/")[0] for paths in setuptools["data-files"].values() for path in paths}
    text = (ROOT / copies).read_text("utf-8")
    assert folders >= {"systemd", "desktop"}
    for folder in folders:
        assert re.search(rf"""(\./|"){folder}\b""", text), f"{copies} leaves out {folder}/"


def test_ci_runs_the_readmes_test_command() -> None:
    """.ci/run takes the block behind this marker; its last step is pytest, the rest is set-up."""
    [command] = re.findall(
        r"^<!-- test-command -->\n```\w*\n(.+)\n```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert command == "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/pytest -n 2 --cov"


def test_the_architecture_page_shows_the_states_as_they_are() -> None:
    diagrams = fenced(ARCHITECTURE.read_text("utf-8"), "mermaid")
    assert diagram(TRANSITIONS) in diagrams, f"docs/architecture.md should show:\n{diagram(TRANSITIONS)}"


def test_the_architecture_page_names_each_part_and_none_that_is_gone() -> None:
    text = ARCHITECTURE.read_text("utf-8")
    named = set(re.findall(r"`presignd/([\w/.]+)`", text))
    parts = {
        path.name + "/" * path.is_dir() for path in (ROOT / "presignd").iterdir() if not path.name.startswith("__")
    }
    assert not parts - named, "docs/architecture.md says nothing of these"
    gone = {name for name in named if not (ROOT / "presignd" / name).exists()}
    assert not gone, "docs/architecture.md names what is not there"


def test_the_guarantees_page_has_each_guarantee_with_its_mechanisms() -> None:
    text = GUARANTEES.read_text("utf-8")
    assert [int(number) for number in re.findall(r"^## (\d+)\. ", text, re.MULTILINE)] == list(range(1, 12))
    for section in text.split("\n## ")[1:]:
        assert re.search(r"^\|.*`test_", section, re.MULTILINE), f"no test tries this: {section.splitlines()[0]}"
    modules = set(re.findall(r"`(?:presignd/)?((?:\w+/)*\w+\.py|\w+/)`", text))
    assert {name for name in modules - {"tests/"} if not (ROOT / "presignd" / name).exists()} == set()


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / page).read_text("utf-8")))
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py"))
    written = set(re.findall(r"\bdef (test_\w+)\(", sources)) | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    assert named - written == set()


PAGES = ["README.md", "CHANGELOG.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", path.read_text("utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_changelog_tells_of_this_version() -> None:
    heads = re.findall(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert heads[0] in ("Unreleased", presignd.__version__)


def test_no_file_names_a_registry_host_or_a_path_of_the_machine_it_was_made_on() -> None:
    """Addresses of mirrors get into lock files and scripts unseen, and work nowhere else."""
    words = (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("proxy", "golang", "org"),
        ("crates", "io"),
    )
    banned = [".".join(parts) for parts in words] + ["index" + "-url", "/wo" + "rk/", "/bash" + "_jobs"]
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in project_files()
        for word in banned
        if word.encode() in path.read_bytes()
    ]
    assert found == []


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize(
    ("unit", "scope"), [("presignd", "--system"), ("presignd-broker", "--system"), ("presignd-notify", "--user")]
)
def test_units_hold_nothing_that_systemd_does_not_know(unit: str, scope: str, tmp_path: Path) -> None:
    """Its exit code is 0 for unknown keys: only silence is good, but for the program not installed here."""
    done = subprocess.run(
        ["systemd-analyze", scope, "verify", ROOT / "systemd" / f"{unit}.service"],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    told = (done.stdout + done.stderr).splitlines()
    assert [line for line in told if "/opt/presignd/bin/presignd is not executable" not in line] == []
