"""Completion in a real bash, installed as the README says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.system.harness import COMMAND

pytestmark = pytest.mark.needs("bash")


def bash(home: Path, script: str) -> str:
    """Run a script in bash with the command on PATH; bash must be its parent, for that is how shells are told."""
    environ = {"HOME": os.fspath(home), "PATH": f"{COMMAND.parent}:{os.defpath}", "SHELL": "/bin/bash"}
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n:"], env=environ, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install it for the current shell, which is found by itself."""
    home = tmp_path_factory.mktemp("home")
    assert "bash completion installed" in bash(home, "presignd --install-completion")
    return home


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("presignd st", {"status"}),
        ("presignd l", {"links", "link"}),
        ("presignd put --ex", {"--expires", "--expire"}),
        ("presignd run --dr", {"--dry-run"}),
        ("presignd links --", {"--follow", "--json", "--cursor-file", "--exec", "--issued", "--config", "--help"}),
    ],
)
def test_installed_completion_knows_commands_and_their_options(home: Path, words: str, completed: set[str]) -> None:
    count = len(words.split()) - 1
    script = f"""
        source ~/.bashrc
        read -r -a COMP_WORDS <<< '{words}'; COMP_CWORD={count}
        function=$(complete -p presignd); function=${{function#*-F }}
        ${{function%% *}} presignd
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    assert set(bash(home, script).split()) == completed


def test_shown_completion_is_what_gets_installed(home: Path) -> None:
    shown = bash(home, "presignd --show-completion")
    assert shown.strip() == (home / ".bash_completions/presignd.sh").read_text().strip()
