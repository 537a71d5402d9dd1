"""The metrics for Prometheus: names that alerts use, and counters that move when something happens."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from presignd.broker import metrics as broker_metrics
from presignd.config import PresignConfig
from presignd.model import FileVersion, State
from presignd.pipeline.announce import Announcer
from presignd.presign.credentials import Credentials, CredentialSource
from presignd.s3.sigv4 import Keys
from presignd.telemetry import metrics
from tests.versions import NOW, PRINT

ALERTS = Path(__file__).parents[3] / "docs" / "alerts.yml"
NAMES = {
    "presignd_uploads_total",
    "presignd_upload_bytes_total",
    "presignd_upload_duration_seconds",
    "presignd_pending_files",
    "presignd_oldest_pending_seconds",
    "presignd_quarantined_files",
    "presignd_inflight_uploads",
    "presignd_settling_files",
    "presignd_oldest_settling_seconds",
    "presignd_last_upload_timestamp_seconds",
    "presignd_credential_expiry_timestamp_seconds",
    "presignd_build_info",
    "presignd_presign_requests_total",
    "presignd_watch_overflows_total",
    "presignd_rescan_found_total",
    "presignd_store_up",
    "presignd_inbox_received_total",
    "presignd_inbox_received_bytes_total",
    "presignd_inbox_waiting_files",
    "presignd_inbox_stopped_files",
    "presignd_inbox_last_timestamp_seconds",
    "presignd_webhook_tries_total",
    "presignd_webhook_given_up_total",
    "presignd_webhook_waiting",
    "presignd_webhook_off",
}
"""The promised names."""


def value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def uploads(status: str) -> float:
    return value("presignd_uploads_total", watch="counted", status=status)


def version(state: State, **given: Any) -> FileVersion:
    done_at = NOW + timedelta(seconds=3)
    fixed: dict[str, Any] = {"bucket": "b", "base_key": "k", "key": "k", "content_type": "", "priority": 0}
    return FileVersion("id", "counted", b"k", PRINT, state, queued_at=NOW, done_at=done_at, **(fixed | given))


@pytest.fixture
def announcer() -> Announcer:
    return Announcer(None, {}, lambda _: None)  # type: ignore[arg-type]  # its ledger is asked only in ``run``


def test_every_promised_metric_is_exported_and_no_other() -> None:
    exported = {family.name + "_total" * (family.type == "counter") for family in metrics.REGISTRY.collect()}
    assert exported == NAMES


def test_the_alert_rules_name_only_metrics_there_are_and_say_what_to_do() -> None:
    text = ALERTS.read_text("utf-8")
    of_the_broker = {metric.name for metric in broker_metrics.REGISTRY.collect()}
    assert set(re.findall(r"presignd_\w+", text)) <= NAMES | of_the_broker
    rules = [rule for group in pytest.importorskip("yaml").safe_load(text)["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    assert all({"summary", "fix"} <= set(rule["annotations"]) and rule["labels"]["severity"] for rule in rules)


def test_a_linked_version_counts_once_with_its_bytes_and_its_time(announcer: Announcer) -> None:
    before, count = uploads("linked"), value("presignd_upload_duration_seconds_count", watch="counted")
    seconds = value("presignd_upload_duration_seconds_sum", watch="counted")
    sent = value("presignd_upload_bytes_total", watch="counted")
    announcer.done([version(State.FINISHED)])
    assert uploads("linked") == before + 1
    assert value("presignd_upload_bytes_total", watch="counted") == sent + PRINT.size
    assert value("presignd_upload_duration_seconds_count", watch="counted") == count + 1
    assert value("presignd_upload_duration_seconds_sum", watch="counted") == seconds + 3
    assert value("presignd_last_upload_timestamp_seconds", watch="counted") == NOW.timestamp() + 3


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        (version(State.FINISHED, adopted=True), "adopted"),
        (version(State.VANISHED), "vanished"),
        (version(State.SUPERSEDED), "superseded"),
    ],
)
def test_what_was_not_sent_counts_without_bytes(announcer: Announcer, ended: FileVersion, status: str) -> None:
    before, sent = uploads(status), value("presignd_upload_bytes_total", watch="counted")
    announcer.done([ended])
    assert (uploads(status), value("presignd_upload_bytes_total", watch="counted")) == (before + 1, sent)


def test_what_the_last_run_ended_is_not_counted_again(announcer: Announcer) -> None:
    """It was counted there: a counter that starts anew must not begin with old work."""
    before = uploads("linked")
    announcer.done([version(State.FINISHED)], replayed=True)
    assert uploads("linked") == before


def test_a_quarantined_version_counts(announcer: Announcer) -> None:
    before = uploads("quarantined")
    announcer.quarantined(version(State.QUARANTINED, error_code="too_large"))
    assert uploads("quarantined") == before + 1


def test_a_watchs_counters_stand_at_zero_before_its_first_file() -> None:
    metrics.export_watch("fresh")
    for status in metrics.STATUSES:
        assert metrics.REGISTRY.get_sample_value("presignd_uploads_total", {"watch": "fresh", "status": status}) == 0
    assert metrics.REGISTRY.get_sample_value("presignd_rescan_found_total", {"watch": "fresh"}) == 0


@pytest.mark.parametrize(("ends", "told"), [(NOW, NOW.timestamp()), (None, math.inf)])
async def test_the_credentials_end_is_told_and_one_without_an_end_never_seems_to_end(
    ends: datetime | None, told: float
) -> None:
    """0 would fire every alert on it."""
    found = Credentials(Keys("key", "s" * 20), "test", ends)
    await CredentialSource(PresignConfig(), clock=lambda: NOW - timedelta(hours=1), find=lambda: found).get()
    assert metrics.REGISTRY.get_sample_value("presignd_credential_expiry_timestamp_seconds") == told
