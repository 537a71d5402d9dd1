"""Write lines to a descriptor from a thread of its own, so that a stuck reader of stderr delays nothing.

No flag makes writes to every kind of stderr return at once: O_NONBLOCK belongs to the open file description, which
other processes share, and a regular file (on NFS whose server is away) ignores it. A thread works for all kinds.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import TypeAlias

from presignd.system.clock import utcnow

ROOM = 8 << 20
"""Bytes that may wait for a stuck reader; lines beyond are dropped and counted."""

CHUNK, LARGE_CHUNK = 4096, 16 << 10
"""Bytes in one write, unless one line is longer: nobody else's write may come between. CHUNK is Linux' PIPE_BUF, up to
which a write to a pipe is atomic. A file takes any write as a whole (write(2)), a Unix socket up to 32 KiB."""

LINGER_SECONDS = 0.005
"""How long the first line waits for others: waking the thread for each line of a burst costs more than the line."""

FULL_SECONDS = 1.0
"""How long one wait for a full non-blocking descriptor takes."""

Notice: TypeAlias = Callable[[int, datetime], str]
"""Renders the line that reports dropped lines: how many, and since when."""


class LineWriter:
    """Writes whole lines in order; ``write`` never blocks.

    Lines that find no room, or that the descriptor refuses (a full disk, no reader), are dropped and counted.
    One ``notice`` reports their number, at the place of the gap, as soon as lines can be written again. The
    rest of a torn line is written before anything else.
    """

    def __init__(self, descriptor: Callable[[], int], notice: Notice, room: int = ROOM) -> None:
        self.notice = notice
        self._descriptor = descriptor
        self._room = room
        self._changed = threading.Condition()
        self._hurry = threading.Event()
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._taken = self._done = 0
        self._lost = self._refused_at = 0
        self._lost_since = utcnow()
        self._refused = False
        self._rest = b""
        self._stuck_at = -1
        self._thread: threading.Thread | None = None
        self._closed = False

    def write(self, *lines: bytes) -> int:
        """Queue lines, each with its newline; return how many, from the first, had room."""
        with self._changed:
            if not self._is_due():
                self._changed.notify_all()
            size = sum(map(len, lines))
            if self._takes_all(size):
                self._lines.extend(lines)
                self._bytes += size
                self._taken += len(lines)
                return len(lines)
            for count, line in enumerate(lines):
                if self._is_full(line):
                    self._lose(len(lines) - count)
                    return count
                self._lines.append(line)
                self._bytes += len(line)
                self._taken += 1
                if self._closed or not self._has_thread():
                    self._turn()
        return len(lines)

    def _takes_all(self, size: int) -> bool:
        """Return whether there is room for ``size`` bytes and a thread to write them, as there nearly always is."""
        whole = not self._closed and not self._lost and self._bytes + size <= self._room
        return whole and self._has_thread()

    def _is_full(self, line: bytes) -> bool:
        # While a gap follows the queued lines, its notice must come before any other line.
        after_gap = self._lost and not self._refused
        return bool(after_gap or self._bytes + len(line) > self._room or (self._closed and self._would_wait()))

    def _would_wait(self) -> bool:
        try:
            return not select.select([], [self._descriptor()], [], 0)[1]
        except (OSError, ValueError, AttributeError):
            return False

    def mark(self) -> int:
        """Return how many lines were queued so far."""
        return self._taken

    def is_past(self, mark: int) -> bool:
        """Return whether the first ``mark`` lines are written or lost."""
        return self._done >= mark

    def has_refused(self, since: int) -> bool:
        """Return whether the descriptor refused one of the lines after the first ``since``."""
        return self._refused_at > since

    def flush(self, seconds: float) -> bool:
        """Wait until every queued line is written; return whether it is.

        When nothing was written since a flush that failed, the next one fails at once.
        """
        with self._changed:
            if self._stuck_at == self._done < self._taken:
                return False
            self._hurry.set()
            through = self._changed.wait_for(lambda: not self._is_due(), seconds)
            self._hurry.clear()
            self._stuck_at = -1 if through else self._done
            return through

    def close(self, seconds: float) -> None:
        """Flush. After that ``write`` writes directly, because the thread ends with the interpreter."""
        self._closed = self.flush(seconds)

    def _is_due(self) -> bool:
        """Return whether anything waits to be written: lines, or the notice of a gap after them."""
        return self._done < self._taken or bool(self._lost and not self._refused)

    def _has_thread(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="presignd-lines", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # "can't start new thread": RLIMIT_NPROC, or the interpreter ends
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._is_due)
            self._hurry.wait(LINGER_SECONDS)
            while self._turn():
                pass

    def _turn(self) -> bool:
        """Write one chunk; return whether there was one."""
        most = self._most_at_once()
        with self._changed:
            if not self._is_due():
                return False
            head, reported = self._head()
            count, body = self._take(most - len(head))
        data = head + body
        written, error = self._put(data)
        torn = b"" if error == errno.EPIPE else _torn(data, written, len(self._rest))
        with self._changed:
            self._refused = written < len(data)
            self._lost -= reported if written >= len(head) or (torn and written > len(self._rest)) else 0
            refused = min(count, data.count(b"\n", written + len(torn)))
            self._lose(refused)
            self._rest = torn
            self._done += count
            self._refused_at = self._done if refused else self._refused_at
            self._changed.notify_all()
        return True

    def _most_at_once(self) -> int:
        try:
            mode = os.fstat(self._descriptor()).st_mode
        except (OSError, ValueError, AttributeError):
            return CHUNK
        return LARGE_CHUNK if stat.S_ISREG(mode) or stat.S_ISSOCK(mode) else CHUNK

    def _head(self) -> tuple[bytes, int]:
        """Return the bytes to write before the next lines, and how many dropped lines they report."""
        if self._lost and (self._refused or not self._lines):
            notice = self.notice(self._lost, self._lost_since)
            return self._rest + notice.encode("utf-8", "backslashreplace") + b"\n", self._lost
        return self._rest, 0

    def _take(self, most: int) -> tuple[int, bytes]:
        """Take lines off the queue: one at least, if there is one, and more up to ``most`` bytes."""
        taken: list[bytes] = []
        size = 0
        while self._lines and (not taken or size + len(self._lines[0]) <= most):
            taken.append(self._lines.popleft())
            size += len(taken[-1])
        self._bytes -= size
        return len(taken), b"".join(taken)

    def _lose(self, lines: int) -> None:
        if lines and not self._lost:
            self._lost_since = utcnow()
        self._lost += lines

    def _put(self, data: bytes) -> tuple[int, int]:
        """Write ``data``; return how many bytes were written, and the errno that ended it (0: none)."""
        written = 0
        view = memoryview(data)
        try:
            while written < len(data):
                written += _write_some(self._descriptor(), view[written:])
        except OSError as error:
            return written, error.errno or -1
        except (ValueError, AttributeError):  # the stream is closed, or there is none
            return written, -1
        return written, 0


def _write_some(descriptor: int, data: memoryview) -> int:
    """Write what fits; wait for a non-blocking descriptor that is full."""
    try:
        return os.write(descriptor, data)
    except BlockingIOError:
        select.select([], [descriptor], [], FULL_SECONDS)
        return 0


def _torn(data: bytes, written: int, rest: int) -> bytes:
    """Return the rest of the line that was cut; the first ``rest`` bytes of ``data`` are the rest of an earlier one."""
    inside = written < rest or (written and data[written - 1 : written] != b"\n")
    return data[written : data.index(b"\n", written) + 1] if inside else b""
