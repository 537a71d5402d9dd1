"""The promises of a watch's options, seen from outside: the files, the objects, the links and the log."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stores import Store, on_one_store
from tests.system.harness import Presignd, config_for, fetch

Make = Callable[..., Presignd]


class Bucket:
    """A bucket of the test's own, seen by another client."""

    def __init__(self, store: Store) -> None:
        self.store, self.name = store, store.new_bucket()

    def __getitem__(self, key: str) -> bytes:
        return self.store.read(self.name, key)

    def __setitem__(self, key: str, body: bytes) -> None:
        self.store.write(self.name, key, body)

    def keys(self) -> set[str]:
        """Return every key but the check key, which may stay where DELETE is slow."""
        return {key for key in self.store.list(self.name) if not key.endswith(".presignd-check")}


@pytest.fixture
def bucket(store: Store) -> Bucket:
    return Bucket(store)


@pytest.fixture
def make(tmp_path: Path, bucket: Bucket) -> Iterator[Make]:
    """``make(watch="…", more="…")`` a daemon on ``tmp_path/drop``; all end and are searched for secrets."""
    made: list[Presignd] = []

    def build(watch: str = "", more: str = "", **kwargs: Any) -> Presignd:
        config = config_for(bucket.store, tmp_path, bucket.name, watch=f'settle = "0s"\n{watch}', more=more)
        made.append(Presignd(tmp_path, config, secrets=(bucket.store.secret_key,), **kwargs))
        return made[-1]

    yield build
    for daemon in made:
        daemon.end()


def done(daemon: Presignd, count: int, status: str = "linked") -> list[dict[str, Any]]:
    """Wait for so many ``file.done`` of a status."""

    def there() -> list[dict[str, Any]]:
        return [event for event in daemon.events("file.done") if event["status"] == status]

    daemon.until(lambda: len(there()) >= count, f"{count} of {status}")
    return there()


def quarantined(daemon: Presignd) -> dict[str, Any]:
    daemon.until(lambda: daemon.events("file.quarantined"), "file.quarantined")
    return daemon.events("file.quarantined")[0]


