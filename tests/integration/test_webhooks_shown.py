"""How webhooks do, wherever it is shown: the status document, the terminal, the page, and the metrics."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from presignd.cli.status import status_lines
from presignd.control.documents import overview
from presignd.system.clock import utcnow
from presignd.webhooks.courier import Standing
from presignd.webhooks.outbox import Waiting
from presignd.webhooks.webhooks import WebhookView
from tests.integration.test_commands import presignd
from tests.pages import Page, page_of, texts
from tests.served import FakeWebhooks, Served, configuration, served

__all__ = ["served"]


def three() -> FakeWebhooks:
    """Return a webhook that does well, one that fails, and one that is off."""
    now = utcnow()
    hour = now - timedelta(hours=1)
    failing = Standing(failing_since=hour, problem="it answered <503>", given_up=2)
    webhooks = FakeWebhooks()
    webhooks.shown = [
        WebhookView("chat", "chat.example.org", Waiting(), Standing(delivered_at=now)),
        WebhookView("pager", "pager.example.org", Waiting(1234, hour, now), failing),
        WebhookView("gone", "gone.example.org", Waiting(), Standing(off_since=hour)),
    ]
    return webhooks


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with page_of(configuration(tmp_path)) as found:
        found.view.webhooks = three()
        yield found


async def test_the_document_has_what_waits_since_when_and_why(page: Page) -> None:
    chat, pager, gone = (await overview(page.view))["webhooks"]
    assert (chat["name"], chat["host"], chat["waiting"], chat["failing_since"]) == ("chat", "chat.example.org", 0, None)
    assert (pager["waiting"], pager["given_up"], pager["problem"]) == (1234, 2, "it answered <503>")
    assert pager["oldest"] == pager["failing_since"] != pager["next_try"]
    assert [each["off_since"] is not None for each in (chat, pager, gone)] == [False, False, True]
    assert json.loads((await page.ask("/api/status"))[1])["webhooks"][1] == pager


async def test_the_page_says_what_waits_what_fails_and_how_to_switch_on(page: Page) -> None:
    body = (await page.ask("/"))[1]
    assert "it answered &lt;503&gt;" in body
    text = texts(body)
    section = re.search(r"Webhooks chat waiting 0 pager (.*) gone (.*?) waiting 0", text)
    assert section, text
    assert re.fullmatch(
        r"Failing for 60 min : it answered &lt;503&gt; waiting 1,234 oldest 60 min given up 2", section[1]
    )
    assert section[2] == "Off for 60 min : its receiver is gone. presignd webhook enable gone"


async def test_without_webhooks_the_page_has_no_section(tmp_path: Path) -> None:
    async with page_of(configuration(tmp_path)) as page:
        assert "Webhooks" not in texts((await page.ask("/"))[1])


async def test_the_metrics_have_what_waits_and_what_is_off(page: Page) -> None:
    text = (await page.ask("/metrics"))[1]
    shown = dict(re.findall(r'^presignd_webhook_((?:waiting|off)\{webhook="\w+"\}) (\S+)$', text, re.MULTILINE))
    assert {name: float(value) for name, value in shown.items() if 'webhook="chat"' not in name} == {
        'waiting{webhook="pager"}': 1234,
        'waiting{webhook="gone"}': 0,
        'off{webhook="pager"}': 0,
        'off{webhook="gone"}': 1,
    }
    assert 'presignd_webhook_given_up_total{webhook="pager"}' in text


async def test_a_terminal_says_how_each_does(page: Page) -> None:
    lines = status_lines(await overview(page.view), 200, utcnow())
    styles = {line.text.strip(): line.style for line in lines if "example.org" in line.text}
    assert styles == {
        "chat (chat.example.org): 0 waiting": "",
        "pager (pager.example.org): 1,234 waiting, failing for 60 min: it answered <503>, 2 given up": "yellow",
        "gone (gone.example.org): off for 60 min: it answered 410 (gone)": "red",
    }


async def test_in_a_pipe_each_is_a_row(served: Served) -> None:
    served.view.webhooks = three()
    rows = [line.split("\t") for line in (await presignd(served, "status")).out.splitlines()]
    found = {row[1]: row[2:] for row in rows if row[0] == "webhook"}
    assert found["chat"] == ["chat.example.org", "0", "0", "", "", "", ""]
    assert found["pager"][:3] == ["pager.example.org", "1234", "2"]
    assert found["pager"][4] != ""
    assert found["pager"][6] == "it answered <503>"
    assert found["gone"][5] != ""
