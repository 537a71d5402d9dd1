"""The embedded store's objects are reachable only by S3 with its keys; every other port refuses clients."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from presignd.demo.seaweedfs import LOOPBACK, find_program
from tests.needs import need
from tests.stores import SeaweedFS, Store, served
from tests.unprivileged import as_nobody

SECRET = b"for the one with the key only"
PATH = "buckets/test-bucket/secret.txt"
Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(params=[False, True], ids=["the same user", "another user"])
def run(request: pytest.FixtureRequest) -> Run:
    """Return what runs a command, as a user who has no keys."""
    need("curl", *(["another user"] if request.param else []))
    before = as_nobody() if request.param else []

    def run(*command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
        return subprocess.run(
            [*before, *command], input=stdin, capture_output=True, check=False, timeout=60, cwd="/", env=environ
        )

    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    for server in served(SeaweedFS, tmp_path_factory):
        server.write("test-bucket", "secret.txt", SECRET)
        yield server


def unharmed(store: SeaweedFS) -> None:
    assert store.list("test-bucket") == ["secret.txt"]
    assert store.read("test-bucket", "secret.txt") == SECRET


def test_no_port_lists_reads_writes_or_deletes_without_keys(store: SeaweedFS, run: Run) -> None:
    got: dict[str, bytes] = {}
    for port in store.weed.ports:
        for scheme in ("http", "https"):
            root = f"{scheme}://{LOOPBACK}:{port}"
            for request in (
                [f"{root}/{PATH}"],
                [f"{root}/test-bucket/secret.txt"],
                [f"{root}/buckets/test-bucket/?limit=9"],
                [f"{root}/test-bucket/"],
                [f"{root}/dir/status"],
                [f"{root}/dir/assign"],
                [f"{root}/status"],
                [f"{root}/1,01637037d6"],
                ["-T", "-", f"{root}/buckets/test-bucket/other.txt"],
                ["-T", "-", f"{root}/test-bucket/other.txt"],
                ["-X", "POST", f"{root}/col/delete?collection=test-bucket"],
                ["-X", "DELETE", f"{root}/{PATH}"],
                ["-X", "DELETE", f"{root}/test-bucket/secret.txt"],
            ):
                done = run("curl", "-skf", "-m", "10", *request, stdin=b"theirs")
                if done.returncode == 0:
                    got[" ".join(request)] = done.stdout[:80]
    assert got == {f"http://{LOOPBACK}:{store.weed._ports['s3.port']}/status": b""}, "but that it runs"
    unharmed(store)


def test_no_grpc_port_takes_a_command_without_the_certificate(store: SeaweedFS, run: Run) -> None:
    """By ``weed shell``, the client that knows how."""
    weed, ports = find_program("weed"), store.weed._ports
    assert weed
    where = [f"-{part}={LOOPBACK}:{ports[f'{part}.port']}.{ports[f'{part}.port.grpc']}" for part in ("master", "filer")]
    script = (
        b"fs.ls /buckets/test-bucket\nfs.cat /buckets/test-bucket/secret.txt\nfs.rm /buckets/test-bucket/secret.txt\n"
    )
    done = run("timeout", "5", weed, "shell", *where, stdin=script)
    assert SECRET not in done.stdout
    assert b"secret.txt" not in done.stdout
    unharmed(store)


def test_the_sockets_in_tmp_are_of_its_own_user_alone(store: SeaweedFS) -> None:
    """They speak neither TLS nor ask for keys: as a file of that user's, which he can read anyway."""
    found = [path for port in store.weed.ports for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]
    assert found
    assert [path for path in found if path.stat().st_mode & 0o077] == []
    need("curl", "another user")
    for path in found:
        command = [*as_nobody(), "curl", "-s", "--unix-socket", str(path), f"http://filer/{PATH}"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 7, "it can't connect"
