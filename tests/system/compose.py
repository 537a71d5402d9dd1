"""The services of compose.yaml, each run with the command, environment, user and mounts that stand there.

Docker does not run here, and there is no registry for the images of others. So each service is a process in namespaces
of its own, as a container is: those of presignd's image in that image's root, the others in an overlay of this
machine's, with its programs. All share one network, in which each service's name is loopback.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped] # mkdocs brings it, without types

from presignd.demo.seaweedfs import find_program
from tests.needs import find, postgres_programs
from tests.system.image import CHECKOUT, Image
from tests.system.machine import until

R = TypeVar("R")

CLONE_NEWNET = 0x40000000
UID = "10001:10001"
"""The user of presignd's image."""
NAMES = ("store", "database", "broker", "daemon", "proxy")
DATABASE = """
    mkdir -p /var/run/postgresql && chown postgres: /var/run/postgresql "$PGDATA"
    as() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
    if [ ! -s "$PGDATA/PG_VERSION" ]; then
        install -o postgres -m 0400 "$POSTGRES_PASSWORD_FILE" /run/password
        as initdb -D "$PGDATA" -U "$POSTGRES_USER" -A scram-sha-256 --pwfile=/run/password
        echo "CREATE DATABASE $POSTGRES_DB" | as postgres --single -D "$PGDATA" postgres
    fi
    exec setpriv --reuid=postgres --regid=postgres --clear-groups postgres -D "$PGDATA" -c listen_addresses='*' \
        -c unix_socket_directories=/var/run/postgresql
"""
"""What the entry point of the postgres image does with its environment."""
START = """
    base=$1 below=$2 mounts=$3 mode=$4 user=$5 caps=$6; shift 6
    mount -t tmpfs tmpfs "$base"
    mkdir "$base/upper" "$base/work" "$base/root"
    mount -t overlay overlay -o "lowerdir=$below,upperdir=$base/upper,workdir=$base/work" "$base/root"
    root=$base/root
    echo "127.0.0.1 localhost $NAMES" > "$root/etc/hosts"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    while read -r source target how; do
        mkdir -p "$(dirname "$root$target")"
        if [ -d "$source" ]; then mkdir -p "$root$target"; else : > "$root$target"; fi
        mount --bind "$source" "$root$target"
        if [ "$how" = ro ]; then mount -o remount,bind,ro "$root$target"; fi
    done < "$mounts"
    mount -t tmpfs tmpfs "$root/tmp"
    if [ "$mode" = ro ]; then mount -o remount,ro "$root"; fi
    exec chroot "$root" setpriv --reuid="${user%:*}" --regid="${user#*:}" --clear-groups --bounding-set="$caps" \
        --no-new-privs env -i "$@"
"""
"""exec: the command is PID 1 of its namespace."""


class Network:
    """A network of its own, with loopback alone."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "ip link set lo up && exec sleep infinity"])
        self.place = Path(f"/proc/{self._holder.pid}/ns/net")
        until(lambda: self.place.readlink() != Path("/proc/self/ns/net").readlink(), "a network")

    def inside(self, do: Callable[[], R]) -> R:
        """Run a function in a thread that is in this network."""

        def entered() -> R:
            with self.place.open() as network:
                assert ctypes.CDLL(None, use_errno=True).setns(network.fileno(), CLONE_NEWNET) == 0
            return do()

        with ThreadPoolExecutor(1) as pool:  # the thread ends with it
            return pool.submit(entered).result(120)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait(10)


class Service:
    """One service: its process, while it runs, and its output."""

    def __init__(
        self, folder: Path, network: Network, argv: Sequence[str], environ: Mapping[str, str], how: How
    ) -> None:
        self._folder, self._network, self._argv, self._how = folder, network, argv, how
        self._environ = [f"{name}={value}" for name, value in environ.items()]
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        base = self._folder / "base"
        base.mkdir()
        mounts = self._folder / "mounts"
        mounts.write_text("".join(" ".join(each) + "\n" for each in self._how.mounts))
        arguments = [base, self._how.below, mounts, self._how.mode, self._how.user, self._how.caps]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("nsenter", f"--net={self._network.place}"),
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
                    *("sh", "-euc", START, "sh", *map(str, arguments), *self._environ, *self._argv),
                ],
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "NAMES": " ".join(NAMES)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait(self, seconds: float = 120) -> int:
        """Return with what it ended by itself."""
        assert self._process is not None
        return self._process.wait(seconds)

    def stop(self) -> int:
        """Stop it as ``docker compose stop`` does; return with what it ended."""
        os.kill(self._pid(), signal.SIGTERM)
        return self.wait(60)

    def _pid(self) -> int:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        until(lambda: children.read_text("ascii"), "PID 1")
        return int(children.read_text("ascii").split()[0])

    def exec(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as ``docker compose exec`` does."""
        user, group = self._how.user.split(":")
        inside = ["nsenter", f"--target={self._pid()}", "--mount", "--pid", "--net", "--root", "--wd=/"]
        argv = [
            *inside,
            "setpriv",
            f"--reuid={user}",
            f"--regid={group}",
            "--clear-groups",
            "env",
            "-i",
            *self._environ,
        ]
        return subprocess.run([*argv, *command], check=False, capture_output=True, text=True, timeout=120)

    def is_healthy(self) -> bool:
        """Run the file's own health check."""
        kind, *command = self._how.healthcheck
        assert kind == "CMD"
        return self.exec(*command).returncode == 0

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(60)


