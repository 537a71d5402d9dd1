"""What the ledger promises."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from presignd.ledger import Ledger, LostUpdate, Selection, open_ledger
from presignd.ledger.changes import Change, Claim
from presignd.model import FileVersion, Fingerprint, LinksMark, Listed, Sent, State
from presignd.states import TRANSITIONS, UNCLEAN_LIMIT, BadTransition, Event
from tests.versions import LATER, MARK, NOW, PRINT, claim, linking, new

LINK_ID = "mZt3k2pQv9_xY4-aB1cD5e"


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = await open_ledger(tmp_path / "ledger")
    yield opened
    await opened.close(clean=True)


async def queued(ledger: Ledger, path: bytes = b"a.txt", **given: Any) -> FileVersion:
    (recorded,) = await ledger.enqueue([new(path, **given)])
    return recorded.version


async def uploading(ledger: Ledger, path: bytes = b"a.txt", **given: Any) -> FileVersion:
    version = await queued(ledger, path, **given)
    claimed = {v.file_id: v for v in await claim(ledger, version.watch, 1000, LATER)}
    return claimed[version.file_id]


async def verified(ledger: Ledger, path: bytes = b"a.txt", **given: Any) -> FileVersion:
    version = await uploading(ledger, path, **given)
    return await ledger.apply(version, Event.VERIFY, etag="e", checksum="md5:c", signed_at=NOW)


async def linked(ledger: Ledger, path: bytes = b"a.txt", **given: Any) -> FileVersion:
    version = await verified(ledger, path, **given)
    (moved,) = await ledger.record_linked([linking(version, expires_at=LATER)], MARK)
    return moved


async def finished(ledger: Ledger, path: bytes = b"a.txt", **given: Any) -> FileVersion:
    return await ledger.apply(await linked(ledger, path, **given), Event.FINISH, done_at=NOW)


async def quarantined(ledger: Ledger, path: bytes = b"a.txt", **given: Any) -> FileVersion:
    version = await uploading(ledger, path, **given)
    return await ledger.apply(version, Event.QUARANTINE, error_code="exists", error="why", faults=3)


MAKE = {
    State.QUEUED: queued,
    State.UPLOADING: uploading,
    State.VERIFIED: verified,
    State.LINKED: linked,
    State.FINISHED: finished,
    State.QUARANTINED: quarantined,
}


# --- enqueue ------------------------------------------------------------------------------------------


async def test_a_new_version_is_its_paths_current_one_with_all_it_was_given(ledger: Ledger) -> None:
    given = new(b"d/a.txt", priority=3)
    (recorded,) = await ledger.enqueue([given])
    assert recorded.superseded is None
    assert recorded.version == FileVersion(
        file_id=given.file_id,
        watch="drop",
        path=b"d/a.txt",
        fingerprint=PRINT,
        state=State.QUEUED,
        bucket="bucket",
        base_key="d/a.txt",
        key="d/a.txt",
        content_type="text/plain",
        priority=3,
        queued_at=NOW,
    )
    assert await ledger.by_path("drop", b"d/a.txt") == recorded.version
    assert await ledger.by_id(given.file_id) == recorded.version


async def test_known_finds_each_path_that_has_a_version_and_no_other(ledger: Ledger) -> None:
    """Over a thousand paths: more than one statement's worth of parameters."""
    paths = [b"f%d" % number for number in range(1201)]
    await ledger.enqueue([new(path) for path in paths])
    await queued(ledger, b"elsewhere", watch="other")
    found = await ledger.known("drop", [*paths, b"elsewhere", b"missing"])
    assert sorted(found) == sorted(paths)
    assert all(version.path == path for path, version in found.items())


def listed(path: bytes, fingerprint: Fingerprint = PRINT) -> Listed:
    return (path, fingerprint.ino, fingerprint.size, fingerprint.mtime_ns, fingerprint.ctime_ns)


@pytest.mark.parametrize("state", [*MAKE, State.IGNORED])
async def test_a_file_that_is_recorded_as_it_is_does_not_differ_wherever_its_version_stands(
    ledger: Ledger, state: State
) -> None:
    await (MAKE[state](ledger) if state in MAKE else queued(ledger, state=state))
    assert await ledger.differing("drop", [listed(b"a.txt")]) == []


@pytest.mark.parametrize("column", ["ino", "size", "mtime_ns", "ctime_ns"])
async def test_a_file_differs_by_anything_of_its_fingerprint(ledger: Ledger, column: str) -> None:
    await finished(ledger)
    changed = listed(b"a.txt", PRINT._replace(**{column: getattr(PRINT, column) + 1}))
    assert await ledger.differing("drop", [changed]) == [changed]


async def test_a_file_differs_from_what_is_gone_or_was_unreadable_or_another_watch_s(ledger: Ledger) -> None:
    """Each is to be settled again, though its fingerprint be the same."""
    for path in (b"gone", b"vanished", b"unreadable"):
        await queued(ledger, path)
    for version in await claim(ledger, "drop", 10, LATER):
        if version.path == b"unreadable":
            await ledger.apply(version, Event.QUARANTINE, error_code="unreadable", error="why")
        elif version.path == b"vanished":
            await ledger.apply(version, Event.VANISH, done_at=NOW)
        else:
            await ledger.apply(version, Event.QUARANTINE, error_code="exists")
            await ledger.update(await existing(ledger, b"gone"), gone_at=NOW)
    await queued(ledger, b"elsewhere", watch="other")
    there = [listed(path) for path in (b"unreadable", b"elsewhere", b"gone", b"new", b"vanished")]
    assert await ledger.differing("drop", there) == there


@pytest.mark.parametrize("event", [Event.VANISH, Event.SUPERSEDE])
async def test_what_left_its_path_takes_no_late_fingerprint(ledger: Ledger, event: Event) -> None:
    """Settling saw a chmod of what was queued, and tells when that has ended: its end is said once, its file goes."""
    ended = await ledger.apply(await uploading(ledger), event, done_at=NOW)
    with pytest.raises(LostUpdate):
        await ledger.refingerprint([(ended.file_id, PRINT._replace(ctime_ns=1))])
    assert await ledger.record_gone("drop", [b"a.txt"], LATER) == []
    await ledger.update(ended, gone_at=None)  # as an earlier version of presignd may have left it
    assert await ledger.differing("drop", [listed(b"a.txt")]) == [listed(b"a.txt")]


async def existing(ledger: Ledger, path: bytes) -> FileVersion:
    version = await ledger.by_path("drop", path)
    assert version is not None
    return version


