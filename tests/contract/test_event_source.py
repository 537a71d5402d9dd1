"""What every event source promises to the watcher: a hint at or above each change, or an error when it ends.

A hint may name the file or a directory that holds it: the watcher scans directories. Each source may give more.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import pytest

from presignd.config import WatchConfig
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.watch.inotify import inotify_source
from presignd.pipeline.watch.source import Hints, SourceEnded
from presignd.pipeline.watch.watchfiles import watchfiles_source
from tests.ignoring import ignoring
from tests.mounts import short_queue

PATIENCE = 20.0
Source = AsyncGenerator[Hints, None]
Make = Callable[[WatchConfig, Folder], Source]

SOURCES: dict[str, Make] = {
    "inotify": lambda watch, folder: inotify_source(watch, folder, ignoring()),
    "watchfiles": lambda watch, folder: watchfiles_source(watch, folder.root),
}


@pytest.fixture(params=SOURCES)
def make(request: pytest.FixtureRequest) -> Make:
    return SOURCES[request.param]


class Heard:
    """A source under way below ``root``, and all that it told so far."""

    def __init__(self, root: Path, source: Source) -> None:
        self.root, self._source = root, source
        self.hints: set[bytes] = set()
        self.closed: set[bytes] = set()

    async def listen(self) -> Hints:
        batch = await anext(self._source)
        self.hints |= batch.paths | batch.closed
        self.closed |= batch.closed
        return batch

    async def tells(self, path: Path) -> None:
        """Return once ``path`` or a directory above it, the root left out, was hinted at."""
        inside = path.relative_to(self.root)
        wanted = {os.fsencode(each) for each in (inside, *inside.parents)}
        async with asyncio.timeout(PATIENCE):
            while not self.hints & wanted:
                await self.listen()

    async def to_its_end(self) -> None:
        async with asyncio.timeout(PATIENCE):
            while True:
                await self.listen()

    def forget(self) -> None:
        self.hints.clear()
        self.closed.clear()


@asynccontextmanager
async def listening(make: Make, root: Path, *, recursive: bool = True) -> AsyncIterator[Heard]:
    watch = WatchConfig(name="drop", path=root, bucket="test-bucket", recursive=recursive, settle=0.0)
    folder = Folder(watch)
    try:
        async with aclosing(make(watch, folder)) as source:
            heard = Heard(root, source)
            assert await heard.listen() == Hints(), "the first batch only says that changes are seen"
            yield heard
    finally:
        folder.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "drop" / "old" / "deep").mkdir(parents=True)
    (tmp_path / "drop" / "old" / "there").write_text("x")
    return tmp_path / "drop"


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda path: path.write_text("new"),
    "linked": lambda path: path.hardlink_to(path.parent / "source"),
    "moved in": lambda path: (path.parent / "source").rename(path),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("below", ["", "old", "old/deep"])
async def test_each_change_of_a_file_is_told_of(
    make: Make, root: Path, below: str, change: Callable[[Path], object]
) -> None:
    (root / below / "source").write_text("x")
    async with listening(make, root) as heard:
        change(root / below / "file")
        await heard.tells(root / below / "file")


async def test_an_old_file_that_can_be_read_now_or_is_gone_is_told_of(make: Make, root: Path) -> None:
    async with listening(make, root) as heard:
        (root / "old" / "there").chmod(0o600)
        await heard.tells(root / "old" / "there")
        heard.forget()
        (root / "old" / "there").unlink()
        await heard.tells(root / "old" / "there")


async def test_an_old_file_that_is_written_to_again_is_told_of(make: Make, root: Path) -> None:
    async with listening(make, root) as heard:
        with (root / "old" / "there").open("a") as file:
            file.write("more")
        await heard.tells(root / "old" / "there")


async def test_what_is_made_in_directories_made_just_now_is_told_of(make: Make, root: Path) -> None:
    """By the directory at the least: the watcher scans it."""
    async with listening(make, root) as heard:
        for number in range(50):
            (root / f"d{number}" / "e").mkdir(parents=True)
            (root / f"d{number}" / "e" / "file").write_text("x")
        for number in range(50):
            await heard.tells(root / f"d{number}" / "e" / "file")


async def test_a_directory_that_is_moved_in_is_told_of_and_what_comes_into_it_later(make: Make, root: Path) -> None:
    (root.parent / "outside" / "deep").mkdir(parents=True)
    async with listening(make, root) as heard:
        (root.parent / "outside").rename(root / "inside")
        await heard.tells(root / "inside" / "deep" / "any")
        heard.forget()
        (root / "inside" / "deep" / "later").write_text("x")
        await heard.tells(root / "inside" / "deep" / "later")


async def test_a_directory_under_a_new_name_is_told_of_by_that_name(make: Make, root: Path) -> None:
    async with listening(make, root) as heard:
        (root / "old").rename(root / "new")
        await heard.tells(root / "new" / "there")
        heard.forget()
        (root / "new" / "deep" / "later").write_text("x")
        await heard.tells(root / "new" / "deep" / "later")
        assert not any(hint.startswith(b"old") for hint in heard.hints)


async def test_a_deleted_tree_is_told_of(make: Make, root: Path) -> None:
    async with listening(make, root) as heard:
        shutil.rmtree(root / "old")
        await heard.tells(root / "old" / "there")


async def test_it_says_something_at_least_once_a_second(make: Make, root: Path) -> None:
    """The watcher looks at the root then, and its heart beats."""
    async with listening(make, root) as heard, asyncio.timeout(PATIENCE):
        assert await heard.listen() == Hints()


async def test_a_source_that_is_let_go_leaves_no_descriptor_and_no_thread(make: Make, root: Path) -> None:
    async with listening(make, root):
        pass
    async with asyncio.timeout(PATIENCE):
        while any("inotify" in target for target in _descriptors()):  # noqa: ASYNC110 - closed by a thread
            await asyncio.sleep(0.01)


def _descriptors() -> list[str]:
    """Return what this process has open; a thread may close some meanwhile."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(os.fspath(entry.readlink()))
    return found


