"""links.jsonl on a real filesystem: durable, once, never torn, through rotation, crashes and full disks."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from presignd.config import LinksConfig
from presignd.errors import Fault, UsageError
from presignd.links import LinksFile, encode
from presignd.links import writer as writer_module
from presignd.model import Link, LinksMark
from tests.links import LINE, batch, config, link, numbers, opened
from tests.mounts import tmpfs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["config"]


def reopened(config: LinksConfig, mark: LinksMark | None) -> list[Link]:
    """Return what a start with the ledger's ``mark`` reads back."""
    links, past = LinksFile.open(config, mark)
    with contextlib.closing(links):
        return list(past)


# --- append and read back ------------------------------------------------------------------------


def test_what_was_appended_is_there_in_order(config: LinksConfig) -> None:
    with opened(config) as links:
        links.append(batch(1, 2))
        mark = links.append(batch(3))
    assert numbers(config) == [1, 2, 3]
    assert mark == LinksMark(config.file.stat().st_ino, config.file.stat().st_size)


def test_nothing_to_append_is_no_change(config: LinksConfig) -> None:
    with opened(config) as links:
        before = links.append(batch(1))
        assert links.append([]) == before
    assert numbers(config) == [1]


def test_lines_past_the_ledgers_mark_are_read_back_and_no_others(config: LinksConfig) -> None:
    """The crash window between the append and the ledger's commit: those versions must not be written twice."""
    with opened(config) as links:
        mark = links.append(batch(1, 2))
        links.append(batch(3, 4))
    assert reopened(config, mark) == batch(3, 4)


def test_nothing_is_read_back_when_the_ledger_knows_all(config: LinksConfig) -> None:
    with opened(config) as links:
        mark = links.append(batch(1, 2))
    assert reopened(config, mark) == []


def test_without_a_mark_every_line_is_read_back(config: LinksConfig) -> None:
    """The first append's commit may be the one a crash took, and a ledger may be lost."""
    with opened(config) as links:
        links.append(batch(1, 2))
    assert reopened(config, None) == batch(1, 2)


def test_lines_past_a_mark_in_a_file_rotated_since_are_read_back_from_there_on(config: LinksConfig) -> None:
    config = config.model_copy(update={"rotate_size": 2 * LINE})
    with opened(config) as links:
        mark = links.append(batch(1))
        for number in range(2, 7):
            links.append(batch(number))
    assert reopened(config, mark) == batch(2, 3, 4, 5, 6)


def test_a_mark_whose_file_is_gone_reads_back_all_there_is(config: LinksConfig) -> None:
    with opened(config) as links:
        links.append(batch(1, 2))
    assert reopened(config, LinksMark(1, 10)) == batch(1, 2)


def test_reading_back_stops_where_the_file_ended_at_the_start(config: LinksConfig) -> None:
    with opened(config) as links:
        links.append(batch(1))
    links, past = LinksFile.open(config, None)
    links.append(batch(2))
    assert list(past) == batch(1)
    links.close()


@pytest.mark.parametrize("torn", [b"{", encode(link(9))[:-1], b"\0" * 5000, b'{"size": 9'])
def test_a_torn_tail_is_cut_at_the_start(config: LinksConfig, torn: bytes) -> None:
    with opened(config) as links:
        mark = links.append(batch(1))
    with config.file.open("ab") as file:
        file.write(torn)
    with opened(config, mark) as links:
        links.append(batch(2))
    assert numbers(config) == [1, 2]
    assert config.file.read_bytes() == encode(link(1)) + encode(link(2))


def test_blocks_of_an_append_that_a_power_loss_swallowed_are_cut_with_what_follows(config: LinksConfig) -> None:
    """Nothing past the ledger's mark counted yet, so what stands behind a hole is written again."""
    with opened(config) as links:
        mark = links.append(batch(1))
    with config.file.open("ab") as file:
        file.write(b"\0" * 4096 + encode(link(2)) + encode(link(3)))
    assert reopened(config, mark) == []
    assert numbers(config) == [1]


def test_a_damaged_line_does_not_hide_the_others(config: LinksConfig) -> None:
    with opened(config) as links:
        links.append(batch(1, 2, 3))
    content = bytearray(config.file.read_bytes())
    content[LINE : LINE + 1] = b"\0"
    config.file.write_bytes(content)
    assert numbers(config) == [1, 3]