@pytest.mark.parametrize("others", [0, 5000])
async def test_of_thousands_only_those_that_differ_are_told_in_their_order(ledger: Ledger, others: int) -> None:
    """Whether the ledger knows much more between them or not; names that are no UTF-8 too."""
    paths = [b"\xff%05d" % number for number in range(1500, 0, -1)]
    await ledger.enqueue([new(path) for path in paths])
    await ledger.enqueue([new(b"\xff%05d~%d" % divmod(number, 3)) for number in range(others)])
    changed = {paths[3], paths[0], paths[-1]}
    found = [listed(path, PRINT._replace(size=1) if path in changed else PRINT) for path in paths]
    assert [path for path, *_ in await ledger.differing("drop", found)] == [paths[0], paths[3], paths[-1]]


async def test_nothing_differs_from_nothing(ledger: Ledger) -> None:
    assert await ledger.differing("drop", []) == []


@pytest.mark.parametrize("state", [State.QUEUED, State.QUARANTINED])
async def test_other_content_at_a_path_supersedes_what_waits_there(ledger: Ledger, state: State) -> None:
    before = await MAKE[state](ledger)
    (recorded,) = await ledger.enqueue([new(queued_at=LATER)])
    assert recorded.superseded is not None
    assert recorded.superseded.file_id == before.file_id
    assert recorded.superseded.state is State.SUPERSEDED
    assert recorded.superseded.done_at == LATER
    assert await ledger.by_path("drop", b"a.txt") == recorded.version
    assert await claim(ledger, "drop", 10, LATER) != []
    assert await ledger.unannounced() == [recorded.superseded]


@pytest.mark.parametrize("state", [State.UPLOADING, State.VERIFIED, State.LINKED])
async def test_a_version_in_flight_is_never_superseded_and_nothing_of_that_call_stays(
    ledger: Ledger, state: State
) -> None:
    before = await MAKE[state](ledger)
    with pytest.raises(LostUpdate, match=before.file_id):
        await ledger.enqueue([new(b"other"), new()])
    assert await ledger.by_path("drop", b"a.txt") == before
    assert await ledger.by_path("drop", b"other") is None


async def test_a_finished_version_stays_finished_when_a_newer_one_comes(ledger: Ledger) -> None:
    before = await finished(ledger)
    (recorded,) = await ledger.enqueue([new()])
    assert recorded.superseded is None
    kept = await ledger.by_id(before.file_id)
    assert kept is not None
    assert kept.state is State.FINISHED
    assert kept.gone_at == NOW
    assert await ledger.known("drop", [b"a.txt"]) == {b"a.txt": recorded.version}


async def test_ignored_and_quarantined_arrivals_are_recorded_as_they_are(ledger: Ledger) -> None:
    ignored = await queued(ledger, b"old", state=State.IGNORED)
    refused = await queued(
        ledger, b"bad", key=None, state=State.QUARANTINED, error_code="key_refused", error="it is empty"
    )
    assert (ignored.state, ignored.key) == (State.IGNORED, None)
    assert (refused.state, refused.error_code, refused.error) == (State.QUARANTINED, "key_refused", "it is empty")
    assert await claim(ledger, "drop", 10, LATER) == []


@pytest.mark.parametrize("state", [State.QUEUED, State.FINISHED])
async def test_every_value_survives_reopening(tmp_path: Path, state: State) -> None:
    """Also what SQLite can't hold as it is: 64-bit inodes, years past 2262, names that are no UTF-8."""
    odd = Fingerprint(ino=2**64 - 1, size=2**40, mtime_ns=15_000_000_000_000_000_001, ctime_ns=-(2**63) - 1)
    ledger = await open_ledger(tmp_path)
    version = await MAKE[state](ledger, b"\xff\n'\x00", key="k\u00e9y~\U0001f600", fingerprint=odd)
    version = await ledger.update(version, error="no UTF-8: \udcff", not_before=LATER, version_id="v1", adopted=True)
    await ledger.close(clean=True)
    ledger = await open_ledger(tmp_path)
    try:
        assert await ledger.by_id(version.file_id) == version
        assert (version.fingerprint, version.path, version.error) == (odd, b"\xff\n'\x00", "no UTF-8: \\udcff")
    finally:
        await ledger.close(clean=True)


# --- keys belong to paths -----------------------------------------------------------------------------


async def test_two_paths_never_share_a_key(ledger: Ledger) -> None:
    keys = [(await queued(ledger, b"%d/a.tar.gz" % n, key="a.tar.gz")).key for n in range(5)]
    assert keys == ["a.tar.gz", "a~2.tar.gz", "a~3.tar.gz", "a~4.tar.gz", "a~5.tar.gz"]


async def test_paths_of_two_watches_never_share_a_key_either(ledger: Ledger) -> None:
    await queued(ledger, watch="one")
    assert (await queued(ledger, watch="two")).key == "a~2.txt"


async def test_another_bucket_has_keys_of_its_own(ledger: Ledger) -> None:
    await queued(ledger, b"1/a", key="a")
    assert (await queued(ledger, b"2/a", key="a", bucket="second")).key == "a"


async def test_a_taken_key_quarantines_where_no_other_name_is_wanted(ledger: Ledger) -> None:
    await queued(ledger, b"1/a", key="a")
    version = await queued(ledger, b"2/a", key="a", next_key=False)
    assert (version.state, version.error_code, version.key) == (State.QUARANTINED, "key_taken", None)
    assert "1/a" in version.error


@pytest.mark.parametrize("state", [State.QUEUED, State.QUARANTINED, State.FINISHED])
async def test_a_newer_version_takes_over_the_key_its_path_had(ledger: Ledger, state: State) -> None:
    await queued(ledger, b"1/a", key="a", watch="other")
    before = await MAKE[state](ledger, b"2/a", key="a")
    version = await queued(ledger, b"2/a", key="a")
    assert (before.key, version.key) == ("a~2", "a~2")


async def test_a_fresh_key_is_one_that_no_version_ever_had(ledger: Ledger) -> None:
    keys = []
    for _ in range(4):
        version = await finished(ledger, fresh_key=True)
        keys.append(version.key)
    assert keys == ["a.txt", "a~2.txt", "a~3.txt", "a~4.txt"]


async def test_a_file_renamed_before_its_upload_leaves_its_key_to_the_new_name(ledger: Ledger) -> None:
    await queued(ledger, b"1/a", key="a")
    await ledger.record_gone("drop", [b"1/a"], NOW)
    assert (await queued(ledger, b"2/a", key="a")).key == "a"
    assert (await queued(ledger, b"1/a", key="a")).key == "a~2"


