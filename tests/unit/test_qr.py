"""QR codes are read back by a decoder of another project (ZXing), from what a terminal and a browser would show."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
import zxingcpp
from hypothesis import given, settings
from hypothesis import strategies as st

from presignd import qr

HEX = "0123456789abcdef" * 4
LINK = (
    "https://s3.example.org/test-bucket/a/b.pdf?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20261129"
    f"%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20261129T000000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host"
    f"&X-Amz-Signature={HEX}"
)
BOTH = {" ": (0, 0), "▀": (1, 0), "▄": (0, 1), "█": (1, 1)}


def decoded(modules: list[list[int]]) -> str:
    """Return the text of a code, from a picture with three pixels a module."""
    pixels = [[0 if dark else 255 for dark in row for _ in range(3)] for row in modules for _ in range(3)]
    picture = memoryview(bytes(value for row in pixels for value in row)).cast("B", (len(pixels), len(pixels[0])))
    [found] = zxingcpp.read_barcodes(picture)
    text: str = found.text
    return text


def of_terminal(lines: list[str]) -> list[list[int]]:
    """Return the modules of what a terminal shows."""
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    return [[BOTH[char][half] for char in line] for line in plain for half in (0, 1)]


def of_svg(document: bytes) -> list[list[int]]:
    """Return the modules of an SVG: its dark ones are horizontal strokes, "h" draws and "m" moves."""
    root = ET.fromstring(document)
    size = int(root.attrib["viewBox"].split()[2])
    modules = [[0] * size for _ in range(size)]
    [dark] = [path for path in root if path.get("stroke")]
    x = y = 0.0
    for command, first, second in re.findall(r"([Mmh])(-?[\d.]+)(?: (-?[\d.]+))?", dark.attrib["d"]):
        if command == "h":
            for column in range(int(x), int(x) + int(first)):
                modules[int(y)][column] = 1
            x += int(first)
        else:
            x, y = (float(first), float(second)) if command == "M" else (x + float(first), y + float(second))
    return modules


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=600))
def test_what_a_terminal_shows_is_read_back(text: str) -> None:
    assert decoded(of_terminal(qr.for_terminal(text))) == text


def test_a_link_fits_into_eighty_columns_and_every_line_is_as_wide() -> None:
    modules = of_terminal(qr.for_terminal(LINK))
    assert {len(row) for row in modules} == {qr.columns(LINK)}
    assert qr.columns(LINK) <= 80
    assert decoded(modules) == LINK


def test_each_line_sets_both_colours_and_resets_them() -> None:
    for line in qr.for_terminal(LINK):
        assert re.fullmatch(r"\x1b\[38;5;16;48;5;231m[ ▀▄█]+\x1b\[0m", line)


def test_the_svg_is_the_same_code_and_a_strict_policy_takes_nothing_from_it() -> None:
    document = qr.as_svg(LINK)
    modules = of_svg(document)
    shown = of_terminal(qr.for_terminal(LINK))
    assert modules == shown[: len(modules)], "a terminal has an even number of rows"
    assert decoded(modules) == LINK
    assert not re.search(rb"style|<script|href|<\?xml", document)
    assert b'fill="#fff"' in document, "dark on light in a dark page, too"


def test_the_longest_text_of_all_codes_is_the_last_that_is_taken() -> None:
    assert qr.columns("x" * 2953) == 177 + 2 * qr.QUIET
    with pytest.raises(ValueError, match=r"\A"):
        qr.columns("x" * 2954)
