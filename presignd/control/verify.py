"""The request ``verify``: find its files, compare several at a time, and count the results.

Only one page of the files is in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from presignd.control import documents
from presignd.control.paths import NOT_SENT, WatchPath, locate
from presignd.control.server import failure
from presignd.errors import ExitCode, PresigndError, Refused, TimedOut, worst
from presignd.model import State
from presignd.verify.proofs import Outcome, Verified, unchecked

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
    from pathlib import Path

    from presignd.config import WatchConfig
    from presignd.control.documents import Document
    from presignd.control.paths import Finder, Named
    from presignd.control.view import View
    from presignd.model import FileVersion
    from presignd.verify.verifier import Verifier

WIDTH = 16
"""Files that are compared at a time, by all requests together."""

PAGE = 1000
"""Versions read from the ledger at a time."""

PROGRESS_EVERY = 0.2
"""Seconds between two answers that only show progress."""

WAIT = "presignd wait waits for it"

LEAVES_NOTHING = frozenset({State.VANISHED, State.SUPERSEDED, State.IGNORED})
"""States of a version that was never uploaded and need not have been."""


@dataclass(frozen=True, slots=True)
class Item:
    """One file: where it is, and its version if there is one. ``result`` is None before the comparison."""

    place: WatchPath
    version: FileVersion | None = None
    result: Verified | None = None


@dataclass
class Summary:
    """The results so far, counted."""

    outcomes: Counter[str] = field(default_factory=Counter)
    by: Counter[str] = field(default_factory=Counter)
    against: Counter[str] = field(default_factory=Counter)
    problems: dict[str, tuple[int, PresigndError]] = field(default_factory=dict)

    def add(self, result: Verified) -> None:
        """Count the result of one file."""
        self.outcomes[result.outcome] += 1
        if result.by:
            self.by[result.by] += 1
        if result.against:
            self.against[result.against] += 1
        if problem := result.problem:
            count, _ = self.problems.get(problem.code, (0, problem))
            self.problems[problem.code] = count + 1, problem

    @property
    def checked(self) -> int:
        """How many files there were."""
        return sum(self.outcomes.values())

    @property
    def exit_code(self) -> int:
        """The command's exit code: 4 if a file differs or is missing, else that of the files that were not checked."""
        if self.outcomes[Outcome.DIFFERS] or self.outcomes[Outcome.MISSING]:
            return ExitCode.REFUSED
        return worst({problem.exit_code for _, problem in self.problems.values()})

    def document(self) -> Document:
        """Render the numbers."""
        return {
            **{str(outcome): self.outcomes[outcome] for outcome in Outcome},
            "by": dict(self.by),
            "against": dict(self.against),
            "problems": [{"count": count, **failure(problem)["error"]} for count, problem in self.problems.values()],
            "exit": self.exit_code,
        }