@pytest.mark.parametrize("state", [State.UPLOADING, State.QUARANTINED, State.FINISHED])
async def test_a_key_that_may_hold_an_object_stays_with_its_path(ledger: Ledger, state: State) -> None:
    version = await MAKE[state](ledger, b"1/a", key="a")
    if state is State.UPLOADING:
        await ledger.apply(version, Event.VANISH, done_at=NOW)
    await ledger.record_gone("drop", [b"1/a"], NOW)
    assert (await queued(ledger, b"2/a", key="a")).key == "a~2"


async def test_a_superseded_version_that_was_never_sent_gives_up_its_key(ledger: Ledger) -> None:
    await queued(ledger, b"1/a", key="monday")
    await queued(ledger, b"1/a", key="tuesday")
    assert (await queued(ledger, b"2/a", key="monday")).key == "monday"


async def test_a_key_that_needs_the_hash_is_reserved_once_it_is_known(ledger: Ledger) -> None:
    one = await uploading(ledger, b"1", key=None)
    two = await uploading(ledger, b"2", key=None)
    assert (one.base_key, one.key) == (None, None)
    named = await ledger.assign_key(one, "hash", fresh=False, next_key=True)
    other = await ledger.assign_key(two, "hash", fresh=False, next_key=True)
    assert named is not None
    assert other is not None
    assert (named.base_key, named.key, other.base_key, other.key) == ("hash", "hash", "hash", "hash~2")
    assert await ledger.by_id(one.file_id) == named


async def test_another_paths_key_is_not_assigned_where_no_other_name_is_wanted(ledger: Ledger) -> None:
    await queued(ledger, b"1", key="k")
    version = await uploading(ledger, b"2", key=None)
    assert await ledger.assign_key(version, "k", fresh=False, next_key=False) is None
    assert await ledger.by_id(version.file_id) == version


async def test_each_key_that_turns_out_anothers_object_leads_to_the_next(ledger: Ledger) -> None:
    version = await uploading(ledger)
    keys = []
    for _ in range(3):
        moved = await ledger.assign_key(version, "a.txt", fresh=False, next_key=True, after_key=version.key or "")
        assert moved is not None
        version = moved
        keys.append(version.key)
    assert keys == ["a~2.txt", "a~3.txt", "a~4.txt"]
    assert version.base_key == "a.txt"


async def test_a_key_that_is_the_versions_own_already_stays_its_own(ledger: Ledger) -> None:
    version = await uploading(ledger)
    again = await ledger.assign_key(version, "a.txt", fresh=False, next_key=True)
    assert again is not None
    assert again.key == version.key == "a.txt"
    assert (await queued(ledger, b"2", key="a.txt")).key == "a~2.txt", "it was not let go"


async def test_assigning_a_key_needs_the_claim(ledger: Ledger) -> None:
    version = await uploading(ledger)
    await ledger.release(unclean=False)
    with pytest.raises(LostUpdate):
        await ledger.assign_key(version, "a.txt", fresh=False, next_key=True, after_key="a.txt")
    assert (await queued(ledger, b"2", key="a~2.txt")).key == "a~2.txt"


async def test_the_previous_receipt_is_the_newest_verified_one_of_the_same_path_and_key(ledger: Ledger) -> None:
    first = await uploading(ledger)
    assert await ledger.previous_receipt(first) is None
    await ledger.apply(first, Event.QUARANTINE)
    older = await finished(ledger)
    newer = await finished(ledger)
    await quarantined(ledger)
    version = await uploading(ledger)
    found = await ledger.previous_receipt(version)
    assert found is not None
    assert found.file_id == newer.file_id
    earlier = await ledger.previous_receipt(newer)
    assert earlier is not None
    assert earlier.file_id == older.file_id
    moved = await ledger.assign_key(version, "other", fresh=False, next_key=True)
    assert moved is not None
    assert await ledger.previous_receipt(moved) is None


async def test_what_a_path_sent_is_known_by_its_checksum_though_it_was_never_verified(ledger: Ledger) -> None:
    """The crash between a PUT and its receipt: the object is there, and must be known for the path's own."""
    sent = await ledger.update(await uploading(ledger), etag="sent", part_size=7)
    await ledger.apply(sent, Event.SUPERSEDE)
    await finished(ledger)
    size = PRINT.size
    assert await ledger.sent(await uploading(ledger)) == {Sent(size, "md5:sent", 7, ""), Sent(size, "md5:c", 0, "e")}
    assert await ledger.sent(await uploading(ledger, b"2", key="other")) == frozenset()


async def test_what_was_committed_as_a_crc_is_known_by_it(ledger: Ledger) -> None:
    version = await ledger.update(await uploading(ledger), etag="crc64nvme:00")
    assert version.intent == "crc64nvme:00"
    assert await ledger.sent(version) == {Sent(PRINT.size, "crc64nvme:00", 0, "")}
    assert await ledger.sent(version, own=False) == frozenset()
    verified = await ledger.apply(version, Event.VERIFY, etag="e", checksum="crc64nvme:00", signed_at=NOW)
    assert verified.intent == ""
    assert await ledger.sent(verified, own=False) == {Sent(PRINT.size, "crc64nvme:00", 0, "e")}


async def test_an_upload_in_parts_has_its_algorithm_before_its_checksum_is_known(ledger: Ledger) -> None:
    version = await ledger.begin_upload(await uploading(ledger), "u", 5, "crc64nvme:")
    assert version.intent == "crc64nvme:"
    assert await ledger.sent(version) == frozenset()
    assert (await ledger.begin_upload(version, "v", 5)).intent == ""


async def test_under_another_key_nothing_was_sent_yet(ledger: Ledger) -> None:
    version = await ledger.update(await uploading(ledger), etag="crc64nvme:00")
    moved = await ledger.assign_key(version, "a.txt", fresh=False, next_key=True, after_key="a.txt")
    assert moved is not None
    assert (moved.intent, await ledger.sent(moved)) == ("", frozenset())


async def test_what_a_store_without_etags_took_is_known_too(ledger: Ledger) -> None:
    version = await uploading(ledger)
    await ledger.apply(version, Event.VERIFY, etag="", checksum="sha256:c", signed_at=NOW)
    assert await ledger.sent(version) == {Sent(PRINT.size, "sha256:c", 0, "")}


# --- settle -------------------------------------------------------------------------------------------


