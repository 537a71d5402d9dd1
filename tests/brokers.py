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
from contextlib import AbstractContextManager, closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from presignd.broker.tokens import hash_of, new_token
from presignd.demo.seaweedfs import LOOPBACK, free_ports
from tests.canary import assert_no_secrets
from tests.system.harness import COMMAND, until_true

if TYPE_CHECKING:
    import ssl

    from tests.stores import Store

CHECKOUT = Path(__file__).parents[1]

Document = dict[str, Any]
B = TypeVar("B", bound="Broker")


class Broker:
    """A broker's folder and, while it is started, its process; its stderr of all runs goes to one file."""

    def __init__(
        self,
        folder: Path,
        store: Store,
        *,
        options: str = "",
        tls: str = "",
        endpoint: str = "",
        more: str = "",
    ) -> None:
        self.folder = folder
        (self.port,) = free_ports(1)
        self.url = f"{'https' if tls else 'http'}://{LOOPBACK}:{self.port}"
        self.file = folder / "broker.toml"
        self.log = folder / "broker.log"
        self.secrets = [store.secret_key]
        self.process: subprocess.Popen[bytes] | None = None
        self.environ: dict[str, str] = {}
        """More of its environment."""
        self._began = 0
        (folder / "tokens.d").mkdir(parents=True, exist_ok=True)
        self.configure(
            f"""
[broker]
listen = "{LOOPBACK}:{self.port}"
token_files = ["tokens.d/*.toml"]
{tls}
{options}
[store]
endpoint = "{endpoint or store.endpoint}"
access_key = "{store.access_key}"
secret_key = "{store.secret_key}"
[log]
format = "json"
level = "debug"
{more}
"""
        )

    def configure(self, text: str) -> None:
        """Write broker.toml."""
        self.file.write_text(text, encoding="utf-8")
        self.file.chmod(0o600)

    def token(self, name: str, bucket: str, **options: Any) -> str:
        """Rename a token's file into tokens.d; return the token."""
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

    def start(self, *, ready: bool = True) -> None:
        """Start or restart it at the same port; with ``ready`` wait until it serves."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        # A copy of the project tests itself, not what is installed.
        environ = {**kept, "HOME": str(self.folder), "PYTHONPATH": str(CHECKOUT), **self.environ}
        with self.log.open("ab") as log:
            self._began = log.tell()
            self.process = subprocess.Popen(
                [COMMAND, "broker", "run", "-c", self.file],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if ready:
            self.wait()

    def wait(self) -> None:
        """Wait until it serves."""
        self.until(lambda: b'"event": "broker.ready"' in self._said(), "broker.ready")

    def _said(self) -> bytes:
        """Return its log since the last start."""
        with self.log.open("rb") as log:
            log.seek(self._began)
            return log.read()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Drain it with SIGTERM and return its exit code."""
        assert self.process is not None
        ended, self.process = self.process, None
        ended.send_signal(number)
        return ended.wait(60)

    def kill(self) -> None:
        """SIGKILL it if it runs."""
        if self.process is not None:
            self.stop(signal.SIGKILL)

    def reload(self) -> None:
        """Reload it; return once the reload succeeded or was refused."""
        assert self.process is not None
        told = ("config.reloaded", "config.refused")
        before = len(self.events(*told))
        self.process.send_signal(signal.SIGHUP)
        self.until(lambda: len(self.events(*told)) > before, "an end of the reload")

    def end(self) -> None:
        """End it in any state, and search all its output for secrets."""
        self.kill()
        if self.log.exists():
            assert_no_secrets(self.log.read_bytes(), *self.secrets)

    def events(self, *names: str) -> list[Document]:
        """Return the events logged so far, only those with these names if any are given."""
        if not self.log.exists():
            return []
        lines = self.log.read_text("utf-8", "replace").splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [event for event in found if not names or event["event"] in names]

    def until(self, true: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Wait until ``true()``, or fail with the end of the log."""
        until_true(true, what, seconds, process=self.process, log=self.log)

    def told(self, name: str, **fields: object) -> Document:
        """Wait for a line with this name and these fields, and return it: the only one. It follows its answer."""

        def found() -> list[Document]:
            return [event for event in self.events(name) if event.items() >= fields.items()]

        self.until(found, name)
        (event,) = found()
        return event

    # --- asked --------------------------------------------------------------------------------------
    def call(
        self,
        path: str,
        secret: str = "",
        body: bytes | Document | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        method: str | None = None,
        **headers: str,
    ) -> tuple[int, Document, Mapping[str, str]]:
        """Ask it; return the status, the JSON document ({} for none), and the headers in lower case."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        given = {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        if secret:
            given["Authorization"] = f"Bearer {secret}"
        request = urllib.request.Request(self.url + path, data=data, headers=given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30, context=tls) as answer:
                return answer.status, json.loads(answer.read() or b"{}"), _lower(answer.headers)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.loads(refused.read()), _lower(refused.headers)

    def grants(self, secret: str, *asked: Document) -> list[Document]:
        """Request grants; each result is a grant or an error."""
        status, answer, _ = self.call("/v1/grants", secret, {"grants": list(asked)})
        assert status == 200, answer
        found: list[Document] = answer["grants"]
        return found

    def metrics(self) -> str:
        """Return the text of /metrics."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            text: bytes = answer.read()
        return text.decode()


def command(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run ``presignd broker`` with ``arguments``; ``environ`` is added to the environment."""
    return subprocess.run(
        [COMMAND, "broker", *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def get(bucket: str, key: str, **more: Any) -> Document:
    """Return the grant request for a link."""
    return {"operation": "get", "bucket": bucket, "key": key, "expires": 600, **more}


def _lower(headers: Any) -> Mapping[str, str]:
    return {name.lower(): value for name, value in headers.items()}


class OneToken(Broker):
    """A broker with one token, as a daemon uses it."""

    NAME = "tests"

    HEADERS = ("x-amz-meta-*", "cache-control")

    def __init__(
        self, folder: Path, store: Store, bucket: str, *, prefix: str = "", endpoint: str = "", **more: Any
    ) -> None:
        super().__init__(folder, store, endpoint=endpoint)
        self._given: dict[str, Any] = {"bucket": bucket, "prefix": prefix, "headers": [*self.HEADERS], **more}
        self.renew_token()

    def renew_token(self) -> None:
        """Replace the token: the broker rereads its file without a reload."""
        self.secret = self.token(self.NAME, **self._given)

    @property
    def presign(self) -> str:
        """Return the daemon's [presign] settings for this broker; writes the token's file."""
        token_file = self.folder / "token"
        token_file.touch(0o600)
        token_file.write_text(f"{self.secret}\n", encoding="utf-8")
        return f'kind = "broker"\nurl = "{self.url}"\ntoken_file = "{token_file}"'


class FleetBroker(Broker):
    """A broker with a fleet page."""

    def __init__(self, folder: Path, store: Store, *, sections: str = "") -> None:
        (self.fleet_port,) = free_ports(1)
        super().__init__(folder, store, options=f'[fleet]\nlisten = "{LOOPBACK}:{self.fleet_port}"\n{sections}')

    @property
    def admin_token(self) -> str:
        """The page's token."""
        return (self.folder / "fleet.token").read_text("ascii").strip()

    def start(self, *, ready: bool = True) -> None:
        """Start it, and wait until its page is up."""
        before = len(self.events("fleet.started"))
        super().start(ready=ready)
        self.until(lambda: len(self.events("fleet.started")) > before, "the fleet page")
        self.secrets.append(self.admin_token)

    def address(self) -> str:
        """Return an address that logs in."""
        printed = command("fleet", "-c", self.file)
        assert (printed.returncode, printed.stderr) == (0, "")
        return printed.stdout.strip()

    @contextmanager
    def open(self, path: str, **headers: str) -> Iterator[HTTPResponse]:
        """Ask the page; follow no redirect."""
        with closing(HTTPConnection(LOOPBACK, self.fleet_port, timeout=30)) as connection:
            connection.request("GET", path, headers=headers)
            with connection.getresponse() as answer:
                yield answer

    def log_in(self) -> dict[str, str]:
        """Return the header with the cookie of a browser that is logged in."""
        with self.open(path_of(self.address())) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, ".")
            return {"Cookie": str(answer.headers["Set-Cookie"]).partition(";")[0]}

    def read(self, path: str, **headers: str) -> str:
        """Return what an administrator sees."""
        with self.open(path, **{"Authorization": f"Bearer {self.admin_token}", **headers}) as answer:
            assert answer.status == 200
            return answer.read().decode()

    def fleet(self) -> dict[str, Document]:
        """Return each token of /api/fleet."""
        time.sleep(1.1)  # a snapshot is shown again for a second
        return {token["name"]: token for token in json.loads(self.read("/api/fleet"))["tokens"]}


def path_of(address: str) -> str:
    """Return what a client asks for, of an address."""
    parts = urlsplit(address)
    return f"{parts.path}?{parts.query}"


@contextmanager
def served(broker: B) -> Iterator[B]:
    """Run a broker; at the end, search its output for secrets."""
    try:
        broker.start()
        yield broker
    finally:
        broker.end()


def broker_for(folder: Path, store: Store, **how: Any) -> AbstractContextManager[Broker]:
    """Run a broker that signs for ``store``."""
    return served(Broker(folder, store, **how))


def one_token(folder: Path, store: Store, bucket: str, *, prefix: str = "") -> AbstractContextManager[OneToken]:
    """Run a broker that signs for ``store``; its token is for ``bucket`` below ``prefix``."""
    return served(OneToken(folder, store, bucket, prefix=prefix))
