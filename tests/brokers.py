"""``presignd broker run`` in a process of its own, signing for a store of the tests, with one token."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from presignd.broker.tokens import hash_of, new_token
from presignd.embedded import LOOPBACK, free_ports
from tests.canary import assert_no_secrets
from tests.stores import Store
from tests.system.harness import COMMAND

CHECKOUT = Path(__file__).parents[1]


class RealBroker:
    """One broker over as many runs as the test needs; its stderr of all runs goes to one file."""

    def __init__(self, folder: Path, store: Store, bucket: str, *, prefix: str = "", endpoint: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.token = new_token()
        self.log = folder / "broker.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._folder = folder
        self._secrets: tuple[str, ...] = (store.secret_key, self.token)
        (self._port,) = free_ports(1)
        self.file = folder / "broker.toml"
        self.file.write_text(
            f"""
[broker]
listen = "{LOOPBACK}:{self._port}"
[store]
endpoint = "{endpoint or store.endpoint}"
access_key = "{store.access_key}"
secret_key = "{store.secret_key}"
[log]
level = "debug"
format = "json"
[[token]]
name = "tests"
hash = "{hash_of(self.token)}"
bucket = "{bucket}"
prefix = "{prefix}"
headers = ["x-amz-meta-*", "cache-control"]
""",
            encoding="utf-8",
        )
        self.file.chmod(0o600)

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``, the same after every start."""
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def presign(self) -> str:
        """What a daemon's [presign] has in place of keys."""
        token_file = self._folder / "token"
        token_file.touch(0o600)
        token_file.write_text(f"{self.token}\n", encoding="utf-8")
        return f'kind = "broker"\nurl = "{self.url}"\ntoken_file = "{token_file}"'

    def renew_token(self) -> None:
        """Replace the token by another: the broker reads its file again by itself."""
        before, self.token = self.token, new_token()
        self._secrets = (*self._secrets, self.token)
        written = self.file.read_text("utf-8").replace(hash_of(before), hash_of(self.token))
        draft = self.file.with_suffix(".new")
        draft.touch(0o600)
        draft.write_text(written, encoding="utf-8")
        draft.replace(self.file)

    def start(self, *, ready: bool = True) -> None:
        """Start it (again); with ``ready`` return once it serves."""
        # A copy of the project tests itself, not what is installed.
        environ = {"PATH": os.defpath, "HOME": str(self._folder), "PYTHONPATH": str(CHECKOUT)}
        with self.log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [COMMAND, "broker", "run", "-c", self.file], env=environ, stderr=stderr, stdin=subprocess.DEVNULL
            )
        if ready:
            self.wait()

    def wait(self) -> None:
        """Return once it serves."""
        deadline = time.monotonic() + 60
        while not self._serves():
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def _serves(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """SIGKILL it."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM it, and wait until it has drained."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process = None

    def end(self) -> None:
        """End it however it stands, and look for anything secret in all it wrote."""
        self.kill()
        if self.log.exists():
            assert_no_secrets(self.log.read_bytes(), *self._secrets)


@contextmanager
def real_broker(
    folder: Path, store: Store, bucket: str, *, prefix: str = "", endpoint: str = ""
) -> Iterator[RealBroker]:
    """Run a broker that signs for ``store``; its token is for ``bucket`` below ``prefix``."""
    broker = RealBroker(folder, store, bucket, prefix=prefix, endpoint=endpoint)
    broker.start()
    try:
        yield broker
    finally:
        broker.end()
