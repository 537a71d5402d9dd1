"""How ``presignd status`` looks on a terminal: words stay whole, at any width."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from presignd.cli.layout import Line, bar, cells, columns, wrapped
from presignd.cli.status import fitting, path_lines, status_lines

WIDTHS = (60, 72, 80, 100, 132, 200)
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
LONG = "/srv/drop/a folder/über-lange-Namen-sind-erlaubt/報告書の最終版-2026.pdf"

VERSION = {
    "file_id": "id-1",
    "watch": "drop",
    "path": LONG,
    "state": "quarantined",
    "receipt": None,
    "error": {
        "code": "too_large",
        "cause": "the file is larger than max_size allows it to be in this watch",
        "fix": "raise max_size of the watch, or leave the file out; then presignd retry --error too_large",
    },
    "link_expires_at": None,
}


def status(**more: Any) -> dict[str, Any]:
    """Make a status document in which everything happens at once."""
    counts = {"queued": 12, "uploading": 2, "verified": 0, "linked": 1, "finished": 4211, "quarantined": 1}
    watch = {
        "name": "drop",
        "path": "/srv/drop",
        "bucket": "bars-bucket",
        "writer_check": "lease",
        "lost": True,
        "next_scan": "2026-03-04T05:06:49.000000Z",
        "counts": counts,
        "oldest_queued_at": "2026-03-04T05:06:04.000000Z",
    }
    upload = {"watch": "drop", "path": LONG, "size": 30_000_000, "sent": 12_300_000, "rate": 4.5e6, "seconds_left": 4}
    blocked = {
        "what": "the bucket of watch drop",
        "code": "access_denied",
        "since": "2026-03-04T05:04:07.000000Z",
        "cause": "the store refuses this key what was asked for",
        "fix": "grant s3:PutObject and s3:GetObject on bars-bucket/*",
    }
    settling = {"watch": "drop", "path": LONG, "since": "2026-03-04T05:06:04.000000Z", "why": "it is being written"}
    return {
        "daemon": None,
        "watches": [watch],
        "blocked": [blocked],
        "in_flight": [upload],
        "settling": [settling],
        "settling_count": 1003,
        "quarantined": [VERSION],
        "quarantined_count": 1,
        **more,
    }


@pytest.mark.parametrize(
    ("link", "ends", "said"),
    [
        (None, None, ""),
        ("stable", None, "link expires never, unless it is revoked"),
        ("unit", None, "link its folder's"),
        ("presigned", "2026-03-04T05:16:07.000000Z", "link expires 2026-03-04T05:16:07.000000Z (in 10 min)"),
    ],
)
def test_when_a_link_expires(link: str | None, ends: str | None, said: str) -> None:
    document = {"path": LONG, "watch": "drop", "settling": None, "in_flight": None}
    version = VERSION | {"link": link, "link_expires_at": ends}
    (*_, last) = path_lines(document | {"version": version}, 200, NOW)
    assert " ".join(last.text.split()) == said if link else not last.text.startswith("link")


@pytest.mark.parametrize("width", WIDTHS)
def test_no_word_is_broken_and_no_line_is_too_long(width: int) -> None:
    lines = status_lines(status(), width, NOW)
    widest = status_lines(status(), 10_000, NOW)
    assert [word for line in lines for word in line.text.split()] == [w for line in widest for w in line.text.split()]
    assert all(cells(line.text) <= width or len(line.text.split()) == 1 for line in lines)


def test_what_waits_stands_with_its_cause_its_fix_and_since_when() -> None:
    assert [line.text for line in status_lines(status(), 200, NOW)] == [
        "daemon: not running",
        "",
        "drop",
        "  Its folder is away. presignd looks for it each second.",
        "  /srv/drop to bucket bars-bucket",
        "  12 queued (the oldest for 3 s), 3 in flight, 4,211 done, 1 quarantined",
        "  settles by lease, next scan in 42 s",
        "",
        "Blocked",
        "  the bucket of watch drop (access_denied), for 2 min",
        "    the store refuses this key what was asked for",
        "    Fix: grant s3:PutObject and s3:GetObject on bars-bucket/*",
        "",
        "Uploading",
        f"  {LONG}",
        "    [########............]  41%  12.3 MB of 30.0 MB, 4.5 MB/s, 4 s left",
        "",
        "Settling",
        f"  {LONG}: it is being written, for 3 s",
        "  and 1002 more settling",
        "",
        "Quarantined",
        f"  {LONG} (too_large)",
        "    the file is larger than max_size allows it to be in this watch",
        "    Fix: raise max_size of the watch, or leave the file out; then presignd retry --error too_large",
    ]


def test_a_name_can_neither_break_a_line_nor_play_with_the_terminal() -> None:
    uploads = [{**status()["in_flight"][0], "path": "/srv/drop/\x1b[2J\n\u202ex", "size": 0, "sent": 0}]
    text = "\n".join(line.text for line in status_lines(status(in_flight=uploads), 80, NOW))
    assert "/srv/drop/\\x1b[2J\\n\\u202ex" in text
    assert "100%" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_where_one_file_stands_is_a_name_and_a_value_a_line(width: int) -> None:
    found = {"path": LONG, "watch": "drop", "settling": None, "version": VERSION, "in_flight": None}
    lines = [line.text for line in path_lines(found, width, NOW)]
    assert lines[0].split() == ["path", *LONG.split()][: len(lines[0].split())]
    assert "cause  the file is larger" in "\n".join(lines)
    assert all(cells(line) <= width or len(line.split()) <= 2 for line in lines)


def test_columns_line_up_where_they_fit_and_become_blocks_where_they_do_not() -> None:
    rows = [["scanner-1", "a-bucket/scanner-1/", ""], ["報告", "b", "2027-06-30"]]
    assert [line.text for line in columns(("name", "for", "until"), rows, 80)] == [
        "name       for                  until",
        "scanner-1  a-bucket/scanner-1/",
        "報告       b                    2027-06-30",
    ]
    assert [line.text for line in columns(("name", "for", "until"), rows, 30)] == [
        "scanner-1",
        "  for      a-bucket/scanner-1/",
        "報告",
        "  for      b",
        "  until    2027-06-30",
    ]


def test_a_word_wider_than_the_terminal_stays_whole() -> None:
    assert wrapped("see /a/very/long/path now", 10, indent=2, hang=4) == [
        Line("  see"),
        Line("    /a/very/long/path"),
        Line("    now"),
    ]


def test_a_bar_is_full_at_the_end_alone() -> None:
    assert (bar(0), bar(0.999), bar(1), bar(2)) == (f"[{'.' * 20}]", f"[{'#' * 19}.]", f"[{'#' * 20}]", bar(1))


def test_what_a_low_terminal_can_not_show_is_counted() -> None:
    lines = [Line(str(number)) for number in range(10)]
    assert fitting(lines, 11) == lines
    assert [line.text for line in fitting(lines, 5)] == ["0", "1", "2", "and 7 more lines: presignd status"]
