"""The servers of the tables: a sink, and SeaweedFS."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, Self

from presignd.demo.seaweedfs import LOOPBACK, Child, EmbeddedStore, free_ports

BUCKET = "bench"
ACCESS_KEY, SECRET_KEY = "bench-access-key", "bench-secret-key-0123456789"
ROOT = Path(__file__).resolve().parent.parent


def until(true: Callable[[], object], what: str, seconds: float, step: float = 0.02) -> None:
    """Wait until ``true()``; raise ``RuntimeError`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"no {what} in {seconds:.0f} s")
        time.sleep(step)


class Server(Protocol):
    """An S3 server that a contender uploads to."""

    name: str
    endpoint: str
    access_key: str
    secret_key: str
    ca_file: Path | None
    """The CA of its certificate, None over http."""


StartedServer = AbstractContextManager[Server]


class Sink:
    """The server of ``benchmarks.sink``, during a ``with``."""

    name = "sink"
    access_key, secret_key = ACCESS_KEY, SECRET_KEY
    ca_file: Path | None = None

    def __init__(self, folder: Path) -> None:
        (self._port,) = free_ports(1)
        self.endpoint = f"http://{LOOPBACK}:{self._port}"
        self._log = folder / "sink.log"
        self.objects: Path | None = None
        """A listing of what it shall have from the start."""

    def __enter__(self) -> Self:
        argv = [sys.executable, "-m", "benchmarks.sink", "--port", str(self._port)]
        argv += ["--objects", str(self.objects)] if self.objects else []
        self._child = Child(argv, env=dict(os.environ), cwd=ROOT, log=self._log)
        until(self._answers, "the sink's answer", 60)
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop()

    def _answers(self) -> bool:
        try:
            return bool(self.stats())
        except OSError:
            return False

    def stats(self) -> dict[str, Any]:
        """Return what the sink has counted: requests by method, bytes off the wire, its own CPU seconds."""
        with urllib.request.urlopen(f"{self.endpoint}/-/stats", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


class Seaweed:
    """A fresh SeaweedFS, during a ``with``; its data is deleted with it."""

    name = "SeaweedFS"
    access_key, secret_key = ACCESS_KEY, SECRET_KEY
    ca_file: Path | None = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "weed"

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self.store = EmbeddedStore(self._folder, bucket=BUCKET, access_key=ACCESS_KEY, secret_key=SECRET_KEY)
        self.store.start_sync()
        self.endpoint = self.store.endpoint
        return self

    def __exit__(self, *_: object) -> None:
        self.store.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