# --- what inotify itself can tell ---------------------------------------------------------------------


@pytest.fixture
def inotify() -> Make:
    return SOURCES["inotify"]


async def test_a_file_is_closed_once_its_writer_closed_it_or_it_was_moved_in(inotify: Make, root: Path) -> None:
    (root.parent / "whole").write_text("x")
    async with listening(inotify, root) as heard:
        with (root / "old" / "file").open("w") as file:
            file.write("half")
            file.flush()
            await heard.tells(root / "old" / "file")
            assert heard.closed == set()
        while b"old/file" not in heard.closed:
            await heard.listen()
        (root.parent / "whole").rename(root / "moved")
        while b"moved" not in heard.closed:
            await heard.listen()


async def test_a_file_that_was_taken_away_again_is_not_closed(inotify: Make, root: Path) -> None:
    async with listening(inotify, root) as heard:
        (root / "gone").write_text("x")
        (root / "away").write_text("x")
        (root / "gone").unlink()
        (root / "away").rename(root.parent / "away")
        (root / "last").write_text("x")
        while b"last" not in heard.closed:
            await heard.listen()
        assert heard.closed == {b"last"}
        await heard.tells(root / "gone")
        await heard.tells(root / "away")


async def test_a_name_that_is_no_utf8_is_told_of(inotify: Make, root: Path) -> None:
    async with listening(inotify, root) as heard:
        (root / os.fsdecode(b"\xff\xfe")).write_bytes(b"x")
        await heard.tells(root / os.fsdecode(b"\xff\xfe"))


async def test_an_overflow_is_said_aloud(inotify: Make, root: Path) -> None:
    with short_queue(16) as restore:
        async with listening(inotify, root) as heard:
            restore()
            for number in range(100):
                (root / f"{number}").touch()
            with pytest.raises(SourceEnded, match="overflowed"):
                await heard.to_its_end()


async def test_a_root_that_is_moved_away_ends_it(inotify: Make, root: Path) -> None:
    async with listening(inotify, root) as heard:
        heard.root.rename(root.parent / "elsewhere")
        with pytest.raises(StopAsyncIteration):
            await heard.to_its_end()


async def test_what_is_moved_out_is_watched_no_more(inotify: Make, root: Path) -> None:
    async with listening(inotify, root) as heard:
        (root / "old").rename(root.parent / "away")
        await heard.tells(root / "old" / "there")
        heard.forget()
        (root.parent / "away" / "deep" / "file").write_text("x")
        (root / "last").write_text("x")
        await heard.tells(root / "last")
        assert heard.hints == {b"last"}


async def test_a_symlink_in_place_of_a_directory_leads_nowhere(inotify: Make, root: Path) -> None:
    (root.parent / "outside").mkdir()
    async with listening(inotify, root) as heard:
        (root / "link").symlink_to(root.parent / "outside")
        await heard.tells(root / "link")
        heard.forget()
        (root.parent / "outside" / "file").write_text("x")
        (root / "last").write_text("x")
        await heard.tells(root / "last")
        assert heard.hints == {b"last"}


async def test_an_ignored_directory_takes_no_watch(root: Path) -> None:
    (root / ".git").mkdir()
    async with listening(SOURCES["inotify"], root) as heard:
        (root / ".git" / "file").write_text("x")
        (root / "last").write_text("x")
        await heard.tells(root / "last")
        assert heard.hints == {b"last"}
