"""Names for what guests send: safe, visible, and their own as far as that goes."""

from __future__ import annotations

import unicodedata
from itertools import islice

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from presignd.inbox.names import FALLBACK, NAME_MAX, numbered, safe_path
from presignd.pipeline.files.ignore import OWN_PREFIX


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("report.pdf", ["report.pdf"]),
        ("Scans/M\u00e4rz/a b.txt", ["Scans", "M\u00e4rz", "a b.txt"]),
        ("../../etc/passwd", ["etc", "passwd"]),
        ("/etc//./passwd", ["etc", "passwd"]),
        ("a/../b", ["a", "b"]),
        ("", [FALLBACK]),
        ("../..", [FALLBACK]),
        (" / . /\t", [FALLBACK]),
        (".bashrc", ["_.bashrc"]),
        (".presignd-inbox-x", ["_.presignd-inbox-x"]),
        ("a\\b:c*?.txt", ["a_b_c__.txt"]),
        ("line\nfeed\0\x7f", ["line_feed__"]),
        ("fdp\u202egpj.exe", ["fdp_gpj.exe"]),
        ("CON", ["_CON"]),
        ("aux.txt", ["_aux.txt"]),
        ("console.txt", ["console.txt"]),
        ("name. . ", ["name"]),
        ("\ud800.txt", ["_.txt"]),
        ("x" * 300 + ".pdf", ["x" * 251 + ".pdf"]),
        ("\u00e4" * 200, ["\u00e4" * 127]),
        ("a." + "y" * 300, ["a." + "y" * 253]),
    ],
)
def test_a_path_becomes_safe_names(path: str, names: list[str]) -> None:
    assert safe_path(path) == names


@given(st.text(st.characters() | st.sampled_from('./\\ \t\n:*"<>|~'), max_size=400))
@example("com1.tar.gz")
@example("\u2067a")
@example(". .a")
def test_whatever_a_guest_chooses_leads_nowhere_else_and_is_seen(path: str) -> None:
    names = safe_path(path)
    assert names
    for name in names:
        assert name not in {"", ".", ".."}
        assert 0 < len(name.encode()) <= NAME_MAX
        assert not name.startswith((".", " "))
        assert not name.endswith((".", " "))
        assert not name.encode().startswith(OWN_PREFIX)
        assert not set(name) & set('/\\:*?"<>|\0')
        assert all(unicodedata.category(each)[0] != "C" for each in name)
    assert safe_path("/".join(names)) == names, "what is safe stays as it is"


def test_a_taken_name_is_numbered_before_its_suffix() -> None:
    assert list(islice(numbered("report.pdf"), 3)) == ["report.pdf", "report (2).pdf", "report (3).pdf"]
    assert list(islice(numbered("report"), 2)) == ["report", "report (2)"]
    assert list(islice(numbered("_.bashrc"), 2)) == ["_.bashrc", "_ (2).bashrc"]


@given(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=255))
def test_numbered_names_differ_and_fit(name: str) -> None:
    found = list(islice(numbered(name), 1, 30))
    assert len(set(found)) == len(found)
    assert all(0 < len(each.encode()) <= NAME_MAX for each in found)
