"""Whether a file may be deleted or moved: only the verified bytes, unchanged, without a writer."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.model import Fingerprint, State
from presignd.pipeline.files.folder import numbered_names
from presignd.pipeline.finish.remove import FinishOutcome, Observation, check_content, check_fingerprint
from tests.versions import in_state

VERIFIED = Fingerprint(ino=11, size=5, mtime_ns=1_000, ctime_ns=2_000)
RENAMED = VERIFIED._replace(ctime_ns=3_000)
"""The same file after it was set aside."""
CHECKSUM = "md5:0123"
VERSION = in_state(State.LINKED, fingerprint=VERIFIED, checksum=CHECKSUM)
OTHER = [
    pytest.param(RENAMED._replace(ino=12), id="another inode"),
    pytest.param(RENAMED._replace(size=6), id="another size"),
    pytest.param(RENAMED._replace(mtime_ns=1_001), id="another mtime"),
]
QUIET = [False, None]


@pytest.mark.parametrize("writer", QUIET)
def test_the_verified_file_without_a_writer_may_go(writer: bool | None) -> None:
    look = Observation(RENAMED, writer)
    assert check_fingerprint(VERSION, look) is None
    assert check_content(VERSION, look, CHECKSUM, look) is None


@pytest.mark.parametrize("fingerprint", OTHER)
@pytest.mark.parametrize("writer", [True, *QUIET])
def test_another_file_never_goes_whatever_its_content(fingerprint: Fingerprint, writer: bool | None) -> None:
    look = Observation(fingerprint, writer)
    assert check_fingerprint(VERSION, look) is FinishOutcome.CHANGED
    assert check_content(VERSION, look, CHECKSUM, look) is FinishOutcome.CHANGED


@pytest.mark.parametrize("after", [*OTHER, pytest.param(RENAMED._replace(ctime_ns=3_001), id="another ctime")])
def test_what_changes_while_it_is_read_stays(after: Fingerprint) -> None:
    """Its ctime alone gives a writer away that set the old mtime again."""
    assert (
        check_content(VERSION, Observation(RENAMED, None), CHECKSUM, Observation(after, None)) is FinishOutcome.CHANGED
    )


def test_other_content_stays_though_size_and_times_are_the_same() -> None:
    look = Observation(RENAMED, writer=False)
    assert check_content(VERSION, look, "md5:ffff", look) is FinishOutcome.CHANGED


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True), (True, True), (None, True)])
def test_a_writer_in_either_look_keeps_the_file(before: bool | None, after: bool | None) -> None:
    assert (
        check_content(VERSION, Observation(RENAMED, before), CHECKSUM, Observation(RENAMED, after))
        is FinishOutcome.BUSY
    )


@pytest.mark.parametrize(
    ("name", "second"),
    [
        (b"a.txt", b"a~2.txt"),
        (b"a.tar.gz", b"a.tar~2.gz"),
        (b"a", b"a~2"),
        (b".hidden", b".hidden~2"),
        (b"a~2.txt", b"a~2~2.txt"),
    ],
)
def test_the_next_free_name_keeps_the_suffix(name: bytes, second: bytes) -> None:
    assert list(islice(numbered_names(name), 2)) == [name, second]


def test_a_name_is_not_cut_within_a_character() -> None:
    _, second = islice(numbered_names("é".encode() * 126 + b".x"), 2)
    assert second.decode().endswith("é~2.x")
    assert len(second) <= 255


@given(st.binary(min_size=1, max_size=255).filter(lambda name: not {b"/", b"\0"} & {bytes([c]) for c in name}))
def test_every_next_name_fits_is_new_and_is_one_component(name: bytes) -> None:
    found = list(islice(numbered_names(name), 1, 12))
    assert all(0 < len(next_name) <= 255 for next_name in found)
    assert len({name, *found}) == 12
    assert not any(b"/" in next_name for next_name in found)
