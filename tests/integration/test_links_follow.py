"""Reading and following the links: nothing missed, repeated or torn."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from presignd.config import LinksConfig
from presignd.errors import UsageError
from presignd.links import Cursor, answer_links, encode, follow, load_cursor, read, reader, save_cursor
from presignd.links.reader import Reader
from tests.descriptors import open_descriptors
from tests.links import LINE, batch, config, link, numbers, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["config"]


def cursors(config: LinksConfig) -> list[Cursor]:
    return [cursor for _, cursor in read(config.file, None)]


def test_every_cursor_goes_on_with_exactly_the_rest_over_rotations(config: LinksConfig) -> None:
    config = config.model_copy(update={"rotate_size": 3 * LINE, "keep": 9})
    with opened(config) as links:
        for number in range(12):
            links.append(batch(number))
    for number, cursor in enumerate(cursors(config)):
        assert numbers(config, cursor) == list(range(number + 1, 12))


def test_a_cursor_stays_good_while_its_file_is_rotated(config: LinksConfig) -> None:
    with opened(config) as links:
        links.append(batch(1, 2))
        cursor = cursors(config)[0]
        config.file.rename(config.file.with_name("links.jsonl.1"))
        links.append(batch(3))
    assert numbers(config, cursor) == [2, 3]


def test_a_cursor_whose_file_was_rotated_out_begins_at_the_oldest_and_says_so(config: LinksConfig) -> None:
    """Also when a new file got the old one's inode number, as ext4 gives it away at once."""
    config = config.model_copy(update={"rotate_size": 1, "keep": 2})
    with opened(config) as links:
        links.append(batch(1))
        (old,) = cursors(config)
        for number in range(2, 8):
            links.append(batch(number))
    inodes = {path.stat().st_ino for path in config.file.parent.iterdir()}
    for inode in {old.inode, *inodes}:
        gaps: list[bool] = []
        stale = replace(old, inode=inode)
        found = [document["size"] for document, _ in read(config.file, stale, lambda gaps=gaps: gaps.append(True))]  # type: ignore[misc]  # a default binds the loop's list
        assert found == [5, 6, 7]
        assert gaps == [True]


@pytest.mark.parametrize("offset", [1, LINE - 1, LINE + 1, 10 * LINE])
def test_a_cursor_that_is_at_no_lines_end_is_not_believed(config: LinksConfig, offset: int) -> None:
    with opened(config) as links:
        links.append(batch(1, 2))
    gaps: list[bool] = []
    cursor = Cursor(config.file.stat().st_ino, offset)
    assert len(list(read(config.file, cursor, lambda: gaps.append(True)))) == 2
    assert gaps == [True]


def test_a_torn_line_is_never_read_and_is_read_once_whole(config: LinksConfig) -> None:
    with opened(config) as links:
        links.append(batch(1))
    line = encode(link(2))
    with config.file.open("ab", buffering=0) as file:
        file.write(line[:50])
        assert numbers(config) == [1]
        file.write(line[50:])
    assert numbers(config) == [1, 2]


def test_a_line_longer_than_a_block_is_read(config: LinksConfig) -> None:
    long = link(1)._replace(path="x" * 300_000)
    with opened(config) as links:
        links.append([long, link(2)])
    assert numbers(config) == [1, 2]


def test_without_any_file_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert list(read(tmp_path / "none" / "links.jsonl", None)) == []
    assert list(read(tmp_path / "links.jsonl", Cursor(1, 2))) == []


async def collect(config: LinksConfig, count: int, after: Cursor | None = None) -> list[int]:
    found: list[int] = []
    async with contextlib.aclosing(follow(config.file, after, poll=0.005)) as items:
        async for document, _ in items:
            found.append(document["size"])
            if len(found) == count:
                break
    return found


async def test_a_follower_misses_and_repeats_no_line_while_files_rotate_under_it(config: LinksConfig) -> None:
    config = config.model_copy(update={"rotate_size": 5 * LINE, "keep": 1000})
    following = asyncio.create_task(collect(config, 1500))

    def write() -> None:
        with opened(config) as links:
            for start in range(0, 1500, 3):
                links.append(batch(start, start + 1, start + 2))

    await asyncio.to_thread(write)
    assert await asyncio.wait_for(following, 60) == list(range(1500))


async def test_a_follower_may_come_before_the_file(config: LinksConfig) -> None:
    following = asyncio.create_task(collect(config, 2))
    await asyncio.sleep(0.02)
    with opened(config) as links:
        links.append(batch(1, 2))
    assert await asyncio.wait_for(following, 30) == [1, 2]


@pytest.mark.parametrize("away", ["unlink", "truncate"])
async def test_a_follower_goes_on_when_somebody_deletes_or_cuts_the_file(config: LinksConfig, away: str) -> None:
    with opened(config) as links:
        links.append(batch(1, 2))
        async with contextlib.aclosing(follow(config.file, None, poll=0.005)) as items:
            assert [(await anext(items))[0]["size"] for _ in range(2)] == [1, 2]
            config.file.unlink() if away == "unlink" else os.truncate(config.file, 0)
            waiting = asyncio.ensure_future(anext(items))
            await asyncio.sleep(0.05)
            links.append(batch(3))
            document, _ = await asyncio.wait_for(waiting, 30)
    assert document["size"] == 3


