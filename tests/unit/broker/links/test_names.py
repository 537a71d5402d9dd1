"""File names: whatever a sender calls a file, its name leads nowhere, ends no header and misleads nobody."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.broker.links.names import LONGEST_NAME, safe_filename


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("report.pdf", "report.pdf"),
        ("R\u00e9sum\u00e9 \u8cc7\u6599 \U0001f4c4.pdf", "R\u00e9sum\u00e9 \u8cc7\u6599 \U0001f4c4.pdf"),
        ("a/b\\c", "a_b_c"),
        ("x\r\nSet-Cookie: a=b", "x__Set-Cookie: a=b"),
        ("\u202egpj.exe", "_gpj.exe"),
        ("a\0b", "a_b"),
        ("\ud800.txt", "_.txt"),
        ("", "download"),
        ("  ", "download"),
        ("..", "download"),
        (". . ", "download"),
        (".bashrc", ".bashrc"),
    ],
)
def test_a_name_is_made_safe(name: str, safe: str) -> None:
    assert safe_filename(name) == safe


@pytest.mark.parametrize(
    ("name", "end"),
    [("x" * 300 + ".tar", "x.tar"), ("\u8cc7" * 100 + ".pdf", "\u8cc7.pdf"), ("y" * 300, "y"), ("." + "z" * 300, "z")],
)
def test_a_long_name_keeps_its_suffix(name: str, end: str) -> None:
    cut = safe_filename(name)
    assert len(cut.encode()) <= LONGEST_NAME
    assert cut.endswith(end)


@given(st.text(max_size=400))
def test_no_name_is_unsafe(name: str) -> None:
    safe = safe_filename(name)
    assert 0 < len(safe.encode()) <= LONGEST_NAME
    assert safe not in {".", ".."}
    assert not [char for char in safe if char in "/\\" or unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"}]
    assert not [char for char in safe if unicodedata.bidirectional(char) in {"RLO", "LRO", "RLE", "LRE", "RLI", "LRI"}]
    assert safe_filename(safe) == safe