def drop(folder: Path, name: str, content: bytes) -> Path:
    path = folder / "drop" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_newer_version_replaces_its_own_object(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    daemon = make()
    daemon.start()
    drop(tmp_path, "a.txt", b"one")
    done(daemon, 1)
    drop(tmp_path, "a.txt", b"two, longer")
    done(daemon, 2)
    assert bucket.keys() == {"a.txt"}
    assert bucket["a.txt"] == b"two, longer"


@pytest.mark.parametrize("policy", ["update", "rename"])
def test_another_s_object_is_left_alone(make: Make, bucket: Bucket, tmp_path: Path, policy: str) -> None:
    bucket["a.txt"] = b"somebody else's"
    daemon = make(f'collision = "{policy}"')
    daemon.start()
    drop(tmp_path, "a.txt", b"ours")
    [event] = done(daemon, 1)
    assert event["key"] == "a~2.txt"
    assert bucket["a.txt"] == b"somebody else's"
    assert bucket["a~2.txt"] == b"ours"


def test_refuse_quarantines_and_retry_goes_on_once_the_key_is_free(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    bucket["a.txt"] = b"somebody else's"
    daemon = make('collision = "refuse"')
    daemon.start()
    path = drop(tmp_path, "a.txt", b"ours")
    assert quarantined(daemon)["error_code"] == "exists"
    assert daemon.run("status", path).returncode == 4
    bucket.store.delete(bucket.name, "a.txt")
    daemon.run("retry", path, check=True)
    done(daemon, 1)
    assert bucket["a.txt"] == b"ours"
    assert daemon.run("status").returncode == 0


def test_overwrite_replaces_whatever_is_there(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    bucket["a.txt"] = b"somebody else's"
    daemon = make('collision = "overwrite"')
    daemon.start()
    drop(tmp_path, "a.txt", b"ours")
    done(daemon, 1)
    assert bucket["a.txt"] == b"ours"


def test_rename_gives_each_version_a_key_of_its_own(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    daemon = make('collision = "rename"')
    daemon.start()
    drop(tmp_path, "a.txt", b"one")
    done(daemon, 1)
    drop(tmp_path, "a.txt", b"two, longer")
    done(daemon, 2)
    assert (bucket["a.txt"], bucket["a~2.txt"]) == (b"one", b"two, longer")


def test_the_same_bytes_are_adopted(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    bucket["a.txt"] = b"the same"
    daemon = make()
    daemon.start()
    drop(tmp_path, "a.txt", b"the same")
    [event] = done(daemon, 1, "adopted")
    assert event["key"] == "a.txt"
    assert fetch(daemon.links()[0]["url"]) == b"the same"


def test_two_paths_never_share_a_key(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    daemon = make('key = "{name}"')
    daemon.start()
    drop(tmp_path, "x/a.txt", b"one")
    done(daemon, 1)
    drop(tmp_path, "y/a.txt", b"two")
    done(daemon, 2)
    assert (bucket["a.txt"], bucket["a~2.txt"]) == (b"one", b"two")


def test_a_key_by_hash_is_the_hash(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    daemon = make('key = "{sha256}{suffix}"')
    daemon.start()
    drop(tmp_path, "hi.txt", b"hi")
    done(daemon, 1)
    assert bucket.keys() == {"8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4.txt"}


@on_one_store
def test_what_was_there_before_the_first_start_can_be_ignored(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    old = drop(tmp_path, "old.txt", b"old")
    drop(tmp_path, "deep/older.txt", b"older")
    time.sleep(0.1)  # a ctime before the first start, not in the same instant
    daemon = make('existing = "ignore"')
    daemon.start()
    daemon.until(lambda: daemon.events("scan.finished"), "scan.finished")
    drop(tmp_path, "new.txt", b"new")
    done(daemon, 1)
    assert bucket.keys() == {"new.txt"}
    daemon.stop()
    daemon.start()
    old.write_bytes(b"old, but changed")
    done(daemon, 2)
    assert bucket.keys() == {"new.txt", "old.txt"}


@on_one_store
def test_delete_takes_only_what_is_uploaded(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    daemon = make('after = "delete"')
    daemon.start()
    path = drop(tmp_path, "a/b.txt", b"bye")
    [event] = done(daemon, 1)
    assert not path.exists()
    assert list((tmp_path / "drop" / "a").iterdir()) == []
    assert bucket[event["key"]] == b"bye"
    drop(tmp_path, "a/b.txt", b"bye")
    daemon.until(lambda: not path.exists(), "the second drop gone")


@on_one_store
def test_move_keeps_the_folders_and_never_overwrites(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "sent").mkdir()
    daemon = make(f'after = "move"\nmove_to = "{tmp_path}/sent"')
    daemon.start()
    drop(tmp_path, "a/b.txt", b"one")
    done(daemon, 1)
    assert (tmp_path / "sent/a/b.txt").read_bytes() == b"one"
    drop(tmp_path, "a/b.txt", b"two")
    done(daemon, 2)
    assert (tmp_path / "sent/a/b.txt").read_bytes() == b"one"
    assert (tmp_path / "sent/a/b~2.txt").read_bytes() == b"two"
    assert bucket["a/b.txt"] == b"two"


@on_one_store
def test_the_link_is_left_beside_the_file_and_is_no_drop_itself(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    daemon = make('link_file = "{name}.link.txt"')
    daemon.start()
    drop(tmp_path, "a.txt", b"content")
    done(daemon, 1)
    left = tmp_path / "drop" / "a.txt.link.txt"
    daemon.until(left.exists, "the link file")
    assert fetch(left.read_text("utf-8").strip()) == b"content"
    assert left.stat().st_mode & 0o777 == 0o640
    daemon.stop()
    assert bucket.keys() == {"a.txt"}


@on_one_store
def test_a_ready_marker_is_waited_for(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    daemon = make('ready_marker = "{name}.ok"')
    daemon.start()
    path = drop(tmp_path, "a.bin", b"half")
    daemon.until(lambda: "a.bin.ok" in daemon.run("status").stdout, "status naming the marker")
    path.write_bytes(b"half and half")
    drop(tmp_path, "a.bin.ok", b"")
    done(daemon, 1)
    assert bucket.keys() == {"a.bin"}
    assert bucket["a.bin"] == b"half and half"


@on_one_store
def test_a_file_open_for_writing_is_not_started(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    daemon = make()
    daemon.start()
    with (tmp_path / "drop" / "slow.bin").open("wb", buffering=0) as file:
        file.write(b"first half, ")
        daemon.until(lambda: "open for writing" in daemon.run("status").stdout, "status saying why")
        assert bucket.keys() == set()
        file.write(b"second half")
    done(daemon, 1)
    assert bucket["slow.bin"] == b"first half, second half"
    assert len(daemon.events("file.queued")) == 1


def test_chmod_and_touch_send_nothing_again(make: Make, tmp_path: Path) -> None:
    daemon = make()
    daemon.start()
    path = drop(tmp_path, "a.txt", b"content")
    [first] = done(daemon, 1)
    path.chmod(0o600)
    os.utime(path)
    [again] = done(daemon, 1, "adopted")
    assert again["etag"] == first["etag"]


def test_headers_and_type_are_stored(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    daemon = make(
        'content_type = "text/x-test"\nheaders = {"x-amz-meta-from" = "the scanner", "Cache-Control" = "no-store"}'
    )
    daemon.start()
    drop(tmp_path, "a.txt", b"content")
    done(daemon, 1)
    stored = bucket.store.stat(bucket.name, "a.txt")
    assert stored["ContentType"] == "text/x-test"
    assert stored["Metadata"] == {"from": "the scanner"}


def test_sha256_is_the_checksum_where_it_is_asked_for(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    daemon = make(more='[upload]\nchecksum = "sha256"\n')
    daemon.start()
    drop(tmp_path, "hi.txt", b"hi")
    [event] = done(daemon, 1)
    assert event["checksum"] == "sha256:8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4"
    assert bucket["hi.txt"] == b"hi"


def test_a_key_that_the_store_can_t_hold_beside_another_is_quarantined_alone(
    make: Make, bucket: Bucket, tmp_path: Path
) -> None:
    """JuiceFS can't hold ``pp`` beside ``pp/q`` (500); SeaweedFS can."""
    daemon = make(more="[upload]\nattempts = 2\n")
    daemon.start()
    first = drop(tmp_path, "pp", b"one")
    done(daemon, 1)
    first.unlink()
    drop(tmp_path, "pp/q", b"two")
    drop(tmp_path, "more.txt", b"three")
    if bucket.store.name == "juicefs":
        assert quarantined(daemon)["key"] == "pp/q"
        done(daemon, 2)
    else:
        done(daemon, 3)
    assert daemon.events("watch.blocked") == []
    assert daemon.events("store.unreachable") == []
    assert bucket["more.txt"] == b"three"


@on_one_store
def test_a_second_daemon_is_refused_with_the_first_ones_pid(make: Make, tmp_path: Path) -> None:
    first = make()
    first.start()
    assert first.process is not None
    refused = first.run("run", "-c", first.config)
    assert refused.returncode == 3
    assert str(first.process.pid) in refused.stderr
    other = tmp_path / "other.toml"
    other.write_text(first.config.read_text("utf-8").replace("/state", "/state2"), encoding="utf-8")
    other.chmod(0o600)
    refused = first.run("run", "-c", other)
    assert refused.returncode == 3
    assert str(first.process.pid) in refused.stderr


@on_one_store
def test_a_whole_configuration_comes_from_the_environment(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    daemon = make()
    store = bucket.store
    environ = {
        "PRESIGND_PRESIGN__ENDPOINT": store.endpoint,
        "AWS_ACCESS_KEY_ID": store.access_key,
        "AWS_SECRET_ACCESS_KEY": store.secret_key,
        "PRESIGND_WATCH__DROP__PATH": str(tmp_path / "drop"),
        "PRESIGND_WATCH__DROP__BUCKET": bucket.name,
        "PRESIGND_LEDGER__PATH": str(tmp_path / "state"),
    }
    (tmp_path / "f.txt").write_bytes(b"content")
    put = daemon.run("put", tmp_path / "f.txt", environ=environ)
    assert put.returncode == 0, put.stderr
    assert fetch(put.stdout.strip()) == b"content"


@on_one_store
def test_links_are_printed_on_stdout_when_asked(make: Make, tmp_path: Path) -> None:
    daemon = make()
    daemon.start(print_links=True)
    drop(tmp_path, "a.txt", b"content")
    done(daemon, 1)
    daemon.stop()
    [printed] = daemon.stdout.read_text("utf-8").split()
    assert fetch(printed) == b"content"


@on_one_store
def test_the_log_carries_the_link_only_when_told(make: Make, bucket: Bucket, tmp_path: Path) -> None:
    daemon = make(more="[links]\nin_log = true\n")
    daemon.start()
    drop(tmp_path, "a.txt", b"content")
    done(daemon, 1)
    [created] = daemon.events("link.created")
    assert fetch(created["url"]) == b"content"
    daemon.stop()
    others = [event for event in daemon.events() if event["event"] != "link.created"]
    daemon.log.write_text("\n".join(json.dumps(event) for event in others), encoding="utf-8")


@on_one_store
def test_sigterm_ends_it_with_0(make: Make) -> None:
    daemon = make()
    daemon.start()
    assert daemon.stop() == 0
    assert [event["event"] for event in daemon.events("daemon.draining", "daemon.stopped")] == [
        "daemon.draining",
        "daemon.stopped",
    ]