def test_a_file_without_a_single_newline_is_all_torn(config: LinksConfig) -> None:
    config.file.parent.mkdir()
    config.file.write_bytes(b"x" * 200_000)
    with opened(config) as links:
        links.append(batch(1))
    assert numbers(config) == [1]


# --- others in the way ---------------------------------------------------------------------------


def test_a_file_that_was_deleted_is_made_anew(config: LinksConfig) -> None:
    with opened(config) as links:
        links.append(batch(1))
        config.file.unlink()
        mark = links.append(batch(2))
    assert numbers(config) == [2]
    assert mark.inode == config.file.stat().st_ino


def test_a_file_that_was_moved_away_is_made_anew_and_the_old_one_keeps_its_lines(config: LinksConfig) -> None:
    """As logrotate does it."""
    with opened(config) as links:
        links.append(batch(1))
        config.file.rename(config.file.with_name("links.jsonl.1"))
        links.append(batch(2))
    assert numbers(config) == [1, 2]


def test_a_file_that_was_replaced_or_cut_by_somebody_is_gone_on_with(config: LinksConfig) -> None:
    with opened(config) as links:
        links.append(batch(1, 2))
        other = config.file.with_name("other")
        other.write_bytes(encode(link(7)) + b"torn")
        other.rename(config.file)
        links.append(batch(3))
        assert numbers(config) == [7, 3]
        os.truncate(config.file, LINE + 5)
        links.append(batch(4))
    assert numbers(config) == [7, 4]


def test_a_symlink_is_not_followed(config: LinksConfig, tmp_path: Path) -> None:
    config.file.parent.mkdir()
    config.file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"links\.file"):
        LinksFile.open(config, None)
    assert not (tmp_path / "elsewhere").exists()


def test_no_symlink_in_place_of_a_rotated_file_is_followed(config: LinksConfig, tmp_path: Path) -> None:
    """Its target would get the links' mode and group."""
    treasure = tmp_path / "treasure"
    treasure.touch(0o604)
    config.file.parent.mkdir()
    config.file.with_name("links.jsonl.1").symlink_to(treasure)
    with pytest.raises(UsageError, match=r"links\.file"):
        LinksFile.open(config, None)
    assert treasure.stat().st_mode & 0o777 == 0o604


@pytest.mark.needs("root")
@pytest.mark.parametrize("name", ["links.jsonl", "links.jsonl.1"])
def test_a_file_of_another_user_is_not_taken_for_the_links(config: LinksConfig, name: str) -> None:
    """It could hold lines of his, and he could read those that come."""
    config.file.parent.mkdir()
    other = config.file.with_name(name)
    other.touch(0o600)
    os.chown(other, 65534, 65534)
    with pytest.raises(UsageError, match="it belongs to nobody"):
        LinksFile.open(config, None)
    assert other.stat().st_size == 0


def test_a_links_folder_that_others_made_a_symlink_is_none(config: LinksConfig, tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "links").symlink_to(tmp_path / "vault")
    with pytest.raises(UsageError, match="is a symlink, and others can write in"):
        LinksFile.open(config.model_copy(update={"file": shared / "links/links.jsonl"}), None)
    assert list((tmp_path / "vault").iterdir()) == []


