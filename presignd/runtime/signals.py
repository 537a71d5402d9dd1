"""Handle signals that arrive while a program is imported and reads its configuration; imports almost nothing itself."""

from __future__ import annotations

import os
import signal

_hung_up = False


def hold() -> None:
    """Until the program handles signals itself, end with 0 on SIGTERM and SIGINT, as nothing has begun; keep a SIGHUP.

    On a terminal SIGHUP ends it, too: the terminal was closed. As PID 1 of a container without ``--init``, let the
    kernel reap orphans.
    """
    ends = [signal.SIGTERM, signal.SIGINT]
    if os.isatty(0) or os.isatty(2):
        ends.append(signal.SIGHUP)
    else:
        signal.signal(signal.SIGHUP, _keep)
    for number in ends:
        signal.signal(number, lambda *_: os._exit(0))
    if os.getpid() == 1:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def _keep(*_: object) -> None:
    global _hung_up  # noqa: PLW0603 - a signal is the whole process's
    _hung_up = True


def was_hung_up() -> bool:
    """Return whether a SIGHUP was kept."""
    return _hung_up
