"""The link beside the file: complete or absent, only ours replaced, no other file overwritten."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from presignd.errors import Fault, fault
from presignd.pipeline.finish.link_file import write_link_file
from tests.finishing import CONTENT, Place, place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

URL = "https://s3.example/bucket/a.txt?X-Amz-Signature=one"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path, "keep", link_file="{name}.link.txt") as found:
        yield found


def write(here: Place, url: str = URL) -> None:
    write_link_file(here.folder, here.watch, here.version, url)


def target(here: Place) -> Path:
    return here.file.with_name("a.txt.link.txt")


@pytest.mark.parametrize("umask", [0, 0o077])
def test_the_link_stands_beside_the_file_readable_for_its_group(here: Place, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(here)
    finally:
        os.umask(before)
    assert here.tree == {"drop/sub/a.txt": CONTENT, "drop/sub/a.txt.link.txt": URL.encode() + b"\n"}
    assert stat.S_IMODE(target(here).stat().st_mode) == 0o640


def test_an_earlier_link_of_ours_is_replaced_also_by_the_same_one(here: Place) -> None:
    """After a crash the step is done again; and newer content has another link."""
    for url in (URL, URL, URL.replace("one", "two")):
        write(here, url)
        assert target(here).read_text() == url + "\n"
    assert len(here.tree) == 2


def test_what_a_crash_left_half_written_is_in_nobodys_way(here: Place) -> None:
    here.file.with_name(".presignd-id-1.link").write_bytes(b"https://half")
    write(here)
    assert sorted(here.tree) == ["drop/sub/a.txt", "drop/sub/a.txt.link.txt"]


@pytest.mark.parametrize(
    "content", ["notes of mine\n", "https://example.org/?X-Amz-Signature=a\nand notes\n", "", "x" * 100_000]
)
def test_somebody_elses_file_of_that_name_is_not_overwritten(here: Place, content: str) -> None:
    target(here).write_text(content)
    with pytest.raises(Fault, match="is no link file of ours") as caught:
        write(here)
    assert caught.value.code == "finish_failed"
    assert "Signature" not in str(caught.value)
    assert here.tree == {"drop/sub/a.txt": CONTENT, "drop/sub/a.txt.link.txt": content.encode()}


@pytest.mark.needs("root")
def test_another_users_file_is_not_replaced_though_it_looks_like_a_link(here: Place) -> None:
    target(here).write_text(URL + "\n")
    os.chown(target(here), 65534, -1)
    with pytest.raises(Fault, match="is no link file of ours"):
        write(here)


def test_a_symlink_in_its_place_is_not_followed(here: Place, tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_text(URL + "\n")
    target(here).symlink_to(treasure)
    with pytest.raises(Fault, match="is no link file of ours"):
        write(here, URL.replace("one", "two"))
    assert treasure.read_text() == URL + "\n"


def test_a_folder_that_is_gone_or_swapped_for_a_symlink_gets_none(here: Place, tmp_path: Path) -> None:
    here.file.parent.rename(tmp_path / "elsewhere")
    write(here)
    here.file.parent.symlink_to(tmp_path / "elsewhere")
    write(here)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["a.txt"]


def test_a_folder_that_can_not_be_entered_is_told(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def closed(_path: bytes) -> Iterator[int]:
        raise fault("unreadable", "Permission denied")
        yield 0

    monkeypatch.setattr(here.folder, "dir_fd", closed)
    with pytest.raises(Fault, match=r"a\.txt\.link\.txt: the file can't be read: Permission denied") as caught:
        write(here)
    assert caught.value.code == "finish_failed"


def test_another_file_of_that_name_gets_none(here: Place) -> None:
    """That of the version before stays until the new file has its own."""
    write(here)
    here.file.rename(here.file.with_name("b.txt"))
    here.file.write_bytes(CONTENT)
    assert not write_link_file(here.folder, here.watch, here.version, URL.replace("one", "two"))
    assert target(here).read_text() == URL + "\n"
    assert sorted(here.tree) == ["drop/sub/a.txt", "drop/sub/a.txt.link.txt", "drop/sub/b.txt"]


def test_the_file_itself_may_be_gone_by_then(here: Place) -> None:
    here.file.unlink()
    write(here)
    assert here.tree == {"drop/sub/a.txt.link.txt": URL.encode() + b"\n"}


@pytest.mark.parametrize("call", ["fsync", "pwrite", "fchmod"])
def test_a_full_disk_leaves_nothing_half(here: Place, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(Fault, match="No space left") as caught:
        write(here)
    assert caught.value.code == "disk_full"
    assert here.tree == {"drop/sub/a.txt": CONTENT}


def test_a_name_too_long_for_its_link_file_is_told(tmp_path: Path) -> None:
    with place(tmp_path, "keep", link_file="{name}.link.txt", path="n" * 250) as here:
        here.version = here.version._replace(path=b"n" * 250)
        with pytest.raises(Fault, match="File name too long"):
            write(here)
        assert len(here.tree) == 1
