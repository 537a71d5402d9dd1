"""A machine that lacks something skips tests and does not fail; a machine that has everything may skip nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import NEEDS, SKIPPED, STRICT

CHECKOUT = Path(__file__).parents[2]
CODE = "def half(x):\n    if x:\n        return 1\n    return 2\n"
MISSING = """
import pytest, half
from tests import needs
needs.NEEDS["a thing"] = (lambda: False, "a thing (apt-get install thing)")
def test_here():
    assert half.half(True) == 1
@pytest.mark.needs("a thing")
def test_by_a_mark():
    assert half.half(False) == 2
@pytest.fixture
def thing():
    needs.need("a thing")
def test_by_a_fixture(thing):
    assert half.half(False) == 2
"""


def ran(folder: Path, tests: str, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run these tests of one function, of which all must be covered."""
    (folder / "half.py").write_text(CODE)
    (folder / "test_it.py").write_text(tests)
    (folder / "setup.cfg").write_text("[coverage:report]\nfail_under = 100\n[tool:pytest]\nmarkers = needs\n")
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "tests.needs", "--cov=half", *options]
    given = {"PATH": os.defpath, "PYTHONPATH": f"{CHECKOUT}:{folder}", **environ}
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, check=False)


def test_what_is_missing_is_skipped_with_one_line_and_coverage_is_not_judged(tmp_path: Path) -> None:
    done = ran(tmp_path, MISSING)
    assert done.returncode == 0, done.stdout
    [line] = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED [2] ")]
    assert line.endswith("tests/needs.py: needs a thing (apt-get install thing)")
    assert "2 skipped for what is missing here: coverage is shown, not judged" in done.stdout


def test_where_nothing_may_be_skipped_the_run_fails(tmp_path: Path) -> None:
    done = ran(tmp_path, MISSING, **{STRICT: "1"})
    assert done.returncode == 1
    assert f"ERROR: 2 skipped, and {STRICT} is set" in done.stdout


def test_where_nothing_was_skipped_coverage_is_judged(tmp_path: Path) -> None:
    done = ran(tmp_path, "import half\ndef test_it():\n    half.half(True)\n")
    assert done.returncode == 1
    assert "Coverage failure" in done.stdout


def test_what_was_skipped_runs_where_nothing_is_missing_and_both_runs_are_judged_together(tmp_path: Path) -> None:
    skipped = tmp_path / "skipped"
    ran(tmp_path, MISSING, **{SKIPPED: f"{skipped}"})
    assert skipped.read_text().splitlines() == ["test_it.py::test_by_a_fixture", "test_it.py::test_by_a_mark"]
    rest = MISSING.replace("lambda: False", "lambda: True")
    alone = ran(tmp_path, rest, f"@{skipped}", **{STRICT: "1"})
    assert "Coverage failure" in alone.stdout
    ran(tmp_path, MISSING)
    together = ran(tmp_path, rest, "--cov-append", f"@{skipped}", **{STRICT: "1"})
    assert together.returncode == 0, together.stdout
    assert "2 passed" in together.stdout


def test_every_need_that_is_named_is_a_row(request: pytest.FixtureRequest) -> None:
    marks = [name for item in request.session.items for mark in item.iter_markers("needs") for name in mark.args]
    assert set(marks) <= set(NEEDS)