def test_a_directory_or_fifo_in_its_place_is_a_clear_error(config: LinksConfig) -> None:
    config.file.parent.mkdir()
    os.mkfifo(config.file)
    with pytest.raises(UsageError, match="not a regular file"):
        LinksFile.open(config, None)
    config.file.unlink()
    config.file.mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        LinksFile.open(config, None)


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["_reserve", "write_all"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_of_the_batch(
    config: LinksConfig, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def fail(fd: int, *args: Any) -> None:
        os.pwrite(fd, b'{"half": ', os.fstat(fd).st_size)
        raise OSError(number, os.strerror(number))

    with opened(config) as links:
        before = links.append(batch(1))
        with monkeypatch.context() as patched:
            patched.setattr(writer_module, call, fail)
            with pytest.raises(Fault) as caught:
                links.append(batch(2, 3))
        assert caught.value.code == "disk_full"
        assert config.file.read_bytes() == encode(link(1))
        assert links.mark == before
        links.append(batch(2, 3))
    assert numbers(config) == [1, 2, 3]


def test_a_batch_that_could_not_be_synced_is_taken_back(config: LinksConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fault says nothing of the secret URLs in it."""

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with opened(config) as links:
        links.append(batch(1))
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fail)
            with pytest.raises(Fault) as caught:
                links.append(batch(2))
        assert caught.value.code == "links_failed"
        assert "Signature" not in str(caught.value)
        assert numbers(config) == [1]


@pytest.mark.parametrize("also", [(), (2,)], ids=["other links next", "the same links next"])
def test_a_batch_that_can_not_be_taken_back_yet_is_taken_back_before_the_next(
    config: LinksConfig, monkeypatch: pytest.MonkeyPatch, also: tuple[int, ...]
) -> None:
    """A failing disk refuses the sync, then the cut: the next append must not take those lines for sound ones."""

    def fail(*_args: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with opened(config) as links:
        before = links.append(batch(1))
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fail)
            patched.setattr(os, "ftruncate", fail)
            with pytest.raises(Fault):
                links.append(batch(2))
            with pytest.raises(Fault) as caught:
                links.append(batch(2))
        assert caught.value.code == "links_failed"
        assert links.mark == before
        links.append(batch(*also, 3))
        assert numbers(config) == [1, *also, 3]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Mount a filesystem of 256 KiB."""
    folder = tmp_path / "small"
    with tmpfs(folder, "256k"):
        yield folder


def test_on_a_disk_that_is_really_full_a_reader_sees_whole_batches_only(small: Path) -> None:
    config = LinksConfig(file=small / "links.jsonl")
    written: list[int] = []

    def fill(links: LinksFile) -> None:
        while True:
            some = range(len(written), len(written) + 7)
            links.append(batch(*some))
            written.extend(some)

    with opened(config) as links:
        with pytest.raises(Fault) as caught:
            fill(links)
        assert caught.value.code == "disk_full"
        assert len(written) > 100
        assert numbers(config) == written
        # Room again: it goes on where it stopped.
        os.truncate(config.file, LINE)
        links.append(batch(5))
        assert numbers(config) == [0, 5]


class CrashError(BaseException):
    """The process is gone: no handler of ours runs."""


def crash_at(step: int, patched: pytest.MonkeyPatch) -> None:
    """Crash before the ``step``-th rename or creation of a file."""
    rename, open_ = os.rename, os.open
    steps = iter(range(1, 100))

    def begin() -> None:
        if next(steps) == step:
            raise CrashError

    def crashing_rename(*args: Any, **kwargs: Any) -> None:
        begin()
        rename(*args, **kwargs)

    def crashing_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            begin()
        return open_(path, flags, *args, **kwargs)

    patched.setattr(os, "rename", crashing_rename)
    patched.setattr(os, "open", crashing_open)


@pytest.mark.parametrize("keep", [3, 9])
@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_a_crash_at_any_step_of_a_rotation_loses_and_repeats_nothing(
    config: LinksConfig, monkeypatch: pytest.MonkeyPatch, step: int, keep: int
) -> None:
    """Five steps: four files move on, one is made. With ``keep`` 3 the oldest may go, and no other."""
    config = config.model_copy(update={"rotate_size": 1, "keep": keep})
    with opened(config) as links:
        for number in range(4):
            mark = links.append(batch(number))
        with monkeypatch.context() as patched:
            crash_at(step if keep == 9 else min(step, 4), patched)
            with pytest.raises(CrashError):
                links.append(batch(4))
    assert reopened(config, mark) == []
    with opened(config, mark) as links:
        links.append(batch(5))
    assert numbers(config) == [0, 1, 2, 3, 5][-keep - 1 :]


def test_rotation_keeps_as_many_files_as_asked_and_removes_those_beyond(config: LinksConfig) -> None:
    config = config.model_copy(update={"rotate_size": 2 * LINE, "keep": 2})
    stale = config.file.with_name("links.jsonl.7")
    config.file.parent.mkdir()
    stale.write_bytes(b"")
    backup = config.file.with_name("links.jsonl.20261123")
    backup.write_bytes(b"somebody's own")
    with opened(config) as links:
        for number in range(1, 12):
            links.append(batch(number))
    names = sorted(path.name for path in config.file.parent.iterdir())
    assert names == ["links.jsonl", "links.jsonl.1", "links.jsonl.2", backup.name]
    assert numbers(config) == [7, 8, 9, 10, 11]


def test_a_batch_is_never_split_over_two_files(config: LinksConfig) -> None:
    config = config.model_copy(update={"rotate_size": LINE})
    with opened(config) as links:
        links.append(batch(1, 2, 3))
        links.append(batch(4, 5, 6))
    assert config.file.read_bytes() == b"".join(map(encode, batch(4, 5, 6)))