class Verification:
    """One request. ``slots`` limits the comparisons of all requests together.

    The client must open a file that was put from outside the watches: ``fd`` is that file. ``by_receipt``: the client
    can't open it. With neither, the answer asks the client to request such a file again.
    """

    def __init__(
        self,
        view: View,
        finder: Finder,
        verifier: Verifier,
        slots: asyncio.Semaphore,
        *,
        fd: int | None = None,
        by_receipt: bool = False,
    ) -> None:
        self._view, self._finder, self._verifier, self._slots = view, finder, verifier, slots
        self._fd, self._asks = fd, fd is None and not by_receipt
        self.summary = Summary()
        self._roots = documents.roots_of(view.config)
        self._total = 0

    async def answers(self, paths: Sequence[bytes], *, every: bool, list_equal: bool) -> AsyncGenerator[Document, None]:
        """Yield ``{"file"}`` for each file that is not equal, ``{"progress"}``, and ``{"summary"}`` at the end.

        ``{"ask": path}`` is a file that the client shall request again. ``every``: all files of all watches.
        ``list_equal``: each file, also an equal one, and one that is not checked because it waits or the store is away.
        """
        summary, shown = self.summary, time.monotonic()
        items = self._everything() if every else self._named(paths)
        async with contextlib.aclosing(_concurrently(items, self._check)) as checked:
            async for item in checked:
                if item and (result := item.result):
                    summary.add(result)
                    if list_equal or not (result.outcome is Outcome.EQUAL or result.skipped):
                        yield {"file": self._document(item, result)}
                elif item:
                    yield {"ask": os.fsdecode(item.place.absolute)}
                if time.monotonic() - shown >= PROGRESS_EVERY:
                    shown = time.monotonic()
                    yield {"progress": {"checked": summary.checked, "total": max(self._total, summary.checked)}}
        yield {"summary": summary.document()}

    # --- which files ----------------------------------------------------------------------------
    async def _everything(self) -> AsyncGenerator[Item, None]:
        watches = self._view.config.watches
        self._total = sum([await self._view.ledger.current_count(watch.name, b"", b"") for watch in watches])
        for watch in watches:
            async for item in self._below(watch.name, b""):
                yield item

    async def _named(self, paths: Sequence[bytes]) -> AsyncGenerator[Item, None]:
        watches = self._view.config.watches
        folders = await asyncio.to_thread(lambda: {path: _watch_at(path, watches) for path in paths})
        for watch in filter(None, folders.values()):
            self._total += await self._view.ledger.current_count(watch, b"", b"")
            async for item in self._below(watch, b""):
                yield item
        others = await asyncio.to_thread(
            lambda: [_in_watch(path, watches, self._view.ignored) for path in paths if not folders[path]]
        )
        for named in await self._finder.find(others):
            watch, path = named.place.watch, named.place.path
            if named.version is None and await self._is_folder(named.place):
                self._total += await self._view.ledger.current_count(watch, *_range(path))
                async for item in self._below(watch, path):
                    yield item
            else:
                self._total += 1
                yield await self._item(named)

    async def _is_folder(self, place: WatchPath) -> bool:
        """Return whether a path of a watch is a directory now, or was one for files that the ledger knows."""
        if not place.watch:
            return False
        return await asyncio.to_thread(self._verifier.is_directory, place.watch, place.path) or bool(
            await self._view.ledger.current(place.watch, *_range(place.path), 1)
        )

    async def _item(self, named: Named) -> Item:
        """Return the item of a path that was named: ignored and unknown paths have a result, too."""
        place, version = named.place, named.version
        if version is None and not await self._is_there(place):
            return Item(place, None, unchecked(self._finder.why_unknown(named)))
        if version and version.state is State.IGNORED:
            return Item(place, version, unchecked(Refused(NOT_SENT, fix="presignd put uploads it all the same")))
        return Item(place, version)

    async def _is_there(self, place: WatchPath) -> bool:
        """Return whether a file that the ledger doesn't know is one that its watch uploads."""
        present = await self._finder.present([(place, None)])
        found = present.get(place)
        return found is not None and not isinstance(found, OSError) and not self._finder.rule(place)

    async def _below(self, watch: str, directory: bytes) -> AsyncGenerator[Item, None]:
        """Yield the recorded files below a directory (b"" for the whole watch), then those that are not recorded."""
        after, before = _range(directory)
        while page := await self._view.ledger.current(watch, after, before, PAGE):
            for version in page:
                if version.state not in LEAVES_NOTHING:
                    yield Item(self._place(watch, version.path), version)
            after = page[-1].path
        async for item in self._unrecorded(watch, directory):
            yield item

    async def _unrecorded(self, watch: str, directory: bytes) -> AsyncGenerator[Item, None]:
        scan = self._verifier.scan(watch, directory)
        if scan is None:
            return
        async with contextlib.aclosing(scan.in_thread()) as batches:
            async for batch in batches:
                differing = [path for path, *_ in await self._view.ledger.differing(watch, batch)]
                known = await self._view.ledger.known(watch, differing)
                for path in differing:
                    if path not in known or known[path].state in LEAVES_NOTHING - {State.IGNORED}:
                        yield Item(self._place(watch, path))
        for problem in scan.problems:
            yield Item(self._place(watch, directory), None, unchecked(Refused(problem)))

    def _place(self, watch: str, path: bytes) -> WatchPath:
        return WatchPath(os.fsencode(documents.absolute(self._roots, watch, path)), watch, path)

    # --- one file -------------------------------------------------------------------------------
    async def _check(self, item: Item) -> Item:
        """Return a file with its result, without one if the client must open it."""
        if item.result or (self._asks and item.version and item.version.path.startswith(b"/")):
            return item
        async with self._slots:
            return replace(item, result=await self._result(item))

    async def _result(self, item: Item) -> Verified:
        version = item.version
        if version is None or not documents.has_receipt(version):
            return self._pending(item.place) or _not_uploaded(version)
        result = await self._verifier.verify(version, self._fd)
        if result.outcome in {Outcome.EQUAL, Outcome.UNCHECKED}:
            return result
        now = await self._view.ledger.by_path(version.watch, version.path)
        if now and now.file_id != version.file_id:
            return unchecked(TimedOut("a newer version of it was recorded meanwhile", fix=WAIT), skipped=True)
        return self._pending(item.place) or result

    def _pending(self, place: WatchPath) -> Verified | None:
        """Return the result of a file that settles: its content is about to be uploaded."""
        settling = self._view.settling_at(place.watch, place.path)
        return unchecked(TimedOut(f"it is settling: {settling.why}", fix=WAIT), skipped=True) if settling else None

    def _document(self, item: Item, result: Verified) -> Document:
        version, found = item.version, result.found
        problem: dict[str, Any] = failure(result.problem) if result.problem else {"error": None}
        return {
            "path": os.fsdecode(item.place.absolute),
            "watch": item.place.watch or (version.watch if version else ""),
            "outcome": str(result.outcome),
            "why": result.why,
            "by": result.by and str(result.by),
            "against": result.against and str(result.against),
            "bucket": version.bucket if version else None,
            "key": version.key if version else None,
            "object": {"size": found.size, "etag": found.etag, "modified": found.modified} if found else None,
            **problem,
        }


