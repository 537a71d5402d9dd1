"""``presignd put -`` as in a pipe: with a daemon, without one, and with a broker; interrupted; without a good input."""

from __future__ import annotations

import os
import pty
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from presignd.s3.limits import CHECK_NAME
from tests.brokers import OneToken, served
from tests.canary import assert_no_secrets
from tests.stores import Store
from tests.system.harness import COMMAND, Presignd, config_for, fetch, until_true

PART = 5 << 20
PARTS = f'[upload]\nmultipart_threshold = "{PART}"\npart_size = "{PART}"\n'
SMALL = b"a dump\n" * 1000
LARGE = random.Random(1).randbytes(3 * PART + 12345)


class Pipe:
    """A configuration, and the command that reads a pipe by it."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.store, self.bucket = store, store.new_bucket()
        self.daemon = Presignd(folder, config_for(store, folder, self.bucket, more=PARTS), secrets=(store.secret_key,))

    def start(
        self, *arguments: str, stdin: int | IO[bytes] = subprocess.PIPE, stderr: int = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        command = [str(COMMAND), "put", "-c", str(self.daemon.config), "-", *arguments]
        return subprocess.Popen(command, env=self.daemon.environ, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr)

    def put(self, data: bytes, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(data, timeout=120)
        assert_no_secrets(err, self.store.secret_key)
        return process.returncode, out.decode(), err.decode()

    def objects(self) -> list[str]:
        """Return every key, but for the probe's, which may be there for a moment."""
        return [key for key in self.store.list(self.bucket) if key != CHECK_NAME]

    def uploads(self) -> list[str]:
        answer = self.store.client.list_multipart_uploads(Bucket=self.bucket)
        return [upload["UploadId"] for upload in answer.get("Uploads", ())]


@pytest.fixture
def pipe(tmp_path: Path, seaweedfs: Store) -> Iterator[Pipe]:
    made = Pipe(tmp_path, seaweedfs)
    yield made
    made.daemon.end()


@pytest.fixture(params=["daemon", "no daemon"])
def either(request: pytest.FixtureRequest, pipe: Pipe) -> Pipe:
    if request.param == "daemon":
        pipe.daemon.start()
    return pipe


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_a_pipe_becomes_an_object_and_its_link_is_printed(either: Pipe, data: bytes) -> None:
    code, out, err = either.put(data, "--name", "shop.dump")
    assert (code, err) == (0, "")
    assert fetch(out.strip()) == data
    assert either.objects() == ["shop.dump"]
    [link] = either.daemon.links()
    assert (link["url"], link["size"], link["path"]) == (out.strip(), len(data), "/dev/stdin/shop.dump")
    assert either.uploads() == []


def test_the_options_of_put_are_the_same(either: Pipe) -> None:
    code, out, _ = either.put(SMALL, "--name", "a.txt", "--key", "k/b", "--watch", "drop", "--expires", "1h", "--json")
    assert code == 0
    assert '"key":"k/b"' in out.replace(" ", "")
    assert '"content_type":"text/plain"' in out.replace(" ", "")
    assert "X-Amz-Expires=3600" in out


def test_a_file_on_standard_input_will_do(pipe: Pipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(LARGE)
    with (tmp_path / "file").open("rb") as file:
        process = pipe.start("--name", "a", stdin=file)
        out, _ = process.communicate(timeout=120)
    assert fetch(out.decode().strip()) == LARGE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_aborts_its_upload(either: Pipe, number: signal.Signals) -> None:
    process = either.start("--name", "a")
    assert process.stdin is not None
    process.stdin.write(LARGE[: 2 * PART])
    process.stdin.flush()
    until_true(either.uploads, "an upload", 60, process=process, log=either.daemon.config)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130 if number == signal.SIGINT else -number, b"")
    assert b"Traceback" not in err
    until_true(lambda: not either.uploads(), "end of the upload", 60, process=None, log=either.daemon.config)
    assert either.objects() == []


def test_a_command_that_is_killed_completes_nothing(pipe: Pipe) -> None:
    """Its socket ends as it does when a stream is done, but for the mark."""
    pipe.daemon.start()
    process = pipe.start("--name", "a")
    assert process.stdin is not None
    process.stdin.write(LARGE[: 2 * PART])
    process.stdin.flush()
    pipe.daemon.until(pipe.uploads, "an upload")
    process.kill()
    process.communicate()
    pipe.daemon.until(lambda: not pipe.uploads(), "end of the upload")
    pipe.daemon.until(lambda: pipe.daemon.events("file.done"), "file.done")
    assert pipe.objects() == []
    assert pipe.daemon.links() == []