async def test_the_first_start_of_a_watch_is_remembered_until_its_first_scan_is_done(ledger: Ledger) -> None:
    assert await ledger.first_start("drop", NOW) == (NOW, True)
    assert await ledger.first_start("drop", LATER) == (NOW, True)
    await ledger.first_scan_done("drop")
    assert await ledger.first_start("drop", LATER) == (NOW, False)
    assert await ledger.first_start("other", LATER) == (LATER, True)


async def test_the_same_content_with_a_new_fingerprint_stays_the_same_version(ledger: Ledger) -> None:
    version = await finished(ledger)
    await ledger.record_gone("drop", [b"a.txt"], LATER)
    changed = PRINT._replace(ino=12, ctime_ns=1)
    await ledger.refingerprint([(version.file_id, changed)])
    assert await ledger.by_path("drop", b"a.txt") == version._replace(fingerprint=changed)
    with pytest.raises(LostUpdate):
        await ledger.refingerprint([(version.file_id, PRINT), ("nobody", changed)])
    assert await ledger.by_path("drop", b"a.txt") == version._replace(fingerprint=changed)


@pytest.mark.parametrize("state", [State.QUEUED, State.QUARANTINED])
async def test_a_waiting_version_whose_file_is_gone_ends_as_vanished(ledger: Ledger, state: State) -> None:
    await MAKE[state](ledger)
    (ended,) = await ledger.record_gone("drop", [b"a.txt"], LATER)
    assert (ended.state, ended.done_at, ended.gone_at) == (State.VANISHED, LATER, LATER)
    assert await ledger.record_gone("drop", [b"a.txt"], LATER) == []
    assert await ledger.unannounced() == [ended]


@pytest.mark.parametrize("state", [State.QUEUED, State.QUARANTINED, State.FINISHED])
async def test_a_version_that_was_queued_after_the_look_is_left_as_it_is(ledger: Ledger, state: State) -> None:
    """Its file was made since: nobody would bring it again before the next scan."""
    version = await MAKE[state](ledger)
    assert await ledger.record_gone("drop", [b"a.txt"], version.queued_at - timedelta(microseconds=1)) == []
    assert await ledger.by_path("drop", b"a.txt") == version


@pytest.mark.parametrize("state", [State.UPLOADING, State.VERIFIED, State.LINKED, State.FINISHED])
async def test_any_other_version_goes_on_when_its_file_is_gone(ledger: Ledger, state: State) -> None:
    version = await MAKE[state](ledger)
    assert await ledger.record_gone("drop", [b"a.txt"], LATER) == []
    assert await ledger.record_gone("drop", [b"a.txt"], LATER + timedelta(days=1)) == []
    assert await ledger.by_path("drop", b"a.txt") == version._replace(gone_at=LATER)


async def test_a_directory_that_is_gone_takes_all_below_it_and_nothing_beside_it(ledger: Ledger) -> None:
    below = [b"d/a", b"d/\x00", b"d/\xff\xff", b"d/e/f"]
    beside = [b"d.txt", b"d-", b"d0", b"dd/a", b"c/d/a"]
    await ledger.enqueue([new(path, key=str(number)) for number, path in enumerate([*below, *beside])])
    await queued(ledger, b"d/a", watch="other", key="other")
    ended = await ledger.record_gone("drop", [b"d"], NOW)
    assert sorted(version.path for version in ended) == sorted(below)
    assert {version.watch for version in ended} == {"drop"}


@pytest.mark.parametrize("paths", [[b"dir", b"dir/a"], [b"dir/a", b"dir"]])
async def test_a_file_that_is_gone_with_its_directory_ends_once(ledger: Ledger, paths: list[bytes]) -> None:
    await queued(ledger, b"dir/a")
    assert [ended.path for ended in await ledger.record_gone("drop", paths, LATER)] == [b"dir/a"]


async def test_the_root_itself_is_never_taken_for_a_file_that_is_gone(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="root"):
        await ledger.record_gone("drop", [b""], NOW)


async def test_paths_are_paged_in_byte_order_without_those_known_to_be_gone(ledger: Ledger) -> None:
    names = [b"b", b"a", b"\xff", b"a/b", b"gone", b"c"]
    await ledger.enqueue([new(name, key=None) for name in names])
    await queued(ledger, b"aa", key=None, watch="other")
    await ledger.record_gone("drop", [b"gone"], NOW)
    pages, after = [], b""
    while page := await ledger.paths("drop", after, 2):
        pages.append(page)
        after = page[-1]
    assert pages == [[b"a", b"a/b"], [b"b", b"c"], [b"\xff"]]


# --- worker -------------------------------------------------------------------------------------------


async def test_claims_go_by_priority_then_age(ledger: Ledger) -> None:
    for path, priority in ((b"backlog", 5), (b"first", 1), (b"second", 1)):
        await queued(ledger, path, priority=priority)
    claimed = [await claim(ledger, "drop", 2, NOW), await claim(ledger, "drop", 2, NOW)]
    assert [[version.path for version in batch] for batch in claimed] == [[b"first", b"second"], [b"backlog"]]
    assert {(v.state, v.attempt) for batch in claimed for v in batch} == {(State.UPLOADING, 1)}


async def test_a_claim_leaves_other_watches_large_files_and_those_not_due(ledger: Ledger) -> None:
    await queued(ledger, b"other", watch="other")
    await queued(ledger, b"large", fingerprint=PRINT._replace(size=100))
    await ledger.update(await queued(ledger, b"early"), not_before=LATER)
    await ledger.update(await queued(ledger, b"due"), not_before=NOW)
    assert [version.path for version in await claim(ledger, "drop", 10, NOW, below_size=100)] == [b"due"]
    assert [version.path for version in await claim(ledger, "drop", 10, NOW)] == [b"large"]
    assert [version.path for version in await claim(ledger, "drop", 10, LATER)] == [b"early"]


async def test_a_claim_for_a_command_leaves_what_comes_later_in_the_queue(ledger: Ledger) -> None:
    await queued(ledger, b"event", priority=1)
    await queued(ledger, b"put", priority=0)
    assert [version.path for version in await claim(ledger, "drop", 10, NOW, max_priority=0)] == [b"put"]
    assert [version.path for version in await claim(ledger, "drop", 10, NOW)] == [b"event"]


async def test_a_clock_that_is_set_back_doesn_t_keep_a_version_waiting(ledger: Ledger) -> None:
    """No pause is longer than an hour: what should wait for longer was written by another clock."""
    await ledger.update(await queued(ledger, b"late"), not_before=NOW + timedelta(hours=1))
    await ledger.update(await queued(ledger, b"written later"), not_before=NOW + timedelta(hours=1, seconds=1))
    assert [version.path for version in await claim(ledger, "drop", 10, NOW)] == [b"written later"]