def test_a_follower_whose_files_were_deleted_does_not_repeat_the_older_ones(config: LinksConfig) -> None:
    config = config.model_copy(update={"rotate_size": 1, "keep": 9})
    with opened(config) as links:
        links.append(batch(1))
        links.append(batch(2))
        gaps: list[bool] = []
        items = tail_of(config, gaps)
        assert [document["size"] for document, _ in items.read()] == [1, 2]
        config.file.unlink()
        links.append(batch(3))
        assert [document["size"] for document, _ in items.read()] == [3]
        assert gaps == []
        items.close()


def test_lines_appended_just_before_a_rotation_are_not_passed_over(
    config: LinksConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader is at the end of the file when the writer appends to it once more, then rotates."""
    config = config.model_copy(update={"rotate_size": 2 * LINE})
    with opened(config) as links:
        links.append(batch(1))
        items = tail_of(config, [])
        real, once = Reader._lines, iter([None])

        def then_append(self: Reader) -> Iterator[Any]:
            yield from real(self)
            for _ in once:
                links.append(batch(2))
                links.append(batch(3))

        monkeypatch.setattr(Reader, "_lines", then_append)
        assert [document["size"] for _ in range(2) for document, _ in items.read()] == [1, 2, 3]
        items.close()


def test_a_rotation_while_the_files_are_opened_hides_and_doubles_none(
    config: LinksConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.model_copy(update={"rotate_size": 1})
    with opened(config) as links:
        for number in range(3):
            links.append(batch(number))
        real, left = reader._open, iter([0, 1])
        before = open_descriptors()

        def then_rotate(path: Path) -> int | None:
            fd = real(path)
            for _ in left:
                links.append(batch(9))
                break
            return fd

        monkeypatch.setattr(reader, "_open", then_rotate)
        fds = reader.open_all(config.file)
    sizes = [json.loads(os.pread(fd, LINE, 0))["size"] for fd in fds]
    reader.close_all(fds)
    assert [size for size in sizes if size != 9] == [0, 1, 2]
    assert open_descriptors() == before - 1, "the writer's is closed, and every other one too"


def test_a_follower_too_slow_for_the_rotation_is_told_of_the_gap(config: LinksConfig) -> None:
    config = config.model_copy(update={"rotate_size": 1, "keep": 2})
    with opened(config) as links:
        links.append(batch(1))
        gaps: list[bool] = []
        items = tail_of(config, gaps)
        assert [document["size"] for document, _ in items.read()] == [1]
        for number in range(2, 9):
            links.append(batch(number))
        assert [document["size"] for document, _ in items.read()] == [6, 7, 8]
        assert gaps == [True]
        items.close()


def tail_of(config: LinksConfig, gaps: list[bool]) -> Reader:
    return Reader(config.file, None, lambda: gaps.append(True))


async def answered(config: LinksConfig, request: dict[str, Any]) -> list[dict[str, Any]]:
    return [answer async for answer in answer_links(config.file, request)]


async def test_the_request_is_answered_with_every_link_its_cursor_and_the_end(config: LinksConfig) -> None:
    with opened(config) as links:
        links.append(batch(1, 2))
    first, second, end = await answered(config, {"op": "links", "follow": False, "after": None})
    assert [first["link"], second["link"]] == [json.loads(encode(link(number))) for number in (1, 2)]
    assert end == {"end": True}
    assert await answered(config, {"op": "links", "after": first["cursor"]}) == [second, end]


async def test_the_request_tells_a_gap_before_what_comes_after_it(config: LinksConfig) -> None:
    with opened(config) as links:
        links.append(batch(1))
    answers = await answered(config, {"op": "links", "after": {"inode": 1, "offset": 5}})
    assert [next(iter(answer)) for answer in answers] == ["gap", "link", "end"]


async def test_a_request_with_a_bad_cursor_is_refused(config: LinksConfig) -> None:
    with pytest.raises(UsageError, match="no cursor"):
        await answered(config, {"op": "links", "after": {"inode": "x"}})


async def test_a_long_backlog_leaves_the_event_loop_its_turns(config: LinksConfig) -> None:
    """The daemon answers: its other work must go on while somebody reads megabytes of links."""
    with opened(config) as links:
        links.append(batch(*range(2000)))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    await answered(config, {"op": "links"})
    other.cancel()
    assert turns >= 2000 // 64


# --- the cursor file -----------------------------------------------------------------------------


def test_a_cursor_file_reads_back_and_is_private(tmp_path: Path) -> None:
    file = tmp_path / "cursor"
    assert load_cursor(file) is None
    file.touch()
    assert load_cursor(file) is None
    for cursor in (Cursor(1, 2, "a"), Cursor(3, 4, "b")):
        save_cursor(file, cursor)
        assert load_cursor(file) == cursor
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_cursor_file_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cursor"
    save_cursor(file, Cursor(1, 2))

    def fail(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UsageError, match="No space left"):
        save_cursor(file, Cursor(3, 4))
    assert load_cursor(file) == Cursor(1, 2)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("content", ["precious notes", "[1]", '{"inode": 1}', "{}"])
def test_a_file_that_is_no_cursor_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "notes"
    file.write_text(content)
    with pytest.raises(UsageError, match="not a cursor"):
        load_cursor(file)
