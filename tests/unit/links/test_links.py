"""A line of links.jsonl and the cursor behind it: pure."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from presignd.cli.links import LONGEST_PAUSE, pause_after
from presignd.errors import UsageError
from presignd.links import Cursor, encode
from presignd.links.format import decode, to_link
from presignd.model import Link

LINK = Link(
    time=datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC),
    file_id="0190",
    watch="drop",
    path="/srv/drop/a.txt",
    bucket="b",
    key="a.txt",
    size=3,
    content_type="text/plain",
    etag='"abc"',
    checksum="md5:abc",
    expires_at=datetime(2026, 5, 4, 3, 17, 1, 5, tzinfo=UTC),
    url="https://s3.example/b/a.txt?X-Amz-Signature=s",
)


def test_the_fields_of_a_line_stand_in_the_order_of_the_contract() -> None:
    contract = "time file_id watch path bucket key size content_type etag checksum url expires_at"
    assert list(json.loads(encode(LINK))) == contract.split()


def test_version_id_is_there_only_where_the_bucket_has_versions() -> None:
    assert "version_id" not in json.loads(encode(LINK))
    assert json.loads(encode(LINK._replace(version_id="v1")))["version_id"] == "v1"


def test_times_are_utc_with_microseconds_and_z() -> None:
    """Also where there are none to show, and from another time zone: programs compare them as text."""
    elsewhere = LINK.time.astimezone(timezone(timedelta(hours=2)))
    line = json.loads(encode(LINK._replace(time=elsewhere)))
    assert line["time"] == "2026-05-04T03:02:01.000000Z"
    assert line["expires_at"] == "2026-05-04T03:17:01.000005Z"


@pytest.mark.parametrize(
    "name", ['a\n{"file_id": "forged"}\n', "a\r\nb", "a\u2028b", "a\u0085b", "\x1b[2J", 'quote"\\', "a\x00b"]
)
def test_a_file_name_can_forge_no_line_and_play_no_trick_on_a_terminal(name: str) -> None:
    line = encode(LINK._replace(path=name, key=name))
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert line[:-1].decode("ascii").isprintable()
    assert json.loads(line)["path"] == name


@pytest.mark.parametrize("link", [LINK, LINK._replace(version_id="v1", path="ünï\n"), LINK._replace(expires_at=None)])
def test_a_line_reads_back_as_the_link_it_was(link: Link) -> None:
    document = decode(encode(link))
    assert document is not None
    assert to_link(document) == link


def test_the_end_of_a_link_without_one_is_null() -> None:
    assert b'"expires_at":null' in encode(LINK._replace(expires_at=None))


def test_a_line_of_a_newer_presignd_with_more_fields_still_reads_back() -> None:
    document = json.loads(encode(LINK)) | {"later": 1}
    assert to_link(document) == LINK


@pytest.mark.parametrize("line", [b"", b"\0\0\0", b"[]", b"3", b'{"a":', b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_no_line(line: bytes) -> None:
    assert decode(line) is None


@pytest.mark.parametrize(
    "document", [{}, {"time": "soon", "expires_at": "later"}, {"time": 3}, {"time": "2026-05-04T03:02:01Z"}]
)
def test_an_object_that_is_no_link_is_none(document: dict[str, object]) -> None:
    assert to_link(document) is None


def test_a_cursor_goes_through_json_and_back() -> None:
    cursor = Cursor(7, 90, "0190")
    assert Cursor.from_json(json.loads(json.dumps(cursor.to_json()))) == cursor
    assert Cursor.from_json({"inode": 7, "offset": 90}) == Cursor(7, 90)


@pytest.mark.parametrize(
    "document", [None, [], "x", {}, {"inode": 1}, {"inode": "1", "offset": 2}, {"inode": 1, "offset": -2}]
)
def test_anything_else_is_refused_as_a_cursor(document: object) -> None:
    with pytest.raises(UsageError, match="no cursor"):
        Cursor.from_json(document)


def test_a_failing_command_is_tried_again_after_a_second_then_ever_later_up_to_five_minutes() -> None:
    pauses = [pause_after(failures) for failures in range(12)]
    assert pauses[:4] == [1, 2, 4, 8]
    assert pauses[-1] == LONGEST_PAUSE == 300
    assert pause_after(10**6) == LONGEST_PAUSE
