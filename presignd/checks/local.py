"""Checks that need no store: folders, the writer check, events, inotify, the ledger."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path

from presignd.checks.base import CheckResult, Context, fail, ok, warn
from presignd.config import WatchConfig
from presignd.config.folders import folder_problems
from presignd.errors import PresigndError, Unavailable
from presignd.ledger import FILE
from presignd.ledger.lock import DaemonLock
from presignd.ledger.schema import LEDGER
from presignd.pipeline.files import lease as writer_check
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.watch.source import SourceChoice, choose_source, reports_events
from presignd.system import filesystem
from presignd.system.sqlite import DatabaseFile

INOTIFY_LIMIT = Path("/proc/sys/fs/inotify/max_user_watches")
"""inotify(7): the limit on watches per user; each directory takes one."""

CROWDED = 0.8
"""Share of the limit from which a warning is due: the user's other programs need watches too."""


async def check_folders(context: Context) -> AsyncIterator[CheckResult]:
    """Check that each folder can be listed, and that none overlaps another."""
    problems = await asyncio.to_thread(folder_problems, context.config)
    for problem in problems:
        yield problem_result("folders", problem)
    for watch in context.config.watches:
        if not any(problem.startswith(f"watch.{watch.name}.path:") for problem in problems):
            yield ok(f"folder {watch.name}", f"{watch.path} can be listed")


def problem_result(name: str, problem: str, otherwise: str = "") -> CheckResult:
    """Return the failure for a problem of the form "what: why; fix"; ``otherwise`` is the fix if it has none."""
    cause, separator, fix = problem.rpartition("; ")
    return fail(name, cause, fix) if separator else fail(name, problem, otherwise)


async def check_written(context: Context) -> AsyncIterator[CheckResult]:
    """Check write permission on folders that files are moved from or to, or that get link files."""
    for watch in context.config.watches:
        if any(_written(watch)):
            yield writable_result(watch)


def writable_result(watch: WatchConfig) -> CheckResult:
    """Return whether the daemon can write to all folders that ``watch`` needs to change."""
    name = f"writing {watch.name}"
    for folder, why in _written(watch):
        # The last folder of move_to is created with the first file.
        there = folder if folder.exists() or why != MOVE_TO else folder.parent
        if not there.is_dir():
            return fail(name, f"{there} ({why}) is no folder", f"mkdir -p {folder}")
        if not os.access(there, os.W_OK | os.X_OK, effective_ids=EFFECTIVE):
            fix = f"allow it, e.g. setfacl -m u:{_user()}:rwx {there} (under systemd also ReadWritePaths=)"
            return fail(name, f"{_user()} has no write permission on {there} ({why})", fix)
    return ok(name, ", ".join(f"{folder} can be written" for folder, _ in _written(watch)))


MOVE_TO = "move_to"
EFFECTIVE = os.access in os.supports_effective_ids


def _written(watch: WatchConfig) -> Iterator[tuple[Path, str]]:
    if watch.after != "keep":
        yield watch.path, f'after = "{watch.after}"'
    elif watch.link_file:
        yield watch.path, "link_file"
    if watch.after == "move" and watch.move_to:
        yield watch.move_to, MOVE_TO


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


async def check_ledger(context: Context) -> AsyncIterator[CheckResult]:
    """Open the ledger as the daemon does, unless the daemon has it open."""
    yield await asyncio.to_thread(ledger_result, context.config.ledger.path)


def ledger_result(folder: Path) -> CheckResult:
    """Return whether the ledger in ``folder`` opens. Creates nothing, so a check as root leaves no files of root."""
    try:
        return _ledger(folder)
    except PresigndError as problem:
        return fail("ledger", problem.message, problem.fix)
    except OSError as problem:
        return fail("ledger", f"{folder}: {problem.strerror}", LEDGER_FIX)


LEDGER_FIX = "run this as the daemon's user, or give the folder to it"


def _ledger(folder: Path) -> CheckResult:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK, effective_ids=EFFECTIVE):
        return fail("ledger", f"{_user()} may not write in {there}", f"{LEDGER_FIX}, or set ledger.path")
    if filesystem.is_network(there):
        kind = filesystem.kind(there)
        return fail(
            "ledger", f"{folder} lies on {kind}, which can't hold a ledger", "set ledger.path to a local folder"
        )
    if not (folder / FILE).exists():
        return ok("ledger", f"will be made in {folder}")
    try:
        lock = DaemonLock(folder)
    except Unavailable as held:
        return ok("ledger", held.message)
    with lock:
        DatabaseFile(folder / FILE, LEDGER).open().close()
    return ok("ledger", f"{folder} opens")


