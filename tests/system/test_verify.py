"""``presignd verify`` as a person runs it after an incident: with a daemon, without one, and where a broker signs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import one_token
from tests.stores import Store
from tests.system.harness import Presignd, all_ended, config_for

LARGE = os.urandom(11 << 20)
FILES = {"a.txt": b"hello", "b.txt": b"world", "sub/c.txt": b"deep", "large.bin": LARGE}
PARTS = '[upload]\nmultipart_threshold = "5MiB"\npart_size = "5MiB"\n'


@pytest.fixture
def daemons() -> Iterator[list[Presignd]]:
    with all_ended() as made:
        yield made


def uploaded(daemon: Presignd, files: dict[str, bytes]) -> None:
    """Start a daemon and wait until it has uploaded these."""
    for name, content in files.items():
        path = daemon.folder / "drop" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    daemon.start()
    daemon.until(lambda: len(daemon.events("file.done")) == len(files), "all done")


def differing(out: str) -> dict[str, str]:
    rows = [line.split("\t") for line in out.splitlines()]
    return {Path(path).name: outcome for outcome, path, _ in rows}


def test_after_an_incident_with_and_without_a_daemon(store: Store, tmp_path: Path, daemons: list[Presignd]) -> None:
    bucket = store.new_bucket()
    daemon = Presignd(
        tmp_path, config_for(store, tmp_path, bucket, watch='settle = "0s"', more=PARTS), secrets=(store.secret_key,)
    )
    daemons.append(daemon)
    uploaded(daemon, FILES)
    done = daemon.run("verify", "--all")
    assert (done.returncode, done.stdout) == (0, "")
    assert "4 files: 4 equal, 0 differ, 0 missing, 0 not checked (4 by " in done.stderr
    assert "4 by download" in daemon.run("verify", "--all", "--download").stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"put")
    daemon.run("put", elsewhere, check=True)

    store.write(bucket, "a.txt", b"other")
    store.delete(bucket, "sub/c.txt")
    store.write(bucket, "large.bin", LARGE[:-1])
    wanted = {"a.txt": "differs", "c.txt": "missing", "large.bin": "differs"}
    done = daemon.run("verify", "--all")
    assert (done.returncode, differing(done.stdout)) == (4, wanted)
    assert "5 files: 2 equal, 2 differ, 1 missing, 0 not checked" in done.stderr
    assert (daemon.run("verify", tmp_path / "drop" / "sub").returncode) == 4
    assert (daemon.run("verify", tmp_path / "drop" / "b.txt", elsewhere).returncode) == 0
    listed = [json.loads(line) for line in daemon.run("verify", "--all", "--json").stdout.splitlines()]
    assert len(listed) == 5 + 1
    assert listed[-1]["summary"]["exit"] == 4

    assert daemon.stop() == 0
    (tmp_path / "drop" / "b.txt").write_bytes(b"newer")
    elsewhere.write_bytes(b"tup")
    done = daemon.run("verify", "--all", "-c", daemon.config)
    assert (done.returncode, differing(done.stdout)) == (4, wanted | {"b.txt": "differs", "elsewhere": "differs"})
    assert "the file changed since it was uploaded" in done.stdout


def test_a_store_that_is_away_ends_with_3_and_says_what_was_not_checked(
    own_seaweedfs: Store, tmp_path: Path, daemons: list[Presignd]
) -> None:
    bucket = own_seaweedfs.new_bucket()
    settings = config_for(own_seaweedfs, tmp_path, bucket, watch='settle = "0s"')
    daemon = Presignd(tmp_path, settings, secrets=(own_seaweedfs.secret_key,))
    daemons.append(daemon)
    uploaded(daemon, {"a": b"a", "b": b"b"})
    own_seaweedfs.stop()
    done = daemon.run("verify", "--all")
    assert (done.returncode, differing(done.stdout)) == (3, {"a": "not checked", "b": "not checked"})
    assert "0 equal, 0 differ, 0 missing, 2 not checked" in done.stderr
    assert "connection_refused: nothing listens at the endpoint" in done.stderr


@pytest.mark.parametrize(
    ("operations", "ended"),
    [
        (["put", "head"], (0, "1 equal")),
        (["put"], (3, "not_allowed")),
    ],
)
def test_a_token_may_allow_it_or_not(
    seaweedfs: Store, tmp_path: Path, daemons: list[Presignd], operations: list[str], ended: tuple[int, str]
) -> None:
    bucket = seaweedfs.new_bucket()
    with one_token(tmp_path / "broker", seaweedfs, bucket, prefix="box/") as broker:
        settings = config_for(seaweedfs, tmp_path, bucket, watch='settle = "0s"', presign=broker.presign)
        daemon = Presignd(tmp_path, settings, secrets=(seaweedfs.secret_key, broker.secret))
        daemons.append(daemon)
        uploaded(daemon, {"a": b"a"})
        token = broker.folder / "tokens.d" / f"{broker.NAME}.toml"
        (broker.folder / "draft").write_text(token.read_text() + f"operations = {json.dumps(operations)}\n")
        (broker.folder / "draft").replace(token)
        done = daemon.run("verify", "--all")
        assert done.returncode == ended[0], done.stderr
        assert ended[1] in done.stderr
