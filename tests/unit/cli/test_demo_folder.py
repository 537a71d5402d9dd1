"""The demo's folder must belong to its user alone: others' symlinks could redirect its files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from presignd.cli.demo import claim
from presignd.errors import UsageError
from tests.unprivileged import NOBODY


@pytest.mark.parametrize(
    "other", ["anybody writes it", "a symlink", pytest.param("it is another's", marks=pytest.mark.needs("root"))]
)
def test_a_folder_that_others_prepared_is_refused_before_anything_is_made_in_it(tmp_path: Path, other: str) -> None:
    shared, folder = tmp_path / "shared", tmp_path / "shared/presignd-demo"
    shared.mkdir()
    shared.chmod(0o1777)
    if other == "a symlink":
        shared.chmod(0o777)
        (shared / "theirs").mkdir()
        folder.symlink_to("theirs")
    else:
        folder.mkdir()
    if other == "anybody writes it":
        folder.chmod(0o777)
    if other == "it is another's":
        os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(UsageError, match=r"presignd-demo can't be used: .*others can write"):
        claim(folder)
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_missing_or_ones_own_is_taken_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        claim(tmp_path / "new/demo")
    finally:
        os.umask(before)
    claim(tmp_path / "new/demo")
    assert (tmp_path / "new/demo/drop").is_dir()