async def test_no_version_is_ever_claimed_twice(ledger: Ledger) -> None:
    await ledger.enqueue([new(b"%d" % number) for number in range(100)])
    claimed: list[str] = []

    async def claim_all() -> None:
        while await ledger.due("drop", 1, NOW):
            claimed.extend(version.file_id for version in await claim(ledger, "drop", 3, NOW))

    await asyncio.gather(*(claim_all() for _ in range(50)))
    assert len(claimed) == len(set(claimed)) == 100


async def test_the_next_due_time_is_the_earliest_of_the_queued_ones_asked_for(ledger: Ledger) -> None:
    assert await ledger.next_due(["drop", "other"], NOW) is None
    for path, watch, minutes in ((b"a", "drop", 9), (b"b", "drop", 5), (b"c", "other", 2), (b"d", "third", 1)):
        not_before = NOW + timedelta(minutes=minutes)
        await ledger.update(await queued(ledger, path, watch=watch), not_before=not_before)
    await queued(ledger, b"e")
    assert await ledger.next_due(["drop", "other"], NOW) == NOW + timedelta(minutes=2)
    await claim(ledger, "other", 1, LATER)
    assert await ledger.next_due(["drop", "other"], NOW) == NOW + timedelta(minutes=5)


async def test_what_is_due_already_is_no_next_due_time(ledger: Ledger) -> None:
    """It waits for a slot: to look again for its sake would be to look without a pause."""
    await ledger.update(await queued(ledger, b"due"), not_before=NOW)
    assert await ledger.next_due(["drop"], NOW) is None
    await ledger.update(await queued(ledger, b"to come"), not_before=LATER)
    assert await ledger.next_due(["drop"], NOW) == LATER


@pytest.mark.parametrize("state", MAKE)
@pytest.mark.parametrize("event", Event)
async def test_a_version_moves_as_the_table_says_and_in_no_other_way(
    ledger: Ledger, state: State, event: Event
) -> None:
    version = await MAKE[state](ledger)
    if event not in TRANSITIONS[state]:
        with pytest.raises(BadTransition):
            await ledger.apply(version, event)
        assert await ledger.by_id(version.file_id) == version
        return
    moved = await ledger.apply(version, event, faults=7, error_code="timeout")
    assert (moved.state, moved.faults, moved.error_code) == (TRANSITIONS[state][event], 7, "timeout")
    assert await ledger.by_id(version.file_id) == moved


async def test_a_stale_version_changes_nothing(ledger: Ledger) -> None:
    stale = await queued(ledger)
    (current,) = await claim(ledger, "drop", 1, NOW)
    with pytest.raises(LostUpdate):
        await ledger.apply(stale, Event.VANISH)
    with pytest.raises(LostUpdate):
        await ledger.update(stale, faults=1)
    assert await ledger.by_id(stale.file_id) == current


@pytest.mark.parametrize("change", [{"colour": "red"}, {"state": State.FINISHED}, {"file_id": "x"}])
async def test_only_real_columns_are_changed_and_the_state_only_by_an_event(
    ledger: Ledger, change: dict[str, Any]
) -> None:
    version = await uploading(ledger)
    with pytest.raises(TypeError):
        await ledger.update(version, **change)
    assert await ledger.by_id(version.file_id) == version


async def test_changes_of_several_kinds_return_each_version_in_its_place_as_it_is_read_back(ledger: Ledger) -> None:
    """Columns that are the same for all and those that are not, text that SQLite can't hold, and integers beyond it."""
    one, two, three, four, five = [await uploading(ledger, b"%d" % number) for number in range(5)]
    large = PRINT._replace(ino=2**64 - 1, mtime_ns=-(2**63) - 1)
    same = {"signed_at": NOW, "part_size": 0, "adopted": True}
    found = await ledger.apply_all(
        [
            Change(one, (Event.VERIFY,), {"fingerprint": large, "checksum": "md5:1", "etag": "1", **same}),
            Change(two, (Event.RETRY,), {"not_before": LATER, "error": "\udcff"}),
            Change(three, (Event.VERIFY,), {"fingerprint": PRINT, "checksum": "md5:3", "etag": "3", **same}),
            Change(four, (), {"upload_id": "u", "part_size": 5}),
            Change(five, (Event.RETRY,), {"not_before": None, "error": "\udcfe"}),
        ]
    )
    assert found == [await ledger.by_id(each.file_id) for each in (one, two, three, four, five)]
    assert [each.fingerprint for each in found] == [large, *[PRINT] * 4]
    assert [each.error for each in found] == ["", "\\udcff", "", "", "\\udcfe"]
    assert [each.not_before for each in found] == [None, LATER, None, None, None]
    assert [each.state for each in found] == ["verified", "queued", "verified", "uploading", "queued"]


async def test_links_and_their_files_mark_are_committed_together_or_not_at_all(ledger: Ledger) -> None:
    assert await ledger.links_mark() is None
    good, stale = await verified(ledger, b"1"), await verified(ledger, b"2")
    await ledger.apply(stale, Event.QUARANTINE)
    with pytest.raises(LostUpdate):
        await ledger.record_linked([linking(good), linking(stale)], LinksMark(1, 2))
    assert await ledger.links_mark() is None
    assert await ledger.by_id(good.file_id) == good
    (moved,) = await ledger.record_linked([linking(good, expires_at=LATER)], LinksMark(2**64 - 1, 2**50))
    assert (moved.state, moved.linked, moved.expires_at) == (State.LINKED, True, LATER)
    assert await ledger.by_id(good.file_id) == moved
    assert await ledger.links_mark() == LinksMark(2**64 - 1, 2**50)


async def test_a_link_whose_file_stays_is_finished_in_the_same_commit(ledger: Ledger) -> None:
    stays, moves = await verified(ledger, b"1"), await verified(ledger, b"2")
    wanted = [linking(stays, expires_at=LATER, done_at=NOW), linking(moves, expires_at=LATER)]
    found = await ledger.record_linked(wanted, MARK)
    assert [(each.state, each.done_at) for each in found] == [(State.FINISHED, NOW), (State.LINKED, None)]
    assert found == [await ledger.by_id(stays.file_id), await ledger.by_id(moves.file_id)]
    assert await ledger.unannounced() == found[:1]


# --- start, end, upkeep -------------------------------------------------------------------------------


