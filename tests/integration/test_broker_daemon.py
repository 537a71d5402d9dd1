"""A daemon with ``kind = "broker"``: when it waits, what it quarantines, and what it never sends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from presignd.config import Config, WatchConfig
from presignd.s3.limits import CHECK_NAME
from tests.fake_broker import FOREVER, TOKEN, FakeBroker, Grants, fake_broker
from tests.faulty_s3 import FaultyS3
from tests.running import Running, config, running, watch

PREFIX = "scanner-1/"
FILES = {"a": b"", "b": b"some bytes", "c": bytes(3 << 20)}
HELD_UP = ("store.unreachable", "watch.blocked", "presigner.unreachable", "links.blocked")


@pytest.fixture
def broker(faulty_s3: FaultyS3) -> Iterator[FakeBroker]:
    with fake_broker(faulty_s3, prefix=PREFIX) as fake:
        yield fake


def by_broker(folder: Path, store: FaultyS3, broker: FakeBroker, *watches: WatchConfig, **upload: Any) -> Config:
    """Configure a daemon that holds no storage key."""
    return config(
        folder,
        store,
        *(watches or [watch(folder, key="{prefix}{path}")]),
        upload={"timeout": 10.0, **upload},
        kind="broker",
        url=broker.url,
        token=SecretStr(TOKEN),
        access_key="",
        secret_key=None,
    )


def stored(store: FaultyS3) -> dict[str, bytes]:
    return {key: found.body for (_, key), found in store.objects.items() if CHECK_NAME not in key}


async def all_arrive(daemon: Running, store: FaultyS3, files: dict[str, bytes]) -> None:
    await daemon.done(len(files))
    assert stored(store) == {PREFIX + name: content for name, content in files.items()}
    assert sorted(daemon.links()) == sorted(stored(store))
    assert daemon.events("file.quarantined") == []


# --- keys -----------------------------------------------------------------------------------------------


async def test_files_go_below_the_prefix_of_the_token(faulty_s3: FaultyS3, broker: FakeBroker, tmp_path: Path) -> None:
    async with running(by_broker(tmp_path, faulty_s3, broker)) as daemon:
        for name, content in FILES.items():
            daemon.drop(name, content)
        await all_arrive(daemon, faulty_s3, FILES)
    asked = {seen.key for seen in faulty_s3.requests}
    assert all(key.startswith(PREFIX) for key in asked)
    assert PREFIX + CHECK_NAME in asked


async def test_a_prefix_that_is_not_known_yet_is_waited_for(
    faulty_s3: FaultyS3, broker: FakeBroker, tmp_path: Path
) -> None:
    """The broker is away at the start: files are queued without a key, and get it when it is back."""
    broker.stop()
    async with running(by_broker(tmp_path, faulty_s3, broker)) as daemon:
        [away] = await daemon.said_by_now("presigner.unreachable")
        assert away["error_code"] == "presigner_unreachable"
        for name, content in FILES.items():
            daemon.drop(name, content)
        await daemon.said_by_now("file.queued", len(FILES))
        broker.start()
        await all_arrive(daemon, faulty_s3, FILES)
        assert len(daemon.events("presigner.back")) == 1


@pytest.mark.parametrize("prefix", ["../../another/", "x/../../", "/", "a//b/", "a\\b/"])
async def test_a_prefix_that_begins_no_key_has_nothing_sent(
    faulty_s3: FaultyS3, broker: FakeBroker, tmp_path: Path, prefix: str
) -> None:
    """Not even the check key's PUT, HEAD and DELETE: a broker would choose where they go."""
    broker.me = {**broker.me, "prefix": prefix}
    async with running(by_broker(tmp_path, faulty_s3, broker)) as daemon:
        daemon.drop("a", b"bytes")
        [away] = await daemon.said_by_now("presigner.unreachable")
        assert away["error_code"] == "bad_broker"
        assert "begins no key" in away["error"]
        await daemon.said_by_now("file.queued")
        assert faulty_s3.requests == []
        broker.me = {**broker.me, "prefix": PREFIX}
        await all_arrive(daemon, faulty_s3, {"a": b"bytes"})


async def test_grants_are_asked_for_many_at_a_time(faulty_s3: FaultyS3, broker: FakeBroker, tmp_path: Path) -> None:
    """One request for each would be twice the files, and more."""
    names = [f"f{number}" for number in range(200)]
    for name in [*names]:
        (tmp_path / "drop").mkdir(exist_ok=True)
        (tmp_path / "drop" / name).write_bytes(name.encode())
    async with running(by_broker(tmp_path, faulty_s3, broker)) as daemon:
        await all_arrive(daemon, faulty_s3, {name: name.encode() for name in names})
    assert sum(len(asked.grants) for asked in broker.posts()) >= 2 * len(names)
    assert len(broker.posts()) < len(names)


