"""Unusable folders, and folders inside each other, are reported before anything is uploaded twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from presignd.config import Config, folder_problems
from presignd.system import filesystem
from tests.unprivileged import without_rights, world_readable


def make(tmp_path: Path, *watches: dict[str, Any], **sections: dict[str, Any]) -> Config:
    state = tmp_path / "state"
    document: dict[str, Any] = {name: {} for name in ("presign", "upload", "control", "log", "web")}
    document |= {"ledger": {"path": state}, "links": {"file": state / "links/links.jsonl"}}
    document["watch"] = [{"bucket": "test-bucket", "name": f"w{n}"} | watch for n, watch in enumerate(watches)]
    return Config.model_validate(document | sections)


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    (tmp_path / "drop" / "below").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    return tmp_path / "drop"


def test_folders_that_are_there_and_apart_have_no_problem(tmp_path: Path, drop: Path) -> None:
    (tmp_path / "drop2").mkdir()  # the same beginning is not the same folder
    config = make(tmp_path, {"path": drop}, {"path": tmp_path / "other"}, {"path": tmp_path / "drop2"})
    assert folder_problems(config) == []


def test_a_folder_that_is_missing_or_a_file_says_what_to_do(tmp_path: Path, drop: Path) -> None:
    (tmp_path / "file").touch()
    config = make(tmp_path, {"path": tmp_path / "none"}, {"path": tmp_path / "file"}, {"path": tmp_path / "file/x"})
    missing, file, below = folder_problems(config)
    assert missing.startswith(f"watch.w0.path: {tmp_path / 'none'} does not exist; create it")
    assert file == f"watch.w1.path: {tmp_path / 'file'} is a file; name the folder it is in"
    assert below.startswith("watch.w2.path: ")


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (0o000, "can't be listed; give the daemon's user r and x"),
        (0o300, "can't be listed; give the daemon's user r and x"),
        (0o600, "can't be reached; give the daemon's user x"),
    ],
)
def test_a_folder_that_can_not_be_read_says_what_to_do(mode: int, words: str) -> None:
    with world_readable() as place:
        place.chmod(0o777)
        with without_rights():
            (place / "drop").mkdir(mode)
            (problem,) = folder_problems(make(place, {"path": place / "drop"}))
    assert problem.startswith("watch.w0.path: ")
    assert words in problem


def test_two_watches_on_one_folder_are_refused(tmp_path: Path, drop: Path) -> None:
    (tmp_path / "link").symlink_to(drop)
    for spelling in (drop, tmp_path / "link", tmp_path / "other/../drop"):
        (problem,) = folder_problems(make(tmp_path, {"path": drop}, {"path": spelling}))
        assert problem.startswith(f"watch.w1.path: {spelling} is the same folder as watch.w0.path ({drop})")


def test_a_watch_inside_another_is_refused_in_either_order(tmp_path: Path, drop: Path) -> None:
    (tmp_path / "link").symlink_to(drop / "below")
    for inner in (drop / "below", tmp_path / "link"):
        (problem,) = folder_problems(make(tmp_path, {"path": drop}, {"path": inner}))
        assert problem.startswith(f"watch.w1.path: {inner} lies in watch.w0.path ({drop})")
        (problem,) = folder_problems(make(tmp_path, {"path": inner}, {"path": drop}))
        assert problem.startswith(f"watch.w0.path: {inner} lies in watch.w1.path ({drop})")


def test_a_watch_below_one_that_is_not_recursive_shares_no_file_with_it(tmp_path: Path, drop: Path) -> None:
    assert folder_problems(make(tmp_path, {"path": drop, "recursive": False}, {"path": drop / "below"})) == []


def test_a_bind_mount_of_a_folder_inside_a_watch_is_seen(
    tmp_path: Path, drop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No inode of the watch stands above the mount point; the mount table tells where it comes from."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
        f"2 1 8:1 {drop}/below {tmp_path}/other rw - ext4 /dev/sda1 rw\n"
        f"3 1 8:2 {drop} {tmp_path}/another\\040disk rw - ext4 /dev/sdb1 rw\n"
    )
    monkeypatch.setattr(filesystem, "_MOUNTS", mounts)
    (tmp_path / "another disk").mkdir()
    (problem,) = folder_problems(make(tmp_path, {"path": drop}, {"path": tmp_path / "other"}))
    assert problem.startswith(f"watch.w1.path: {tmp_path / 'other'} lies in watch.w0.path")
    assert folder_problems(make(tmp_path, {"path": drop}, {"path": tmp_path / "another disk"})) == []


def test_without_a_mount_table_inodes_alone_decide(tmp_path: Path, drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "_MOUNTS", tmp_path / "none")
    assert folder_problems(make(tmp_path, {"path": drop}, {"path": tmp_path / "other"})) == []
    assert len(folder_problems(make(tmp_path, {"path": drop}, {"path": drop / "below"}))) == 1


def test_presignds_own_files_inside_a_watch_are_refused(tmp_path: Path, drop: Path) -> None:
    config = make(tmp_path, {"path": drop}, ledger={"path": drop / "new/state"}, links={"file": drop / "links.jsonl"})
    ledger, links = folder_problems(config)
    assert ledger.startswith(f"ledger.path: {drop / 'new/state'} lies in watch.w0.path ({drop})")
    assert links.startswith(f"links.file: {drop} lies in watch.w0.path ({drop})")


def test_a_watch_may_lie_beside_the_ledger_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "state/drop").mkdir(parents=True)
    assert folder_problems(make(tmp_path, {"path": tmp_path / "state/drop"})) == []


def test_a_ledger_below_a_watch_that_is_not_recursive_is_not_its(tmp_path: Path, drop: Path) -> None:
    ledger = {"ledger": {"path": drop / "new"}, "links": {"file": drop / "new/links.jsonl"}}
    assert folder_problems(make(tmp_path, {"path": drop, "recursive": False}, **ledger)) == []


def test_moving_into_another_watch_is_refused_and_into_ones_own_is_not(tmp_path: Path, drop: Path) -> None:
    mover = {"path": drop, "after": "move"}
    (problem,) = folder_problems(
        make(tmp_path, mover | {"move_to": tmp_path / "other/done"}, {"path": tmp_path / "other"})
    )
    assert problem.startswith(f"watch.w0.move_to: {tmp_path / 'other/done'} lies in watch.w1.path")
    assert folder_problems(make(tmp_path, mover | {"move_to": drop / "done"})) == []
    assert folder_problems(make(tmp_path, mover | {"move_to": tmp_path / "elsewhere"})) == []


def test_moving_into_ones_own_watch_by_another_way_is_refused(tmp_path: Path, drop: Path) -> None:
    """Only by its own name is it left alone: each file would be moved and uploaded again, for ever."""
    (tmp_path / "link").symlink_to(drop)
    for way in (tmp_path / "link" / "done", tmp_path / "link" / "below"):
        (problem,) = folder_problems(make(tmp_path, {"path": drop, "after": "move", "move_to": way}))
        assert problem.startswith(f"watch.w0.move_to: {way} leads into watch.w0.path ({drop}) by another way")
    for way in (drop / "done", drop / "below" / ".." / "done", tmp_path / "other" / ".." / "drop" / "done"):
        assert folder_problems(make(tmp_path, {"path": drop, "after": "move", "move_to": way})) == []


def test_moving_onto_the_watchs_own_folder_is_seen_through_a_symlink(tmp_path: Path, drop: Path) -> None:
    (tmp_path / "link").symlink_to(drop)
    (problem,) = folder_problems(make(tmp_path, {"path": drop, "after": "move", "move_to": tmp_path / "link"}))
    assert "is the watch's own folder" in problem


def test_certificates_that_can_not_be_read_are_told(tmp_path: Path, drop: Path) -> None:
    (problem,) = folder_problems(make(tmp_path, {"path": drop}, presign={"ca_file": tmp_path / "ca.pem"}))
    assert problem.startswith(f"presign.ca_file: {tmp_path / 'ca.pem'} can't be read: No such file")


# --- inboxes ------------------------------------------------------------------------------------------
def inboxes(*paths: Path, **changes: str) -> list[dict[str, Any]]:
    return [{"name": f"i{n}", "path": path, "invitation": f"inv{n}"} | changes for n, path in enumerate(paths)]


def test_an_inbox_may_be_in_a_watch_and_must_be_there(tmp_path: Path, drop: Path) -> None:
    (tmp_path / "file").touch()
    found = inboxes(drop, drop / "below", tmp_path / "none", tmp_path / "file")
    missing, file = folder_problems(make(tmp_path, {"path": drop}, inbox=found))  # type: ignore[arg-type] # a list
    assert missing.startswith(f"inbox.i2.path: {tmp_path / 'none'} does not exist; create it")
    assert file.startswith(f"inbox.i3.path: {tmp_path / 'file'} can't be used: ")


def test_an_inbox_among_presignds_own_files_is_refused(tmp_path: Path, drop: Path) -> None:
    (tmp_path / "state" / "links" / "in").mkdir(parents=True)
    found = inboxes(tmp_path / "state", tmp_path / "state" / "links" / "in")
    problems = folder_problems(make(tmp_path, {"path": drop}, inbox=found))  # type: ignore[arg-type] # a list
    assert [problem.partition(" lies in the folder of ")[0] for problem in problems] == [
        f"inbox.i0.path: {tmp_path / 'state'}",
        *[f"inbox.i1.path: {tmp_path / 'state/links/in'}"] * 2,
    ]


def test_an_invitation_is_of_one_inbox(tmp_path: Path, drop: Path) -> None:
    found = inboxes(drop, tmp_path / "other", invitation="march")
    (problem,) = folder_problems(make(tmp_path, {"path": drop}, inbox=found))  # type: ignore[arg-type] # a list
    assert problem.startswith("inbox.i1.invitation: is that of inbox.i0, too")
