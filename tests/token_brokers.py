"""``presignd broker run`` in a process of its own, with tokens in files, as an administrator has it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from presignd.broker.tokens import hash_of, new_token
from presignd.embedded import LOOPBACK, free_ports
from tests.canary import assert_no_secrets
from tests.system.harness import COMMAND

if TYPE_CHECKING:
    import ssl

    from tests.stores import Store

Document = dict[str, Any]


class Broker:
    """A broker's folder and, while it is started, its process; its stderr of all runs goes to one file."""

    def __init__(self, folder: Path, store: Store, *, options: str = "", port: int = 0, tls: str = "") -> None:
        self.folder = folder
        self.port = port or free_ports(1)[0]
        self.url = f"{'https' if tls else 'http'}://{LOOPBACK}:{self.port}"
        self.file = folder / "broker.toml"
        self.log = folder / "broker.log"
        self.secrets = [store.secret_key]
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "tokens.d").mkdir(parents=True, exist_ok=True)
        self.configure(
            f"""
[broker]
listen = "{LOOPBACK}:{self.port}"
token_files = ["tokens.d/*.toml"]
{tls}
{options}
[store]
endpoint = "{store.endpoint}"
access_key = "{store.access_key}"
secret_key = "{store.secret_key}"
[log]
format = "json"
level = "debug"
"""
        )

    def configure(self, text: str) -> None:
        """Write broker.toml."""
        self.file.write_text(text, encoding="utf-8")
        self.file.chmod(0o600)

    def token(self, name: str, bucket: str, **options: Any) -> str:
        """Drop a token's file in tokens.d, by a rename; return the token."""
        secret = new_token()
        self.secrets.append(secret)
        given = {"name": name, "hash": hash_of(secret), "bucket": bucket, **options}
        draft = self.folder / f"{name}.draft"
        draft.write_text("[[token]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items()))
        draft.replace(self.folder / "tokens.d" / f"{name}.toml")
        return secret

    def revoke(self, name: str) -> None:
        """Remove a token's file."""
        (self.folder / "tokens.d" / f"{name}.toml").unlink()

    def start(self) -> None:
        """Start it (again), at the same port; return once it says that it is ready."""
        before = len(self.events("broker.ready"))
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [COMMAND, "broker", "run", "-c", self.file],
                env={**kept, "HOME": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.until(lambda: len(self.events("broker.ready")) > before, "broker.ready")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to drain and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def kill(self) -> None:
        """SIGKILL it, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def reload(self) -> None:
        """Have it read everything again; return once it did, or refused to."""
        assert self.process is not None
        told = ("config.reloaded", "config.refused")
        before = len(self.events(*told))
        self.process.send_signal(signal.SIGHUP)
        self.until(lambda: len(self.events(*told)) > before, "an end of the reload")

    def end(self) -> None:
        """End it however it stands, and look for anything secret in all it wrote."""
        self.kill()
        if self.log.exists():
            assert_no_secrets(self.log.read_bytes(), *self.secrets)

    def events(self, *names: str) -> list[Document]:
        """Return what was logged so far, of these names (all of them without any)."""
        if not self.log.exists():
            return []
        lines = self.log.read_text("utf-8", "replace").splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [event for event in found if not names or event["event"] in names]

    def until(self, true: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Wait until ``true()``, or fail with the end of the log."""
        deadline = time.monotonic() + seconds
        while not true():
            ended = self.process is not None and self.process.poll() is not None
            if ended or time.monotonic() > deadline:
                tail = self.log.read_text("utf-8", "replace")[-4000:]
                raise AssertionError(f"no {what}{' (it ended)' if ended else f' in {seconds:.0f} s'}; log:\n{tail}")
            time.sleep(0.02)

    # --- asked --------------------------------------------------------------------------------------
    def call(
        self,
        path: str,
        secret: str = "",
        body: bytes | Document | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        **headers: str,
    ) -> tuple[int, Document, Mapping[str, str]]:
        """Ask it; return the status, the JSON document, and the headers in lower case."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        given = {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        if secret:
            given["Authorization"] = f"Bearer {secret}"
        request = urllib.request.Request(self.url + path, data=data, headers=given)
        try:
            with urllib.request.urlopen(request, timeout=30, context=tls) as answer:
                return answer.status, json.loads(answer.read()), _lower(answer.headers)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.loads(refused.read()), _lower(refused.headers)

    def grants(self, secret: str, *asked: Document) -> list[Document]:
        """Ask for grants; each is a grant or an error."""
        status, answer, _ = self.call("/v1/grants", secret, {"grants": list(asked)})
        assert status == 200, answer
        found: list[Document] = answer["grants"]
        return found


def _lower(headers: Any) -> Mapping[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@contextmanager
def broker_for(folder: Path, store: Store, **how: Any) -> Iterator[Broker]:
    """Run a broker that signs for ``store``."""
    broker = Broker(folder, store, **how)
    try:
        broker.start()
        yield broker
    finally:
        broker.end()