# --- what is waited for ---------------------------------------------------------------------------------


def elsewhere(grants: Grants) -> Grants:
    return [{**each, "url": each["url"].replace("http://127.0.0.1", "http://192.0.2.1")} for each in grants]


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ({"status": 401, "body": b'{"error": {}}'}, "token_refused"),
        ({"status": 403, "body": b'{"error": {}}'}, "token_refused"),
        ({"status": 403}, "bad_broker"),
        ({"status": 429}, "presigner_busy"),
        ({"status": 500}, "presigner_unreachable"),
        ({"status": 503}, "presigner_unreachable"),
        ({"status": 503, "headers": {"Retry-After": "1"}}, "presigner_unreachable"),
        ({"status": 307, "headers": {"Location": "http://192.0.2.1/"}}, "bad_broker"),
        ({"status": 200, "body": b"<html>"}, "bad_broker"),
        ({"hang": True}, "presigner_unreachable"),
        ({"reset": True}, "presigner_unreachable"),
        ({"endless": True}, "bad_broker"),
        ({"change": elsewhere}, "wrong_grant"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value).partition(" at 0x")[0][:40],
)
async def test_a_broker_in_trouble_holds_the_queue_and_is_told_once_each_way(
    faulty_s3: FaultyS3, broker: FakeBroker, tmp_path: Path, how: dict[str, Any], code: str
) -> None:
    async with running(
        by_broker(tmp_path, faulty_s3, broker, attempts=2, timeout=2.0 if "hang" in how else 10.0)
    ) as daemon:
        daemon.drop("first")
        await daemon.done()
        order = broker.fault(times=FOREVER, **how)
        for name, content in FILES.items():
            daemon.drop(name, content)
        [away] = await daemon.said_by_now("presigner.unreachable")
        assert away["error_code"] == code
        sent = len(faulty_s3.requests)
        probes = len(broker.posts())
        await daemon.until(lambda: len(broker.posts()) > probes or how.get("headers"), "a probe of the broker")
        assert len(faulty_s3.requests) == sent, "something was sent without a grant"
        order.times = 0
        await all_arrive(daemon, faulty_s3, {"first": b"content", **FILES})
        assert len(daemon.events("presigner.unreachable")) == len(daemon.events("presigner.back")) == 1
        assert daemon.events("store.unreachable", "watch.blocked") == []


