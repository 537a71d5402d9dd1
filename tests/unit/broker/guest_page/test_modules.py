"""The page's pure modules, tested by Node's own runner."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.needs import NODE

HERE = Path(__file__).parent


@pytest.mark.needs("node")
@pytest.mark.parametrize("path", sorted(HERE.glob("*.test.mjs")), ids=lambda path: path.name.partition(".")[0])
def test_the_pages_modules_keep_their_promises(path: Path) -> None:
    done = subprocess.run([NODE, "--test", path], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
