"""The sections of the fleet page as HTML, from one snapshot. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import presignd
from presignd.broker.fleet.activity import Call, Minute
from presignd.broker.fleet.snapshots import Snapshot, TokenView
from presignd.pages import layout
from presignd.pages.chart import Bar, bars
from presignd.pages.html import Html, ago, count, figure, join, listed, shown, tag, titled, until
from presignd.pages.layout import Parts
from presignd.units import rfc3339, short_duration

LISTED, LISTED_FIRST = 200, 50
"""Most tokens in the list, and in the list of those that need attention."""
CLOCK_APART = 30.0
"""Seconds that two clocks may differ before that needs attention, as for `presignd check`."""
CLOCK_EXACT = 2.0
"""Difference in seconds that a Date can't show: it has whole seconds, and the request takes time."""
ENDS_SOON = timedelta(days=14)
UNKNOWN = "unknown"
FOOT = {"JSON": "api/fleet", "metrics": "metrics"}
ALL_TOKENS = "presignd broker token list"


def document(snapshot: Snapshot) -> str:
    """Return the whole page."""
    return layout.document(headline(snapshot), sections(snapshot), heading=_heading(snapshot), foot=FOOT)


def live(snapshot: Snapshot) -> Parts:
    """Return each section and the headline, to update an open page."""
    return layout.live(headline(snapshot), sections(snapshot))


def headline(snapshot: Snapshot) -> str:
    """Return the state of the fleet in one sentence."""
    if not snapshot.tokens:
        return "No tokens yet"
    active = sum(view.granted + view.refused > 0 for view in snapshot.tokens)
    troubled = sum(bool(concerns(view, snapshot.now)) for view in snapshot.tokens)
    attention = f", {troubled:,} {'needs' if troubled == 1 else 'need'} attention" if troubled else ""
    return f"{active:,} of {count(len(snapshot.tokens), 'token')} active in the last hour{attention}"


def sections(snapshot: Snapshot) -> dict[str, Html]:
    """Return every section by its id, empty if it has no content."""
    return {
        "problems": _problems(snapshot),
        "attention": _attention(snapshot),
        "hour": _hour(snapshot),
        "tokens": _tokens(snapshot),
        "about": _about(snapshot),
    }


def _heading(snapshot: Snapshot) -> Html:
    up = tag("p", f"{presignd.__version__}, up ", ago(rfc3339(snapshot.since), snapshot.now))
    return join(tag("h1", "presignd broker"), up)


# --- what needs attention ---------------------------------------------------------------------------
def _problems(snapshot: Snapshot) -> Html:
    def item(problem: str) -> Html:
        return join(shown(problem), tag("p", "Its tokens are refused until it is fixed."))

    more = "presignd broker check"
    found = listed(snapshot.problems, item, most=LISTED_FIRST, more=more, class_="bad")
    return titled("Token files that can't be used", found)


def concerns(view: TokenView, now: datetime) -> list[Html]:
    """Return why a token needs attention: a sentence each."""
    found = (_refusals(view, now), _clock_apart(view.call), _end(view.token.valid_until, now))
    return [concern for concern in found if concern]


def _refusals(view: TokenView, now: datetime) -> Html | None:
    if not view.refused or view.refusal is None:
        return None
    when = ago(rfc3339(view.refusal.at), now)
    said = f"{count(view.refused, 'refusal')} in the last hour, the latest "
    return join(said, when, " ago: ", tag("code", view.refusal.code))


def _clock_apart(call: Call | None) -> Html | None:
    difference = call.clock_difference if call else None
    if difference is None or abs(difference) < CLOCK_APART:
        return None
    return join(f"Its clock is {_clock(difference)}. Set it, e.g. by NTP.")


def _end(ends: datetime | None, now: datetime) -> Html | None:
    if ends is None or ends - now >= ENDS_SOON:
        return None
    if ends > now:
        return join("The token ends in ", until(rfc3339(ends), now), ". Make a new one in time.")
    return join("The token ended ", ago(rfc3339(ends), now), " ago.")


