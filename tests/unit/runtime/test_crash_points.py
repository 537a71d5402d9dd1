"""The points where the crash harness kills: each one is in the code, and has no effect unless requested."""

from __future__ import annotations

import re
from pathlib import Path

import presignd
from presignd.ledger import Ledger, changes, outbox, units
from presignd.runtime import crash_points
from presignd.states import Event

SOURCE = Path(presignd.__file__).parent


def test_every_point_is_passed_in_one_place_of_the_code_and_no_other_is() -> None:
    code = "".join(path.read_text("utf-8") for path in SOURCE.rglob("*.py") if path.name != "crash_points.py")
    passed = [name for name in re.findall(r"\bpassed\(f?\"([^\"]+)\"\)", code) if "{" not in name]
    assert sorted(passed) == sorted([*crash_points.POINTS, *crash_points.INBOX_POINTS])


def test_every_change_of_the_ledger_has_its_two_points() -> None:
    names = ("ledger.py", "units.py", "outbox.py")
    source, of_units, of_outbox = ((SOURCE / "ledger" / name).read_text("utf-8") for name in names)
    called = set(re.findall(r"_do(?:_all)?\(\s*changes\.(\w+)|\"(update|begin_upload|end_upload)\"", source))
    called = {name for pair in called for name in pair if name} | {*re.findall(r"self\._do\((\w+)", of_units)}
    called |= {*re.findall(r"self\._change\((\w+)", of_outbox)}
    named = {change.partition(".")[0] for change in crash_points.CHANGES}
    assert called - {"enqueue_new"} == named  # its points are those of "enqueue", which is made where it fails
    assert all(
        hasattr(changes, name) or hasattr(units, name) or hasattr(outbox, name) or hasattr(Ledger, name)
        for name in named
    )
    events = {change.partition(".")[2] for change in crash_points.CHANGES if "." in change}
    assert events <= set(Event)


def test_the_nth_pass_of_the_named_point_kills() -> None:
    kills: list[str] = []
    passed = crash_points.armed("put.after:2", lambda: kills.append("killed"))
    for point in ("put.after", "put.before", "put.after", "put.after"):
        passed(point)
        kills.append(point)
    assert kills == ["put.after", "put.before", "killed", "put.after", "put.after"]


def test_without_a_number_the_first_pass_kills() -> None:
    kills: list[bool] = []
    crash_points.armed("done.said", lambda: kills.append(True))("done.said")
    assert kills == [True]


def test_unarmed_the_points_do_nothing() -> None:
    assert crash_points.passed is crash_points._nothing
