"""Signals that come to a service while it is imported and reads its configuration."""

from __future__ import annotations

import os
import signal

_hung_up = False


def hold() -> None:
    """Until a service handles signals itself: SIGTERM and SIGINT end it with 0, for nothing is begun; SIGHUP is kept.

    On a terminal that is closed SIGHUP is to end it, too. As PID 1, without ``--init``, it has the kernel bury the
    orphans of whatever else runs in its container.
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
    """Tell whether a SIGHUP came that was kept."""
    return _hung_up
