"""Who may read the links: modes, groups, and groups that can't be set."""

from __future__ import annotations

import errno
import grp
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from presignd.config import LinksConfig
from presignd.errors import UsageError
from presignd.links import LinksFile
from presignd.links.permissions import make_links_folder
from tests.links import batch, config, opened
from tests.needs import need
from tests.unprivileged import without_rights, world_readable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["config"]
ROOT = os.geteuid() == 0
NOBODY = 65534


def modes(config: LinksConfig) -> tuple[int, int]:
    return tuple(stat.S_IMODE(path.stat().st_mode) for path in (config.file.parent, config.file))  # type: ignore[return-value]  # two paths, two modes


@pytest.fixture(params=[0, 0o077, 0o777])
def umask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """Set it once the test's own folder is made."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def own_group() -> str:
    return grp.getgrgid(os.getegid()).gr_name


@pytest.mark.usefixtures("umask")
def test_only_the_daemons_user_reads_the_links_whatever_the_umask(config: LinksConfig) -> None:
    config = config.model_copy(update={"rotate_size": 1})
    with opened(config) as links:
        links.append(batch(1))
        links.append(batch(2))
    assert modes(config) == (0o700, 0o600)
    assert stat.S_IMODE(config.file.with_name("links.jsonl.1").stat().st_mode) == 0o600


def test_a_umask_that_takes_every_right_keeps_nobody_out_of_his_own_folder() -> None:
    with world_readable() as place:
        place.chmod(0o777)
        config = LinksConfig(file=place / "links" / "links.jsonl")
        before = os.umask(0o777)
        try:
            with without_rights(), opened(config) as links:
                links.append(batch(1))
        finally:
            os.umask(before)
        assert modes(config) == (0o700, 0o600)


@pytest.mark.usefixtures("umask")
def test_with_a_group_it_reads_them_too_and_nobody_else(config: LinksConfig) -> None:
    config = config.model_copy(update={"rotate_size": 1, "group": own_group()})
    with opened(config) as links:
        links.append(batch(1))
        links.append(batch(2))
    assert modes(config) == (0o2750, 0o640)


def test_a_group_set_later_gets_the_folder_and_every_file(config: LinksConfig) -> None:
    with opened(config.model_copy(update={"rotate_size": 1})) as links:
        links.append(batch(1))
        links.append(batch(2))
    with opened(config.model_copy(update={"group": own_group()})):
        assert modes(config) == (0o2750, 0o640)
        assert stat.S_IMODE(config.file.with_name("links.jsonl.1").stat().st_mode) == 0o640


def test_a_folder_that_holds_other_things_keeps_its_mode(tmp_path: Path) -> None:
    """``links.file = "/root/links.jsonl"`` doesn't open root's home to a group."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "diary").touch()
    with opened(LinksConfig(file=home / "links.jsonl", group=own_group())):
        assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_missing_group_is_a_clear_error_before_anything_is_made(tmp_path: Path) -> None:
    config = LinksConfig(file=tmp_path / "links" / "links.jsonl", group="no-such-group")
    with pytest.raises(UsageError, match=r'links\.group: there is no group "no-such-group"'):
        LinksFile.open(config, None)
    assert not config.file.parent.exists()


def unprivileged(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )


OPEN = """
import sys
from pathlib import Path
from presignd.config import LinksConfig
from presignd.errors import PresigndError
from presignd.links import LinksFile
from presignd.links.permissions import make_links_folder
try:
    LinksFile.open(LinksConfig(file=Path(sys.argv[1]), group=sys.argv[2]), None)
except PresigndError as error:
    print(error.message)
"""


@pytest.fixture
def nobodys() -> Iterator[Path]:
    need("another user")
    folder = Path("/var/tmp") / f"presignd-test-{os.getpid()}"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


def test_a_group_that_the_daemon_is_not_in_is_a_clear_error(nobodys: Path) -> None:
    done = unprivileged(OPEN, nobodys / "links" / "links.jsonl", own_group())
    assert "links.group: the daemon's user may not give files to group" in done.stdout, done.stderr


def test_a_folder_that_can_not_be_written_to_is_a_clear_error(nobodys: Path) -> None:
    nobodys.chmod(0o500)
    done = unprivileged(OPEN, nobodys / "links" / "links.jsonl", "")
    assert "links.file: " in done.stdout, done.stderr
    assert "Permission denied" in done.stdout


def test_a_folder_that_may_not_be_made_setgid_is_told_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under systemd's RestrictSUIDSGID= nobody sets that bit, whoever he is."""

    def refused(_fd: int, _mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refused)
    with pytest.raises(UsageError, match="may not give its folder the mode 2750") as told:
        make_links_folder(tmp_path / "links", "links.jsonl", os.getegid())
    assert f"install -d -o presignd -g {os.getegid()} -m 2750" in told.value.fix
