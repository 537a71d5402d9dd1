"""What ``check`` says of a webhook, by what its host answered to a request that is no message."""

from __future__ import annotations

import pytest

from presignd.checks import Outcome
from presignd.checks.webhooks import receiver_result
from presignd.config import WebhookConfig
from presignd.webhooks.schedule import Answer
from tests.receivers import SECRET

CHAT = WebhookConfig(name="chat", url="https://chat.example.org/hooks/a-canary", secret=SECRET)


@pytest.mark.parametrize(
    ("answer", "outcome", "told"),
    [
        (Answer(204), Outcome.OK, "chat.example.org answers; presignd webhook test chat sends it a message"),
        (Answer(405), Outcome.OK, "chat.example.org answers; presignd webhook test chat sends it a message"),
        (Answer(502), Outcome.WARN, "chat.example.org answers 502 (bad gateway)"),
        (Answer(0, "the name can't be resolved"), Outcome.FAIL, "chat.example.org: the name can't be resolved"),
    ],
)
def test_any_answer_but_a_proxys_for_a_receiver_that_is_away_is_good(
    answer: Answer, outcome: Outcome, told: str
) -> None:
    result = receiver_result(CHAT, answer, "presignd webhook")
    assert (result.name, result.outcome, result.detail) == ("webhook chat", outcome, told)
    assert bool(result.fix) is (outcome is not Outcome.OK)
    assert "canary" not in f"{result}"