BAD: dict[str, tuple[list[str], str]] = {
    "no name": ([], "--name NAME"),
    "a path": (["--name", "a/b"], "without folders"),
    "dots": (["--name", ".."], "without folders"),
    "no UTF-8": (["--name", os.fsdecode(b"\xff")], "UTF-8"),
    "other files": (["--name", "a", "b"], "standard input"),
    "a NUL-like key": (["--name", "a", "--key", "/x"], "segment"),
}


@pytest.mark.parametrize("how", BAD)
def test_what_is_not_right_is_told_in_one_line(pipe: Pipe, how: str) -> None:
    arguments, text = BAD[how]
    code, out, err = pipe.put(SMALL, *arguments)
    assert (code, out, err.count("\n")) == (4 if "--key" in arguments else 2, "", 1)
    assert text in err


def test_a_name_without_standard_input_is_refused(pipe: Pipe) -> None:
    done = pipe.daemon.run("put", "-c", pipe.daemon.config, pipe.daemon.config, "--name", "a")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_an_input_that_can_not_be_read_is_told(either: Pipe, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "for writing only", os.O_WRONLY | os.O_CREAT)
    process = either.start("--name", "a", stdin=fd)
    os.close(fd)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (4, b"")
    assert err.decode().startswith("presignd: put: standard input: ")
    assert either.objects() == []


def test_a_closed_input_is_not_an_empty_one(either: Pipe) -> None:
    """As a service or a script may be started: an empty object would replace the one of the time before."""
    command = [
        "sh",
        "-c",
        'exec "$0" "$@" <&-',
        str(COMMAND),
        "put",
        "-c",
        str(either.daemon.config),
        "-",
        "--name",
        "a",
    ]
    done = subprocess.run(command, env=either.daemon.environ, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (4, b"")
    assert done.stderr.startswith(b"presignd: put: standard input: Bad file descriptor")
    assert either.objects() == []


def test_a_store_that_is_away_ends_it_with_3(pipe: Pipe) -> None:
    config = pipe.daemon.config.read_text().replace(pipe.store.endpoint, "http://127.0.0.1:1")
    pipe.daemon.config.write_text(config)
    code, out, err = pipe.put(SMALL, "--name", "a")
    assert (code, out, err.count("\n")) == (3, "", 1)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_a_broker_s_token_is_enough(tmp_path: Path, seaweedfs: Store, data: bytes) -> None:
    """The machine with the pipe has no key of the store; the token's prefix is before the name."""
    bucket = seaweedfs.new_bucket()
    with served(OneToken(tmp_path / "broker", seaweedfs, bucket, prefix="backup/")) as broker:
        config = config_for(seaweedfs, tmp_path, bucket, more=PARTS, presign=broker.presign)
        daemon = Presignd(tmp_path, config, secrets=(seaweedfs.secret_key, broker.secret))
        command = [str(COMMAND), "put", "-c", str(daemon.config), "-", "--name", "shop.dump"]
        done = subprocess.run(command, env=daemon.environ, input=data, capture_output=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert fetch(done.stdout.decode().strip()) == data
        assert seaweedfs.read(bucket, "backup/shop.dump") == data


@pytest.mark.needs("terminal")
def test_a_terminal_shows_how_much_was_sent(pipe: Pipe) -> None:
    ours, theirs = pty.openpty()
    process = pipe.start("--name", "shop.dump", stderr=theirs)
    os.close(theirs)
    assert process.stdin is not None
    threading.Thread(target=_write, args=(process.stdin, LARGE)).start()
    shown = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    assert process.stdout is not None
    with process.stdout:
        assert fetch(process.stdout.read().decode().strip()) == LARGE
    assert process.wait(60) == 0
    assert b"shop.dump" in shown
    assert b"MB" in shown


def _write(stream: IO[bytes], data: bytes) -> None:
    with stream:
        stream.write(data)


def _read(terminal: int) -> bytes:
    """Read what a terminal shows; nothing once no program has it open (EIO)."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
