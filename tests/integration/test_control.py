"""The control socket: its permissions, its peers, passed descriptors, and clients that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from presignd.control import paths
from presignd.control.links import Terms
from presignd.control.server import Answered
from presignd.control.view import BlockedView
from presignd.errors import Unavailable, UsageError, fault
from presignd.model import LinksMark, State
from presignd.presign.broker_links import IssuedLink
from presignd.runtime import unix_socket
from presignd.states import Event
from tests.canary import assert_no_secrets
from tests.descriptors import open_descriptors
from tests.served import DONE, NOW, SECRET, UPLOADED, Served, configuration, recorded, served, serving
from tests.versions import linking

__all__ = ["served"]

NOBODY = 65534

other_users = pytest.mark.needs("another user")


@contextlib.asynccontextmanager
async def no_descriptor_stays() -> AsyncIterator[None]:
    """Wait until as many are open as before: the server closes its side a moment after the answer."""
    before = open_descriptors()
    yield
    await until(lambda: open_descriptors() <= before)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - what is awaited tells nobody
            await asyncio.sleep(0.01)


# --- the file ---------------------------------------------------------------------------------------
async def test_the_socket_is_for_owner_and_group_and_gone_after(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with serving(configuration(tmp_path), path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not path.exists()


async def test_what_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(configuration(tmp_path), path) as served:
        assert (await served.ask({"op": "ping"}))[0]["daemon"]["pid"] == os.getpid()


async def test_a_live_daemons_socket_is_never_taken(served: Served) -> None:
    with pytest.raises(Unavailable, match=str(served.path)), unix_socket.listening(served.path, "control.socket"):
        pass
    assert await served.ask({"op": "ping"})


async def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(UsageError), unix_socket.listening(path, "control.socket"):
        pass
    assert path.read_text() == "data"


async def test_a_path_longer_than_the_kernel_takes_works(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    async with serving(configuration(tmp_path), folder / "control.sock") as served:
        assert await served.ask({"op": "ping"})
    assert list(folder.iterdir()) == []


async def test_an_unknown_group_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError) as refused,
        unix_socket.listening(tmp_path / "s", "control.socket", group="no-such-group"),
    ):
        pass
    assert "control.group" in refused.value.problems[0]
    assert not (tmp_path / "s").exists()


# --- what it answers --------------------------------------------------------------------------------
async def test_status_tells_the_queue_and_what_is_stuck(served: Served) -> None:
    await recorded(served, "queued")
    await recorded(served, "stuck", Event.QUARANTINE, error_code="too_large", error="over 5 GiB")
    served.view.held_up.append(BlockedView("bucket", "drop", "access_denied", "403", NOW))
    found = (await served.ask({"op": "status"}))[0]
    assert found["watches"][0]["counts"]["queued"] == 1
    assert found["quarantined"][0]["error"]["cause"] == "over 5 GiB"
    assert found["settling"][0]["why"] == "open for writing"
    assert found["blocked"][0]["fix"]
    assert found["quarantined_count"] == 1


async def test_a_name_that_holds_a_secret_is_told_without_it(served: Served) -> None:
    """Whoever reaches the status page reads the same document; wget names a file by the URL it was asked for."""
    for number, name in enumerate((f"get?X-Amz-Signature={SECRET}", "psd_0123456789abcdef")):
        await recorded(served, name, Event.QUARANTINE, error_code="unreadable", error=f"no {name}")
        [found] = await served.ask({"op": "status"})
        assert len(found["quarantined"]) == number + 1
        assert_no_secrets(json.dumps(found), SECRET, "0123456789abcdef")


async def test_a_path_tells_its_receipt_and_never_a_url(served: Served) -> None:
    await recorded(served, "a", *DONE, expires_at=NOW, checksum="md5:00")
    path = str(served.view.config.watches[0].path / "a")
    found = (await served.ask({"op": "path", "path": path}))[0]
    assert found["version"]["receipt"]["checksum"] == "md5:00"
    assert found["version"]["link_expires_at"]
    assert "http" not in json.dumps(found)


async def test_a_path_nobody_knows_is_refused(served: Served) -> None:
    for path in (served.view.config.watches[0].path / "x", Path("/elsewhere/x")):
        assert (await served.refusal({"op": "path", "path": str(path)})).exit_code == 4


async def test_only_the_daemon_of_the_ledger_that_was_meant_answers(served: Served) -> None:
    ledger = str(served.view.config.ledger.path)
    assert await served.ask({"op": "ping", "ledger": ledger})
    assert (await served.refusal({"op": "ping", "ledger": "/other"})).code == "other_daemon"


async def test_retry_takes_back_what_it_names(served: Served) -> None:
    for name in ("a", "b", "c"):
        await recorded(served, name, Event.QUARANTINE, error_code="unreadable" if name == "a" else "exists")
    drop = served.view.config.watches[0].path
    assert (await served.ask({"op": "retry", "paths": [str(drop / "b")]}))[0]["count"] == 1
    assert (await served.refusal({"op": "retry", "paths": [str(drop / "b")]})).exit_code == 4
    assert (await served.ask({"op": "retry", "error": "unreadable"}))[0]["count"] == 1
    assert (await served.ask({"op": "retry", "all": True}))[0]["count"] == 1
    assert (await served.ask({"op": "retry", "all": True}))[0]["count"] == 0
    for nothing in ({"watch": "other"}, {"error": "exists"}, {"paths": [str(drop / "x")]}):
        assert (await served.refusal({"op": "retry", **nothing})).exit_code == 4


async def test_link_finds_by_path_and_by_key(served: Served) -> None:
    await recorded(served, "a", *UPLOADED)
    for by in ({"path": str(served.view.config.watches[0].path / "a")}, {"key": "a"}, {"key": "s3://bucket/a"}):
        assert SECRET in (await served.ask({"op": "link", "expires": 60, **by}))[0]["link"]["url"]
    assert (await served.refusal({"op": "link", "key": "s3://other/a"})).exit_code == 4


async def test_link_of_what_is_not_uploaded_yet_is_pending(served: Served) -> None:
    await recorded(served, "a")
    path = str(served.view.config.watches[0].path / "a")
    assert (await served.refusal({"op": "link", "path": path})).exit_code == 5


@pytest.mark.parametrize("expires", [0, 7 * 86400 + 1, "1h", True])
async def test_a_link_lives_within_bounds_or_is_refused(served: Served, expires: Any) -> None:
    assert (await served.refusal({"op": "link", "key": "a", "expires": expires})).exit_code == 2


# --- wait -------------------------------------------------------------------------------------------
async def wait(served: Served, *names: str, timeout: float = 5) -> dict[str, str]:
    drop = served.view.config.watches[0].path
    found = await served.ask({"op": "wait", "paths": [str(drop / name) for name in names], "timeout": timeout})
    return {Path(answer["path"]).name: answer["outcome"] for answer in found}


async def test_wait_answers_when_the_link_is_there(served: Served) -> None:
    version = await recorded(served, "a", *UPLOADED)
    waiting = asyncio.create_task(wait(served, "a"))
    await until(lambda: bool(served.view.hints))
    await served.view.ledger.record_linked([linking(version)], LinksMark(1, 1))
    assert await waiting == {"a": "linked"}
    assert served.view.hints == [("drop", b"a")]


async def test_wait_means_the_current_content(served: Served) -> None:
    await recorded(served, "a", *DONE)
    (served.view.config.watches[0].path / "a").write_bytes(b"newer")
    assert (await served.refusal(wait_request(served, "a", timeout=0))).exit_code == 5


def wait_request(served: Served, name: str, timeout: float) -> dict[str, Any]:
    return {"op": "wait", "paths": [str(served.view.config.watches[0].path / name)], "timeout": timeout}


async def test_wait_tells_of_each_that_will_not_come(served: Served) -> None:
    await recorded(served, "stuck", Event.QUARANTINE, error_code="too_large", error="x")
    assert await wait(served, "stuck", "absent") == {"stuck": "quarantined", "absent": "missing"}


async def test_a_file_moved_away_after_its_link_is_no_missing_one(tmp_path: Path) -> None:
    async with serving(configuration(tmp_path, after="delete")) as served:
        await recorded(served, "a", *DONE, Event.FINISH)
        (served.view.config.watches[0].path / "a").unlink()
        assert await wait(served, "a") == {"a": "linked"}


async def test_without_a_daemon_a_wait_does_not_pretend(served: Served) -> None:
    await recorded(served, "a")
    served.view._phase.started_at = None
    assert (await served.refusal(wait_request(served, "a", timeout=60))).exit_code == 3


@pytest.mark.parametrize("there", [True, False])
async def test_a_path_in_no_watch_is_refused_at_once_and_alike_there_or_not(
    served: Served, tmp_path: Path, there: bool
) -> None:
    """What the daemon may read there is no news for whoever may connect."""
    elsewhere = tmp_path / "elsewhere"
    if there:
        elsewhere.write_bytes(b"x")
    (waited,) = await served.ask({"op": "wait", "paths": [str(elsewhere)], "timeout": 3600})
    assert waited == {"path": str(elsewhere), "outcome": "outside", "version": None, "why": paths.OUTSIDE}
    for op, field in (("path", "path"), ("retry", "paths")):
        refused = await served.refusal({"op": op, field: str(elsewhere)})
        assert (refused.exit_code, refused.message) == (4, f"{elsewhere}: {paths.OUTSIDE}")
    refused = await served.refusal({"op": "link", "path": str(elsewhere), "key": "elsewhere"})
    assert refused.message == "link: nothing was uploaded from or as elsewhere"


async def test_a_file_put_from_elsewhere_is_known_to_wait_and_status(served: Served, tmp_path: Path) -> None:
    path = str(tmp_path / "elsewhere")
    await recorded(served, path, *DONE)
    (waited,) = await served.ask({"op": "wait", "paths": [path], "timeout": 5})
    assert waited["outcome"] == "linked"
    assert (await served.ask({"op": "path", "path": path}))[0]["version"]["state"] == "linked"


async def test_wait_and_status_give_the_same_reason_for_what_is_ignored(served: Served) -> None:
    drop = served.view.config.watches[0].path
    (drop / "a.part").write_bytes(b"x")
    (waited,) = await served.ask(wait_request(served, "a.part", timeout=5))
    assert waited["outcome"] == "ignored"
    assert waited["why"] in (await served.refusal({"op": "path", "path": str(drop / "a.part")})).message
    assert waited["why"] in (await served.refusal({"op": "link", "path": str(drop / "a.part")})).message


async def test_wait_tells_why_what_was_there_before_the_first_start_is_not_sent(served: Served) -> None:
    await recorded(served, "old", state=State.IGNORED)
    (waited,) = await served.ask(wait_request(served, "old", timeout=5))
    assert (waited["outcome"], waited["why"]) == ("ignored", paths.NOT_SENT)
    assert (await served.ask({"op": "path", "path": waited["path"]}))[0]["why"] == paths.NOT_SENT


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(("asked", "there"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
async def test_the_other_unicode_form_of_a_name_is_found(served: Served, asked: str, there: str) -> None:
    """Names from macOS are decomposed, what a keyboard types is composed, and both look the same."""
    await recorded(served, there, *DONE)
    path = str(served.view.config.watches[0].path / asked)
    (waited,) = await served.ask({"op": "wait", "paths": [path], "timeout": 5})
    assert (waited["path"], waited["outcome"]) == (path, "linked")
    assert (await served.ask({"op": "path", "path": path}))[0]["version"]["key"] == there
    for named_so in ({"path": path}, {"key": asked}):
        assert (await served.ask({"op": "link", **named_so}))[0]["link"]["key"] == there


async def test_of_two_names_that_look_the_same_each_is_itself(served: Served) -> None:
    await recorded(served, DECOMPOSED, *DONE)
    await recorded(served, COMPOSED)
    for name, state in ((COMPOSED, "queued"), (DECOMPOSED, "linked")):
        path = str(served.view.config.watches[0].path / name)
        assert (await served.ask({"op": "path", "path": path}))[0]["version"]["state"] == state


async def test_a_name_that_nothing_lies_under_is_missing_in_either_form(served: Served) -> None:
    assert await wait(served, COMPOSED) == {COMPOSED: "missing"}


# --- put and descriptors ----------------------------------------------------------------------------
@contextlib.contextmanager
def a_file(folder: Path, flags: int = os.O_RDONLY) -> Any:
    (folder / "put.txt").write_bytes(b"content")
    fd = os.open(folder / "put.txt", flags)
    try:
        yield fd
    finally:
        os.close(fd)


async def test_put_reads_the_passed_descriptor_and_nothing_else(served: Served, tmp_path: Path) -> None:
    """The path is only a name: the daemon's rights open nothing."""
    async with no_descriptor_stays():
        with a_file(tmp_path) as fd:
            found = await served.ask({"op": "put", "path": "/home/other/secret", "key": "k"}, [fd])
    assert found[-1]["link"]["size"] == len(b"content")
    assert served.view.puts == [(b"/home/other/secret", "drop", "k", os.geteuid())]


