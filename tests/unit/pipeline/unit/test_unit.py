"""What belongs to a unit, which markers count, and what its two own files say."""

from __future__ import annotations

import json

import pytest

from presignd.ledger.units import Marker, Member
from presignd.model import NO_FILE, FileVersion, Fingerprint, Source, State
from presignd.pipeline.intake import UPLOAD_PRIORITIES
from presignd.pipeline.unit.folders import Markers, folder_of
from presignd.pipeline.unit.gather import Gathering, is_member
from presignd.pipeline.unit.manifest import manifest_of, sums_of
from tests.versions import NOW, PRINT, in_state

PUT, EVENT = UPLOAD_PRIORITIES[Source.PUT], UPLOAD_PRIORITIES[Source.EVENT]
OTHER = Fingerprint(*PRINT)._replace(size=6)
PATH = b"shoot/a.jpg"


@pytest.mark.parametrize(("path", "folder"), [(b"shoot/raw/b", b"shoot"), (b"shoot/a", b"shoot"), (b"shoot", b"shoot")])
def test_the_folder_at_the_top_is_the_unit(path: bytes, folder: bytes) -> None:
    assert folder_of(path) == folder


def test_a_put_and_a_units_own_files_are_no_members() -> None:
    assert is_member(in_state(State.VERIFIED, PATH, priority=EVENT))
    assert not is_member(in_state(State.VERIFIED, PATH, priority=PUT))
    assert not is_member(in_state(State.VERIFIED, b"/home/a.jpg", priority=EVENT))
    own = PRINT._replace(ino=NO_FILE)
    manifest, sums = (in_state(State.VERIFIED, path, fingerprint=own) for path in (b"shoot", b"shoot/"))
    assert not is_member(manifest)
    assert (manifest.is_manifest, sums.is_manifest) == (True, False)
    assert not in_state(State.VERIFIED, b"shoot").is_made


@pytest.mark.parametrize("state", list(State))
def test_only_what_is_stored_as_it_is_may_be_in_a_unit(state: State) -> None:
    version = in_state(state, PATH, priority=EVENT)
    stored = state in (State.VERIFIED, State.LINKED, State.FINISHED)
    assert judged(version, PRINT) == ([version.file_id] if stored else [], [])
    waits = [version] if state is State.VERIFIED else []
    assert judged(version, OTHER) == ([], waits)
    gone = version._replace(gone_at=NOW)
    assert judged(gone, PRINT) == ([], [gone] if waits else [])


def test_a_put_that_changed_is_not_ended_for_the_unit() -> None:
    assert judged(in_state(State.VERIFIED, PATH, priority=PUT), OTHER) == ([], [])
    assert judged(None, PRINT) == ([], [])


def judged(version: FileVersion | None, found: Fingerprint) -> tuple[list[str], list[FileVersion]]:
    """Return the members and what must end of a folder with this one file."""
    gathering = Gathering()
    gathering.add(PATH, found, version)
    assert bool(gathering.why) is not bool(gathering.members)
    return gathering.members, gathering.changed


def test_what_a_folder_waits_for_is_told_a_quarantined_file_first() -> None:
    gathering = Gathering()
    gathering.add(b"shoot/a", PRINT, in_state(State.VERIFIED, b"shoot/a", priority=EVENT))
    assert gathering.why == ""
    gathering.add(b"shoot/b", PRINT, in_state(State.QUEUED, b"shoot/b"))
    assert gathering.why == "1 of its 2 files are not uploaded yet: the first is shoot/b"
    gathering.add(b"shoot/c", PRINT, in_state(State.QUARANTINED, b"shoot/c"))
    gathering.add(b"shoot/d\xff", PRINT, None)
    assert gathering.why == "3 of its 4 files are not uploaded yet: shoot/c is quarantined"


def test_a_marker_counts_once_and_only_after_the_ledger_was_read() -> None:
    markers = Markers().of("drop")
    assert not markers.is_new(b"shoot", Marker(0, 1))
    markers.load({b"shoot": Marker(0, 1)})
    assert not markers.is_new(b"shoot", Marker(0, 1))
    assert markers.is_new(b"shoot", Marker(0, 2))
    assert markers.is_new(b"other", Marker(0, 1))
    markers.note(b"shoot", Marker(0, 2))
    assert not markers.is_new(b"shoot", Marker(0, 2))


def test_two_watches_have_their_own_markers_which_outlive_a_reload() -> None:
    markers = Markers()
    markers.of("one").load({})
    assert markers.of("one").is_new(b"shoot", Marker(0, 1))
    assert not markers.of("two").is_new(b"shoot", Marker(0, 1))


MEMBERS = [
    Member(b"shoot/a.jpg", "in/shoot/a.jpg", 5, "md5:aa", "11" * 32),
    Member('shoot/ü "x"'.encode(), 'in/shoot/ü "x"', 0, "crc64nvme:bb", "22" * 32),
]


def test_the_manifest_is_one_json_object_with_a_file_on_each_line() -> None:
    text = manifest_of(b"shoot", NOW, MEMBERS)
    assert json.loads(text) == {
        "unit": "shoot",
        "made": "2026-03-04T05:06:07.891011Z",
        "files": [
            {"path": "a.jpg", "key": "in/shoot/a.jpg", "size": 5, "checksum": "md5:aa"},
            {"path": 'ü "x"', "key": 'in/shoot/ü "x"', "size": 0, "checksum": "crc64nvme:bb"},
        ],
    }
    assert len(text.splitlines()) == 1 + len(MEMBERS) + 1
    assert json.loads(manifest_of(b"shoot\xff", NOW, [])) == {"unit": "shoot\\xff", "made": NOW_TEXT, "files": []}


NOW_TEXT = "2026-03-04T05:06:07.891011Z"


def test_sums_are_written_as_coreutils_does() -> None:
    odd = Member(b"shoot/a\\b\nc\rd", "k", 1, "md5:", "33" * 32)
    assert sums_of(b"shoot", [*MEMBERS, odd]).decode() == (
        f'{"11" * 32}  a.jpg\n{"22" * 32}  ü "x"\n\\{"33" * 32}  a\\\\b\\nc\\rd\n'
    )
