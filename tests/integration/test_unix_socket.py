"""A Unix socket in a folder that others can write: the daemon changes the mode of nothing but its socket."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from aiohttp import web

from presignd.errors import UsageError
from presignd.runtime import unix_socket
from presignd.runtime.clients import Connections
from presignd.runtime.http_server import HttpServer
from tests.descriptors import open_descriptors

OPTION = "control.socket"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture
def treasure(tmp_path: Path) -> Path:
    file = tmp_path / "treasure"
    file.touch()
    file.chmod(0o600)
    return file


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_in_a_shared_folder_it_is_made_reached_and_removed(shared: Path) -> None:
    before = open_descriptors()
    path = shared / "control.sock"
    with unix_socket.listening(path, OPTION, group=str(os.getegid())):
        unix_socket.connect(path).close()
        assert mode(path) == 0o660
    assert not path.exists()
    assert open_descriptors() == before


@pytest.mark.parametrize("kind", ["symlink", "hard link", "its folder"])
def test_what_others_put_in_its_place_gets_no_rights(
    shared: Path, treasure: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the moment between the making of the socket and its mode."""
    path = shared / "run" / "control.sock"
    path.parent.mkdir()
    path.parent.chmod(0o777)

    def swapped(_group: str) -> None:
        if kind == "its folder":
            path.parent.rename(shared / "away")
            (shared / "other").mkdir()
            (shared / "run").symlink_to("other")
            (shared / "other" / "control.sock").symlink_to(treasure)
            return
        path.unlink()
        path.symlink_to(treasure) if kind == "symlink" else path.hardlink_to(treasure)

    monkeypatch.setattr(unix_socket, "group_number", swapped)
    try:
        with unix_socket.listening(path, OPTION):
            pass
    except UsageError as refused:
        assert "something else is there" in refused.problems[0]  # noqa: PT017 - refused or not is both right
    assert mode(treasure) == 0o600
    assert treasure.exists()


def test_a_symlink_where_a_dead_daemon_left_its_socket_is_not_taken_for_it(shared: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "other.sock"))
    (shared / "control.sock").symlink_to(tmp_path / "other.sock")
    with pytest.raises(UsageError) as refused, unix_socket.listening(shared / "control.sock", OPTION):
        pass
    assert "no socket is in the way" in refused.value.problems[0]


def test_a_folder_that_others_made_a_symlink_is_refused(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    (shared / "run").symlink_to(tmp_path / "vault")
    with pytest.raises(UsageError) as refused, unix_socket.listening(shared / "run" / "control.sock", OPTION):
        pass
    assert "run is a symlink, and others can write in" in refused.value.problems[0]
    assert list((tmp_path / "vault").iterdir()) == []


async def test_an_http_servers_socket_is_made_in_the_same_way(
    shared: Path, treasure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker's once got its mode by its path, which others can swap."""
    path = shared / "broker.sock"
    server = HttpServer(
        web.Application(),
        f"unix:{path}",
        "broker.listen",
        connections=Connections(),
        most=lambda: 1,
        idle_seconds=1,
        cut_seconds=1,
    )

    def swapped(_group: str) -> None:
        path.unlink()
        path.symlink_to(treasure)

    monkeypatch.setattr(unix_socket, "group_number", swapped)
    with pytest.raises(UsageError, match=r"broker\.listen"):
        await server.open()
    await server.close()
    assert mode(treasure) == 0o600