async def test_a_broker_that_goes_and_comes_back_loses_nothing(
    faulty_s3: FaultyS3, broker: FakeBroker, tmp_path: Path
) -> None:
    files = {f"f{number}": b"%d" % number for number in range(60)}
    async with running(by_broker(tmp_path, faulty_s3, broker, attempts=1)) as daemon:
        for number, (name, content) in enumerate(files.items()):
            daemon.drop(name, content)
            if number in (20, 40):
                await daemon.done(number // 2)
                broker.stop()
                broker.start()
        await all_arrive(daemon, faulty_s3, files)


async def test_a_link_that_the_broker_refuses_for_now_is_made_when_it_allows_it(
    faulty_s3: FaultyS3, broker: FakeBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("presignd.pipeline.finish.link.RETRY_SECONDS", 0.02)

    def no_links(grants: Grants) -> Grants:
        refusal = {"error": {"code": "operation_refused", "message": "this token may not get"}}
        return [refusal if each.get("method") == "GET" else each for each in grants]

    order = broker.fault(times=FOREVER, change=no_links)
    async with running(by_broker(tmp_path, faulty_s3, broker)) as daemon:
        daemon.drop("a")
        [blocked] = await daemon.said_by_now("links.blocked")
        assert blocked["error_code"] == "not_allowed"
        order.times = 0
        await all_arrive(daemon, faulty_s3, {"a": b"content"})


# --- what is one file's own, and what a watch's ---------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "ours"),
    [("outside_prefix", "outside_prefix"), ("too_large", "too_large"), ("checksum_required", "grant_refused")],
)
async def test_what_is_refused_of_one_file_quarantines_it_alone(
    faulty_s3: FaultyS3, broker: FakeBroker, tmp_path: Path, code: str, ours: str
) -> None:
    def refuse_bad(grants: Grants) -> Grants:
        refusal = {"error": {"code": code, "message": "why it is refused"}}
        return [refusal if "/bad?" in each["url"] else each for each in grants]

    broker.fault(times=FOREVER, change=refuse_bad)
    async with running(by_broker(tmp_path, faulty_s3, broker)) as daemon:
        for name in ("bad", *FILES):
            daemon.drop(name, FILES.get(name, b"bad"))
        [stopped] = await daemon.said_by_now("file.quarantined")
        await daemon.done(len(FILES))
        assert (stopped["error_code"], stopped["path"]) == (ours, str(tmp_path / "drop" / "bad"))
        assert "why it is refused" in stopped["error"]
        assert stopped["fix"]
        assert daemon.events(*HELD_UP) == []
        assert len(daemon.events("file.quarantined")) == 1


@pytest.mark.parametrize("refused", ["PUT", "POST"])
async def test_an_upload_that_the_broker_takes_for_anothers_begins_anew(
    faulty_s3: FaultyS3, broker: FakeBroker, tmp_path: Path, refused: str
) -> None:
    """At its first part or at its completion: another token was first to use the id, or this token is a new one."""
    ids: list[str] = []

    def refuse_first(grants: Grants) -> Grants:
        return [_unless_first(each) for each in grants]

    def _unless_first(grant: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"/large\?.*\buploadId=([^&]+)", grant["url"])
        ids.extend([found[1]] if found else [])
        if found is None or grant["method"] != refused or found[1] != ids[0]:
            return grant
        return {"error": {"code": "upload_refused", "message": "this upload id belongs to another token"}}

    broker.fault(times=FOREVER, change=refuse_first)
    settings = {"multipart_threshold": 5 << 20, "part_size": 5 << 20}
    async with running(by_broker(tmp_path, faulty_s3, broker, **settings)) as daemon:
        daemon.drop("large", bytes(11 << 20))
        await all_arrive(daemon, faulty_s3, {"large": bytes(11 << 20)})
        assert daemon.codes("upload.retry") == ["upload_lost"]
        assert len(set(ids)) == 2


@pytest.mark.parametrize("code", ["outside_prefix", "outside_bucket", "operation_refused", "header_refused"])
async def test_what_is_refused_of_all_of_a_watch_blocks_it_and_quarantines_nothing(
    faulty_s3: FaultyS3, broker: FakeBroker, tmp_path: Path, code: str
) -> None:
    """A watch that writes beside the token's prefix, say: its check key is refused like all its files."""

    def refuse(grants: Grants) -> Grants:
        refusal = {"error": {"code": code, "message": "not this"}}
        return [refusal if "/wrong/" in each["url"] else each for each in grants]

    order = broker.fault(times=FOREVER, change=refuse)
    watches = watch(tmp_path, key="{prefix}{path}"), watch(tmp_path, "other", key="wrong/{path}")
    async with running(by_broker(tmp_path, faulty_s3, broker, *watches)) as daemon:
        daemon.drop("a")
        daemon.drop("b", watch="other")
        [blocked] = await daemon.said_by_now("watch.blocked")
        assert (blocked["watch"], blocked["error_code"]) == ("other", "not_allowed")
        await daemon.done()
        order.times = 0
        await daemon.done(2)
        assert len(daemon.events("watch.unblocked")) == 1
        assert daemon.events("file.quarantined", "presigner.unreachable") == []


# --- tokens and clocks ----------------------------------------------------------------------------------


async def test_a_new_token_is_taken_by_a_reload(faulty_s3: FaultyS3, broker: FakeBroker, tmp_path: Path) -> None:
    first = by_broker(tmp_path, faulty_s3, broker)
    renewed = first.presign.model_copy(update={"token": SecretStr("a-new-token-0123456789")})
    async with running(first, load=lambda: first.model_copy(update={"presign": renewed})) as daemon:
        daemon.drop("a")
        await daemon.done()
        broker.token = "a-new-token-0123456789"
        daemon.drop("b")
        [away] = await daemon.said_by_now("presigner.unreachable")
        assert away["error_code"] == "token_refused"
        daemon.reload.set()
        await all_arrive(daemon, faulty_s3, {"a": b"content", "b": b"content"})
        assert "a-new-token" not in daemon.said.text


@pytest.mark.parametrize("skew", [-5, 5])
async def test_a_daemon_with_a_wrong_clock_uploads_all_the_same(
    faulty_s3: FaultyS3, broker: FakeBroker, tmp_path: Path, skew: int
) -> None:
    """The broker signs by its own clock, links too, and the store judges by its own: this machine's decides nothing."""
    broker.skew = faulty_s3.clock_skew = timedelta(hours=skew)
    async with running(by_broker(tmp_path, faulty_s3, broker)) as daemon:
        for name, content in FILES.items():
            daemon.drop(name, content)
        await all_arrive(daemon, faulty_s3, FILES)
        assert daemon.events(*HELD_UP) == []
        ends = {datetime.fromisoformat(event["expires_at"]) for event in daemon.events("link.created")}
        assert all(abs(end - broker.now() - timedelta(minutes=15)) < timedelta(minutes=2) for end in ends)
