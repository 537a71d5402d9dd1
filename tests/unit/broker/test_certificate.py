"""The end of the broker's certificate: read from what it serves, reported in time, once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from presignd.broker.certificate import certificate_end, end_problem
from presignd.broker.config import BrokerSection
from presignd.broker.load import load
from presignd.broker.service import Broker
from presignd.checks.broker import certificate_result
from presignd.errors import UsageError

NOW = datetime.now(UTC).replace(microsecond=0)


def section(folder: Path, ends: datetime, *, key_first: bool = True) -> BrokerSection:
    """Write a chain whose first certificate ends then, its key before or after it."""
    issued = (
        trustme.CA()
        .create_child_ca()
        .issue_cert("127.0.0.1", not_before=datetime(1990, 1, 1, tzinfo=UTC), not_after=ends)
    )
    key, chain = issued.private_key_pem.bytes(), b"".join(each.bytes() for each in issued.cert_chain_pems)
    (folder / "broker.pem").write_bytes(key + chain if key_first else chain + key)
    return BrokerSection(tls_cert=folder / "broker.pem")


@pytest.mark.parametrize("key_first", [True, False])
@pytest.mark.parametrize("year", [1999, 2027, 2049, 2050, 2149])
def test_the_end_is_read_in_both_forms_that_a_certificate_has_for_it(
    tmp_path: Path, year: int, key_first: bool
) -> None:
    """Two digits of the year until 2049, four from then on (RFC 5280, 4.1.2.5)."""
    ends = datetime(year, 12, 31, 23, 59, 58, tzinfo=UTC)
    assert certificate_end(section(tmp_path, ends, key_first=key_first)) == ends


def test_without_a_certificate_there_is_no_end() -> None:
    assert certificate_end(BrokerSection()) is None
    assert end_problem(None, NOW) == ""


@pytest.mark.parametrize(
    "text", ["", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----", "-----BEGIN CERTIFICATE-----\n"]
)
def test_what_is_no_certificate_is_told_as_that(tmp_path: Path, text: str) -> None:
    (tmp_path / "broker.pem").write_text(text)
    with pytest.raises(UsageError, match="does not tell when it ends"):
        certificate_end(BrokerSection(tls_cert=tmp_path / "broker.pem"))


@pytest.mark.parametrize(
    ("left", "outcome", "said", "logged"),
    [
        (timedelta(days=15, hours=1), "ok", "15 days left", []),
        (timedelta(days=13, hours=1), "warn", "only 13 days left", ["it ends soon"]),
        (
            -timedelta(days=1, hours=-1),
            "fail",
            "it has ended, so clients refuse it",
            ["it has ended, so clients refuse it"],
        ),
    ],
)
def test_check_and_the_log_tell_of_an_end_that_is_near(
    tmp_path: Path, left: timedelta, outcome: str, said: str, logged: list[str]
) -> None:
    section(tmp_path, NOW + left)
    file = tmp_path / "broker.toml"
    file.write_text('[broker]\ntls_cert = "broker.pem"\n[store]\naccess_key = "a"\nsecret_key = "secret-key"\n')
    config = load(file, environ={})
    line = certificate_result(config)
    assert (line.outcome, line.detail) == (outcome, said)
    broker = Broker(config, lambda: config)
    broker.note_certificate_end()
    with capture_logs() as told:
        broker.look_at_certificate_end()
        broker.look_at_certificate_end()
    assert [(event["event"], event["error"]) for event in told] == [("certificate.ends", each) for each in logged]
