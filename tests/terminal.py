"""A terminal of a given size, whose output a test can read."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import struct
import termios
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.needs import need

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def terminal(width: int, lines: int = 50) -> Iterator[tuple[int, int]]:
    """Open a terminal of this size; return the user's end and the command's end."""
    need("terminal")
    looked_at, written = pty.openpty()
    fcntl.ioctl(written, termios.TIOCSWINSZ, struct.pack("HHHH", lines, width, 0, 0))
    try:
        yield looked_at, written
    finally:
        os.close(looked_at)


def without_styles(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r\n", "\n")


async def shown_until(pattern: str, looked_at: int) -> str:
    """Read a terminal until it shows ``pattern``; return all it was sent."""
    shown = ""
    async with asyncio.timeout(60):
        while not re.search(pattern, without_styles(shown)):
            shown += (await asyncio.to_thread(os.read, looked_at, 4096)).decode()
    return shown