async def test_uploads_cut_off_by_a_drain_go_back_to_the_queue(ledger: Ledger) -> None:
    version = await uploading(ledger)
    waits = await verified(ledger, b"verified")
    assert await ledger.release(unclean=False) == []
    assert await ledger.by_id(version.file_id) == version._replace(state=State.QUEUED)
    assert await ledger.by_id(waits.file_id) == waits


async def test_a_version_in_flight_at_three_unclean_exits_is_quarantined(ledger: Ledger) -> None:
    version = await queued(ledger)
    other = await verified(ledger, b"verified")
    for exits in range(1, UNCLEAN_LIMIT + 1):
        await claim(ledger, "drop", 1, NOW)
        stopped = await ledger.release(unclean=True)
        assert len(stopped) == (exits == UNCLEAN_LIMIT)
    (stopped_one,) = stopped
    assert stopped_one.file_id == version.file_id
    assert (stopped_one.state, stopped_one.error_code) == (State.QUARANTINED, "internal_error")
    assert await ledger.by_id(other.file_id) == other


async def test_a_run_is_clean_only_if_it_was_closed_so(tmp_path: Path) -> None:
    told = []
    for clean in (True, False, True):
        ledger = await open_ledger(tmp_path)
        told.append(await ledger.begin_run())
        await ledger.close(clean=clean)
    assert told == [True, True, False]


async def test_a_command_that_looks_in_does_not_hide_an_unclean_exit(tmp_path: Path) -> None:
    crashed = await open_ledger(tmp_path)
    await crashed.begin_run()
    await crashed.close(clean=False)
    await (await open_ledger(tmp_path)).close(clean=True)
    ledger = await open_ledger(tmp_path)
    assert not await ledger.begin_run()
    await ledger.close(clean=True)


async def test_an_end_is_told_until_it_was_recorded_as_said(tmp_path: Path) -> None:
    ledger = await open_ledger(tmp_path)
    one, two = await finished(ledger, b"1"), await finished(ledger, b"2")
    for path in (b"linked", b"uploading"):
        await MAKE[State(path.decode())](ledger, path)
    await ledger.record_announced([one.file_id])
    await ledger.close(clean=False)
    ledger = await open_ledger(tmp_path)
    try:
        assert await ledger.unannounced() == [two]
        await ledger.record_announced([two.file_id])
        assert await ledger.unannounced() == []
        with pytest.raises(LostUpdate):
            await ledger.record_announced(["nobody"])
    finally:
        await ledger.close(clean=True)


async def test_versions_are_found_by_state_oldest_first(ledger: Ledger) -> None:
    versions = [await verified(ledger, b"%d" % number) for number in range(3)]
    assert await ledger.in_state(State.VERIFIED) == versions
    assert await ledger.in_state(State.LINKED) == []


async def test_what_is_gone_is_forgotten_after_its_time_with_its_key(ledger: Ledger) -> None:
    gone, there = await finished(ledger, b"1/a", key="a"), await finished(ledger, b"there")
    await ledger.record_announced([gone.file_id, there.file_id])
    await ledger.record_gone("drop", [b"1/a"], NOW)
    assert await ledger.prune(NOW) == 0
    assert await ledger.prune(LATER) == 1
    assert await ledger.by_id(gone.file_id) is None
    assert await ledger.by_id(there.file_id) is not None
    assert (await queued(ledger, b"2/a", key="a")).key == "a"


async def test_replaced_versions_are_forgotten_but_the_path_keeps_its_key(ledger: Ledger) -> None:
    old, superseded = await finished(ledger), await queued(ledger)
    current = await finished(ledger)
    await ledger.record_announced([old.file_id, superseded.file_id])
    assert await ledger.prune(LATER) == 2
    assert await ledger.by_path("drop", b"a.txt") == current
    assert (await queued(ledger, b"2", key="a.txt")).key == "a~2.txt"


async def test_a_receipt_is_kept_while_a_newer_version_waits_to_replace_its_object(ledger: Ledger) -> None:
    receipt = await finished(ledger)
    await ledger.record_announced([receipt.file_id])
    version = await uploading(ledger)
    assert await ledger.prune(LATER) == 0
    assert await ledger.previous_receipt(version) is not None


async def test_nothing_is_forgotten_before_its_end_was_said(ledger: Ledger) -> None:
    version = await finished(ledger)
    await ledger.record_gone("drop", [b"a.txt"], NOW)
    assert await ledger.prune(LATER) == 0
    await ledger.record_announced([version.file_id])
    assert await ledger.prune(LATER) == 1


async def test_a_directory_of_thousands_goes_whole(ledger: Ledger) -> None:
    await ledger.enqueue([new(b"d/%d" % number, key=None) for number in range(2500)])
    await claim(ledger, "drop", 1100, NOW)
    assert len(await ledger.record_gone("drop", [b"d"], NOW)) == 1400
    assert await ledger.paths("drop", b"", 10) == []


async def test_of_paths_that_lie_below_each_other_each_version_is_gone_once(ledger: Ledger) -> None:
    """``rm -r``: the watcher hears of each file, of the directories, and of some twice. More than fits one commit."""
    await ledger.enqueue([new(b"d/e/%d" % number, key=None) for number in range(900)])
    await ledger.enqueue([new(b"d/f/%d" % number, key=None) for number in range(900)])
    ended = await ledger.record_gone("drop", [b"d/e/7", b"d/e/7", b"d/e", b"d"], NOW)
    assert len(ended) == len({version.file_id for version in ended}) == 1800
    assert await ledger.paths("drop", b"", 10) == []


async def test_a_version_whose_file_was_gone_while_in_flight_still_vanishes(ledger: Ledger) -> None:
    await uploading(ledger)
    await ledger.record_gone("drop", [b"a.txt"], NOW)
    await ledger.release(unclean=False)
    (ended,) = await ledger.record_gone("drop", [b"a.txt"], LATER)
    assert (ended.state, ended.done_at, ended.gone_at) == (State.VANISHED, LATER, NOW)


async def test_upkeep_goes_through_thousands(ledger: Ledger) -> None:
    await ledger.enqueue([new(b"d/%d" % number, state=State.IGNORED) for number in range(2500)])
    await ledger.record_gone("drop", [b"d"], NOW)
    assert await ledger.prune(LATER) == 2500


# --- questions ----------------------------------------------------------------------------------------


