"""The line of ``systemctl status``: trouble first, then the queue; only codes and names of watches."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from presignd.app.status_line import line, troubles
from presignd.control.view import BlockedView
from presignd.ledger import WatchSummary
from presignd.model import State

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_a_quiet_daemon_says_little() -> None:
    assert line([], uploading=0, settling=0, troubles=[], now=NOW) == "0 uploading, 0 queued, 0 settling"


def test_the_queue_is_that_of_all_watches_with_the_age_of_its_oldest() -> None:
    old, new = NOW - timedelta(seconds=31), NOW - timedelta(seconds=2)
    summaries = [
        WatchSummary("a", {State.QUEUED: 2, State.FINISHED: 9}, new),
        WatchSummary("b", {State.QUEUED: 3, State.QUARANTINED: 1}, old),
    ]
    said = line(summaries, uploading=4, settling=5, troubles=["the store is away"], now=NOW)
    assert said == "the store is away; 4 uploading, 5 queued (oldest 31 s), 5 settling, 1 quarantined"


def test_what_is_waited_for_is_named_with_its_code_and_without_its_words() -> None:
    words = "in the store's words"
    blocked = [
        BlockedView("store", "", "connection_refused", words, NOW),
        BlockedView("presigner", "", "no_credentials", words, NOW),
        BlockedView("bucket", "scans", "access_denied", words, NOW),
    ]
    assert troubles(blocked, ["mail"], ledger_slow=True) == [
        "the ledger does not answer",
        "waiting for the store (connection_refused)",
        "waiting for the presigner (no_credentials)",
        "waiting for the bucket of watch scans (access_denied)",
        "the folder of watch mail is away",
    ]
    assert troubles([], [], ledger_slow=False) == []
