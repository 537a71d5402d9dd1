"""The cost of a scan for each file that is already recorded, counted: a million files take seconds."""

from __future__ import annotations

import cProfile
import pstats
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from presignd.config import WatchConfig
from presignd.ledger import changes
from presignd.ledger import queries as questions
from presignd.ledger.schema import LEDGER
from presignd.model import Fingerprint, Listed
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.watch.scan import Scan
from presignd.system.sqlite import DatabaseFile
from tests.ignoring import ignoring
from tests.versions import new

CALLS = 21
"""Of Python's and C's functions a file, at most: 1.6 times what was counted when this was written."""

FEW, MANY = 100, 900


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = DatabaseFile(tmp_path / "db", LEDGER).open()
    yield connection
    connection.close()


def differing(ledger: sqlite3.Connection, watch: str, folder: Folder) -> list[Listed]:
    return [one for batch in Scan(folder, ignoring()).batches() for one in questions.differing(ledger, watch, batch)]


def calls(ledger: sqlite3.Connection, root: Path, files: int) -> int:
    """Return the calls of a scan of so many recorded files."""
    root.mkdir()
    for number in range(files):
        (root / f"{number}.pdf").touch()
    folder = Folder(WatchConfig(name=root.name, path=root, bucket="bucket"))
    found = [
        new(path, watch=root.name, key=f"{root.name}/{path.decode()}", fingerprint=Fingerprint(*rest))
        for path, *rest in differing(ledger, root.name, folder)
    ]
    changes.enqueue(ledger, found)
    profile = cProfile.Profile()
    assert profile.runcall(differing, ledger, root.name, folder) == []
    folder.close()
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined] # typeshed has it not


def test_a_recorded_file_costs_a_scan_a_few_calls(ledger: sqlite3.Connection, tmp_path: Path) -> None:
    few, many = calls(ledger, tmp_path / "few", FEW), calls(ledger, tmp_path / "many", MANY)
    assert (many - few) / (MANY - FEW) <= CALLS