async def test_the_summary_has_each_watch_with_its_numbers(ledger: Ledger) -> None:
    await ledger.first_start("empty", NOW)
    await finished(ledger, b"1")
    await quarantined(ledger, b"2")
    await queued(ledger, b"3", queued_at=LATER)
    await queued(ledger, b"4", queued_at=NOW)
    await queued(ledger, b"5", watch="other", state=State.IGNORED)
    numbers = {row.watch: (dict(row.counts), row.oldest_queued_at) for row in await ledger.summary()}
    assert numbers == {
        "drop": ({State.FINISHED: 1, State.QUARANTINED: 1, State.QUEUED: 2}, NOW),
        "empty": ({}, None),
        "other": ({State.IGNORED: 1}, None),
    }
    waiting = {row.watch: row.counts for row in await ledger.summary([State.QUEUED, State.QUARANTINED])}
    assert waiting == {"drop": {State.QUARANTINED: 1, State.QUEUED: 2}, "empty": {}}


async def test_a_key_leads_to_the_newest_version_that_was_verified_under_it(ledger: Ledger) -> None:
    await uploading(ledger)
    assert await ledger.by_key("a.txt") is None
    await ledger.release(unclean=False)
    await finished(ledger)
    newest = await finished(ledger)
    failed = await verified(ledger, b"failed")
    failed = await ledger.apply(failed, Event.QUARANTINE, error_code="finish_failed")
    await queued(ledger)
    found = await ledger.by_key("a.txt", "bucket")
    assert found is not None
    assert found.file_id == newest.file_id
    assert await ledger.by_key("failed") == failed
    assert await ledger.by_key("a.txt", "second") is None
    assert await ledger.by_key("\udcff") is None


async def test_quarantined_versions_are_listed_newest_first(ledger: Ledger) -> None:
    versions = [await quarantined(ledger, b"%d" % number) for number in range(3)]
    assert await ledger.quarantined() == versions[::-1]


@pytest.mark.parametrize(
    ("selection", "taken"),
    [
        (Selection(), {b"1", b"2", b"3"}),
        (Selection(watch="drop"), {b"1", b"2"}),
        (Selection(error_code="exists"), {b"1", b"3"}),
        (Selection(path=("drop", b"2")), {b"2"}),
        (Selection(path=("drop", b"2"), error_code="exists"), set()),
        (Selection(watch="drop", error_code="exists"), {b"1"}),
    ],
)
async def test_retry_takes_back_what_it_means_and_nothing_else(
    ledger: Ledger, selection: Selection, taken: set[bytes]
) -> None:
    await quarantined(ledger, b"1")
    await ledger.update(await quarantined(ledger, b"2"), error_code="unreadable")
    await quarantined(ledger, b"3", watch="other")
    await finished(ledger, b"4")
    assert {version.path for version in await ledger.requeue(selection, LATER)} == taken
    assert {version.path for version in await ledger.quarantined()} == {b"1", b"2", b"3"} - taken


async def test_a_retried_version_starts_afresh(ledger: Ledger) -> None:
    version = await quarantined(ledger)
    await ledger.update(version, unclean=3, not_before=LATER)
    (again,) = await ledger.requeue(Selection(), LATER)
    assert again == version._replace(state=State.QUEUED, attempt=0, faults=0, error_code="", error="", queued_at=LATER)
    assert len(await claim(ledger, "drop", 1, NOW)) == 1


async def test_a_version_that_has_its_link_is_retried_from_there(ledger: Ledger) -> None:
    version = await ledger.apply(await linked(ledger), Event.QUARANTINE, error_code="finish_failed", error="why")
    (again,) = await ledger.requeue(Selection(), LATER)
    assert again == version._replace(state=State.LINKED, error_code="", error="")
    assert await claim(ledger, "drop", 1, LATER) == []


async def test_a_link_without_an_end_is_a_link_and_an_end_without_a_link_is_none(ledger: Ledger) -> None:
    endless = await ledger.record_linked([linking(await verified(ledger, b"1", key="1"))], MARK)
    unlinked = await ledger.update(await verified(ledger, b"2", key="2"), expires_at=LATER)
    for version in (*endless, unlinked):
        await ledger.apply(version, Event.QUARANTINE)
    again = {version.path: version.state for version in await ledger.requeue(Selection(), LATER)}
    assert again == {b"1": State.LINKED, b"2": State.QUEUED}


async def test_the_id_of_a_stable_link_is_committed_with_the_receipt_and_is_in_no_repr(ledger: Ledger) -> None:
    version = await ledger.apply(await uploading(ledger), Event.VERIFY, checksum="md5:c", link_id=LINK_ID)
    assert await ledger.by_id(version.file_id) == version
    assert version.link_id == LINK_ID
    assert LINK_ID not in repr(version)
    assert "link_id='REDACTED'" in repr(version)
    assert "link_id=''" in repr(await queued(ledger, b"other"))


# --- many callers, and the end of the process ---------------------------------------------------------