async def test_put_tells_its_progress(served: Served, tmp_path: Path) -> None:
    async def slowly(_fd: int, progress: Callable[[int], None]) -> None:
        progress(3)
        await asyncio.sleep(0.3)

    served.view.on_put = slowly
    with a_file(tmp_path) as fd:
        found = await served.ask({"op": "put", "path": "/x"}, [fd])
    assert found[0] == {"sent": 3, "size": 7}
    assert "link" in found[-1]


async def test_put_tells_the_whole_before_the_link(served: Served, tmp_path: Path) -> None:
    """So a client sees it, however fast the upload was; of a stream it learns the size from nothing else."""

    async def fast(_fd: int, progress: Callable[[int], None]) -> None:
        progress(7)

    served.view.on_put = fast
    with a_file(tmp_path) as fd:
        found = await served.ask({"op": "put", "path": "/x"}, [fd])
    assert found[-2] == {"sent": 7, "size": 7}


async def test_put_of_a_file_in_a_watch_is_that_watchs_file(served: Served) -> None:
    drop = served.view.config.watches[0].path
    with a_file(drop) as fd:
        await served.ask({"op": "put", "path": str(drop / "put.txt")}, [fd])
    assert served.view.puts[0][:2] == (b"put.txt", "drop")


async def test_a_failed_put_carries_its_cause_fix_and_exit_code(served: Served, tmp_path: Path) -> None:
    async def refuse(_fd: int, _progress: Callable[[int], None]) -> None:
        raise fault("too_large", "over max_size")

    served.view.on_put = refuse
    with a_file(tmp_path) as fd:
        refused = await served.refusal({"op": "put", "path": "/x"}, [fd])
    assert (refused.code, refused.exit_code) == ("too_large", 4)
    assert refused.fix


