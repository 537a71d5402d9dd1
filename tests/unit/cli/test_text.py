"""No character of a name controls a terminal or breaks a line, and JSON parses to the same name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.cli import show
from presignd.redaction.text import json_text, one_line

ACTING = "\x00\x07\x1b\x7f\x80\x85\x9b\x9d\u061c\u200b\u200e\u202e\u2028\u2029\u2066\ufeff\udcff\U000e0041"


def test_json_escapes_what_acts_and_keeps_the_rest_readable() -> None:
    text = json_text({"path": f"é日本{ACTING}"})
    assert text.isprintable()
    assert "é日本" in text
    assert json.loads(text) == {"path": f"é日本{ACTING}"}


@pytest.mark.parametrize("indent", [None, 2])
def test_a_command_prints_such_json(indent: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    document = {"path": ACTING, "n": [1, {"ü": None}]}
    show.document(document, indent=indent)
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()
    assert json.loads(shown) == document
    assert len(shown.splitlines()) == (1 if indent is None else 9)


@given(st.recursive(st.text(), lambda more: st.dictionaries(st.text(), more) | st.lists(more)))
def test_all_json_parses_to_what_it_was(value: object) -> None:
    for indent in (None, 2):
        assert json.loads(json_text(value, indent=indent)) == value


@given(st.text(st.characters()))
def test_a_line_is_one_line_for_every_reader(text: str) -> None:
    assert one_line(text).isprintable()
