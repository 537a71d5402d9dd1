"""Numbered keys, pure; test_ledger.py tests who may have which key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.ledger.keys import first_free, number_in, numbered_key
from presignd.s3.limits import MAX_KEY

SEGMENT = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="/\\"), min_size=1)
KEYS = st.lists(SEGMENT, min_size=1, max_size=4).map("/".join).filter(lambda key: len(key.encode()) <= MAX_KEY)


@pytest.mark.parametrize(
    ("key", "second"),
    [
        ("name.ext", "name~2.ext"),
        ("a/b.tar.gz", "a/b~2.tar.gz"),
        ("a/b.TAR.XZ", "a/b~2.TAR.XZ"),
        ("b.tar.zst", "b~2.tar.zst"),
        ("a/b.tar", "a/b~2.tar"),
        ("a.b.c/d", "a.b.c/d~2"),
        ("2026.01.31 report.pdf", "2026.01.31 report~2.pdf"),
        (".env", ".env~2"),
        ("a/.env.local", "a/.env~2.local"),
        (".tar.gz", ".tar~2.gz"),
        ("noext", "noext~2"),
        ("dot.", "dot~2."),
        ("name~2.ext", "name~2~2.ext"),
        ("é/ü.txt", "é/ü~2.txt"),
    ],
)
def test_the_number_stands_before_the_suffix(key: str, second: str) -> None:
    assert numbered_key(key, 2) == second


@given(key=KEYS, number=st.integers(2, 10**6))
def test_a_numbered_key_is_another_one_in_the_same_folder_within_the_limit(key: str, number: int) -> None:
    made = numbered_key(key, number)
    if made is not None:
        assert made != key
        assert made.rpartition("/")[0] == key.rpartition("/")[0]
        assert len(made.encode()) <= MAX_KEY
        assert number_in(key, made) == number


@pytest.mark.parametrize("letter", ["x", "é", "\U0001f600"])
def test_a_long_name_is_cut_between_characters(letter: str) -> None:
    key = letter * (1020 // len(letter.encode())) + ".txt"
    made = numbered_key(key, 12)
    assert made is not None
    assert made.endswith(letter + "~12.txt")
    assert 1020 < len(made.encode()) <= MAX_KEY


def test_a_folder_that_leaves_no_room_for_a_name_has_no_numbered_key() -> None:
    assert numbered_key("d" * 1021 + "/x", 2) is None


@pytest.mark.parametrize(
    ("base_key", "key", "number"),
    [("a.txt", "a~17.txt", 17), ("a.txt", "a.txt", 1), ("a.txt", "b~2.txt", 1), ("a.txt", "", 1), ("a~2", "a~2~3", 3)],
)
def test_the_number_in_a_key_is_read_back(base_key: str, key: str, number: int) -> None:
    assert number_in(base_key, key) == number


@given(taken=st.integers(1, 5000), after=st.integers(1, 50))
def test_the_next_free_number_is_found_in_few_looks(taken: int, after: int) -> None:
    """A fixed key template numbers every file: looking through all of them would grow without end."""
    looks = 0

    def is_free(key: str) -> bool:
        nonlocal looks
        looks += 1
        return number_in("k.txt", key) > taken

    assert first_free("k.txt", after, is_free) == numbered_key("k.txt", max(taken, after) + 1)
    assert looks <= 28


@given(holes=st.sets(st.integers(2, 60)), after=st.integers(1, 60))
def test_a_key_that_is_not_free_is_never_chosen(holes: set[int], after: int) -> None:
    chosen = first_free("k", after, lambda key: number_in("k", key) not in holes)
    assert chosen is not None
    assert number_in("k", chosen) > after
    assert number_in("k", chosen) not in holes
