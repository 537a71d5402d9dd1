"""The container image, built for real by buildah, and run: its root read-only, presignd as PID 1, not as root.

Nothing here runs Docker: buildah makes the image, and its root is entered with namespaces as a container has them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from presignd.broker.tokens import hash_of, new_token
from presignd.demo.selfsigned import loopback_pem
from tests.canary import assert_no_secrets
from tests.stores import SeaweedFS, Store
from tests.system.host import fetch, paused
from tests.system.image import CHECKOUT, Image
from tests.system.machine import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

MOST_BYTES = 150_000_000
UID = "10001"
MOUNT = """
    root=$1 state=$2 secrets=$3 drop=$4; shift 4
    mount --bind "$root" "$root"
    mount -o remount,bind,ro "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/tmp"
    mount -t tmpfs tmpfs "$root/run"
    mkdir "$root/run/secrets"
    mount --bind "$secrets" "$root/run/secrets"
    mount --bind "$drop" "$root/mnt"
    mount --bind "$state" "$root/var/lib/presignd"
    mount --bind "$state" "$root/var/lib/presignd-broker"
    exec chroot "$root" setpriv --reuid="$UID" --regid="$UID" --clear-groups --bounding-set="$CAPS" --no-new-privs \
        env -i "$@"
"""
"""As ``docker run --read-only`` does it. exec: the command is PID 1 of its namespace."""


class Container:
    """One container of the image: its volumes, and its process while it runs."""

    def __init__(
        self,
        image: Image,
        folder: Path,
        environ: Mapping[str, str],
        secrets: Mapping[str, str],
        *,
        user: str = UID,
        capabilities: Sequence[str] = (),
    ) -> None:
        self._image, self._secrets, self._user = image, list(secrets.values()), user
        self._caps = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities)])
        self.state, self.secrets, self.drop = (folder / name for name in ("state", "secrets", "drop"))
        for each in (self.state, self.secrets, self.drop):
            each.mkdir()
            os.chown(each, int(user), int(user))
        for name, value in secrets.items():
            if not (folder := (self.secrets / name).parent).exists():
                folder.mkdir()
                os.chown(folder, int(user), int(user))
            (self.secrets / name).write_text(value)
            os.chown(self.secrets / name, int(user), int(user))
            (self.secrets / name).chmod(0o400)
        self.log = folder / "stderr"
        self._environ = [*image.config["Env"], *(f"{name}={value}" for name, value in environ.items())]
        self._unshare: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str] = ()) -> None:
        """Start the image's command, or its entry point with another one."""
        argv = [*self._image.config["Entrypoint"], *(command or self._image.config["Cmd"])]
        volumes = [self._image.root, self.state, self.secrets, self.drop]
        with self.log.open("ab") as log:
            self._unshare = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", MOUNT, "sh"]
                + [str(each) for each in [*volumes, *self._environ, *argv]],
                env={**os.environ, "UID": self._user, "CAPS": self._caps},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def signal(self, number: int) -> int:
        """Signal PID 1 and return with what the container ended."""
        assert self._unshare is not None
        os.kill(self._pid(), number)
        return self._unshare.wait(60)

    def _pid(self) -> int:
        assert self._unshare is not None
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        until(lambda: children.read_text("ascii"), "PID 1")  # unshare forks it a moment after its own start
        return int(children.read_text("ascii").split()[0])

    def exec(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command in it, as ``docker exec`` does."""
        inside = [
            "nsenter",
            f"--target={self._pid()}",
            "--mount",
            "--pid",
            "--root",
            "--wd=/",
            f"--setuid={self._user}",
        ]
        argv = [*inside, f"--setgid={self._user}", "/usr/bin/env", "-i", *self._environ, "sh", "-c", command]
        return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=120)

    def is_healthy(self) -> bool:
        """Run the image's own health check."""
        kind, command = self._image.config["Healthcheck"]["Test"]
        assert kind == "CMD-SHELL"
        return self.exec(command).returncode == 0

    def links(self) -> dict[str, str]:
        said = self.exec("presignd links --json").stdout.splitlines()
        return {link["key"]: link["url"] for link in map(json.loads, said)}

    def uploads(self) -> list[Any]:
        found: list[Any] = json.loads(self.exec("presignd status --json").stdout)["in_flight"]
        return found

    def events(self) -> list[dict[str, Any]]:
        """Return its log: every line is JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def end(self) -> None:
        if self._unshare is not None and self._unshare.poll() is None:
            self._unshare.kill()
            self._unshare.wait(60)
        if self.log.exists():
            assert_no_secrets(self.log.read_bytes(), *self._secrets)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = SeaweedFS(tmp_path / "store")
    try:
        store.start()
        yield store
    finally:
        store.kill()


@contextmanager
def daemon_in(image: Image, store: Store, folder: Path, **how: Any) -> Iterator[Container]:
    """Run a container whose configuration is in its environment alone, with its secrets in files."""
    environ = {
        "PRESIGND_PRESIGN__ENDPOINT": store.endpoint,
        "PRESIGND_PRESIGN__ACCESS_KEY_FILE": "/run/secrets/access_key",
        "PRESIGND_PRESIGN__SECRET_KEY_FILE": "/run/secrets/secret_key",
        "PRESIGND_WATCH__DROP__PATH": "/mnt",
        "PRESIGND_WATCH__DROP__BUCKET": store.bucket,
    }
    keys = {"access_key": store.access_key, "secret_key": store.secret_key}
    container = Container(image, folder, environ, keys, **how)
    try:
        container.start()
        until(container.is_healthy, "a healthy daemon", 120)
        yield container
    finally:
        container.end()


@pytest.fixture
def daemon(image: Image, store: Store, tmp_path: Path) -> Iterator[Container]:
    with daemon_in(image, store, tmp_path) as container:
        yield container


def test_the_image_says_how_it_runs_and_is_small(image: Image) -> None:
    assert image.config["User"] == "presignd"
    assert image.config["StopSignal"] == "SIGTERM"
    assert image.config["Labels"]["org.opencontainers.image.title"] == "presignd"
    assert image.compressed() < MOST_BYTES


def test_a_dropped_file_gets_its_link_and_the_log_is_json(daemon: Container) -> None:
    (daemon.drop / "hello.txt").write_text("hello")
    until(lambda: "hello.txt" in daemon.links(), "its link")
    assert fetch(daemon.links()["hello.txt"]) == "hello"
    assert daemon.signal(signal.SIGTERM) == 0
    assert {"daemon.ready", "file.done", "daemon.stopped"} <= {event["event"] for event in daemon.events()}


def test_pid_1_drains_on_sigterm(daemon: Container, store: Store) -> None:
    with paused(store):
        (daemon.drop / "flying.txt").write_text("flying")
        until(daemon.uploads, "an upload in flight")
        pid = daemon._pid()
        os.kill(pid, signal.SIGTERM)
        until(lambda: any(event["event"] == "daemon.draining" for event in daemon.events()), "the drain")
    assert daemon._unshare is not None
    assert daemon._unshare.wait(60) == 0
    assert [event["status"] for event in daemon.events() if event["event"] == "file.done"] == ["linked"]


def test_a_kill_with_an_upload_in_flight_loses_nothing(daemon: Container, store: Store) -> None:
    with paused(store):
        (daemon.drop / "flying.txt").write_text("flying")
        until(daemon.uploads, "an upload in flight")
        daemon.signal(signal.SIGKILL)
    daemon.start()
    until(lambda: "flying.txt" in daemon.links(), "its link", 120)
    assert fetch(daemon.links()["flying.txt"]) == "flying"


def test_check_says_that_other_users_writers_are_not_seen(daemon: Container) -> None:
    checked = daemon.exec("presignd check").stdout
    assert "warn writer check drop: works for own files only" in checked
    assert "CAP_LEASE" in checked


def test_as_root_with_the_documented_capabilities_every_users_writer_is_waited_for(
    image: Image, store: Store, tmp_path: Path
) -> None:
    page = (CHECKOUT / "docs" / "containers.md").read_text("utf-8")
    [added] = re.findall(r"`cap_drop: \[ALL\]` and `cap_add: \[([A-Z_, ]+)\]`", page)
    with daemon_in(image, store, tmp_path, user="0", capabilities=added.split(", ")) as container:
        path = container.drop / "report.txt"
        with path.open("wb", buffering=0) as file:
            os.chown(path, 1234, 1234)
            path.chmod(0o600)
            file.write(b"the first half, ")
            until(lambda: "open for writing" in container.exec("presignd status").stdout, "a writer that was seen")
            assert container.links() == {}
            file.write(b"the second")
        until(lambda: "report.txt" in container.links(), "its link")
        assert fetch(container.links()["report.txt"]) == "the first half, the second"
        assert "ok   writer check drop" in container.exec("presignd check").stdout


def documented_environment(command: str) -> dict[str, str]:
    """Return the variables of the ``docker run`` in docs/containers.md that ends with a command."""
    page = (CHECKOUT / "docs" / "containers.md").read_text("utf-8")
    [block] = [
        each for each in re.findall(r"^```\n(docker run .*?)^```$", page, re.MULTILINE | re.DOTALL) if command in each
    ]
    words = shlex.split(block.partition("\ndocker exec")[0])
    return dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "-e")


def block_of(token: str, store: Store) -> str:
    return f'[[token]]\nname = "drop"\nhash = "{hash_of(token)}"\nbucket = "{store.bucket}"\n'


def test_the_same_image_runs_a_broker_from_the_documented_environment_alone(
    image: Image, store: Store, tmp_path: Path
) -> None:
    """With its state in the volume: the documented one is in a PostgreSQL, which is not here."""
    environ = documented_environment("presignd broker run") | {"PRESIGND_STORE__ENDPOINT": store.endpoint}
    assert environ.pop("PRESIGND_STATE__URL_FILE") == "/run/secrets/state_url"
    token = new_token()
    secrets = {"access_key": store.access_key, "secret_key": store.secret_key, "broker.pem": loopback_pem()[0]}
    broker = Container(image, tmp_path, environ, {**secrets, "tokens.d/drop.toml": block_of(token, store)})
    try:
        broker.start(["broker", "run"])
        until(broker.is_healthy, "a healthy broker", 120)
        checked = broker.exec("presignd broker check")
        assert checked.returncode == 0, checked.stdout
        assert "ok   config: from the environment alone" in checked.stdout
        assert broker.exec("presignd broker token list").stdout.startswith("drop\t")
        invited = broker.exec(f"presignd broker invite create march --bucket {store.bucket} --prefix incoming/")
        assert invited.stdout.startswith("https://files.example.org/i/"), invited.stderr
        assert {"state.db", "control.sock"} <= {file.name for file in broker.state.iterdir()}
        assert broker.signal(signal.SIGTERM) == 0
        assert {"broker.ready"} <= {event["event"] for event in broker.events()}
    finally:
        broker.end()


def test_the_same_image_runs_a_broker_from_a_mounted_file(image: Image, store: Store, tmp_path: Path) -> None:
    token = new_token()
    text = f"""
        [store]
        endpoint = "{store.endpoint}"
        access_key_file = "access_key"
        secret_key_file = "secret_key"
        {block_of(token, store)}
    """
    secrets = {"access_key": store.access_key, "secret_key": store.secret_key, "broker.toml": text}
    broker = Container(image, tmp_path, {"STATE_DIRECTORY": "/var/lib/presignd-broker"}, secrets)
    try:
        broker.start(["broker", "run", "-c", "/run/secrets/broker.toml"])
        check = "presignd broker health -c /run/secrets/broker.toml"
        until(lambda: broker.exec(check).returncode == 0, "a healthy broker", 120)
        assert broker.signal(signal.SIGTERM) == 0
        assert {"broker.ready"} <= {event["event"] for event in broker.events()}
    finally:
        broker.end()
