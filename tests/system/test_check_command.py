"""``presignd check`` as a command: each fault is one line with its cause and its fix."""

from __future__ import annotations

import datetime as dt
import os
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from presignd.demo.seaweedfs import free_ports
from tests.canary import assert_no_secrets
from tests.faulty_s3 import FaultyS3
from tests.mounts import fuse
from tests.needs import need
from tests.stores import Store
from tests.system.harness import COMMAND
from tests.unprivileged import NOBODY, as_nobody, world_readable


@dataclass(frozen=True)
class Setup:
    """A configuration in ``folder``: right, until a test makes one thing wrong."""

    folder: Path
    endpoint: str
    secret_key: str
    bucket: str
    access_key: str
    watch: str = ""
    drop: str = "drop"

    def write(self) -> Path:
        (self.folder / "drop").mkdir(exist_ok=True)
        config = self.folder / "config.toml"
        config.write_text(f"""
[presign]
endpoint = "{self.endpoint}"
access_key = "{self.access_key}"
secret_key = "{self.secret_key}"
[ledger]
path = "{self.folder}/state"
[[watch]]
name = "drop"
path = "{self.folder}/{self.drop}"
bucket = "{self.bucket}"
{self.watch}
""")
        config.chmod(0o600)
        os.chown(config, self.folder.stat().st_uid, -1)
        return config

    def check(self, *prefix: str, **changed: Any) -> Told:
        """Run ``presignd check`` on it, with these settings ``changed``."""
        setup = replace(self, **changed)
        done = subprocess.run(
            [*prefix, COMMAND, "check", "-c", setup.write()],
            env={"PATH": os.defpath, "HOME": os.fspath(self.folder)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        assert_no_secrets(done.stdout, setup.secret_key)
        return Told(done.returncode, done.stdout.splitlines())


@dataclass(frozen=True)
class Told:
    """How a check ended, and its lines."""

    code: int
    lines: list[str]

    def only(self, label: str) -> str:
        """Return the one line with this label: "ok  ", "warn", "FAIL"."""
        lines = [line for line in self.lines if line.startswith(label)]
        assert len(lines) == 1, "\n".join(self.lines)
        return lines[0]


def setup_of(folder: Path, store: Store | FaultyS3) -> Setup:
    return Setup(folder, store.endpoint, store.secret_key, store.bucket, store.access_key)


@pytest.fixture
def right(tmp_path: Path, seaweedfs: Store) -> Setup:
    return setup_of(tmp_path, seaweedfs)


@pytest.fixture
def nobodys(seaweedfs: Store) -> Iterator[Setup]:
    """Set up in a folder of the user nobody; root owns ``drop`` in it."""
    need("another user")
    with world_readable() as folder:
        os.chown(folder, NOBODY, NOBODY)
        yield setup_of(folder, seaweedfs)


@contextmanager
def serving(store: FaultyS3) -> Iterator[FaultyS3]:
    store.start()
    try:
        yield store
    finally:
        store.stop()


def test_where_all_is_well_every_line_is_ok(right: Setup) -> None:
    told = right.check()
    assert told.code == 0
    # Only root has CAP_LEASE: whoever else runs the tests is told that he hasn't.
    assert {line[:5] for line in told.lines if "no CAP_LEASE" not in line} == {"ok   "}


# --- the store ----------------------------------------------------------------------------------
def test_a_wrong_port(right: Setup) -> None:
    (port,) = free_ports(1)
    told = right.check(endpoint=f"http://127.0.0.1:{port}")
    assert told.code == 3
    assert told.only("FAIL") == (
        f"FAIL endpoint: nothing listens at the endpoint: 127.0.0.1:{port} "
        "(fix: start the store, or correct presign.endpoint's host and port)"
    )


def test_a_wrong_secret(right: Setup) -> None:
    told = right.check(secret_key="not-the-right-one-0123456789")
    assert told.code == 3
    line = told.only("FAIL")
    assert line.startswith(f"FAIL bucket {right.bucket}: PUT .presignd-check: the signature does not match (403)")
    assert "(fix: correct presign.access_key and presign.secret_key" in line


def test_a_wrong_bucket(right: Setup) -> None:
    told = right.check(bucket="no-such-bucket")
    assert told.code == 3
    line = told.only("FAIL")
    assert line.startswith("FAIL bucket no-such-bucket: PUT .presignd-check: the bucket does not exist (404)")
    assert line.endswith("(fix: create it, or correct the watch's bucket)")


@pytest.mark.parametrize(("hours", "words"), [(1, "behind"), (-1, "ahead of")])
def test_a_clock_that_is_off_by_an_hour(tmp_path: Path, hours: int, words: str) -> None:
    store = FaultyS3()
    store.clock_skew = dt.timedelta(hours=hours)
    with serving(store):
        told = setup_of(tmp_path, store).check()
    assert told.code == 3
    line = told.only("FAIL")
    assert line.startswith("FAIL clock: this machine is 3")
    assert f" s {words} the store (fix: synchronise the clock (NTP), here or at the store)" in line


def test_https_on_a_plain_port(right: Setup) -> None:
    told = right.check(endpoint=right.endpoint.replace("http:", "https:"))
    assert told.code == 3
    address = right.endpoint.removeprefix("http://")
    assert told.only("FAIL") == (
        f"FAIL endpoint: https:// is set, but {address} speaks plain HTTP "
        f'(fix: set presign.endpoint = "http://{address}", or the store\'s TLS port)'
    )


def test_a_certificate_of_an_unknown_ca(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with serving(FaultyS3(tls=context)) as store:
        told = setup_of(tmp_path, store).check()
    assert told.code == 3
    line = told.only("FAIL")
    assert line.startswith("FAIL certificate: not trusted: unable to get local issuer certificate")
    assert line.endswith("(fix: set presign.ca_file to the PEM file of the CA that signed the store's certificate)")


# --- this machine -------------------------------------------------------------------------------
def test_no_write_permission_on_move_to(nobodys: Setup) -> None:
    done = nobodys.folder / "done"
    (nobodys.folder / "drop").mkdir()
    (nobodys.folder / "drop").chmod(0o777)
    done.mkdir(0o755)
    told = nobodys.check(*as_nobody("lease"), watch=f'after = "move"\nmove_to = "{done}"')
    assert told.code == 2
    assert told.only("FAIL") == (
        f"FAIL writing drop: nobody has no write permission on {done} (move_to) "
        f"(fix: allow it, e.g. setfacl -m u:nobody:rwx {done} (under systemd also ReadWritePaths=))"
    )


@pytest.mark.parametrize(("mode", "need"), [(0o700, "r and x"), (0o711, "r and x"), (0o744, "x")])
def test_a_folder_that_can_not_be_read(nobodys: Setup, mode: int, need: str) -> None:
    (nobodys.folder / "drop").mkdir()
    (nobodys.folder / "drop").chmod(mode)
    told = nobodys.check(*as_nobody("lease"))
    assert told.code == 2
    line = told.only("FAIL")
    assert line.startswith("FAIL folders: watch.drop.path: ")
    assert f"{nobodys.folder}/drop" in line
    assert f"(fix: give the daemon's user {need} on it" in line
    assert f"ok   bucket {nobodys.bucket}: " in "\n".join(told.lines), "the store is looked at all the same"


def test_other_users_files_without_cap_lease(nobodys: Setup) -> None:
    """A warning: files go through all the same, ten quiet seconds after the last write."""
    told = nobodys.check(*as_nobody())
    assert told.code == 0
    line = told.only("warn")
    assert line.startswith("warn writer check drop: works for own files only: ")
    assert "no CAP_LEASE (a quiet time of 10 s)" in line
    assert "(fix: let the files belong to the daemon's user, give it CAP_LEASE" in line
    assert {line[:5] for line in nobodys.check(*as_nobody("lease")).lines} == {"ok   "}


def test_a_filesystem_that_tells_of_no_writers(right: Setup) -> None:
    with fuse(right.folder / "mounted"):
        told = right.check(drop="mounted")
    assert told.code == 0
    line = told.only("warn")
    assert line.startswith("warn writer check drop: can't work here: FUSE does not report writers on other hosts")
    assert "a quiet time of 10 s decides" in line
    assert "(fix: set ready_marker, or settle to more than writers pause" in line
