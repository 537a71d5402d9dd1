"""A webhook's circuit breaker: an outage of its receiver meets few requests, and one bad message stops no others."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from presignd.webhooks.outbox import Waiting
from presignd.webhooks.schedule import AT_ONCE, KEPT, PROBES, Answer, Breaker, Schedule

NOW = datetime(2026, 11, 29, 12, 0, 0, tzinfo=UTC)
EXACT = Schedule(jitter=0)
TAKEN, REFUSED, AWAY = Answer(204), Answer(400), Answer(503)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def after(*answers: Answer, breaker: Breaker | None = None, now: datetime = NOW) -> Breaker:
    """Return the breaker after tries that ended one by one."""
    breaker = breaker or Breaker()
    for answer in answers:
        breaker = EXACT.breaker(breaker, [answer], now)
    return breaker


OPEN = after(*[AWAY] * AT_ONCE)


def test_no_more_tries_than_are_sent_at_once_fail_before_it_opens() -> None:
    rooms = [after(*[AWAY] * failed).room(NOW) for failed in range(AT_ONCE + 1)]
    assert rooms == [8, 7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("failure", [AWAY, REFUSED, Answer(0, "nothing listens"), Answer(302)])
def test_it_opens_whatever_the_failures_are(failure: Answer) -> None:
    assert after(*[failure] * AT_ONCE).room(NOW) == 0


def test_messages_that_are_refused_among_others_that_are_taken_do_not_open_it() -> None:
    breaker = after(*[REFUSED, REFUSED, TAKEN] * AT_ONCE)
    assert breaker == Breaker()
    assert breaker.room(NOW) == AT_ONCE


def test_while_it_is_open_one_message_at_a_time_probes_the_receiver() -> None:
    assert (OPEN.room(later(4.9)), OPEN.room(later(5))) == (0, 1)


def test_probes_are_further_apart_with_each_that_fails() -> None:
    breaker, now = OPEN, NOW
    for pause in [*PROBES, PROBES[-1]]:
        assert breaker.until is not None
        assert (breaker.until - now).total_seconds() == pause
        now = breaker.until
        breaker = after(AWAY, breaker=breaker, now=now)
    assert breaker.since == NOW


def test_a_pause_is_a_little_longer_so_that_webhooks_do_not_probe_as_one() -> None:
    opened = Schedule(rng=random.Random(1)).breaker(Breaker(), [AWAY] * AT_ONCE, NOW)
    assert opened.until is not None
    assert later(5) < opened.until <= later(5.5)


def test_what_was_under_way_when_it_opened_makes_no_pause_longer() -> None:
    assert after(AWAY, AWAY, breaker=OPEN, now=later(1)).until == OPEN.until


def test_one_probe_that_goes_through_closes_it() -> None:
    assert after(TAKEN, breaker=OPEN, now=later(5)) == Breaker()


def test_a_retry_after_holds_for_all_messages_at_once_and_a_day_at_most() -> None:
    busy = after(Answer(429, retry_after=60))
    assert (busy.room(later(59)), busy.room(later(60))) == (0, 1)
    assert after(Answer(503, retry_after=1e9)).until == later(86400)
    assert after(Answer(503, retry_after=1), *[AWAY] * AT_ONCE).until == later(1)


def test_a_message_that_is_taken_meanwhile_ends_no_pause_that_the_receiver_asked_for() -> None:
    busy = after(Answer(429, retry_after=60))
    together = EXACT.breaker(Breaker(), [Answer(429, retry_after=60), TAKEN], NOW)
    for breaker in (after(TAKEN, breaker=busy, now=later(1)), together):
        assert (breaker.room(later(59)), breaker.room(later(60))) == (0, 1)
        assert after(TAKEN, breaker=breaker, now=later(60)) == Breaker()


def test_a_message_is_too_old_only_once_the_receiver_took_nothing_for_so_long() -> None:
    assert Breaker().abandons_before(NOW + 9 * KEPT) is None
    assert OPEN.abandons_before(NOW + KEPT - timedelta(seconds=1)) is None
    assert OPEN.abandons_before(NOW + KEPT) == NOW


def test_what_waits_is_not_tried_before_the_breaker_lets_it() -> None:
    waiting = Waiting(5, NOW, later(7))
    assert waiting.held_until(None) == waiting.held_until(NOW) == waiting
    assert waiting.held_until(later(60)).next_try == later(60)
    assert Waiting().held_until(later(60)) == Waiting()
