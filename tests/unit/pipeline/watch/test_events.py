"""The ends of event sources and the system's limits."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace

import pytest
import watchfiles
from watchfiles import Change

from presignd.config import WatchConfig
from presignd.pipeline.watch import watchfiles as module
from presignd.pipeline.watch.source import (
    INSTANCES,
    WATCHES,
    SourceChoice,
    SourceEnded,
    choose_source,
    limit_value,
    no_events,
    watches_left,
)
from presignd.pipeline.watch.watchfiles import burst_of_queue, watchfiles_source
from presignd.system import filesystem, syscalls

Changes = set[tuple[Change, str]]


def ending(monkeypatch: pytest.MonkeyPatch, error: BaseException | None, *batches: Changes) -> None:
    """Make watchfiles return these batches and end, with an error or normally."""

    async def awatch(*_args: object, **_options: object) -> AsyncGenerator[Changes, None]:
        for batch in batches:
            yield batch
        if error is not None:
            raise error

    monkeypatch.setattr(watchfiles, "awatch", awatch)


async def until_its_end(found: list[bytes]) -> SourceEnded:
    watch = WatchConfig(name="drop", path=Path("/srv/drop"), bucket="test-bucket")
    source = watchfiles_source(watch, b"/srv/drop")
    try:
        while True:
            found += (await anext(source)).paths
    except SourceEnded as ended:
        return ended


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (OSError('OS file watch limit reached. about ["/srv/drop"]'), WATCHES),
        (RuntimeError("Error in underlying watcher: No space left on device (os error 28)"), WATCHES),
        (OSError("Too many open files (os error 24)"), INSTANCES),
        (ExceptionGroup("", [ExceptionGroup("", [OSError("Too many open files (os error 24)")])]), INSTANCES),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), ""),
    ],
)
async def test_an_error_of_the_source_ends_it_and_a_limit_is_named(
    monkeypatch: pytest.MonkeyPatch, error: Exception, limit: str
) -> None:
    ending(monkeypatch, error)
    assert (await until_its_end([])).limit == limit


async def test_a_source_that_ends_by_itself_is_an_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watchfiles ends without a word in some cases: nobody would look at the folder any more."""
    ending(monkeypatch, None, {(Change.added, "/srv/drop/a")}, {(Change.deleted, "/srv/drop/sub/b")})
    found: list[bytes] = []
    assert (await until_its_end(found)).limit == ""
    assert found == [b"a", b"sub/b"]


async def test_what_lies_outside_the_root_is_no_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = {"/srv/drop", "/srv/drop2/a", "/elsewhere"}
    ending(monkeypatch, None, {(Change.modified, path) for path in (*outside, "/srv/drop/\udcff")})
    found: list[bytes] = []
    await until_its_end(found)
    assert found == [b"\xff"]


async def test_polling_for_a_while_comes_to_an_end() -> None:
    """Inotify is tried again then."""
    assert [batch async for batch in no_events(0.0)] == []


def test_a_limit_that_can_not_be_read_is_a_question_mark() -> None:
    assert limit_value("fs.inotify.no_such_limit") == "?"


def test_on_other_systems_and_without_instances_nothing_is_known_of_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """No limit may be blamed that was not met."""
    with monkeypatch.context() as patched:
        patched.setattr(syscalls, "libc", lambda: SimpleNamespace(inotify_init1=lambda _flags: -1))
        assert watches_left(b"/")
        patched.setattr(sys, "platform", "darwin")
        assert watches_left(b"/nowhere")


EXT4, NFS, STRANGE = 0xEF53, 0x6969, 0


@pytest.mark.parametrize(
    ("options", "kind", "expected"),
    [
        ({}, EXT4, SourceChoice("inotify", "ext4 is local")),
        ({}, STRANGE, SourceChoice("watchfiles", "unknown is not known to be local")),
        ({"events": "watchfiles"}, EXT4, SourceChoice("watchfiles", 'events = "watchfiles"')),
        ({"events": "inotify"}, STRANGE, SourceChoice("inotify", 'events = "inotify"')),
        ({"events": "inotify"}, NFS, SourceChoice("polling", "NFS reports no change made on other hosts")),
        ({"polling": "never"}, NFS, SourceChoice("watchfiles", "NFS is not known to be local")),
        ({"polling": "always"}, EXT4, SourceChoice("polling", 'polling = "always"')),
    ],
)
def test_hints_come_from_inotify_where_the_filesystem_is_surely_local(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], kind: int, expected: SourceChoice
) -> None:
    monkeypatch.setattr(filesystem, "fs_type", lambda _target: kind)
    config = WatchConfig.model_validate({"name": "drop", "path": "/srv/drop", "bucket": "bucket", **options})
    assert choose_source(config, 0) == expected


def test_without_linux_watchfiles_serves_whatever_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    config = WatchConfig(name="drop", path=Path("/srv/drop"), bucket="bucket", events="inotify")
    assert choose_source(config, 0).source == "watchfiles"


@pytest.mark.parametrize(
    ("length", "changes"), [("16384", 1000), ("1048576", 1000), ("1600", 100), ("16", 1), ("1", 1), ("?", 1000)]
)
def test_the_shorter_the_kernel_s_queue_the_fewer_changes_may_have_overflown_it(
    monkeypatch: pytest.MonkeyPatch, length: str, changes: int
) -> None:
    monkeypatch.setattr(module, "limit_value", lambda _: length)
    assert burst_of_queue() == changes


async def test_a_batch_that_an_overflow_may_have_cut_and_the_first_smaller_one_after_it_are_incomplete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = [{(Change.added, f"/srv/drop/{number}") for number in range(length)} for length in (1, 2, 3, 1, 1)]
    ending(monkeypatch, None, *batches)
    monkeypatch.setattr(module, "burst_of_queue", lambda: 2)
    source = watchfiles_source(WatchConfig(name="drop", path=Path("/srv/drop"), bucket="test-bucket"), b"/srv/drop")
    found = [(await anext(source)).incomplete for _ in batches]
    await source.aclose()
    assert found == [False, True, True, True, False]