async def test_put_takes_only_one_regular_file_open_for_reading(served: Served, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    folder = os.open(tmp_path, os.O_RDONLY)
    async with no_descriptor_stays():
        with a_file(tmp_path, os.O_RDWR) as both, a_file(tmp_path, os.O_PATH) as path_only:
            for fds in ([], [both], [path_only], [reader], [folder]):
                assert (await served.refusal({"op": "put", "path": "/x"}, fds)).exit_code in {2, 4}
            for _ in range(3):
                assert (await served.refusal({"op": "put", "path": "/x"}, [reader, writer, both])).exit_code == 2
    for fd in (reader, writer, folder):
        os.close(fd)
    assert served.view.puts == []


async def test_what_the_daemon_s_machine_refuses_is_told_with_its_reason(served: Served, tmp_path: Path) -> None:
    """Else the client reads of a daemon that ended, and looks into a log that says nothing."""

    async def refuse(_fd: int, _progress: Callable[[int], None]) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    served.view.on_put = refuse
    with a_file(tmp_path) as fd:
        refused = await served.refusal({"op": "put", "path": "/x"}, [fd])
    assert (refused.exit_code, "Stale file handle" in refused.message) == (3, True)


async def test_a_descriptor_that_the_daemon_has_no_room_for_is_told_as_that(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel gives the request without it, and says that something is missing."""
    received = socket.recv_fds

    def short(sock: socket.socket, *how: int) -> tuple[bytes, list[int], int, Any]:
        data, fds, flags, address = received(sock, *how)
        for fd in fds:
            os.close(fd)
        return data, [], flags | socket.MSG_CTRUNC, address

    monkeypatch.setattr(socket, "recv_fds", short)
    with a_file(tmp_path) as fd:
        refused = await served.refusal({"op": "put", "path": "/x"}, [fd])
    assert (refused.exit_code, "Too many open files" in refused.message) == (3, True)


async def test_a_put_does_not_wait_for_ever_for_a_store_that_is_away(tmp_path: Path) -> None:
    """The daemon waits without limit; a command ends with 3, so that its caller may decide."""

    async def for_ever(_fd: int, _progress: Callable[[int], None]) -> None:
        await asyncio.Event().wait()

    async with serving(configuration(tmp_path), patience=0.3) as served:
        served.view.on_put = for_ever
        served.view.held_up = [BlockedView("store", "", "connection_refused", "nothing listens at 127.0.0.1:1", NOW)]
        with a_file(tmp_path) as fd:
            refused = await served.refusal({"op": "put", "path": "/x"}, [fd])
    assert (refused.exit_code, refused.code) == (3, "connection_refused")
    assert refused.fix


async def test_a_client_that_leaves_stops_its_put(served: Served, tmp_path: Path) -> None:
    events: list[str] = []

    async def for_ever(_fd: int, _progress: Callable[[int], None]) -> None:
        events.append("began")
        try:
            await asyncio.Event().wait()
        finally:
            events.append("stopped")

    served.view.on_put = for_ever
    async with no_descriptor_stays():
        with a_file(tmp_path) as fd:
            client = asyncio.create_task(served.ask({"op": "put", "path": "/x"}, [fd]))
            await until(lambda: events == ["began"])
            client.cancel()
            await asyncio.gather(client, return_exceptions=True)
            await until(lambda: events == ["began", "stopped"])
            await until(lambda: len(asyncio.all_tasks()) <= 2)


# --- who may have links -----------------------------------------------------------------------------
STRANGER = """
import json, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.sendall(sys.argv[2].encode() + b"\\n")
print(sock.makefile().read())
"""


async def stranger(served: Served, request: Mapping[str, Any], *groups: int) -> str:
    """Ask as nobody, a member of ``groups``; the socket's own rights are out of the way."""
    open_to_all(served)
    arguments = [sys.executable, "-I", "-c", STRANGER, str(served.path), json.dumps(request)]
    run = functools.partial(
        subprocess.run, user=NOBODY, group=NOBODY, extra_groups=groups, capture_output=True, text=True, check=True
    )
    return (await asyncio.to_thread(run, [*_python(), *arguments[1:]], cwd="/")).stdout


def open_to_all(served: Served) -> None:
    for folder in served.path.parents:
        if str(folder).startswith("/tmp/") and folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o011)
    served.path.chmod(0o666)


def _python() -> list[str]:
    """Return an interpreter that others may run too: the tests' own may be in a closed home."""
    return [os.path.realpath(sys.executable)]


@other_users
@pytest.mark.parametrize("op", ["link", "links", "put"])
async def test_others_get_no_link(served: Served, op: str) -> None:
    await recorded(served, "a", *UPLOADED)
    answer = await stranger(served, {"op": op, "key": "a", "path": "/x"})
    assert json.loads(answer)["error"]["exit"] == 4
    assert SECRET not in answer
    assert '"counts"' in await stranger(served, {"op": "status"})


WAITERS = """
import json, socket, sys
socks = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[3]))]
for sock in socks:
    sock.connect(sys.argv[1])
    sock.sendall(sys.argv[2].encode() + b"\\n")
print("waiting", flush=True)
sys.stdin.read()
"""


@other_users
async def test_a_member_of_the_group_with_many_waits_keeps_root_s_commands_not_out(served: Served) -> None:
    (served.view.config.watches[0].path / "new").write_bytes(b"x")
    open_to_all(served)
    request = json.dumps(wait_request(served, "new", timeout=3600))
    waiters = await asyncio.create_subprocess_exec(
        *(*_python(), "-I", "-c", WAITERS, str(served.path), request, "64"),
        user=NOBODY, group=NOBODY, extra_groups=(), cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert waiters.stdout
    assert waiters.stdin
    assert await waiters.stdout.readline()
    assert await served.ask({"op": "status"})
    waiters.stdin.close()
    await waiters.wait()


@other_users
async def test_the_links_group_gets_links(served: Served) -> None:
    await recorded(served, "a", *UPLOADED)
    links = served.view.config.links.model_copy(update={"group": "7001"})
    served.view._in_effect.config = served.view.config.model_copy(update={"links": links})
    assert SECRET in await stranger(served, {"op": "link", "key": "a"}, 7001)
    assert SECRET not in await stranger(served, {"op": "link", "key": "a"}, 7002)


@other_users
async def test_the_sockets_own_rights_keep_others_out(tmp_path: Path) -> None:
    async with serving(configuration(tmp_path)) as served:
        program = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        for folder in (served.path.parent, tmp_path, tmp_path.parent, tmp_path.parent.parent):
            folder.chmod(folder.stat().st_mode | 0o011)
        run = functools.partial(subprocess.run, user=NOBODY, group=NOBODY, capture_output=True, text=True, cwd="/")
        done = await asyncio.to_thread(run, [*_python(), "-I", "-c", program, str(served.path)], check=False)
        assert "PermissionError" in done.stderr


# --- hostile clients --------------------------------------------------------------------------------
@pytest.mark.parametrize("line", [b"\n", b"{\n", b"[]\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"op": 5}\n'])
async def test_what_is_no_request_gets_one_clear_answer(served: Served, line: bytes) -> None:
    found = await served.raw(line)
    assert [answer["error"]["exit"] for answer in found] == [2]


async def test_a_request_without_end_is_cut_off(tmp_path: Path) -> None:
    async with serving(configuration(tmp_path), request_timeout=0.1) as served:
        assert await served.raw(b'{"op": "status"') == []
        assert await served.ask({"op": "ping"})


async def test_a_request_over_the_bound_is_refused(served: Served) -> None:
    assert (await served.refusal({"op": "x" * (4 << 20)})).exit_code == 2
    assert await served.ask({"op": "ping"})


async def test_two_hundred_silent_clients_stop_nobody_for_long(tmp_path: Path) -> None:
    async with (
        serving(configuration(tmp_path), request_timeout=0.3) as served,
        no_descriptor_stays(),
        contextlib.AsyncExitStack() as clients,
    ):
        for _ in range(200):
            clients.enter_context(await asyncio.to_thread(unix_socket.connect, served.path))
        async with asyncio.timeout(10):
            while not await answered(served):  # noqa: ASYNC110 - a socket tells nobody that it has room
                await asyncio.sleep(0.02)


async def answered(served: Served) -> bool:
    try:
        return bool(await served.ask({"op": "ping"}))
    except Answered as busy:
        assert busy.exit_code == 3  # noqa: PT017 - a busy socket says so
        return False


async def test_a_client_that_reads_nothing_holds_up_no_other(tmp_path: Path) -> None:
    """Its answer is far larger than the socket's buffer."""
    async with serving(configuration(tmp_path), answer_timeout=0.3) as served:
        served.view.held_up = [BlockedView("bucket", "drop", "dns", "x" * 1000, NOW)] * 5000
        async with no_descriptor_stays():
            deaf = unix_socket.connect(served.path)
            deaf.sendall(b'{"op": "status"}\n')
            for _ in range(20):
                assert await served.ask({"op": "ping"})
            await until(lambda: len(asyncio.all_tasks()) <= 2)
            deaf.close()


async def test_a_half_closed_client_still_gets_its_answer(served: Served) -> None:
    reader, writer = await asyncio.open_unix_connection(str(served.path))
    writer.write(b'{"op": "ping"}\n')
    writer.write_eof()
    assert b"daemon" in await reader.read()
    writer.close()


async def test_a_bug_in_an_answer_tells_its_kind_and_not_its_words(served: Served) -> None:
    async def boom(_fd: int, _progress: Callable[[int], None]) -> None:
        raise ZeroDivisionError(f"http://h/b/k?X-Amz-Signature={SECRET}")

    served.view.on_put = boom
    (served.view.config.watches[0].path / "put.txt").write_bytes(b"x")
    with a_file(served.view.config.watches[0].path) as fd:
        refused = await served.refusal({"op": "put", "path": "/x"}, [fd])
    assert refused.exit_code == 1
    assert "ZeroDivisionError" in refused.message
    assert SECRET not in refused.message
    assert await served.ask({"op": "ping"})


async def test_many_at_once_each_get_their_own(served: Served, tmp_path: Path) -> None:
    async with no_descriptor_stays():
        with a_file(tmp_path) as fd:
            found = await asyncio.gather(
                *(served.ask({"op": "put", "path": "/x", "key": f"k{n}"}, [fd]) for n in range(40))
            )
    assert [one[-1]["link"]["key"] for one in found] == [f"k{n}" for n in range(40)]


async def test_a_client_that_says_nonsense_and_goes_is_no_error_of_ours(served: Served) -> None:
    loop, errors = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    for _ in range(20):
        with unix_socket.connect(served.path) as sock:
            sock.sendall(b"nonsense\n")
    assert await served.ask({"op": "ping"})
    gc.collect()
    await asyncio.sleep(0)
    assert errors == []


# --- stable links -------------------------------------------------------------------------------------
REF = "mZt3k2pQv9_xY4-a"


async def test_a_new_stable_link_is_made_on_the_terms_asked_for(served: Served) -> None:
    await recorded(served, "a", *UPLOADED)
    asked = {"op": "stable_link", "key": "a", "days": 30, "downloads": 5, "pin": "2580", "name": "b.txt"}
    assert SECRET in (await served.ask(asked))[0]["link"]["url"]
    await served.ask({"op": "stable_link", "key": "a", "pin": "2580"})
    assert served.view.links.asked == [Terms(days=30, downloads=5, pin="2580", name="b.txt"), Terms(pin="2580")]
    assert "2580" not in repr(served.view.links.asked)
    assert (await served.refusal({"op": "stable_link", "key": "b", "days": 1})).exit_code == 4


@pytest.mark.parametrize("term", [{"days": 0}, {"days": 36501}, {"downloads": 1.5}, {"days": True}, {"pin": 1234}])
async def test_terms_that_no_link_has_are_refused(served: Served, term: dict[str, Any]) -> None:
    assert (await served.refusal({"op": "stable_link", "key": "a", **term})).exit_code == 2
    assert served.view.links.asked == []


@pytest.mark.parametrize(
    ("named", "revoked"),
    [
        ({"link": f"https://files.example.org/l/{'x' * 22}/a"}, {"id": "x" * 22}),
        ({"link": REF, "key": REF}, {"ref": REF}),
        ({"link": "a", "key": "a"}, {"bucket": "bucket", "key": "a"}),
        ({"link": "s3://bucket/a", "key": "s3://bucket/a"}, {"bucket": "bucket", "key": "a"}),
    ],
)
async def test_links_are_revoked_by_address_ref_or_file(
    served: Served, named: dict[str, str], revoked: dict[str, str]
) -> None:
    await recorded(served, "a", *UPLOADED)
    (answer,) = await served.ask({"op": "unlink", **named})
    assert served.view.links.asked == [revoked]
    assert answer == {"revoked": {name: value for name, value in revoked.items() if name != "id"}}


async def test_a_file_whose_name_looks_like_a_ref_is_that_file(served: Served) -> None:
    await recorded(served, REF, *UPLOADED)
    await served.ask({"op": "unlink", "link": REF, "key": REF})
    assert served.view.links.asked == [{"bucket": "bucket", "key": REF}]


async def test_what_is_neither_a_link_nor_a_ref_nor_uploaded_is_not_revoked(served: Served) -> None:
    assert (await served.refusal({"op": "unlink", "link": "b.txt", "key": "b.txt"})).exit_code == 4
    assert (await served.refusal({"op": "unlink"})).exit_code == 4
    assert served.view.links.asked == []


async def test_the_links_of_the_token_are_listed_with_an_end(served: Served) -> None:
    assert await served.ask({"op": "issued"}) == [{"end": True}]
    served.view.links.listed = [IssuedLink(ref=REF, bucket="b", key="k", state="alive", made_at=NOW, opened_at=NOW)]
    first, last = await served.ask({"op": "issued"})
    assert first["link"]["ref"] == REF
    assert (first["link"]["made_at"], first["link"]["expires_at"]) == ("2026-01-02T00:00:00.000000Z", None)
    assert last == {"end": True}
