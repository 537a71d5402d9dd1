"""A daemon with only a token: all that one with keys does, through kills of either side, and no key in its memory.

``PRESIGND_TEST_FILES`` sets how many files (120 by default; a thousand is the real thing).
"""

from __future__ import annotations

import os
import random
import re
import signal
import sqlite3
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.brokers import OneToken, one_token
from tests.stores import Store, on_one_store
from tests.system.harness import Dropper, Presignd, assert_all_arrived, config_for, contents, fetch, names

COUNT = int(os.environ.get("PRESIGND_TEST_FILES", "120"))
LARGE = int(os.environ.get("PRESIGND_TEST_LARGE", str((32 << 20) + 12345)))
"""Bytes of the large file (5 GiB is the real thing)."""
PART = 5 << 20
PREFIX = "box-1/"

pytestmark = pytest.mark.timeout(1800)


class Box:
    """A machine with a token, and the broker it asks."""

    def __init__(self, folder: Path, store: Store, broker: OneToken, bucket: str, more: str = "") -> None:
        self.folder, self.store, self.broker, self.bucket = folder, store, broker, bucket
        settings = config_for(store, folder, bucket, watch='settle = "0s"', more=more, presign=broker.presign)
        assert store.secret_key not in settings
        self.daemon = Presignd(folder, settings, secrets=(store.secret_key, broker.secret))

    def done(self) -> int:
        return len({event["key"] for event in self.daemon.events("file.done") if event["status"] == "linked"})

    def until_done(self, count: int) -> None:
        self.daemon.until(lambda: self.done() >= count, f"{count} files done", 900)


@pytest.fixture
def make(tmp_path: Path, store: Store) -> Iterator[Callable[..., Box]]:
    """``make()`` gives the box, on each real store in turn."""
    bucket = store.new_bucket()
    made: list[Box] = []
    with one_token(tmp_path / "broker", store, bucket, prefix=PREFIX) as broker:

        def box(more: str = "") -> Box:
            made.append(Box(tmp_path, store, broker, bucket, more))
            return made[-1]

        yield box
        for each in made:
            each.daemon.end()


