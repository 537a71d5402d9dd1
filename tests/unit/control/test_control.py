"""Parts of the control socket's answers: its location, who may have links, requests, and when a wait ends."""

from __future__ import annotations

import os
import struct
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from presignd.control import documents, fields, location, requests
from presignd.control.paths import WaitOutcome, WatchPath, fingerprint_at, locate, wait_outcome
from presignd.control.peer import Peer, _from_xucred
from presignd.errors import UsageError
from presignd.model import FileVersion, Fingerprint, State
from presignd.runtime import unix_socket

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PRINT = Fingerprint(1, 5, 10, 20)
VERSION = FileVersion("id", "drop", b"a.txt", PRINT, State.QUEUED, "bucket", "a.txt", "a.txt", "text/plain", 0, NOW)


def in_state(state: State, **changes: Any) -> FileVersion:
    return VERSION._replace(state=state, **changes)


# --- waiting ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("state", "found"),
    [
        (State.QUEUED, WaitOutcome.PENDING),
        (State.UPLOADING, WaitOutcome.PENDING),
        (State.VERIFIED, WaitOutcome.PENDING),
        (State.LINKED, WaitOutcome.LINKED),
        (State.FINISHED, WaitOutcome.LINKED),
        (State.QUARANTINED, WaitOutcome.QUARANTINED),
        (State.IGNORED, WaitOutcome.IGNORED),
        (State.VANISHED, WaitOutcome.PENDING),
    ],
)
def test_the_state_of_the_current_content_decides(state: State, found: WaitOutcome) -> None:
    assert wait_outcome(in_state(state), PRINT, leaves=False) is found


@pytest.mark.parametrize("state", list(State))
def test_a_verdict_on_older_content_says_nothing_about_newer(state: State) -> None:
    newer = PRINT._replace(mtime_ns=11)
    assert wait_outcome(in_state(state), newer, leaves=True) is WaitOutcome.PENDING


def test_a_file_the_ledger_does_not_know_yet_is_pending() -> None:
    assert wait_outcome(None, PRINT, leaves=False) is WaitOutcome.PENDING
    assert wait_outcome(None, PRINT, leaves=False, ignored=True) is WaitOutcome.IGNORED


def test_a_file_that_after_took_away_has_its_link() -> None:
    assert wait_outcome(in_state(State.FINISHED), None, leaves=True) is WaitOutcome.LINKED


@pytest.mark.parametrize("version", [None, in_state(State.FINISHED), in_state(State.QUEUED)])
def test_a_file_that_is_gone_otherwise_is_missing(version: FileVersion | None) -> None:
    assert wait_outcome(version, None, leaves=False) is WaitOutcome.MISSING


def test_a_wait_looks_soon_at_first_and_at_least_twice_a_second() -> None:
    assert requests.polling_pause(0) == 0.05
    assert requests.polling_pause(3600) == 0.5


# --- places -----------------------------------------------------------------------------------------
def config(tmp_path: Path, socket: Path | None = None) -> Any:
    return SimpleNamespace(control=SimpleNamespace(socket=socket), ledger=SimpleNamespace(path=tmp_path / "ledger"))


def test_the_named_place_wins_over_all_others(tmp_path: Path) -> None:
    environ = {"PRESIGND_SOCKET": "/named", "RUNTIME_DIRECTORY": str(tmp_path)}
    assert location.socket_path(config(tmp_path, Path("/configured")), environ) == Path("/configured")
    assert location.socket_path(config(tmp_path), environ) == Path("/named")
    assert location.find_sockets(environ) == [Path("/named")]


def test_the_first_runtime_directory_is_taken(tmp_path: Path) -> None:
    environ = {"RUNTIME_DIRECTORY": f"{tmp_path}:/elsewhere", "XDG_RUNTIME_DIR": "/run/user/1", "HOME": "/home/ann"}
    assert location.socket_path(config(tmp_path), environ) == tmp_path / "control.sock"
    assert location.find_sockets(environ) == [
        tmp_path / "control.sock",
        Path("/run/presignd/control.sock"),
        Path("/run/user/1/presignd/control.sock"),
        Path("/home/ann/.local/state/presignd/control.sock"),
        Path("/home/ann/.local/state/presignd/other.sock"),
    ]


def test_a_session_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "SYSTEM", tmp_path / "absent/control.sock")
    assert location.socket_path(config(tmp_path), {"XDG_RUNTIME_DIR": str(tmp_path)}).parent == tmp_path / "presignd"
    assert (tmp_path / "presignd").stat().st_mode & 0o777 == 0o700


def test_without_a_runtime_directory_it_is_where_commands_look_without_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root, or of cron's: whichever ledger the daemon has."""
    monkeypatch.setattr(location, "SYSTEM", tmp_path / "absent/control.sock")
    environ = {"HOME": str(tmp_path / "home")}
    own = config(tmp_path)
    own.ledger.path = tmp_path / "home/.local/state/presignd"
    assert location.socket_path(config(tmp_path), environ) in location.find_sockets(environ)
    assert location.socket_path(own, environ) in location.find_sockets(environ)
    assert location.socket_path(own, environ) != location.socket_path(config(tmp_path), environ)
    assert own.ledger.path.stat().st_mode & 0o777 == 0o700


def test_beside_the_ledger_is_the_last_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the home folder can't be written to, or another daemon is known there."""
    monkeypatch.setattr(location, "SYSTEM", tmp_path / "absent/control.sock")
    beside = tmp_path / "ledger/control.sock"
    assert location.socket_path(config(tmp_path), {"HOME": "/proc"}) == beside
    environ = {"HOME": str(tmp_path)}
    with unix_socket.listening(location.socket_path(config(tmp_path), environ), "control.socket"):
        assert location.socket_path(config(tmp_path), environ) == beside


