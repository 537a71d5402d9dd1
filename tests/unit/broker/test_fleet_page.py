"""The fleet page's pure parts: what needs attention, what is unknown, and what the JSON says."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from presignd.broker.config import TokenConfig
from presignd.broker.fleet import sections
from presignd.broker.fleet.activity import Activity, Call
from presignd.broker.fleet.snapshots import LINKS_REST, LinkCounts, Snapshot, Snapshots, TokenView, take, to_json
from presignd.broker.state.database import StateAway
from presignd.broker.state.links import Alive
from presignd.broker.tokens import Tokens, new_token
from presignd.pages.pace import PACE
from tests.pages import texts

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HASH = "sha256:" + "0" * 64


def token(name: str = "scanner-1", **given: Any) -> TokenConfig:
    return TokenConfig(name=name, hash=HASH, bucket="bucket", **given)


def call(*, ahead: float = 0, user_agent: str = "presignd/0.9.1", client: str = "192.0.2.7") -> Call:
    return Call(NOW - timedelta(seconds=3), client, user_agent, format_datetime(NOW + timedelta(seconds=ahead - 3)))


def view(**given: Any) -> TokenView:
    known = {"token": token(), "call": call(), "granted": 0, "refused": 0, "refusal": None, "links": None}
    return TokenView(**{**known, **given})


def snapshot(*tokens: TokenView, problems: Sequence[str] = (), kept: Mapping[str, int] | None = None) -> Snapshot:
    return Snapshot(tokens, problems, Activity(NOW).hour.minutes(NOW), kept or {}, NOW - timedelta(hours=5), NOW)


def refused(number: int, code: str = "outside_prefix") -> TokenView:
    activity = Activity(NOW)
    activity.answered("scanner-1", NOW - timedelta(minutes=4), granted=0, refused=[code] * number)
    return view(refused=number, refusal=activity.of("scanner-1").refused)


def said(found: Snapshot, section: str) -> str:
    return texts(sections.sections(found)[section])


# --- attention --------------------------------------------------------------------------------------
def test_a_token_whose_calls_go_through_needs_no_attention() -> None:
    fine = view(granted=9, call=call(ahead=29), token=token(valid_until=NOW + timedelta(days=15)))
    assert sections.concerns(fine, NOW) == []
    assert said(snapshot(fine), "attention") == ""
    assert sections.headline(snapshot(fine)) == "1 of 1 token active in the last hour"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (refused(1), "1 refusal in the last hour, the latest 4 min ago: outside_prefix"),
        (refused(12, "rate_limited"), "12 refusals in the last hour, the latest 4 min ago: rate_limited"),
        (view(call=call(ahead=200)), "Its clock is 3 min ahead. Set it, e.g. by NTP."),
        (view(call=call(ahead=-31)), "Its clock is 30 s behind. Set it, e.g. by NTP."),
        (view(token=token(valid_until=NOW + timedelta(days=3))), "The token ends in 3 d . Make a new one in time."),
        (view(token=token(valid_until=NOW - timedelta(hours=3))), "The token ended 3 h ago."),
    ],
)
def test_what_needs_attention_says_why(found: TokenView, words: str) -> None:
    text = said(snapshot(found), "attention").replace(" .", ".").replace(" :", ":")
    assert text == f"Needs attention scanner-1 {words}".replace(" .", ".")
    assert sections.headline(snapshot(found)).endswith(", 1 needs attention")


def test_a_refusal_of_more_than_an_hour_ago_needs_none() -> None:
    old = refused(1)
    assert sections.concerns(view(refusal=old.refusal), NOW) == []


def test_a_token_file_that_can_t_be_used_is_named() -> None:
    text = said(snapshot(problems=["/etc/x/tokens.d/one.toml: token.one.bucket: is missing"]), "problems")
    assert "/etc/x/tokens.d/one.toml: token.one.bucket: is missing Its tokens are refused" in text


# --- tokens -----------------------------------------------------------------------------------------
def test_a_token_s_figures_are_there() -> None:
    found = snapshot(view(granted=1234, links=7, token=token(valid_until=NOW + timedelta(days=20))))
    text = said(found, "tokens")
    for words in (
        "bucket bucket , prefix scanner-1/",
        "last seen 3 s ago",
        "from 192.0.2.7",
        "grants 1,234",
        "refusals 0",
        "clock in step",
        "daemon 0.9.1",
        "links alive 7",
        "ends in 20 d",
    ):
        assert words in text


def test_kept_links_of_tokens_that_are_gone_are_told() -> None:
    for tokens in ([view()], []):
        text = said(snapshot(*tokens, kept={"scanner-7": 1, "scanner-8": 2}), "tokens")
        assert "3 links kept of tokens that no readable file has: scanner-7, scanner-8." in text
    assert "kept" not in said(snapshot(view()), "tokens")


def test_what_is_not_known_is_said_so() -> None:
    text = said(snapshot(view(call=None)), "tokens")
    assert "last seen not since the broker started" in text
    assert "links alive \N{EN DASH}" in text
    assert "clock" not in text
    silent = said(snapshot(view(call=Call(NOW, "192.0.2.7", "", ""))), "tokens")
    assert "clock unknown" in silent
    assert "program unknown" in silent
    assert "program curl/8.5.0" in said(snapshot(view(call=call(user_agent="curl/8.5.0"))), "tokens")


def test_without_tokens_the_page_says_how_to_make_one() -> None:
    assert sections.headline(snapshot()) == "No tokens yet"
    assert "presignd broker token create" in said(snapshot(), "tokens")


def test_a_large_fleet_is_cut_and_the_rest_counted() -> None:
    found = snapshot(*(view(token=token(f"scanner-{number}")) for number in range(250)))
    assert said(found, "tokens").endswith("and 50 more: presignd broker token list")


def test_the_page_says_since_when_it_knows_and_that_each_broker_has_its_own() -> None:
    text = said(snapshot(), "about")
    assert "since it started, 5 h ago" in text
    assert "Each of several brokers shows its own" in text


def test_the_hour_is_drawn_and_said_in_words() -> None:
    activity = Activity(NOW)
    activity.answered("one", NOW - timedelta(minutes=9), granted=1234, refused=[])
    activity.answered("one", NOW, granted=1, refused=["too_large"])
    found = Snapshot([], [], activity.hour.minutes(NOW), {}, NOW, NOW)
    markup = sections.sections(found)["hour"]
    words = "1,235 grants and 1 refusal; 1,234 grants in the busiest minute, 02:55 UTC."
    assert markup.count("<rect") == 2
    assert f'aria-label="{words}"' in markup
    assert words in texts(markup)
    assert "<svg" not in sections.sections(snapshot())["hour"]
    assert said(snapshot(), "hour") == "The last hour No token was used in the last hour."


def test_no_client_can_write_markup_or_a_secret_into_the_page() -> None:
    secret = new_token()
    evil = "<script>alert(1)</script>"
    found = snapshot(view(call=call(user_agent=evil, client=evil)), view(call=call(user_agent=secret, client=secret)))
    for text in (sections.document(found), str(to_json(found))):
        assert secret[:20] not in text
    assert "<script>" not in sections.document(found).replace('<script src="live.js" defer></script>', "")


def test_only_what_changed_is_sent_to_an_open_page() -> None:
    before = sections.live(snapshot(view(granted=1)))
    after = sections.live(snapshot(view(granted=2)))
    assert {name for name, part in after.items() if part != before[name]} == {"tokens"}


# --- snapshots --------------------------------------------------------------------------------------
LINKS = {"b": Alive(3, 0), "c": Alive(4, 1), "gone": Alive(5, 2), "removed": Alive(1, 0)}


def test_a_snapshot_has_the_tokens_of_the_files_by_name_and_none_that_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    tables = [f'[[token]]\nname = "{name}"\nhash = "sha256:{name * 64}"\nbucket = "bucket"\n' for name in "bac"]
    file.write_text("".join([*tables, 'valid_until = "2025-12-31"\n']))
    file.chmod(0o600)
    activity = Activity(NOW)
    for name in ("b", "gone"):
        activity.called(name, call())
        activity.answered(name, NOW, granted=2, refused=[])
    found = take(Tokens(file, []), activity, LINKS, NOW)
    assert [(view.token.name, view.granted) for view in found.tokens] == [("a", 0), ("b", 2), ("c", 0)]
    assert [view.links for view in found.tokens] == [0, 3, 1], "c has ended, and its links with it but the one kept"
    assert found.kept == {"gone": 2}
    assert take(Tokens(file, []), activity, None, NOW).tokens[1].links is None


def test_the_document_has_all_of_it_and_no_hash() -> None:
    document = to_json(snapshot(refused(2), view(call=None)))
    first, second = document["tokens"]
    assert first == {
        "name": "scanner-1",
        "bucket": "bucket",
        "prefix": "scanner-1/",
        "valid_until": None,
        "last_seen": {
            "at": "2026-01-02T03:04:02.000000Z",
            "client": "192.0.2.7",
            "program": "presignd/0.9.1",
            "daemon_version": "0.9.1",
            "clock_difference_seconds": 0.5,
        },
        "granted": 0,
        "refused": 2,
        "last_refusal": {"code": "outside_prefix", "at": "2026-01-02T03:00:05.000000Z"},
        "links_alive": None,
    }
    assert second["last_seen"] is None
    assert document["broker"]["since"] == "2026-01-01T22:04:05.000000Z"


# --- links ------------------------------------------------------------------------------------------
class Counter:
    """Counts links; says how often it was asked."""

    def __init__(self, *answers: dict[str, Alive] | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.time = 0.0

    async def __call__(self) -> dict[str, Alive]:
        self.asked += 1
        self.time += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def monotonic(self) -> float:
        return self.time


async def test_links_are_counted_when_somebody_looks_and_then_not_for_a_while() -> None:
    counter = Counter({"one": Alive(1, 0)}, {"one": Alive(2, 0)})
    counts = LinkCounts(counter, monotonic=counter.monotonic)
    assert counter.asked == 0
    assert [await counts.now(), await counts.now()] == [{"one": Alive(1, 0)}, {"one": Alive(1, 0)}]
    counter.time += LINKS_REST
    assert await counts.now() == {"one": Alive(1, 0)}, "a count that took a second is not repeated after ten"
    counter.time += 50
    assert await counts.now() == {"one": Alive(2, 0)}


async def test_without_a_state_and_while_it_is_away_links_are_unknown() -> None:
    assert await LinkCounts(None).now() is None
    counter = Counter({"one": Alive(1, 0)}, StateAway(), {"one": Alive(2, 0)})
    counts = LinkCounts(counter, monotonic=counter.monotonic)
    found = []
    for _ in range(3):
        found.append(await counts.now())
        counter.time += 60
    assert found == [{"one": Alive(1, 0)}, None, {"one": Alive(2, 0)}]


async def test_a_count_that_hangs_holds_up_no_page() -> None:
    go_on = asyncio.Event()

    async def slow() -> dict[str, Alive]:
        await go_on.wait()
        return {"one": Alive(1, 0)}

    counts = LinkCounts(slow, patience=0.01)
    assert await counts.now() is None
    go_on.set()
    async with asyncio.timeout(10):
        while await counts.now() is None:
            pass
    assert await counts.now() == {"one": Alive(1, 0)}
    await counts.close()


async def test_two_who_look_at_once_get_one_count() -> None:
    counter = Counter({"one": Alive(1, 0)})
    counts = LinkCounts(counter, monotonic=counter.monotonic)
    assert list(await asyncio.gather(counts.now(), counts.now())) == [{"one": Alive(1, 0)}, {"one": Alive(1, 0)}]
    assert counter.asked == 1


async def test_a_bug_in_a_count_is_no_count_of_none() -> None:
    counter = Counter(KeyError("bug"), {"one": Alive(1, 0)})
    counts = LinkCounts(counter, monotonic=counter.monotonic)
    with pytest.raises(KeyError):
        await counts.now()
    counter.time += 60
    assert await counts.now() == {"one": Alive(1, 0)}


async def test_a_count_under_way_ends_with_the_page_and_another_can_begin() -> None:
    ended = asyncio.Event()

    async def forever() -> dict[str, Alive]:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return {}

    counts = LinkCounts(forever, patience=0.01)
    assert await counts.now() is None
    await counts.close()
    assert ended.is_set()
    assert await counts.now() is None
    await counts.close()


async def test_a_snapshot_is_taken_once_for_all_who_look(tmp_path: Path) -> None:
    snapshots = Snapshots(Tokens(tmp_path / "none", []), Activity(NOW), LinkCounts(None), PACE)
    assert await snapshots.now() is await snapshots.now()