def _not_uploaded(version: FileVersion | None) -> Verified:
    """Return the result of a file whose content was not uploaded: it waits, or it is missing in the store."""
    if version is None:
        return Verified(Outcome.MISSING, "it was never uploaded")
    if version.state is State.QUARANTINED:
        error = documents.of_error(version)
        return Verified(Outcome.MISSING, f"it was never uploaded: {error['cause']}" if error else "it is quarantined")
    return unchecked(TimedOut(f"it is {version.state}", fix=WAIT), skipped=True)


def _range(directory: bytes) -> tuple[bytes, bytes]:
    """Return the two paths between which all paths below a directory are; "0" follows "/"."""
    return (directory + b"/", directory + b"0") if directory else (b"", b"")


def _watch_at(absolute: bytes, watches: Sequence[WatchConfig]) -> str:
    """Return the watch whose folder a path is, or else whose ``move_to``; "" for none."""
    folders = [(watch.name, watch.path) for watch in watches]
    folders += [(watch.name, watch.move_to) for watch in watches if watch.move_to]
    return next((name for name, folder in folders if absolute in _forms(folder)), "")


def _in_watch(absolute: bytes, watches: Sequence[WatchConfig], ignored: Callable[[str, bytes], str]) -> bytes:
    """Return where a file of ``move_to`` was in its watch; any other path, and one that a watch uploads, as it is."""
    place = locate(absolute, watches)
    if place.watch and not ignored(place.watch, place.path):
        return absolute
    for watch in watches:
        for root in _forms(watch.move_to) if watch.move_to else ():
            if absolute.startswith(root + b"/"):
                return os.fsencode(watch.path) + absolute[len(root) :]
    return absolute


def _forms(folder: Path) -> tuple[bytes, bytes]:
    """Return a folder's configured and its real path."""
    named = os.fsencode(folder)
    return os.path.abspath(named), os.path.realpath(named)  # noqa: PTH100 - resolve() would follow symlinks


async def _concurrently(
    items: AsyncGenerator[Item, None], check: Callable[[Item], Coroutine[Any, Any, Item]]
) -> AsyncGenerator[Item | None, None]:
    """Yield what ``check`` returns, for ``WIDTH`` items at a time; None after ``PROGRESS_EVERY`` without a result."""
    running: set[asyncio.Task[Item]] = set()
    try:
        async with contextlib.aclosing(items):
            async for item in items:
                running.add(asyncio.create_task(check(item)))
                while len(running) >= WIDTH:
                    async for one in _next(running):
                        yield one
        while running:
            async for one in _next(running):
                yield one
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _next(running: set[asyncio.Task[Item]]) -> AsyncIterator[Item | None]:
    done, _ = await asyncio.wait(running, timeout=PROGRESS_EVERY, return_when=asyncio.FIRST_COMPLETED)
    running -= done
    for task in done:
        yield task.result()
    if not done:
        yield None