# --- peers ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("peer", "may"),
    [
        (Peer(1, 0, 0, frozenset()), True),
        (Peer(1, 65533, 65533, frozenset()), False),
        (Peer(1, 65533, 7001, frozenset()), True),
        (Peer(1, 65533, 65533, frozenset({7001})), True),
        (Peer(1, 65533, 65533, frozenset({7002})), False),
    ],
)
def test_links_go_to_root_and_the_links_group_only(peer: Peer, may: bool) -> None:
    assert peer.may_have_links("7001") is may


def test_links_go_to_the_daemons_own_user() -> None:
    assert Peer(1, os.geteuid(), 65533, frozenset()).may_have_links("")


@pytest.mark.parametrize("group", ["", "there-is-no-such-group"])
def test_no_group_is_nobodys(group: str) -> None:
    assert not Peer(1, 65533, 0, frozenset()).may_have_links(group)


def test_credentials_of_macos_are_read() -> None:
    raw = struct.pack("=IIhxx16I", 0, 501, 2, 20, 12, *[0] * 14)
    assert _from_xucred(raw) == Peer(0, 501, 20, frozenset({20, 12}))


# --- requests ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "request_",
    [
        {"path": 1},
        {"path": "relative"},
        {"path": "/a\0b"},
        {"path": ["/a", 2]},
        {"path": "/\ud800"},
        {"path": {"a": 1}},
    ],
)
def test_a_path_that_is_none_is_refused(request_: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        fields.paths(request_, "path")


def test_paths_keep_bytes_that_are_no_utf8() -> None:
    assert fields.paths({"path": ["/a\udcff", "/b", "/b"]}, "path") == [b"/a\xff", b"/b"]


@pytest.mark.parametrize("value", [True, "5", -1, 11, float("nan"), float("inf")])
def test_a_number_out_of_bounds_is_refused(value: Any) -> None:
    with pytest.raises(UsageError):
        fields.number({"n": value}, "n", most=10)


@pytest.mark.parametrize("value", [5, ["a"], "\udcff"])
def test_a_text_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(UsageError):
        fields.text({"t": value}, "t")


# --- finding ----------------------------------------------------------------------------------------
def watch_at(path: Path) -> Any:
    return SimpleNamespace(name="drop", path=path)


def test_a_path_is_found_by_the_configured_name_and_by_the_real_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "door").symlink_to("real")
    watches = [watch_at(tmp_path / "door")]
    for folder in ("door", "real"):
        absolute = os.fsencode(tmp_path / folder / "sub/a")
        assert locate(absolute, watches) == WatchPath(absolute, "drop", b"sub/a")


def test_a_folder_of_a_like_name_is_not_the_watch(tmp_path: Path) -> None:
    absolute = os.fsencode(tmp_path / "drop2/a")
    assert locate(absolute, [watch_at(tmp_path / "drop")]) == WatchPath(absolute, "", absolute)


def test_what_lies_behind_a_symlink_is_nothing_of_a_watch(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").write_bytes(b"x")
    (tmp_path / "door").symlink_to("real")
    (tmp_path / "real/b").symlink_to("a")
    assert fingerprint_at(os.fsencode(tmp_path / "real/a")) == Fingerprint.of((tmp_path / "real/a").stat())
    assert fingerprint_at(os.fsencode(tmp_path / "door/a")) is None
    assert fingerprint_at(os.fsencode(tmp_path / "real/b")) is None
    assert fingerprint_at(os.fsencode(tmp_path / "real/a/c")) is None


# --- documents --------------------------------------------------------------------------------------
def test_a_version_shows_its_error_with_the_fix() -> None:
    stopped = documents.of_version(in_state(State.QUARANTINED, error_code="too_large", error="over max_size"), {})
    assert stopped["error"]["cause"] == "over max_size"
    assert "max_size" in stopped["error"]["fix"]
    assert stopped["receipt"] is None


@pytest.mark.parametrize("state", [State.VERIFIED, State.LINKED, State.FINISHED])
def test_a_verified_version_has_a_receipt(state: State) -> None:
    receipt = documents.of_receipt(in_state(state, checksum="md5:00", etag="00", done_at=NOW))
    assert receipt is not None
    assert receipt["done_at"] == "2026-01-02T03:04:05.000000Z"


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, None),
        ({"linked": True, "expires_at": NOW}, "presigned"),
        ({"linked": True}, "unit"),
        ({"linked": True, "link_id": "x"}, "stable"),
        ({"link_id": "x"}, None),
    ],
)
def test_the_kind_of_a_link_is_shown_and_not_its_id(given: dict[str, Any], kind: str | None) -> None:
    document = documents.of_version(in_state(State.FINISHED, **given), {})
    assert document["link"] == kind
    assert "x" not in document.values()


def test_a_file_that_could_not_be_moved_keeps_its_receipt() -> None:
    """Its upload was verified and linked; only ``after`` failed (finish_failed)."""
    assert documents.has_receipt(in_state(State.QUARANTINED, linked=True))
    assert not documents.has_receipt(in_state(State.QUARANTINED))


def test_paths_are_absolute_wherever_they_stand() -> None:
    """One list's path can be given to the next command as it is."""
    version = in_state(State.QUEUED)
    shown = documents.of_version(version, {version.watch: "/srv/drop"})
    assert shown["path"] == f"/srv/drop/{os.fsdecode(version.path)}"
    put = documents.of_version(version._replace(path=b"/home/me/a"), {version.watch: "/srv/drop"})
    assert put["path"] == "/home/me/a"