OWN_FIX = (
    "let the files belong to the daemon's user, give it CAP_LEASE (the systemd unit does; in a container run it "
    "as the user who writes, or as root with cap_add LEASE), or set ready_marker if writers pause for longer"
)
QUIET_FIX = "set ready_marker, or settle to more than writers pause; or watch a folder on a local filesystem"


async def check_writers(context: Context) -> AsyncIterator[CheckResult]:
    """Report in which folders the kernel can tell whether a file has a writer."""
    writer_check.ignore_sigio()
    for watch in context.config.watches:
        yield writer_result(watch)


def writer_result(watch: WatchConfig) -> CheckResult:
    """Return how files in a watch's folder settle, and what prevents a better way; SIGIO must be ignored."""
    with closing(Folder(watch)) as folder:
        mode, reason = writer_check.writer_check_of(folder)
    name = f"writer check {watch.name}"
    if mode == "lease" and not reason:
        return ok(name, "works: a file that is open for writing is waited for")
    if mode == "lease":
        return warn(name, f"works for own files only: {reason} ({_quiet(watch)})", OWN_FIX)
    return warn(name, f"can't work here: {reason}; {_quiet(watch)} decides", QUIET_FIX)


def _quiet(watch: WatchConfig) -> str:
    return f"a quiet time of {10 if watch.settle is None else watch.settle:g} s"


POLLING_FIX = 'set polling = "always", and poll_interval to how long a file may wait'


async def check_events(context: Context) -> AsyncIterator[CheckResult]:
    """Report the source of each folder's events, and why."""
    for watch in context.config.watches:
        yield events_result(watch)


def events_result(watch: WatchConfig) -> CheckResult:
    """Report the source of events for a watch's folder. Scans find what events miss."""
    source, why = source_of(watch)
    if source == "polling":
        return ok(f"events {watch.name}", f"scanned every {watch.poll_interval:g} s: {why}")
    if not reports_events(os.fsencode(watch.path)):
        return warn(
            f"events {watch.name}", "the kernel reports none for this folder; the scans find files", POLLING_FIX
        )
    return ok(f"events {watch.name}", f"from {source}: {why}")


async def check_inotify(context: Context) -> AsyncIterator[CheckResult]:
    """Compare the number of directories to watch with the kernel's limit."""
    watches = context.config.watches
    yield await asyncio.to_thread(inotify_result, watches, _inotify_limit())


def inotify_result(watches: Sequence[WatchConfig], limit: int | None) -> CheckResult:
    """Count the directories of ``watches`` that need an inotify watch; ``limit`` None is unreadable."""
    polled = [watch.name for watch in watches if _polled(watch)]
    polling = f"; polled: {', '.join(polled)}" if polled else ""
    if limit is None:
        return ok("inotify", f"the limit can't be read here; the scans find what events miss{polling}")
    directories = chain.from_iterable(_directories(watch) for watch in watches if not _polled(watch))
    return judge_inotify(sum(1 for _ in islice(directories, limit + 1)), limit, polling)


def _inotify_limit() -> int | None:
    try:
        return int(INOTIFY_LIMIT.read_text())
    except (OSError, ValueError):
        return None


def judge_inotify(wanted: int, limit: int, polling: str = "") -> CheckResult:
    """Judge whether ``wanted`` directories fit into the ``limit`` of watches."""
    if wanted <= limit * CROWDED:
        return ok("inotify", f"{wanted} of {limit} watches needed{polling}")
    return warn(
        "inotify",
        f"{'more than ' * (wanted > limit)}{min(wanted, limit)} of {limit} watches needed{polling}; "
        "beyond them only the scans find files",
        f"sysctl fs.inotify.max_user_watches={max(2 * wanted, 524288)}, and in /etc/sysctl.d to keep it",
    )


def _polled(watch: WatchConfig) -> bool:
    return source_of(watch).source == "polling"


def source_of(watch: WatchConfig) -> SourceChoice:
    """Return the source of a watch's events."""
    with closing(Folder(watch)) as folder:
        return choose_source(watch, folder.fd)


def _directories(watch: WatchConfig) -> Iterator[str]:
    """Yield each directory that gets an inotify watch; unreadable ones get none."""
    for directory, below, _ in os.walk(watch.path):
        if not watch.recursive:
            below.clear()
        yield directory
