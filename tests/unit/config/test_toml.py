"""TOML as it is written: any value is read back the same, on one line of printable characters."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from presignd.config.toml import toml_text, toml_value

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | TEXTS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXTS, below, max_size=3),
)


@given(VALUES)
def test_what_is_written_is_read_back_the_same(value: Any) -> None:
    written = toml_value(value)
    assert tomllib.loads(f"value = {written}") == {"value": value}
    assert written.isprintable()


def test_what_json_would_escape_by_two_halves_or_not_at_all_is_toml() -> None:
    assert toml_text("\U000e0001\x7f\n") == r'"\U000e0001\u007f\n"'
