"""The installed command, driven as a user or systemd would: started, fed with files, stopped, killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import unicodedata
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.canary import assert_no_secrets
from tests.faulty_s3 import FaultyS3
from tests.links import whole_lines
from tests.stores import Store

COMMAND = Path(sys.executable).with_name("presignd")
"""The command as pip installed it beside this interpreter."""

Event = dict[str, Any]


def last_event(line: bytes) -> Event | None:
    """Return the event that a line of the log ends with; before it may stand what a SIGKILL left of another."""
    start = line.find(b'{"time"')
    while start >= 0:
        with contextlib.suppress(ValueError):
            event: Event = json.loads(line[start:])
            return event
        start = line.find(b'{"time"', start + 1)
    return None


def until_true(
    true: Callable[[], object], what: str, seconds: float, *, process: subprocess.Popen[bytes] | None, log: Path
) -> None:
    """Wait until ``true()``; fail with the end of the log when ``process`` ends or ``seconds`` are over."""
    deadline = time.monotonic() + seconds
    while not true():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            tail = log.read_text("utf-8", "replace")[-4000:]
            raise AssertionError(f"no {what}{' (it ended)' if ended else f' in {seconds:.0f} s'}; log:\n{tail}")
        time.sleep(0.05)


class Presignd:
    """``presignd run`` in a process of its own, over as many runs as the test needs.

    Its stderr of all runs goes to one file, whose JSON lines are the events.
    """

    def __init__(self, folder: Path, config: str, *, secrets: Sequence[str], prefix: Sequence[str] = ()) -> None:
        self.folder = folder
        self.config = folder / "config.toml"
        self.config.write_text(config, encoding="utf-8")
        self.config.chmod(0o600)
        self.log = folder / "stderr.log"
        self.stdout = folder / "stdout"
        self.state = folder / "state"
        self.links_file: Path | None = None
        self._secrets = secrets
        self._prefix = list(prefix)
        self._events: list[Event] = []
        self._parsed = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environ(self) -> dict[str, str]:
        """A bare environment with the control socket in the test's folder."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        return {**kept, "HOME": str(self.folder), "PRESIGND_SOCKET": str(self.folder / "control.sock")}

    def start(self, *, ready: bool = True, print_links: bool = False) -> None:
        """Start it; with ``ready`` wait until its watches have started."""
        before = len(self.events("watch.started"))
        more = ["--print-links"] if print_links else []
        with self.log.open("ab") as stderr, self.stdout.open("ab") as stdout:
            self.process = subprocess.Popen(
                [*self._prefix, COMMAND, "run", "-c", self.config, *more],
                env=self.environ,
                stdout=stdout,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
            )
        if ready:
            self.until(lambda: len(self.events("watch.started")) > before, "watch.started")

    def kill(self) -> None:
        """SIGKILL it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Drain it with SIGTERM and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def end(self) -> None:
        """End it in any state, and search all its output for secrets."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        if self.log.exists():
            assert_no_secrets(self.log.read_bytes(), *self._secrets)

    def run(
        self, *arguments: str | Path, check: bool = False, timeout: float = 60, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run another presignd command beside it."""
        done = subprocess.run(
            [*self._prefix, COMMAND, *arguments],
            env={**self.environ, **(environ or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        return done

    def events(self, *names: str) -> list[Event]:
        """Return the events logged so far, only those with these names if any are given."""
        self._read_log()
        return [event for event in self._events if not names or event["event"] in names]

    def _read_log(self) -> None:
        """Parse the lines logged since the last call, without a last line that is still being written."""
        if not self.log.exists():
            return
        with self.log.open("rb") as log:
            log.seek(self._parsed)
            whole = log.read().rpartition(b"\n")[0]
        self._parsed += len(whole) + bool(whole)
        self._events += [event for line in whole.splitlines() if (event := last_event(line)) is not None]

    def until(self, true: Callable[[], object], what: str, seconds: float = 120) -> None:
        """Wait until ``true()``, or fail with the end of the log."""
        until_true(true, what, seconds, process=self.process, log=self.log)

    def status(self) -> dict[str, Any]:
        """Return what ``presignd status --json`` says, of the daemon that runs."""
        answer: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return answer

    def links(self) -> list[dict[str, Any]]:
        """Return the lines of links.jsonl."""
        file = self.links_file or self.state / "links" / "links.jsonl"
        return [json.loads(line) for line in whole_lines(file)]


@contextlib.contextmanager
def all_ended() -> Iterator[list[Presignd]]:
    """Yield a list; at the end its daemons are ended and all their output is searched for secrets."""
    made: list[Presignd] = []
    yield made
    for daemon in made:
        daemon.end()


def config_for(
    store: Store | FaultyS3,
    folder: Path,
    bucket: str,
    *,
    watch: str = "",
    more: str = "",
    presign: str | None = None,
    drop: Path | None = None,
    log: str = "json",
) -> str:
    """Return a configuration: one watch at debug level, on ``folder/drop``, which is made, or on ``drop``.

    ``presign`` stands in place of the store's keys, ``more`` before all tables.
    """
    (folder / "drop").mkdir(exist_ok=True)
    keys = f'access_key = "{store.access_key}"\nsecret_key = "{store.secret_key}"'
    return f"""
{more}
[presign]
endpoint = "{store.endpoint}"
{keys if presign is None else presign}
[ledger]
path = "{folder}/state"
[log]
level = "debug"
format = "{log}"
[[watch]]
name = "drop"
path = "{drop or folder / "drop"}"
bucket = "{bucket}"
{watch}
"""


ODD = ("plain", "with space", "a+b", "100% sure", "what?", "no#1", "you&me", "it's", 'say "hi"', "naïve café", "😀🚀")


def names(count: int, rng: random.Random) -> Iterator[str]:
    """Yield relative paths with all unusual names that stores keep: NFC, NFD, 200-byte names, ten levels."""
    for number in range(count):
        odd = rng.choice(ODD)
        form = unicodedata.normalize(rng.choice(("NFC", "NFD")), f"{odd} {number}")
        if number % 17 == 0:
            form = (form + "x" * 200).encode()[:200].decode("utf-8", "ignore")
        depth = rng.choice((0, 0, 1, 2, 10))
        yield "/".join([*(f"d{level} {odd}" for level in range(depth)), form + ".bin"])


def contents(count: int, rng: random.Random, largest: int = 8 << 20) -> Iterator[bytes]:
    """Yield contents of 0 B to ``largest``: log-uniform, with each end at least once."""
    for number in range(count):
        size = {0: 0, 1: largest}.get(number) if number < 2 else int(2 ** rng.uniform(0, largest.bit_length() - 1))
        yield rng.randbytes(size or 0)


class Dropper(threading.Thread):
    """Drops files by cp, mv, rsync and a slow writer, in turns, beside the test."""

    def __init__(self, folder: Path, files: Mapping[str, bytes], pause: float = 0.0) -> None:
        super().__init__(daemon=True)
        self._drop, self._staging = folder / "drop", folder / "staging"
        self._files, self._pause = files, pause
        self.failed: BaseException | None = None

    def run(self) -> None:
        """Drop everything; a failure is kept for ``finish``."""
        try:
            for number, (name, content) in enumerate(self._files.items()):
                (self._copy, self._move, self._rsync, self._slowly)[number % 4](name, content)
                time.sleep(self._pause)
        except BaseException as error:  # noqa: BLE001 - told to the test's thread
            self.failed = error

    def finish(self) -> None:
        """Wait for the last file; raise what went wrong."""
        self.join(300)
        assert not self.is_alive()
        if self.failed:
            raise self.failed

    def _stage(self, content: bytes) -> Path:
        self._staging.mkdir(exist_ok=True)
        source = self._staging / "source"
        source.write_bytes(content)
        return source

    def _place(self, name: str) -> Path:
        target = self._drop / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _copy(self, name: str, content: bytes) -> None:
        subprocess.run(["cp", "--", self._stage(content), self._place(name)], check=True)

    def _move(self, name: str, content: bytes) -> None:
        shutil.move(self._stage(content), self._place(name))

    def _rsync(self, name: str, content: bytes) -> None:
        """Drop with rsync; without rsync, do the same: write under a hidden name, then rename."""
        target = self._place(name)
        if shutil.which("rsync"):
            subprocess.run(["rsync", "-q", "--", self._stage(content), target], check=True)
            return
        hidden = target.with_name(f".{target.name}.X7pQ2a")
        hidden.write_bytes(content)
        hidden.rename(target)

    def _slowly(self, name: str, content: bytes) -> None:
        step = max(1, len(content) // 4)
        with self._place(name).open("wb", buffering=0) as file:
            for start in range(0, len(content), step):
                file.write(content[start : start + step])
                time.sleep(0.01)


def fetch(url: str) -> bytes:
    """Fetch a link with a plain HTTP client."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        content: bytes = answer.read()
    return content


def assert_all_arrived(daemon: Presignd, store: Store, bucket: str, files: Mapping[str, bytes]) -> None:
    """Every object byte for byte by another client, one done event a version, every link fetches."""
    done = daemon.events("file.done")
    said_first = [event["file_id"] for event in done if not event.get("replayed")]
    assert len(said_first) == len(set(said_first)), "a version was done twice"
    # A line that a SIGKILL kept from being said comes as a replayed one alone.
    assert {event["key"] for event in done if event["status"] == "linked"} == set(files)
    assert {event["status"] for event in done} <= {"linked", "superseded"}
    assert daemon.events("file.quarantined") == []
    links = daemon.links()
    assert len({link["file_id"] for link in links}) == len(links), "a link stands twice"
    for key, content in files.items():
        assert store.read(bucket, key) == content, key
    for link in links:
        assert fetch(link["url"]) == files[link["key"]], link["key"]
