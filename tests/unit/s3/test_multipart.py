"""Parts: enough for every size, none missing, and an ETag that S3 would give."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.s3.limits import FEW_PARTS, LARGEST_OBJECT, LARGEST_PART, LEAST_PART, MAX_PARTS
from presignd.s3.multipart import (
    GROWTH,
    MIB,
    complete_body,
    etag_of_parts,
    in_order,
    next_part_size,
    part_ranges,
    part_size_for,
)

CONFIGURED = 16 * MIB


def test_five_tib_goes_in_525_mib_parts() -> None:
    assert part_size_for(LARGEST_OBJECT, CONFIGURED) == 525 * MIB


def test_the_configured_size_holds_while_it_is_enough() -> None:
    assert part_size_for(MAX_PARTS * CONFIGURED, CONFIGURED) == CONFIGURED
    assert part_size_for(MAX_PARTS * CONFIGURED + 1, CONFIGURED) == CONFIGURED + MIB


@given(st.integers(1, LARGEST_OBJECT), st.integers(5 * MIB, 5 << 30))
def test_ten_thousand_parts_are_enough(size: int, configured: int) -> None:
    assert -(-size // part_size_for(size, configured)) <= MAX_PARTS


@given(st.integers(1, LARGEST_OBJECT), st.integers(5 * MIB, 5 << 30))
def test_where_a_thousand_are_all_a_thousand_parts_are_enough(size: int, configured: int) -> None:
    assert -(-size // part_size_for(size, configured, FEW_PARTS)) <= FEW_PARTS


def test_of_more_parts_than_some_stores_take_the_last_goes_first() -> None:
    many, few = [*part_ranges(FEW_PARTS + 1, 1)], [*part_ranges(FEW_PARTS, 1)]
    assert in_order(many) == [many[-1], *many[:-1]]
    assert in_order(few) == few


@given(st.integers(1, 1000), st.integers(1, 100))
def test_parts_cover_the_file_once_and_in_order(size: int, part_size: int) -> None:
    cut = list(part_ranges(size, part_size))
    assert [piece.number for piece in cut] == list(range(1, len(cut) + 1))
    assert [piece.offset for piece in cut] == [part_size * n for n in range(len(cut))]
    assert sum(piece.size for piece in cut) == size
    assert all(piece.size == part_size for piece in cut[:-1])


def test_the_etag_is_the_md5_of_md5s() -> None:
    """Known answer: md5sum over the two digests' bytes."""
    parts = ["5d41402abc4b2a76b9719d911017c592", "7d793037a0760186574b0282f2f435e7"]
    assert etag_of_parts(parts) == "065947336a2f2a95ba8899f3675c3be6-2"


def test_complete_lists_parts_ascending_whatever_the_order_they_ended_in() -> None:
    root = ET.fromstring(complete_body([(3, "c"), (1, "a"), (2, "b")]))
    space = "{http://s3.amazonaws.com/doc/2006-03-01/}"
    found = [(part.findtext(f"{space}PartNumber"), part.findtext(f"{space}ETag")) for part in root]
    assert found == [("1", '"a"'), ("2", '"b"'), ("3", '"c"')]


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_an_etag_goes_back_as_it_came_whatever_it_is_made_of(etag: str) -> None:
    assert (ET.fromstring(complete_body([(1, etag)]))[0][1].text or "") == f'"{etag}"'


@pytest.mark.parametrize("configured", [LEAST_PART, CONFIGURED, 64 * MIB, LARGEST_PART])
def test_a_stream_of_the_largest_size_has_parts_enough_and_none_too_large(configured: int) -> None:
    size, parts = 0, 0
    while size < LARGEST_OBJECT:
        part = next_part_size(size, configured)
        assert configured <= part <= LARGEST_PART
        assert part == configured or part % MIB == 0
        size, parts = size + part, parts + 1
    assert parts <= MAX_PARTS


def test_a_stream_begins_with_parts_of_one_size() -> None:
    size = 0
    for _ in range(GROWTH):
        assert next_part_size(size, CONFIGURED) == CONFIGURED
        size += CONFIGURED
    assert next_part_size(size + MIB, CONFIGURED) == CONFIGURED + MIB
