"""Runs of the harness beside each other, each a process with a store of its own: they wait most of the time."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import pytest

from presignd.demo.seaweedfs import Child
from tests.needs import why_not
from tests.system.crash.run import CHECKOUT

AT_ONCE = 4
"""One takes 0.4 of a core."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: 0 when every promise was kept, 1 when one was broken; and all it said."""

    code: int
    text: str


class Beside:
    """Begins runs, ``AT_ONCE`` at a time, in the order they are asked for; ends what is left of them on leaving."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._pool = folder, ThreadPoolExecutor(AT_ONCE)
        self._runs: dict[tuple[str, ...], Future[Ended]] = {}
        self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._pool.shutdown(cancel_futures=True)

    def begin(self, *arguments: str) -> None:
        """Run ``python -m tests.system.crash`` with these arguments as soon as there is room."""
        self._runs[arguments] = self._pool.submit(self._run, len(self._runs), arguments)

    def ended(self, *arguments: str) -> Ended:
        """Wait for the end of a run that was begun."""
        return self._runs[arguments].result()

    def _run(self, number: int, arguments: Sequence[str]) -> Ended:
        """Run one. It dies with the thread that started it, which lives as long as the pool."""
        argv = [sys.executable, "-m", "tests.system.crash", *arguments]
        child = Child(argv, env=os.environ, cwd=CHECKOUT, log=self._folder / f"{number}.log")
        while child.running and not self._over:
            time.sleep(0.1)
        child.stop()
        return Ended(child.returncode, child.log_text())


def begun(request: pytest.FixtureRequest, factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """Begin the runs (the parameter ``run``) of all tests of this module that will be run, in their order."""
    of_module = [
        item for item in request.session.items if isinstance(item, pytest.Function) and item.module is request.module
    ]
    items = [item for item in of_module if not any(why_not(*mark.args) for mark in item.iter_markers("needs"))]
    parameters = [item.callspec.params for item in items if hasattr(item, "callspec")]
    with Beside(factory.mktemp("runs")) as beside:
        for given in parameters:
            if "run" in given:
                beside.begin(*cast("tuple[str, ...]", given["run"]))
        yield beside
