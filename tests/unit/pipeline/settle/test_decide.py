"""The decisions of settling: pure, every clock is a number."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import pytest

from presignd.errors import fault
from presignd.model import FileVersion, Fingerprint, State
from presignd.pipeline.settle.decide import (
    LOCAL_PRECISION,
    NETWORK_PRECISION,
    Look,
    Rules,
    Verdict,
    Wait,
    compare_with_ledger,
    decide,
    pause_after,
)
from presignd.states import IN_FLIGHT, is_recorded
from tests.versions import in_state

NOW = 1_800_000_000 * 10**9
HOUR = 3600 * 10**9


def made(ctime_ns: int = NOW, **changes: int) -> Fingerprint:
    return Fingerprint(ino=7, size=5, mtime_ns=NOW - HOUR, ctime_ns=ctime_ns)._replace(**changes)


def look(
    fingerprint: Fingerprint, after: float, *, writer: bool | None = False, missing: str = "", code: str = ""
) -> Look:
    """Look ``after`` seconds, on both clocks."""
    at, broken = 100.0 + after, fault(code) if code else None
    return Look(NOW + round(after * 1e9), at, at, fingerprint, writer=writer, missing=missing, fault=broken)


class Waits(NamedTuple):
    look: Look
    after: float
    why: str


def wait(before: Look | None, one: Look, rules: Rules) -> Waits:
    outcome = decided(before, one, rules)
    assert outcome is not None
    return Waits(one, *outcome)


def is_complete(before: Look | None, one: Look, rules: Rules) -> bool:
    return decided(before, one, rules) is None


def decided(before: Look | None, one: Look, rules: Rules) -> Wait | None:
    if before:
        one.follow(before)
    return decide(one, rules)


# --- where the writer check works ---------------------------------------------------------------
def test_a_file_without_writer_settles_a_second_after_its_last_change() -> None:
    first = wait(None, look(made(), 0.4), Rules.of())
    assert first.after == pytest.approx(0.6)
    assert first.why == "not yet quiet for 1 s"
    assert is_complete(first.look, look(made(), 1.0), Rules.of())


def test_an_old_file_without_writer_settles_at_the_first_look() -> None:
    assert is_complete(None, look(made(NOW - HOUR), 0), Rules.of())


def test_an_old_file_that_is_open_for_writing_waits_however_quiet_it_is() -> None:
    first = wait(None, look(made(NOW - HOUR), 0, writer=True), Rules.of())
    assert first.why == "open for writing"
    assert not is_complete(first.look, look(made(NOW - HOUR), 3600, writer=True), Rules.of())
    assert is_complete(first.look, look(made(NOW - HOUR), 3601), Rules.of())


def test_looks_at_a_held_file_come_further_and_further_apart_up_to_a_second() -> None:
    seen, pauses = None, []
    for second in range(12):
        outcome = wait(seen, look(made(NOW - HOUR), second, writer=True), Rules.of())
        seen = outcome.look
        pauses.append(outcome.after)
    assert pauses == sorted(pauses)
    assert pauses[0] == 0.05
    assert pauses[-1] == 1.0


def test_a_ctime_in_the_future_is_not_trusted_and_does_not_hold_the_file_for_ever() -> None:
    """The clock was set back: the file is watched for the whole quiet time instead."""
    future = made(NOW + HOUR)
    first = wait(None, look(future, 0), Rules.of())
    assert first.after == 1.0
    assert not is_complete(first.look, look(future, 0.9), Rules.of())
    assert is_complete(first.look, look(future, 1.0), Rules.of())


def test_an_mtime_in_the_future_holds_nothing() -> None:
    assert is_complete(None, look(made(NOW - HOUR, mtime_ns=NOW + HOUR), 0), Rules.of())


def test_with_no_quiet_time_asked_for_the_grain_of_file_times_is_still_waited_for() -> None:
    rules = Rules.of(settle=0)
    first = wait(None, look(made(), 0.001), rules)
    assert first.after == pytest.approx(LOCAL_PRECISION - 0.001)
    assert is_complete(first.look, look(made(), LOCAL_PRECISION), rules)


# --- where it can't -----------------------------------------------------------------------------
def test_where_the_kernel_cannot_tell_a_file_is_watched_for_ten_seconds_however_old() -> None:
    old = made(NOW - HOUR)
    first = wait(None, look(old, 0, writer=None), Rules.of())
    assert first.why == "not yet quiet for 10 s"
    assert not is_complete(first.look, look(old, 9.9, writer=None), Rules.of())
    assert is_complete(first.look, look(old, 10.0, writer=None), Rules.of())


@pytest.mark.parametrize(
    "changed", [made(size=6), made(mtime_ns=1), made(NOW + 1), made(ino=8)], ids=["size", "mtime", "ctime", "inode"]
)
@pytest.mark.parametrize("writer", [None, False])
def test_any_change_of_the_fingerprint_starts_the_quiet_time_anew(changed: Fingerprint, *, writer: bool | None) -> None:
    changed = changed._replace(ctime_ns=NOW + HOUR)
    first = wait(None, look(made(NOW + HOUR - 1), 0, writer=writer), Rules.of(settle=5))
    again = wait(first.look, look(changed, 4.9, writer=writer), Rules.of(settle=5))
    assert again.after == 5
    assert is_complete(again.look, look(changed, 9.9, writer=writer), Rules.of(settle=5))


def test_on_a_network_filesystem_two_seconds_are_the_least() -> None:
    first = wait(None, look(made(), 0, writer=None), Rules.of(settle=0, timestamp_precision=NETWORK_PRECISION))
    assert first.after == 2.0


def test_a_quiet_time_that_was_given_counts_for_every_file() -> None:
    assert Rules.of(settle=3) == (3, 3)


# --- markers and faults -------------------------------------------------------------------------
def test_a_file_waits_for_its_marker_however_quiet() -> None:
    first = wait(None, look(made(NOW - HOUR), 0, missing="a.ok"), Rules.of())
    assert first.why == "waits for a.ok"
    assert is_complete(first.look, look(made(NOW - HOUR), 1), Rules.of())


def test_the_marker_does_not_stand_for_the_writer_check_or_the_quiet_time() -> None:
    assert not is_complete(None, look(made(NOW - HOUR), 0, writer=True), Rules.of())
    assert not is_complete(None, look(made(), 0), Rules.of())


def test_what_is_no_file_is_dropped() -> None:
    assert decide(Look(NOW, 100.0, 100.0), Rules.of()) is None


def test_what_could_not_even_be_statted_waits_for_another_look() -> None:
    outcome = decide(Look(NOW, 100.0, 100.0, fault=fault("too_many_files")), Rules.of())
    assert outcome is not None
    assert outcome.why == fault("too_many_files").message


def test_an_unreadable_file_settles_with_its_fault_once_it_is_quiet() -> None:
    first = wait(None, look(made(), 0, writer=None, code="unreadable"), Rules.of())
    assert is_complete(first.look, look(made(), 10, writer=None, code="unreadable"), Rules.of())


def test_a_passing_fault_is_waited_for_and_never_settles() -> None:
    first = wait(None, look(made(), 0, writer=None, code="read_error"), Rules.of())
    assert first.why == fault("read_error").message
    assert not is_complete(first.look, look(made(), 3600, writer=None, code="read_error"), Rules.of())


def test_steps_grow_without_overflow() -> None:
    assert pause_after(0) < pause_after(1) < pause_after(2) <= pause_after(10**6) == 1.0


# --- compared with the ledger ------------------------------------------------------------------
def version(state: State, *, fingerprint: Fingerprint | None = None, checksum: str = "", code: str = "") -> FileVersion:
    return in_state(
        state, b"a", fingerprint=fingerprint or made(), bucket="test-bucket", checksum=checksum, error_code=code
    )


def verdict(
    known: FileVersion | None, fingerprint: Fingerprint, *, takes_away: bool = False, readable: bool = True
) -> Verdict:
    return compare_with_ledger(known, fingerprint, readable=readable, takes_away=takes_away)


OTHER = made(size=6)
TOUCHED = made(NOW + 1)


@pytest.mark.parametrize("known", [None, version(State.VANISHED), version(State.SUPERSEDED)])
def test_what_the_ledger_has_no_living_version_of_is_new(known: FileVersion | None) -> None:
    assert verdict(known, made()) is Verdict.NEW
    assert not is_recorded(known, made())


@pytest.mark.parametrize("state", sorted(set(State) - {State.VANISHED, State.SUPERSEDED}))
def test_an_equal_fingerprint_is_the_same_version(state: State) -> None:
    assert verdict(version(state), made()) is Verdict.SAME
    assert is_recorded(version(state), made())


def test_a_file_that_was_gone_and_is_there_again_unchanged_is_recorded_as_there() -> None:
    """A directory moved out and back: else the ledger would forget its files, and send them again."""
    known = version(State.FINISHED)._replace(gone_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert not is_recorded(known, made())
    assert verdict(known, made()) is Verdict.REFINGERPRINT


@pytest.mark.parametrize("state", sorted(IN_FLIGHT))
def test_while_a_version_in_flight_counts_as_gone_its_file_waits(state: State) -> None:
    """Finish may be about to record it as gone, because it left out the link file."""
    known = version(state)._replace(gone_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert verdict(known, made()) is Verdict.WAIT_FOR_EARLIER


def test_where_files_are_taken_away_one_that_was_away_with_its_folder_is_another_drop() -> None:
    """Else it would stay in the folder: its version was finished while it was gone."""
    known = version(State.FINISHED)._replace(gone_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert verdict(known, made(), takes_away=True) is Verdict.NEW


@pytest.mark.parametrize("state", [State.FINISHED, State.IGNORED])
def test_what_was_seen_gone_and_was_put_there_anew_is_another_drop_though_its_size_and_time_are_the_same(
    state: State,
) -> None:
    known = version(state, checksum="md5:0")._replace(gone_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert verdict(known, TOUCHED) is Verdict.NEW
    assert verdict(known._replace(gone_at=None), TOUCHED) is not Verdict.NEW, "nobody saw it gone: chmod, a restore"


def test_what_comes_back_under_another_inode_number_is_compared() -> None:
    """A network filesystem that is mounted again may number its files anew; ctime stays."""
    known = version(State.FINISHED, checksum="md5:0")._replace(gone_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert verdict(known, made(ino=8)) is Verdict.COMPARE


@pytest.mark.parametrize("state", sorted(IN_FLIGHT))
@pytest.mark.parametrize("fingerprint", [OTHER, TOUCHED])
def test_while_one_is_in_flight_the_next_waits(state: State, fingerprint: Fingerprint) -> None:
    assert verdict(version(state, checksum="md5:0"), fingerprint) is Verdict.WAIT_FOR_EARLIER


@pytest.mark.parametrize("state", [State.QUEUED, State.QUARANTINED, State.FINISHED, State.IGNORED])
def test_another_size_or_mtime_is_another_version(state: State) -> None:
    assert verdict(version(state, checksum="md5:0"), OTHER) is Verdict.NEW
    assert verdict(version(state, checksum="md5:0"), made(mtime_ns=1)) is Verdict.NEW


@pytest.mark.parametrize("fingerprint", [TOUCHED, made(ino=8)])
def test_where_only_inode_or_ctime_differ_the_content_is_compared(fingerprint: Fingerprint) -> None:
    assert verdict(version(State.FINISHED, checksum="md5:0"), fingerprint) is Verdict.COMPARE
    assert verdict(version(State.QUARANTINED, checksum="md5:0"), fingerprint) is Verdict.COMPARE


@pytest.mark.parametrize("state", [State.QUEUED, State.IGNORED, State.QUARANTINED])
def test_without_a_checksum_to_compare_it_is_the_same_version(state: State) -> None:
    assert verdict(version(state), TOUCHED) is Verdict.REFINGERPRINT


def test_where_files_are_taken_away_the_same_content_again_is_another_drop() -> None:
    """Else a file dropped twice would stay in the folder, without a link, for ever."""
    known = version(State.FINISHED, checksum="md5:0")
    assert verdict(known, TOUCHED, takes_away=True) is Verdict.NEW
    assert verdict(known, made(), takes_away=True) is Verdict.SAME


def test_a_quarantined_file_that_can_be_read_again_goes_on_by_itself() -> None:
    known = version(State.QUARANTINED, code="unreadable")
    assert not is_recorded(known, made())
    assert verdict(known, made()) is Verdict.NEW
    assert verdict(known, TOUCHED) is Verdict.NEW
    assert verdict(known, made(), readable=False) is Verdict.SAME
    assert verdict(known, TOUCHED, readable=False) is Verdict.REFINGERPRINT


def test_a_file_that_lost_its_read_permission_stays_what_it_was() -> None:
    assert verdict(version(State.FINISHED, checksum="md5:0"), TOUCHED, readable=False) is Verdict.SAME


def test_a_file_waits_for_its_unfinished_download_and_says_so() -> None:
    look = Look(NOW + 10**12, 0.0, 0.0, made(), writer=False, download="a.part")
    assert wait(None, look, Rules.of()).why == "waits until a.part beside it is gone"