def _attention(snapshot: Snapshot) -> Html:
    found = [(view, said) for view in snapshot.tokens if (said := concerns(view, snapshot.now))]

    def item(each: tuple[TokenView, list[Html]]) -> Html:
        view, said = each
        return join(tag("h3", view.token.name), *(tag("p", concern) for concern in said))

    return titled("Needs attention", listed(found, item, most=LISTED_FIRST, more=ALL_TOKENS, class_="bad"))


# --- the last hour ----------------------------------------------------------------------------------
def _hour(snapshot: Snapshot) -> Html:
    words = in_words(snapshot.minutes)
    drawn = bars([Bar(minute.granted, _figures(minute)) for minute in snapshot.minutes], words)
    granted = any(minute.granted for minute in snapshot.minutes)
    return titled("The last hour", drawn if granted else None, tag("p", words))


def in_words(minutes: Sequence[Minute]) -> str:
    """Return what the chart shows, in words."""
    granted, refused = sum(minute.granted for minute in minutes), sum(minute.refused for minute in minutes)
    if not granted and not refused:
        return "No token was used in the last hour."
    best = max(minutes, key=lambda minute: minute.granted)
    busiest = f"; {count(best.granted, 'grant')} in the busiest minute, {_time(best)} UTC" if best.granted else ""
    return f"{count(granted, 'grant')} and {count(refused, 'refusal')}{busiest}."


def _figures(minute: Minute) -> str:
    return f"{_time(minute)} UTC: {count(minute.granted, 'grant')}, {count(minute.refused, 'refusal')}"


def _time(minute: Minute) -> str:
    return datetime.fromtimestamp(minute.began, UTC).strftime("%H:%M")


# --- every token ------------------------------------------------------------------------------------
def _tokens(snapshot: Snapshot) -> Html:
    def item(view: TokenView) -> Html:
        token = view.token
        place = tag("p", "bucket ", tag("code", token.bucket), ", prefix ", tag("code", token.prefix or "(none)"))
        return join(tag("h3", token.name), place, tag("dl", *_token_figures(view, snapshot.now)))

    if not snapshot.tokens:
        make = tag("p", "None yet. Make one with ", tag("code", "presignd broker token create"), ".")
        return titled("Tokens", make, _kept(snapshot))
    return titled("Tokens", listed(snapshot.tokens, item, most=LISTED, more=ALL_TOKENS), _kept(snapshot))


def _kept(snapshot: Snapshot) -> Html | None:
    """Return how many links outlive their tokens; the files of these may be gone, or not be readable now."""
    if not snapshot.kept:
        return None
    names = join(*(join(", " if place else "", shown(name)) for place, name in enumerate([*snapshot.kept][:LISTED])))
    kept = count(sum(snapshot.kept.values()), "link")
    return tag("p", f"{kept} kept of tokens that no readable file has: ", names, ".")


def _token_figures(view: TokenView, now: datetime) -> list[Html]:
    call, ends = view.call, view.token.valid_until
    links = "–" if view.links is None else f"{view.links:,}"  # noqa: RUF001 - a dash
    return [
        figure("last seen", join(ago(rfc3339(call.at), now), " ago") if call else "not since the broker started"),
        *([figure("from", shown(call.client))] if call else []),
        figure("grants", f"{view.granted:,}"),
        figure("refusals", f"{view.refused:,}"),
        *(_caller(call) if call else []),
        figure("links alive", links),
        *([figure("ends", join("in ", until(rfc3339(ends), now)))] if ends and ends > now else []),
    ]


def _caller(call: Call) -> list[Html]:
    difference = call.clock_difference
    clock = UNKNOWN if difference is None else _clock(difference)
    program = figure("daemon", call.version) if call.version else figure("program", shown(call.program) or UNKNOWN)
    return [figure("clock", clock), program]


def _clock(difference: float) -> str:
    if abs(difference) < CLOCK_EXACT:
        return "in step"
    return f"{short_duration(abs(difference))} {'ahead' if difference > 0 else 'behind'}"


def _about(snapshot: Snapshot) -> Html:
    since = ago(rfc3339(snapshot.since), snapshot.now)
    said = tag("p", "This is what this broker has seen since it started, ", since, " ago. It is kept in memory only.")
    others = tag("p", "Grants and refusals are those of the last hour. Each of several brokers shows its own.")
    return titled("About this page", said, others)
