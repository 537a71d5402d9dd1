"""The folder of an inbox: places that nothing has, and what is found again after a crash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from presignd.inbox.folder import Identity, InboxFolder

REF = "Ab-_EfGhIjKlMnOp"


@pytest.fixture
def folder(tmp_path: Path) -> InboxFolder:
    return InboxFolder("scans", tmp_path)


def download(folder: InboxFolder, body: bytes = b"body") -> Identity:
    fd = folder.open_download(REF)
    os.write(fd, body)
    st = os.fstat(fd)
    os.close(fd)
    return Identity(st.st_ino, st.st_mtime_ns)


def test_a_place_is_free_and_its_folders_are_made(folder: InboxFolder, tmp_path: Path) -> None:
    assert folder.choose(["a.txt"]) == b"a.txt"
    assert folder.choose(["x", "y", "a.txt"]) == b"x/y/a.txt"
    assert (tmp_path / "x" / "y").is_dir()
    (tmp_path / "x" / "y" / "a.txt").symlink_to("nowhere")
    (tmp_path / "x" / "y" / "a (2).txt").touch()
    assert folder.choose(["x", "y", "a.txt"]) == b"x/y/a (3).txt"


def test_a_folder_that_can_not_be_entered_is_told(folder: InboxFolder, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        folder.choose(["x" * 300, "a"])
    (tmp_path / "f").touch()
    (tmp_path / "l").symlink_to(tmp_path)
    assert folder.choose(["f", "l", "a"]) == b"f (2)/l/a"
    assert folder.choose(["l", "a"]) == b"l (2)/a"


def test_a_file_is_never_replaced(folder: InboxFolder, tmp_path: Path) -> None:
    download(folder)
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        folder.put_in_place(REF, b"a")
    assert (tmp_path / "a").read_bytes() == b"mine"
    with pytest.raises(FileNotFoundError):
        folder.put_in_place(REF, b"gone/a")
    folder.put_in_place(REF, b"b")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "b"]


def test_what_was_renamed_before_a_crash_is_found_again(folder: InboxFolder, tmp_path: Path) -> None:
    identity = download(folder)
    assert not folder.is_in_place(REF, b"a", 4, identity), "nothing is there yet"
    assert not folder.is_in_place(REF, b"x/a", 4, identity)
    folder.put_in_place(REF, b"a")
    assert folder.is_in_place(REF, b"a", 4, identity)
    assert folder.is_in_place(REF, b"a", 4, identity._replace(ino=1)), "a filesystem with new inode numbers"
    assert not folder.is_in_place(REF, b"a", 4, Identity(1, 1)), "it is another file"
    assert not folder.is_in_place(REF, b"a/b", 4, identity)
    with (tmp_path / "a").open("ab") as file:
        file.write(b"edited")
    assert folder.is_in_place(REF, b"a", 4, identity), "somebody wrote to it since"
    (tmp_path / "a").unlink()
    (tmp_path / "a").mkdir()
    assert not folder.is_in_place(REF, b"a", 4, identity)


def test_a_rename_by_link_that_a_crash_cut_is_ended(folder: InboxFolder, tmp_path: Path) -> None:
    identity = download(folder)
    (name,) = tmp_path.iterdir()
    os.link(name, tmp_path / "a")
    assert folder.is_in_place(REF, b"a", 4, identity)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_nobody_waits_for_is_removed(folder: InboxFolder, tmp_path: Path) -> None:
    download(folder)
    for name in (".presignd-inbox-scans-AAAAAAAAAAAAAAAA", ".presignd-inbox-other-AAAAAAAAAAAAAAAA", "mine"):
        (tmp_path / name).touch()
    assert folder.forget_others([REF]) == 1
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f".presignd-inbox-scans-{REF}", ".presignd-inbox-other-AAAAAAAAAAAAAAAA", "mine"}