async def test_one_callers_failure_takes_nothing_from_the_others_in_the_same_commit(ledger: Ledger) -> None:
    held = await uploading(ledger, b"held")
    calls = [ledger.enqueue([new(b"held" if n == 50 else b"%d" % n)]) for n in range(100)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [number for number, answer in enumerate(answers) if isinstance(answer, Exception)] == [50]
    known = await ledger.known("drop", [b"%d" % number for number in range(100)])
    assert len(known) == 99
    assert await ledger.by_path("drop", b"held") == held


async def test_a_cancelled_caller_leaves_a_ledger_that_goes_on(ledger: Ledger) -> None:
    task = asyncio.create_task(ledger.enqueue([new(b"1")]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await queued(ledger, b"2")).state is State.QUEUED


async def test_a_closed_ledger_takes_no_more_calls(tmp_path: Path) -> None:
    ledger = await open_ledger(tmp_path)
    await ledger.close(clean=True)
    with pytest.raises(RuntimeError, match="closed"):
        await queued(ledger)
    with pytest.raises(RuntimeError, match="closed"):
        await ledger.quarantined()


_VICTIM = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from presignd.ledger import open_ledger
from tests.versions import new

async def one(ledger, number):
    version = new(b"%d" % number)
    await ledger.enqueue([version])
    print(version.path.decode(), flush=True)

async def main():
    ledger = await open_ledger(Path({folder!r}))
    await ledger.begin_run()
    for start in range(0, 10**6, 20):
        await asyncio.gather(*(one(ledger, number) for number in range(start, start + 20)))

asyncio.run(main())
"""


def crash_after(lines: int, folder: Path) -> list[bytes]:
    """Kill a process in the middle of a stream of enqueues; return all paths it had an answer for."""
    code = _VICTIM.format(root=str(Path(__file__).parents[3]), folder=str(folder))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        told = [victim.stdout.readline() for _ in range(lines)]
        victim.send_signal(signal.SIGKILL)
        told += victim.stdout.readlines()
    assert victim.returncode == -signal.SIGKILL
    return [line.strip() for line in told if line.endswith(b"\n")]


@pytest.mark.parametrize("lines", [1, 137, 500])
async def test_every_acknowledged_version_is_there_after_sigkill(lines: int, tmp_path: Path) -> None:
    told = crash_after(lines, tmp_path)
    assert len(told) >= lines
    ledger = await open_ledger(tmp_path)
    try:
        assert not await ledger.begin_run()
        assert set(await ledger.known("drop", told)) == set(told)
    finally:
        await ledger.close(clean=True)


# --- many at once: they share statements, and nobody may see that -------------------------------------


async def test_many_changes_at_once_are_what_each_alone_would_be(ledger: Ledger) -> None:
    first = [await uploading(ledger, f"ü{number}.txt".encode()) for number in range(9)]
    sent = await asyncio.gather(*(ledger.update(one, etag=f"e{one.file_id}") for one in first))
    changes = {"checksum": "md5:c", "signed_at": NOW, "upload_id": "", "adopted": True, "fingerprint": PRINT}
    verified = await asyncio.gather(*(ledger.apply(one, Event.VERIFY, **changes) for one in sent))
    assert verified == [await ledger.by_id(one.file_id) for one in first]
    assert {one.etag for one in verified} == {f"e{one.file_id}" for one in first}
    linked = await ledger.record_linked([linking(one, expires_at=LATER) for one in verified], MARK)
    ended = await asyncio.gather(*(ledger.apply(one, Event.FINISH, done_at=LATER) for one in linked))
    assert ended == [await ledger.by_id(one.file_id) for one in first]
    assert [one.file_id for one in await ledger.unannounced()] == [one.file_id for one in first]


async def test_of_many_changes_at_once_one_that_lost_its_version_fails_alone(ledger: Ledger) -> None:
    first = [await uploading(ledger, f"{number}.txt".encode()) for number in range(9)]
    await ledger.apply(first[4], Event.VANISH, done_at=NOW)
    verifying = (ledger.apply(one, Event.VERIFY, etag="e", checksum="md5:c", signed_at=NOW) for one in first)
    done = await asyncio.gather(*verifying, return_exceptions=True)
    assert [number for number, one in enumerate(done) if isinstance(one, LostUpdate)] == [4]
    assert len(await ledger.in_state(State.VERIFIED)) == 8


async def test_many_new_versions_at_once_are_read_back_as_they_were_returned(ledger: Ledger) -> None:
    huge = Fingerprint(2**64 - 1, 5, 2**63, 1)
    versions = [new(f"ä{number}.txt".encode(), fingerprint=huge) for number in range(100)]
    recorded = [one.version for one in await ledger.enqueue(versions)]
    assert recorded == [await ledger.by_id(one.file_id) for one in versions]
    again = await ledger.enqueue([new(b"fresh.txt"), new(versions[0].path), new(b"other.txt", key="ä5.txt")])
    assert [bool(one.superseded) for one in again] == [False, True, False]
    assert [one.version.key for one in again] == ["fresh.txt", "ä0.txt", "ä5~2.txt"]


async def test_a_claim_finds_the_receipt_before_each_version_under_its_key(ledger: Ledger) -> None:
    receipt = await finished(ledger)
    await ledger.enqueue([new(b"other.txt"), new()])
    found = await ledger.claim([Claim(version) for version in await ledger.due("drop", 2, NOW)])
    assert [one and one.previous and one.previous.file_id for one in found] == [None, receipt.file_id]


async def test_a_claim_commits_what_the_object_will_be_unless_that_was_recorded_before(ledger: Ledger) -> None:
    version = await queued(ledger)
    [one] = await ledger.claim([Claim(version, "md5:e1")])
    assert one is not None
    assert (
        await ledger.by_id(version.file_id)
        == one.version
        == version._replace(state=State.UPLOADING, attempt=1, etag="e1")
    )
    again = await ledger.apply(one.version, Event.RETRY)
    [two] = await ledger.claim([Claim(again, "md5:e2")])
    assert two is not None
    assert (await ledger.by_id(version.file_id), two.version.etag) == (two.version, "e1")


async def test_what_ended_since_it_was_read_is_not_claimed(ledger: Ledger) -> None:
    await ledger.enqueue([new(b"a"), new(b"b"), new(b"c")])
    due = await ledger.due("drop", 3, NOW)
    await ledger.record_gone("drop", [b"b"], NOW)
    found = await ledger.claim([Claim(version, "e") for version in due])
    assert [one and one.version.path for one in found] == [b"a", None, b"c"]
    assert await ledger.claim([Claim(version) for version in due]) == [None] * 3


async def test_what_was_tried_since_it_was_read_is_not_claimed_and_keeps_its_intent(ledger: Ledger) -> None:
    version = await queued(ledger)
    [one] = await ledger.claim([Claim(version, "md5:e1")])
    assert one is not None
    again = await ledger.apply(one.version, Event.RETRY)
    assert await ledger.claim([Claim(version, "md5:e2")]) == [None]
    assert await ledger.by_id(version.file_id) == again


async def test_a_new_version_with_an_intent_is_claimed_by_the_commit_that_records_it(ledger: Ledger) -> None:
    receipt = await finished(ledger)
    versions = [new(), new(b"b"), new(b"c")]
    done = await ledger.enqueue(versions, {versions[0].file_id: "md5:e1", versions[1].file_id: ""})
    assert [(one.version.state, one.version.attempt, one.version.etag) for one in done] == [
        (State.UPLOADING, 1, "e1"),
        (State.UPLOADING, 1, ""),
        (State.QUEUED, 0, ""),
    ]
    assert [one.previous and one.previous.file_id for one in done] == [receipt.file_id, None, None]
    assert [await ledger.by_id(one.version.file_id) for one in done] == [one.version for one in done]


async def test_a_version_that_is_not_queued_is_not_claimed_whatever_its_intent(ledger: Ledger) -> None:
    await ledger.enqueue([new(b"a", key="k")])
    versions = [new(b"b", key="k", next_key=False), new(b"c", state=State.IGNORED)]
    [taken, ignored] = await ledger.enqueue(versions, {one.file_id: "md5:e" for one in versions})
    assert (taken.version.state, taken.version.error_code, taken.version.attempt) == (State.QUARANTINED, "key_taken", 0)
    assert (ignored.version.state, ignored.version.attempt) == (State.IGNORED, 0)