@pytest.mark.long
def test_every_file_goes_through_kills_of_either_side(make: Callable[..., Box]) -> None:
    box, rng = make(), random.Random(7)
    named = list(names(COUNT, rng))
    files = dict(zip(named, contents(COUNT, rng), strict=True))
    dropper = Dropper(box.folder, files)
    box.daemon.start()
    dropper.start()
    kills: list[Callable[[], object]] = [box.broker.kill, box.daemon.kill, box.broker.stop, box.daemon.kill]
    for part, kill in enumerate(kills, 1):
        box.until_done(COUNT * part // 6)
        kill()
        (box.broker if box.broker.process is None else box.daemon).start()
    dropper.finish()
    box.until_done(COUNT)
    assert box.daemon.stop() == 0
    assert_all_arrived(box.daemon, box.store, box.bucket, {PREFIX + name: content for name, content in files.items()})


@pytest.mark.long
def test_a_large_file_in_parts_goes_through_kills_of_either_side(make: Callable[..., Box]) -> None:
    """Each part has a grant of its own; what the ledger has of them is not sent again."""
    part = max(PART, LARGE // 1000)
    slow = f"max_rate = {3 * PART}" if LARGE < 100 << 20 else ""
    box = make(f"[upload]\nmultipart_threshold = {PART}\npart_size = {part}\npart_concurrency = 2\n{slow}\n")
    file = box.folder / "drop" / "large.bin"
    _write_large(file)
    box.daemon.start()
    parts = -(-LARGE // part)
    for share, kill in ((4, box.daemon.kill), (3, box.broker.kill), (2, box.daemon.kill)):
        box.daemon.until(lambda least=parts // share: _parts(box) >= least, "its parts", 900)  # type: ignore[misc] # bound
        kill()
        (box.broker if box.broker.process is None else box.daemon).start()
    box.daemon.until(box.daemon.links, "a link", 900)
    resumed = [event["parts"] for event in box.daemon.events("upload.resumed")]
    assert len(resumed) >= 2  # a broker that dies may send a file back to the queue, too
    assert min(resumed) >= parts // 4
    assert resumed == sorted(resumed)
    assert box.daemon.events("file.quarantined") == []
    [link] = box.daemon.links()
    assert link["key"] == f"{PREFIX}large.bin"
    assert link["checksum"].endswith(f"-{parts}") or link["checksum"].startswith("crc64nvme:")
    _assert_same(link["url"], file)


def _write_large(path: Path) -> None:
    rng = random.Random(1)
    with path.open("wb") as file:
        for start in range(0, LARGE, 1 << 20):
            file.write(rng.randbytes(min(1 << 20, LARGE - start)))


def _assert_same(url: str, path: Path) -> None:
    """Compare what a link gives with the file, a megabyte at a time."""
    with urllib.request.urlopen(url, timeout=60) as answer, path.open("rb") as file:
        while piece := file.read(1 << 20):
            assert answer.read(len(piece)) == piece
        assert answer.read(1) == b""


def _parts(box: Box) -> int:
    ledger = box.daemon.state / "ledger.sqlite3"
    if not ledger.exists():
        return 0
    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as opened:
        return int(opened.execute("SELECT count(*) FROM part").fetchone()[0])


@on_one_store
def test_commands_need_no_key_either(make: Callable[..., Box]) -> None:
    """Without a daemon, and with one: ``put``, ``link`` and ``links`` ask the broker."""
    box = make()
    file = box.folder / "report.txt"
    file.write_bytes(b"a report")
    config = ("-c", box.daemon.config)
    put = box.daemon.run("put", file, *config, check=True).stdout.strip()
    assert fetch(put) == b"a report"
    assert box.store.read(box.bucket, f"{PREFIX}report.txt") == b"a report"
    box.daemon.start()
    (box.folder / "drop" / "a").write_bytes(b"dropped")
    box.until_done(1)
    link = box.daemon.run("link", box.folder / "drop" / "a", *config, check=True).stdout.strip()
    assert fetch(link) == b"dropped"
    assert f"/{PREFIX}a?" in link
    shown = box.daemon.run("put", file, "--key", "elsewhere.txt", *config)
    assert shown.returncode == 4
    assert "outside what the broker's token may write" in shown.stderr


@on_one_store
def test_a_dry_run_tells_where_each_file_would_go(make: Callable[..., Box]) -> None:
    box = make()
    (box.folder / "drop" / "a").write_bytes(b"a")
    told = box.daemon.run("run", "--dry-run", "-c", box.daemon.config, check=True).stdout
    assert f"{box.bucket}/{PREFIX}a" in told
    settings = box.daemon.config.read_text()
    box.daemon.config.write_text(settings.replace('settle = "0s"', 'settle = "0s"\nkey = "{prefix}{sha256}/{name}"'))
    told = box.daemon.run("run", "--dry-run", "-c", box.daemon.config, check=True).stdout
    assert f"{box.bucket}/{{prefix}}{{sha256}}/{{name}}" in told, "the hash is known once the file is read"


def test_check_tells_what_the_token_may_do(make: Callable[..., Box]) -> None:
    box = make()
    checked = box.daemon.run("check", "-c", box.daemon.config)
    assert checked.returncode == 0, checked.stderr
    told = checked.stdout + checked.stderr
    assert f"{box.broker.url} knows the token tests" in told
    assert "put, multipart, head, get" in told
    assert "of the broker's" in told
    assert "the broker signs them" in told
    assert f"PUT, HEAD and GET of {PREFIX}.presignd-check went through" in told
    box.broker.kill()
    checked = box.daemon.run("check", "-c", box.daemon.config)
    assert checked.returncode == 3
    assert "the presign component can't be reached" in checked.stdout + checked.stderr


@on_one_store
def test_a_revoked_token_is_waited_for_and_a_new_one_is_taken_by_a_reload(make: Callable[..., Box]) -> None:
    box = make()
    box.daemon.start()
    drop = box.folder / "drop"
    (drop / "a").write_bytes(b"a")
    box.until_done(1)
    box.broker.renew_token()
    (drop / "b").write_bytes(b"b")
    box.daemon.until(lambda: box.daemon.events("presigner.unreachable"), "presigner.unreachable")
    assert box.daemon.events("presigner.unreachable")[0]["error_code"] == "token_refused"
    assert box.broker.presign  # writes the token's file
    assert box.daemon.process is not None
    box.daemon.process.send_signal(signal.SIGHUP)
    box.until_done(2)
    assert box.daemon.events("file.quarantined") == []


# --- the key is not there -------------------------------------------------------------------------------


@on_one_store
def test_no_storage_key_is_in_the_memory_of_a_daemon_that_asks_a_broker(
    make: Callable[..., Box], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Looked for at rest, and while it uploads; the same look finds it in a daemon that signs by itself."""
    box = make()
    box.daemon.start()
    for number in range(20):
        (box.folder / "drop" / f"f{number}").write_bytes(b"%d" % number)
    box.until_done(20)
    assert not _holds(box.daemon, box.store.secret_key)
    assert _holds(box.daemon, box.broker.secret), "the look finds what is there"
    own = tmp_path_factory.mktemp("own")
    signer = Presignd(own, config_for(box.store, own, box.bucket), secrets=(box.store.secret_key,))
    signer.start()
    try:
        assert _holds(signer, box.store.secret_key)
    finally:
        signer.end()


def _holds(daemon: Presignd, secret: str) -> bool:
    """Return whether any readable memory of a process has ``secret``, as text of one, two or four bytes a letter."""
    assert daemon.process is not None
    process = Path(f"/proc/{daemon.process.pid}")
    forms = [secret.encode(), secret.encode("utf-16-le"), secret.encode("utf-32-le")]
    with (process / "mem").open("rb", buffering=0) as memory:
        for line in (process / "maps").read_text().splitlines():
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if found and "[vvar" not in line and "[vsyscall" not in line:
                start, end = int(found[1], 16), int(found[2], 16)
                if any(form in _read(memory.fileno(), start, end - start) for form in forms):
                    return True
    return False


def _read(fd: int, start: int, size: int) -> bytes:
    try:
        return os.pread(fd, size, start)
    except OSError:  # a mapping that went meanwhile
        return b""
