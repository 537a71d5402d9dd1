"""Check trust: symlinks, hard links and folders by which other users could mislead the daemon."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from pathlib import Path

from presignd.checks.base import CheckResult, Context, fail, warn
from presignd.config import Config, WatchConfig
from presignd.errors import PresigndError, reason_of
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.finish.target import target_of
from presignd.system.trust import open_file, others_can_write, walked

PROTECTED_HARDLINKS = Path("/proc/sys/fs/protected_hardlinks")
"""proc_sys_fs(5): with 1, users cannot link files that they may not read and write."""


async def check_trust(context: Context, *, hardlinks: Path = PROTECTED_HARDLINKS) -> AsyncIterator[CheckResult]:
    """Report paths that other users could replace; nothing if all are safe."""
    for result in await asyncio.to_thread(lambda: [*trust_results(context.config), *hard_links(hardlinks)]):
        yield result


def trust_results(config: Config) -> Iterator[CheckResult]:
    """Yield a result for each configured path that other users can replace, or have replaced. Blocking."""
    for watch in config.watches:
        if watch.after == "move":
            yield from _move_to(watch)
    yield from _loose("ledger.path", config.ledger.path, "the ledger")
    if not config.links.file.parent.is_relative_to(config.ledger.path):
        yield from _loose("links.file", config.links.file.parent, "the links")
    if config.web.listen:
        yield from _web_token(config)


def _move_to(watch: WatchConfig) -> Iterator[CheckResult]:
    """Open ``move_to`` as for a file. Another check reports a missing folder."""
    try:
        with closing(Folder(watch)) as folder, target_of(folder, watch, b"", make=False):
            return
    except FileNotFoundError:
        return
    except PresigndError as problem:
        why = problem.message
    except OSError as error:
        why = reason_of(error)
    fix = "have move_to lead through folders that only root and the daemon's user can change, or through no symlink"
    yield fail(f"move_to {watch.name}", f"{watch.move_to}: {why}", fix)


def _loose(key: str, folder: Path, what: str) -> Iterator[CheckResult]:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    with suppress(OSError), walked(there) as place:
        if exposed_by := place.exposed_by or (place.path if others_can_write(place.st) else ""):
            yield warn(
                key,
                f"others can write in {exposed_by}, so they can put something else in the place of {what}",
                f"name a folder that lies where only root and the daemon's user can write, or chmod go-w {exposed_by}",
            )


def _web_token(config: Config) -> Iterator[CheckResult]:
    try:
        os.close(open_file(config.web_token))
    except FileNotFoundError:
        return  # it is made when the page is first served
    except OSError as error:
        fix = "correct it, or remove it: then a new one is made"
        yield fail("web", f"web.token_file: {config.web_token}: {reason_of(error)}", fix)


def hard_links(setting: Path) -> Iterator[CheckResult]:
    """Warn if users can have others' files uploaded through hard links; ``setting`` is the kernel's file."""
    with suppress(OSError):
        if setting.read_text("ascii").strip() == "0":
            yield warn(
                "hard links",
                "fs.protected_hardlinks is 0: whoever may write in a watched folder can link a file there that only "
                "the daemon may read, and have it uploaded",
                "sysctl fs.protected_hardlinks=1, and in /etc/sysctl.d to keep it",
            )
