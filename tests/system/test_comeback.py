"""``after = "delete"`` and ``"move"`` against a writer that comes back in the worst microsecond: nothing lost.

What the writer has closed and not destroyed itself must be in an object or a local file (guarantee 6).
Left out is what no program can see: stores through a mapping, writers on other hosts, and whoever opens
presignd's own hidden name. ``PRESIGND_COMEBACK_TRIES`` and ``PRESIGND_COMEBACK_SEED`` make the runs longer or
others; ``python -m tests.system.comeback`` is the long run, ten thousand tries of each kind.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from presignd.pipeline.finish import remove as module
from tests.finishing import far
from tests.system.comeback import tries as tries_module
from tests.system.comeback.racing import racing
from tests.system.comeback.served import served
from tests.system.comeback.tries import Scene, stepwise

__all__ = ["far"]

TRIES = int(os.environ.get("PRESIGND_COMEBACK_TRIES", "400"))
SEED = int(os.environ.get("PRESIGND_COMEBACK_SEED", "1"))

pytestmark = [pytest.mark.timeout(3600), pytest.mark.long]


@pytest.fixture(params=["delete", "move", "across"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    if request.param != "across":
        return Scene(tmp_path, request.param, tmp_path / "done")
    done: Path = request.getfixturevalue("far")
    return Scene(tmp_path, "move", done)


@pytest.mark.parametrize("kind", [stepwise, racing, served])
def test_whoever_comes_back_loses_no_byte(scene: Scene, kind: Any) -> None:
    """In each gap between two system calls in turn; as a process that races; and against a whole daemon."""
    tally = kind(scene, TRIES, SEED)
    print(f"seed {SEED}:", tally.text())  # noqa: T201 - shown when it fails, and with -s
    assert tally.violations == []
    assert tally.tries == TRIES


BROKEN: dict[str, tuple[Any, str, Any]] = {
    "trusts the first look": (module, "check_content", lambda *_: None),
    "compares no content": (module, "content_checksum", lambda _fd, version: version.checksum),
    "looks for no writer": (tries_module, "has_writer", lambda _fd: False),
}


@pytest.fixture
def broken(request: pytest.FixtureRequest) -> Iterator[None]:
    target, name, instead = BROKEN[request.param]
    with patch.object(target, name, instead):
        yield


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("broken", list(BROKEN), indirect=True)
def test_a_build_that_trusts_too_much_is_caught(tmp_path: Path) -> None:
    assert stepwise(Scene(tmp_path, "delete", tmp_path / "done"), 400, 1).violations
