"""Imports without an optional module."""

from __future__ import annotations

import subprocess
import sys

import pytest

from presignd.system.imports import without


@pytest.mark.parametrize("name", ["colorsys", "os"])
def test_a_module_is_missing_in_the_body_only(name: str) -> None:
    sys.modules.pop("colorsys", None)
    loaded = sys.modules.get(name)
    with without(name), pytest.raises(ImportError):
        __import__(name)
    assert sys.modules.get(name) is loaded
    assert __import__(name).__name__ == name


def test_the_log_is_loaded_without_rich() -> None:
    code = "import sys, presignd.telemetry.log; print(*[name for name in sys.modules if name.startswith('rich')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