class How:
    """How a service's container is made: its root, mounts, user, capabilities."""

    def __init__(self, below: Path, mounts: list[tuple[str, str, str]], document: Mapping[str, Any], user: str) -> None:
        self.below, self.mounts = below, mounts
        self.user = str(document.get("user", user))
        self.mode = "ro" if document.get("read_only") else "rw"
        added = [f"+{name.lower()}" for name in document.get("cap_add", ())]
        self.caps = ",".join(["-all", *added]) if "ALL" in document.get("cap_drop", ()) else "+all"
        self.healthcheck: list[str] = document.get("healthcheck", {}).get("test", [])


class Compose:
    """All services of compose.yaml, in ``folder``; the folder of drops is ``folder/drop``."""

    def __init__(self, folder: Path, image: Image) -> None:
        self._folder, self._image = folder, image
        self.network = Network()
        self.drop = folder / "drop"
        self.drop.mkdir()
        self.services: dict[str, Service] = {}
        self._documents = _documents()
        self._made: list[Path] = []

    def run(self, name: str) -> Service:
        """Start a service; return it once it is healthy, or once it has ended if it runs once."""
        document = self._documents[name]
        for other in document.get("depends_on", {}):
            assert other in self.services, f"{name} needs {other}"
        service = self.services[name] = self._service(name, document)
        service.start()
        if document.get("restart") == "no":
            assert service.wait() == 0, service.log.read_text()
        elif "healthcheck" in document:
            until(service.is_healthy, f"a healthy {name}: {service.log}", 120)
        return service

    def _service(self, name: str, document: Mapping[str, Any]) -> Service:
        ours = document["image"] == "presignd"
        below = self._image.root if ours else Path("/")
        mounts = [self._mount(volume, below) for volume in document["volumes"]]
        folder = self._folder / f"{name}-{len(self._made)}"
        folder.mkdir()
        self._made.append(folder)
        if ours:
            config = self._image.config
            argv = [*document.get("entrypoint", config["Entrypoint"]), *document.get("command", config["Cmd"])]
            environ = dict(each.split("=", 1) for each in config["Env"])
            user = UID
        else:
            argv, environ, more = _peer(name, document)
            mounts += more
            user = "0:0"
        environ |= document.get("environment", {})
        return Service(folder, self.network, argv, environ, How(below, mounts, document, user))

    def _mount(self, volume: str, below: Path) -> tuple[str, str, str]:
        """Return the source, the target and the mode of a volume; a named one is made as Docker does."""
        source, target, mode = volume.split(":")
        if Path(source) == CHECKOUT / "drop":
            return str(self.drop), target, mode
        if source.startswith("/"):
            return source, target, mode
        folder = self._folder / "volumes" / source
        if not folder.exists():
            folder.mkdir(parents=True)
            if (like := below / target.lstrip("/")).is_dir():
                shutil.copystat(like, folder)
                os.chown(folder, like.stat().st_uid, like.stat().st_gid)
        return str(folder), target, mode

    def volume(self, name: str) -> Path:
        """Return the folder of a named volume."""
        return self._folder / "volumes" / name

    def close(self) -> None:
        for service in reversed(self.services.values()):
            service.end()
        self.network.close()

    def logs(self) -> str:
        """Return what all services wrote."""
        return "\n".join((folder / "log").read_text(errors="replace") for folder in self._made)


def _peer(name: str, document: Mapping[str, Any]) -> tuple[list[str], dict[str, str], list[tuple[str, str, str]]]:
    """Return the command, the environment and the programs of a service whose image is another's."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    given = [word.replace("$$", "$") for word in [*document.get("entrypoint", []), *document.get("command", [])]]
    if name == "store":
        return given, {"PATH": path}, [(str(find_program("weed")), "/usr/local/bin/weed", "ro")]
    assert not given, "the image's own command"
    if name == "database":
        data = "/var/lib/postgresql/data"
        return ["sh", "-euc", DATABASE], {"PATH": f"{postgres_programs()}:{path}", "PGDATA": data}, []
    assert name == "proxy"
    return [str(find("nginx")), "-g", "daemon off;"], {"PATH": path}, []


def _documents() -> dict[str, Any]:
    """Return the services as docker-compose reads them, with all variables at their defaults."""
    command = ["docker-compose", "--file", str(CHECKOUT / "compose.yaml"), "config"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    read: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return read
