"""A real PostgreSQL on loopback, run as an unprivileged user, with its durability as in production.

``postgres`` lives as long as the session: take a database of your own with ``new_database``. ``own_postgres`` is a
fresh one for tests that stop or kill it.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from presignd.demo.seaweedfs import LOOPBACK, free_ports
from tests.needs import need, postgres_programs

_numbers = itertools.count(1)


class Postgres:
    """One server; ``start`` after ``stop`` or ``kill`` serves the same data at the same port."""

    def __init__(self, folder: Path) -> None:
        self._programs = postgres_programs()
        self._folder = folder
        self._user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        (self.port,) = free_ports(1)
        if os.geteuid() == 0:  # it refuses to run as root
            shutil.chown(folder, self._user)
        self._run("initdb", "-D", self._data, "-U", "presignd", "-A", "scram-sha-256", "--pwfile", self._password())
        self.start()

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _password(self) -> Path:
        file = self._folder / "password"
        file.write_text("in-the-tests\n")
        file.chmod(0o644)
        return file

    def start(self) -> None:
        """Start it (again); returns once it answers."""
        options = f"-p {self.port} -c listen_addresses={LOOPBACK} -c unix_socket_directories={self._folder}"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", self._data, "-o", options, "-l", log, "-w", "-t", "60", "start")

    def serve_tls(self, certificate: trustme.LeafCert) -> None:
        """Restart it with TLS, beside connections without."""
        self.stop()
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        for name, content in (("server.crt", chain), ("server.key", certificate.private_key_pem.bytes())):
            file = self._data / name
            file.write_bytes(content)
            file.chmod(0o600)
            if os.geteuid() == 0:
                shutil.chown(file, self._user)
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.write("ssl = on\n")
        self.start()

    def stop(self) -> None:
        """Stop it, and break every connection."""
        self._run("pg_ctl", "-D", self._data, "-m", "fast", "-w", "stop")

    def kill(self) -> None:
        """Stop it without a checkpoint, as a crash would: the next start recovers from its log."""
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")

    def new_database(self) -> str:
        """Make an empty database; return its URL."""
        name = f"state_{os.getpid()}_{next(_numbers)}"
        environ = {"PGPASSWORD": "in-the-tests", "LANG": "C.UTF-8"}
        command = ("createdb", "-h", LOOPBACK, "-p", str(self.port), "-U", "presignd", name)
        self._run(*command, environ=environ)
        return f"postgresql://presignd:in-the-tests@{LOOPBACK}:{self.port}/{name}"

    def _run(self, program: str, *arguments: str | Path, environ: dict[str, str] | None = None) -> None:
        user = self._user if os.geteuid() == 0 else None
        with (self._folder / "out").open("ab") as out:  # no pipe: the server inherits it, and would keep it open
            done = subprocess.run(
                [self._programs / program, *arguments],
                user=user,
                group=user,
                extra_groups=[] if user else None,
                cwd="/",
                env=environ or {"LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=120,
                check=False,
            )
        assert done.returncode == 0, (self._folder / "out").read_text()


@contextmanager
def server() -> Iterator[Postgres]:
    """Run a fresh server."""
    # Not in pytest's folders, which its user can't enter.
    folder = Path(tempfile.mkdtemp(prefix="presignd-postgres-", dir="/tmp"))
    try:
        made = Postgres(folder)
        try:
            yield made
        finally:
            made.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _served() -> Iterator[Postgres]:
    need("postgres")
    with server() as postgres:
        yield postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    yield from _served()


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    yield from _served()
