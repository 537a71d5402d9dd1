"""Whether events reach all of a watch."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

from presignd.pipeline.watch.scan import Scanner


async def test_a_mount_that_one_look_saw_is_not_forgotten_by_another_that_began_before() -> None:
    seen, looks = threading.Event(), iter("ab")

    def refresh_mounts() -> bool:
        return next(looks) == "b" or not seen.wait()

    folder: Any = SimpleNamespace(refresh_mounts=refresh_mounts)
    unused: Any = None
    rest: Any = dict.fromkeys(("settler", "ledger", "leftovers", "log", "pauses"))
    scanner = Scanner(unused, folder, unused, unused, **rest)
    first = asyncio.create_task(scanner.check_mounts())
    await asyncio.sleep(0)
    await scanner.check_mounts()
    seen.set()
    await first
    assert scanner.outdated
