"""Only files and symlinks that no other user could have made are trusted."""

from __future__ import annotations

import os
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from presignd.config import WatchConfig
from presignd.errors import UsageError
from presignd.pipeline.files.folder import Folder
from presignd.system import trust
from tests.descriptors import open_descriptors
from tests.unprivileged import NOBODY, without_rights, world_readable

as_root = pytest.mark.needs("root")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Make a folder that everybody may write."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def walk(path: Path) -> tuple[str, str]:
    with trust.walked(path) as place:
        assert os.path.samestat(os.fstat(place.fd), path.stat())
        return place.path, place.exposed_by


def test_a_path_of_ones_own_is_walked_through_its_symlinks(tmp_path: Path) -> None:
    (tmp_path / "real/below").mkdir(parents=True)
    (tmp_path / "relative").symlink_to("real/../real")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative/below")
    for way in ("real/below", "relative/below", "absolute", "real/./below/../below", "absolute/../below"):
        assert walk(tmp_path / way) == (f"{tmp_path}/real/below", "")


def test_below_a_folder_that_others_can_write_no_symlink_is_followed(shared: Path, tmp_path: Path) -> None:
    (shared / "plain/deep").mkdir(parents=True)
    (shared / "link").symlink_to("plain")
    (shared / "plain/link").symlink_to("deep")
    (tmp_path / "own").symlink_to("shared/plain")
    assert walk(tmp_path / "own/deep") == (f"{shared}/plain/deep", str(shared))
    for way in ("link", "plain/link", "plain/../plain"):
        with pytest.raises(OSError, match="others can"), trust.walked(shared / way):
            pass


@as_root
def test_whose_folder_it_is_decides_as_its_mode_does(tmp_path: Path) -> None:
    """A folder of the daemon's user is his own, of another's not; a sticky folder keeps to who made what."""
    for name, owner, mode, follows in (
        ("root's", 0, 0o755, True),
        ("another's", NOBODY, 0o755, False),
        ("a group's", 0, 0o775, False),
        ("sticky", 0, 0o1777, True),
        ("another's sticky one", NOBODY, 0o1777, False),
    ):
        folder = tmp_path / name
        (folder / "to").mkdir(parents=True)
        (folder / "link").symlink_to("to")
        os.chown(folder, owner, 12345)
        folder.chmod(mode)
        try:
            walk(folder / "link")
        except OSError:
            followed = False
        else:
            followed = True
        assert followed is follows, name


@as_root
def test_in_a_sticky_folder_a_symlink_of_another_user_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "link").symlink_to("to")
    os.chown(tmp_path / "link", NOBODY, NOBODY, follow_symlinks=False)
    tmp_path.chmod(0o1777)
    with pytest.raises(OSError, match="link is a symlink"), trust.walked(tmp_path / "link"):
        pass


def test_a_loop_of_symlinks_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"), trust.walked(tmp_path / "a"):
        pass
    with pytest.raises(OSError, match="Too many levels"):
        trust.open_file(tmp_path / "a")


def test_nothing_stays_open(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "file").write_text("text")
    (shared / "link").symlink_to("elsewhere")
    (shared / "plain").mkdir()
    before = open_descriptors()
    walk(tmp_path)
    assert trust.read_file(tmp_path / "file") == b"text"
    for path in (tmp_path / "missing", tmp_path / "file", shared / "link", shared / "plain" / ".."):
        with pytest.raises(OSError), trust.walked(path):  # noqa: PT011 - of any kind
            pass
    with pytest.raises(OSError):  # noqa: PT011 - of any kind
        trust.open_file(shared)
    assert open_descriptors() == before


# --- files ----------------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize(
    ("owner", "reader", "believed"),
    [(0, 0, True), (0, NOBODY, True), (NOBODY, NOBODY, True), (NOBODY, 0, False), (12345, NOBODY, False)],
)
def test_a_file_is_believed_of_root_and_of_ones_own_user_alone(owner: int, reader: int, believed: bool) -> None:
    with world_readable() as place:
        file = place / "token"
        file.write_text("text")
        file.chmod(0o644)
        os.chown(file, owner, owner)
        with without_rights() if reader else nullcontext():
            if believed:
                assert trust.read_file(file) == b"text"
                return
            with pytest.raises(PermissionError, match=r"it belongs to .*; if it is right: chown") as refused:
                trust.read_file(file)
        assert str(file) in str(refused.value.strerror)


def test_a_file_that_anybody_may_write_is_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("text")
    file.chmod(0o666)
    with pytest.raises(PermissionError, match=r"anybody may write it; .* chmod o-w"):
        trust.read_file(file)


def test_a_fifo_is_refused_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="no regular file"):
        trust.read_file(tmp_path / "fifo")


def test_a_symlink_to_a_file_is_followed_where_nobody_else_could_have_made_it(tmp_path: Path, shared: Path) -> None:
    """As Kubernetes has its secrets."""
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026/token").write_text("text")
    (tmp_path / "token").symlink_to("..data/token")
    assert trust.read_file(tmp_path / "token", 3) == b"tex"
    (shared / "token").symlink_to(tmp_path / "token")
    with pytest.raises(OSError, match="is a symlink, and others can write in"):
        trust.read_file(shared / "token")


def test_a_descriptor_that_a_shell_hands_over_is_read(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with open(writing, "wb") as end:  # noqa: PTH123 - a descriptor
        end.write(b"secret")
    with closing(os.fdopen(reading)):
        assert trust.read_file(Path(f"/dev/fd/{reading}")) == b"secret"


# --- a watch's own folder ---------------------------------------------------------------------------


def test_a_watched_folder_that_others_swapped_for_a_symlink_is_none(shared: Path, tmp_path: Path) -> None:
    """Everything below it would be sent, with the daemon's rights."""
    (tmp_path / "private").mkdir()
    root = shared / "drop"
    root.mkdir()
    watch = WatchConfig(name="drop", path=root, bucket="bucket")
    with closing(Folder(watch)) as folder:
        before = folder.identity
        root.rename(shared / "away")
        root.symlink_to(tmp_path / "private")
        assert not folder.still_there()
        assert not folder.reopen()
        assert folder.identity == before
        root.unlink()
        root.mkdir()
        assert folder.reopen()


def test_a_watched_folder_behind_a_symlink_of_others_is_refused_at_the_start(shared: Path, tmp_path: Path) -> None:
    (shared / "drop").symlink_to(tmp_path)
    watch = WatchConfig(name="drop", path=shared / "drop", bucket="bucket")
    with pytest.raises(UsageError, match="is a symlink, and others can write in"):
        Folder(watch)
