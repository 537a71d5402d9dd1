"""Signatures are Standard Webhooks', and what follows from an answer is decided by its status alone."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime

import pytest

from presignd.webhooks.outbox import Message
from presignd.webhooks.schedule import PAUSES, Answer, Outcome, Schedule
from presignd.webhooks.signature import encoded, key_of, signed_headers

AT = datetime(2021, 2, 25, 15, 2, 10, 900000, tzinfo=UTC)


def test_a_signature_is_that_of_the_specifications_example() -> None:
    key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert signed_headers(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', AT) == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    assert key_of("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw") == key


def test_a_body_has_type_time_and_data() -> None:
    body = encoded("file.done", AT, {"key": "grüße.txt"})
    assert json.loads(body) == {
        "type": "file.done",
        "timestamp": "2021-02-25T15:02:10.900000Z",
        "data": {"key": "grüße.txt"},
    }


def test_the_id_of_an_event_is_the_same_at_each_try_and_webhook_and_no_others() -> None:
    first = Message(1, "file.done", "drop/61", AT, 0, {"a": 1, "b": 2})
    assert first.id == first._replace(number=7, tries=3, data={"b": 2, "a": 1}).id
    others = [first._replace(event="file.quarantined"), first._replace(subject="drop/62"), first._replace(data={})]
    assert len({first.id, *(other.id for other in others)}) == 4


@pytest.mark.parametrize(
    ("status", "tries", "outcome"),
    [
        (200, 1, Outcome.DELIVERED),
        (204, 10, Outcome.DELIVERED),
        (301, 1, Outcome.RETRY),
        (404, 9, Outcome.RETRY),
        (500, 10, Outcome.GIVE_UP),
        (0, 10, Outcome.GIVE_UP),
        (410, 1, Outcome.OFF),
    ],
)
def test_what_follows_from_an_answer(status: int, tries: int, outcome: Outcome) -> None:
    assert Schedule().judge(Answer(status), tries)[0] is outcome


def test_pauses_are_the_specifications_and_a_little_longer() -> None:
    schedule = Schedule(rng=random.Random(1))
    for tries, pause in enumerate(PAUSES, 1):
        assert pause <= schedule.judge(Answer(503), tries)[1] <= pause * 1.1
    assert (PAUSES[0], PAUSES[-1]) == (5, 86400)


def test_a_longer_retry_after_is_honoured_up_to_a_day() -> None:
    assert Schedule(jitter=0).judge(Answer(429, retry_after=60), 1)[1] == 60
    assert Schedule(jitter=0).judge(Answer(429, retry_after=1), 1)[1] == 5
    assert Schedule(jitter=0).judge(Answer(429, retry_after=1e9), 1)[1] == 86400
