"""What is believed of a broker's list of what came in."""

from __future__ import annotations

from typing import Any

import pytest

from presignd.errors import PresignerFault
from presignd.presign.broker_inbox import arrived_of

FILE = {
    "id": "Ab-_EfGhIjKlMnOp",
    "path": "Scans/\u202ea\n.txt",
    "bucket": "bucket",
    "key": "in/a.txt",
    "size": 5,
    "content_type": "text/plain",
    "part_size": 0,
    "checksum": "md5:5d41402abc4b2a76b9719d911017c592",
    "etag": "x",
    "received_at": "2026-11-29T12:00:00Z",
}


def test_a_list_is_read_with_where_to_go_on() -> None:
    (file,), following = arrived_of({"files": [FILE], "next": "7", "more": 1}, "0")
    assert (file.id, file.path, file.size, file.checksum) == (FILE["id"], FILE["path"], 5, FILE["checksum"])
    assert following == "7"
    assert arrived_of({"files": [], "next": "7"}, "7") == ([], "7")
    (unknown,), _ = arrived_of({"files": [FILE | {"checksum": None}], "next": "1"}, "0")
    assert unknown.checksum is None


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "../../etc/passwd"},
        {"id": "short"},
        {"size": -1},
        {"size": 1 << 60},
        {"part_size": -1},
        {"checksum": "md5:XYZ"},
        {"bucket": "../b"},
        {"key": ""},
        {"path": "x" * 2000},
        {"received_at": "2026-11-29T12:00:00"},
    ],
)
def test_a_file_that_can_not_be_is_not_believed(changes: dict[str, Any]) -> None:
    with pytest.raises(PresignerFault) as refused:
        arrived_of({"files": [FILE | changes], "next": "1"}, "0")
    assert refused.value.code == "bad_broker"
    assert refused.value.message.endswith("its list of what came in can't be read")


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"files": []},
        {"files": [], "next": "x"},
        {"files": None, "next": "1"},
        {"files": [1], "next": "1"},
        {"files": [], "next": "4"},
        {"files": [FILE], "next": "5"},
        {"files": [FILE] * 1001, "next": "6"},
    ],
)
def test_a_list_that_is_none_or_has_no_end_is_not_believed(document: Any) -> None:
    with pytest.raises(PresignerFault) as refused:
        arrived_of(document, "5")
    assert refused.value.code == "bad_broker"
