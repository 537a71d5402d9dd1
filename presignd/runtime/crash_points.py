"""Crash points: named points, one beside each commit and each effect, at which a test kills this process or hangs it.

With ``PRESIGND_CRASH_AT=name`` (or ``name:nth``) in the environment at start, the process sends itself SIGKILL when it
passes the point the ``nth`` time, so that nothing is cleaned up. With ``PRESIGND_WEDGE_AT`` the thread hangs there for
ever, as with a bug or a dead disk: this tests the watchdog. Without them ``passed`` does nothing. The crash harness
(``tests/system/crash``) kills at each of ``POINTS``; a test checks that these are the points in the code.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from itertools import count

VARIABLE = "PRESIGND_CRASH_AT"
WEDGE = "PRESIGND_WEDGE_AT"

POINTS = (
    "put.before",
    "put.after",
    "part.before",
    "part.after",
    "complete.before",
    "complete.after",
    "links.made",
    "links.append.before",
    "links.append.written",
    "links.append.synced",
    "links.rotate.step",
    "link_file.written",
    "link_file.published",
    "finish.aside.before",
    "finish.aside.after",
    "finish.compared",
    "finish.unlink.before",
    "finish.unlink.after",
    "finish.move.before",
    "finish.move.after",
    "finish.copy.written",
    "finish.copy.published",
    "finish.put_back.before",
    "finish.put_back.after",
    "unit.complete.before",
    "unit.empty.before",
    "done.said",
)
"""Points beside effects. Each commit has two more: ``commit.<operation>.before`` and ``.after`` (``CHANGES``)."""

INBOX_POINTS = (
    "inbox.download.step",
    "inbox.downloaded",
    "inbox.place.before",
    "inbox.place.after",
    "inbox.acked",
)
"""Points of inboxes, and ``INBOX_CHANGES`` their commits: they have a test of their own (``tests/system``)."""

INBOX_CHANGES = ("record_arrivals", "record_placing", "record_placed", "record_acked")

CHANGES = (
    "record_announced",
    "add_message",
    "apply.finish",
    "apply.link",
    "apply.quarantine",
    "apply.retry",
    "apply.supersede",
    "apply.vanish",
    "apply.verify",
    "assign_key",
    "begin_upload",
    "begin_run",
    "claim",
    "configure_webhooks",
    "drop_messages",
    "end_upload",
    "enqueue",
    "first_scan_done",
    "first_start",
    "record_gone",
    "record_linked",
    "record_part",
    "prune",
    "refingerprint",
    "release",
    "requeue",
    "set_meta",
    "complete_unit",
    "record_sha256",
    "close_unit",
    "settle_messages",
    "switch_off",
    "switch_on",
    "update",
)
"""The ledger's operations, as ``commit.<operation>`` names them."""


def _nothing(_: str) -> None:
    """Do nothing: no point is armed."""


def armed(spec: str, kill: Callable[[], None]) -> Callable[[str], None]:
    """Return a ``passed`` that calls ``kill`` at ``name`` or, for ``name:nth``, the ``nth`` time there."""
    name, _, nth = spec.partition(":")
    passes, last = count(1), int(nth or 1)

    def passed(point: str) -> None:
        if point == name and next(passes) == last:
            kill()

    return passed


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    threading.Event().wait()


def _by_environment() -> Callable[[str], None]:
    for variable, act in ((VARIABLE, _die), (WEDGE, _hang)):
        if spec := os.environ.get(variable):
            return armed(spec, act)
    return _nothing


passed = _by_environment()
"""``passed("put.before")``: one line at each point."""
