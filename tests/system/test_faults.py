"""The installed daemon on a store that misbehaves: its end, its cost, its log and its losses.

`tests/integration/test_faults_*` has the rows of the matrix one by one; here they come all together.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faulty_s3 import BUCKET, FOREVER, FaultyS3
from tests.system.harness import Presignd, all_ended, config_for, fetch

Make = Callable[..., Presignd]

STORM: list[dict[str, Any]] = [
    {"status": 500, "code": "InternalError"},
    {"status": 503, "code": "SlowDown"},
    {"status": 429, "body": b""},
    {"status": 502, "body": b"<html>Bad gateway</html>"},
    {"status": 403, "code": "AccessDenied"},
    {"status": 403, "code": "SignatureDoesNotMatch"},
    {"status": 400, "code": "ExpiredToken"},
    {"status": 400, "code": "BadDigest"},
    {"status": 404, "code": "NoSuchBucket"},
    {"status": 307, "code": "TemporaryRedirect", "headers": {"Location": "http://127.0.0.1:9/elsewhere"}},
    {"status": 400, "body_size": 1 << 20},
    {"status": 500, "body": b"<Error><Code>Inter"},
    {"status": 403, "code": "AccessDenied", "early": True},
    {"reset": "before"},
    {"reset": "during"},
    {"reset": "after"},
    {"hang": "before"},
    {"hang": "after"},
    # Of a PUT alone: a HEAD that tells another ETag, or none, tells of another's object, and name~2 is right.
    {"method": "PUT", "etag": '"00000000000000000000000000000000"'},
    {"method": "PUT", "etag": None, "lose": True},
]


@pytest.fixture
def make(tmp_path: Path, faulty_s3: FaultyS3) -> Iterator[Make]:
    """``make(upload="…", log="json")`` a daemon on ``tmp_path/drop``."""
    with all_ended() as made:

        def build(upload: str = "", log: str = "json") -> Presignd:
            more = f"[upload]\n{upload}"
            text = config_for(faulty_s3, tmp_path, BUCKET, watch='settle = "0s"', more=more, log=log)
            made.append(Presignd(tmp_path, text, secrets=(faulty_s3.secret_key,)))
            return made[-1]

        yield build


def drop(folder: Path, count: int, rng: random.Random, largest: int = 200_000) -> dict[str, bytes]:
    """Write so many files into the watched folder."""
    files = {f"{number:03}.bin": rng.randbytes(rng.randrange(largest)) for number in range(count)}
    for name, content in files.items():
        (folder / "drop" / name).write_bytes(content)
    return files


def linked(daemon: Presignd) -> set[str]:
    """Return the keys that are done."""
    return {event["key"] for event in daemon.events("file.done") if event["status"] in ("linked", "adopted")}


def assert_all_there(daemon: Presignd, store: FaultyS3, files: dict[str, bytes]) -> None:
    """Each object byte for byte, each link once, each link fetches, nobody quarantined."""
    assert {key: found.body for (_, key), found in store.objects.items() if key in files} == files
    links = {link["key"]: link["url"] for link in daemon.links()}
    assert len(daemon.links()) == len(links) == len(files)
    assert all(fetch(url) == files[key] for key, url in links.items())
    assert daemon.events("file.quarantined") == []


@pytest.mark.parametrize(
    "seed", [pytest.param(1, marks=pytest.mark.long), *(pytest.param(n, marks=pytest.mark.series) for n in (2, 3, 4))]
)
def test_a_storm_of_every_fault_loses_nothing_and_tells_no_secret(
    make: Make, faulty_s3: FaultyS3, tmp_path: Path, seed: int
) -> None:
    """A third of all requests go wrong, each in another way, through a restart; then the weather clears."""
    rng = random.Random(seed)
    for how in STORM:
        faulty_s3.fault(when=lambda *_: rng.random() < 0.02, times=FOREVER, **how)
    daemon = make('timeout = "500ms"\nattempts = 1000\ndrain_timeout = "200ms"')
    daemon.start(ready=False)
    files = drop(tmp_path, 80, random.Random(seed))
    daemon.until(lambda: len(linked(daemon)) > 5 or len(faulty_s3.requests) > 150, "some of it through")
    assert daemon.stop() == 0
    daemon.start(ready=False)
    time.sleep(1)
    faulty_s3.heal()
    daemon.until(lambda: linked(daemon) == set(files), "all linked")
    assert daemon.stop() == 0
    assert_all_there(daemon, faulty_s3, files)
    said = [event["file_id"] for event in daemon.events("file.done") if not event.get("replayed")]
    assert len(said) == len(set(said))


def test_the_console_tells_no_secret_either(make: Make, faulty_s3: FaultyS3, tmp_path: Path) -> None:
    rng = random.Random(3)
    for how in STORM:
        faulty_s3.fault(when=lambda *_: rng.random() < 0.015, times=FOREVER, **how)
    daemon = make('timeout = "300ms"\nattempts = 1000\ndrain_timeout = "0s"', log="console")
    daemon.start(ready=False)
    drop(tmp_path, 60, random.Random(3))
    daemon.until(lambda: len(faulty_s3.requests) > 60, "many requests")
    assert daemon.stop() == 0


@pytest.mark.parametrize("how", ["gone", "hanging", "refusing"])
def test_a_drain_ends_in_time_while_the_store_is_away(
    make: Make, faulty_s3: FaultyS3, tmp_path: Path, how: str
) -> None:
    """Exit 0, nothing forgotten: the next start sends it all."""
    if how == "gone":
        faulty_s3.stop()
    else:
        order: dict[str, Any] = {"hang": "after"} if how == "hanging" else {"status": 403, "code": "AccessDenied"}
        faulty_s3.fault(times=FOREVER, **order)
    daemon = make('drain_timeout = "1s"')
    daemon.start()
    files = drop(tmp_path, 60, random.Random(4), 2000)
    daemon.until(lambda: len(daemon.events("file.queued")) == len(files), "all queued")
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 20
    assert daemon.events("file.done", "file.quarantined") == []
    if how == "gone":
        faulty_s3.start()
    faulty_s3.heal()
    daemon.start()
    daemon.until(lambda: linked(daemon) == set(files), "all linked")
    assert daemon.stop() == 0
    assert_all_there(daemon, faulty_s3, files)


def test_a_second_signal_ends_a_drain_at_once(make: Make, faulty_s3: FaultyS3, tmp_path: Path) -> None:
    faulty_s3.fault(times=FOREVER, hang="after")
    daemon = make('drain_timeout = "60s"')
    daemon.start()
    drop(tmp_path, 3, random.Random(5))
    daemon.until(lambda: daemon.events("file.queued"), "a file queued")
    time.sleep(0.2)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    daemon.until(lambda: daemon.events("daemon.draining"), "the drain begun")
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 20


def test_error_bodies_of_a_hundred_megabytes_cost_no_memory(make: Make, faulty_s3: FaultyS3, tmp_path: Path) -> None:
    daemon = make()
    daemon.start()
    before = peak_memory(daemon)
    faulty_s3.fault(times=FOREVER, status=500, body_size=100 << 20)
    files = drop(tmp_path, 40, random.Random(6), 2000)
    daemon.until(lambda: daemon.events("store.unreachable"), "store.unreachable")
    time.sleep(1)
    assert peak_memory(daemon) - before < 40 << 20
    faulty_s3.heal()
    daemon.until(lambda: linked(daemon) == set(files), "all linked")


def peak_memory(daemon: Presignd) -> int:
    """Return the most resident memory it ever had, in bytes."""
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text("ascii")
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def test_status_says_what_is_held_up_and_why(make: Make, faulty_s3: FaultyS3, tmp_path: Path) -> None:
    faulty_s3.fault(times=FOREVER, status=403, code="InvalidAccessKeyId")
    daemon = make()
    daemon.start()
    drop(tmp_path, 1, random.Random(7))
    daemon.until(lambda: daemon.events("watch.blocked"), "watch.blocked")
    shown = json.loads(daemon.run("status", "--json").stdout)
    assert "invalid_access_key" in json.dumps(shown)
    assert "access key" in daemon.run("status").stdout + daemon.run("status").stderr
