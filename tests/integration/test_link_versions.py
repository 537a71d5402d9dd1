"""A link opens the version it was made for, if the bucket has versions and the store lets a link name one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import pytest

from presignd.errors import fault
from presignd.ledger import Ledger
from presignd.pipeline.finish import finisher
from tests.fake_broker import FakeBroker
from tests.faulty_s3 import FOREVER, FaultyS3
from tests.integration.test_broker_daemon import broker, by_broker
from tests.links import whole_lines
from tests.running import Running, config, running, watch
from tests.stores import Store


def links(daemon: Running) -> list[dict[str, Any]]:
    return [json.loads(line) for line in whole_lines(daemon.folder / "links.jsonl")]


def named(link: dict[str, Any]) -> str:
    return "".join(parse_qs(urlsplit(link["url"]).query).get("versionId", []))


def opened(link: dict[str, Any]) -> bytes:
    with urlopen(link["url"]) as answer:
        body: bytes = answer.read()
    return body


async def test_the_first_link_serves_the_first_version_for_good(seaweedfs: Store, tmp_path: Path) -> None:
    bucket, of = seaweedfs.new_bucket(), seaweedfs
    seaweedfs.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    store: Any = of
    async with running(config(tmp_path, store, watch(tmp_path, bucket=bucket))) as daemon:
        daemon.drop("a", b"first")
        await daemon.done()
        daemon.drop("a", b"second")
        await daemon.done(2)
        first, second = links(daemon)
        assert (named(first), named(second)) == (first["version_id"], second["version_id"])
        assert (opened(first), opened(second)) == (b"first", b"second")


__all__ = ["broker"]
VERSIONED: dict[str, Any] = {"method": "PUT", "key": "a", "headers": {"x-amz-version-id": "v1"}}


@pytest.mark.parametrize(
    ("refusal", "version"),
    [({"times": 0}, "v1"), ({"status": 403}, ""), ({"status": 501}, ""), ({"reset": "after"}, "")],
    ids=["it may", "no right to it", "not known there", "the store is away"],
)
async def test_a_version_is_named_only_where_it_can_be_read_by_its_id(
    faulty_s3: FaultyS3, tmp_path: Path, refusal: dict[str, Any], version: str
) -> None:
    """s3:GetObjectVersion is a right of its own: the link would be dead without."""
    faulty_s3.fault(**VERSIONED)
    faulty_s3.fault(**{"method": "HEAD", "asks": "versionId", "times": FOREVER, **refusal})
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", b"first")
        await daemon.done()
        [link] = links(daemon)
    assert (link["version_id"], named(link)) == ("v1", version)


AWAY: dict[str, Any] = {"reset": "after"}
NO_RIGHT: dict[str, Any] = {"status": 403}
MAY: dict[str, Any] = {"times": 0}


@pytest.mark.parametrize(
    ("then", "later"),
    [(MAY, AWAY), (MAY, NO_RIGHT), (AWAY, MAY), (NO_RIGHT, MAY)],
    ids=["the store is away", "the right is lost", "the store was away", "the right is new"],
)
async def test_a_link_made_again_is_the_one_in_the_links_file(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: dict[str, Any], later: dict[str, Any]
) -> None:
    """Whether it names the version is recorded with it, and not found out again."""

    def full(*_: object) -> bool:
        raise fault("disk_full")

    def answer_heads(with_: dict[str, Any]) -> None:
        faulty_s3.heal()
        faulty_s3.fault(**VERSIONED)
        faulty_s3.fault(**{"method": "HEAD", "asks": "versionId", "times": FOREVER, **with_})

    configured = config(tmp_path, faulty_s3, watch(tmp_path, link_file="{name}.link.txt"))
    answer_heads(then)
    with monkeypatch.context() as patched:
        patched.setattr(finisher, "write_link_file", full)
        async with running(configured) as daemon:
            daemon.drop("a", b"first")
            await daemon.said_by_now("link_file.failed")
    answer_heads(later)
    async with running(configured) as daemon:
        await daemon.done()
        [link] = links(daemon)
    assert named(link) == ("v1" if then is MAY else "")
    assert (tmp_path / "drop" / "a.link.txt").read_text() == link["url"] + "\n"


async def test_a_link_that_a_crash_left_uncommitted_is_made_again_as_it_is_in_the_links_file(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = config(tmp_path, faulty_s3, watch(tmp_path, link_file="{name}.link.txt"))
    faulty_s3.fault(**VERSIONED)
    crashed = asyncio.Event()

    async def crash(*_: object) -> None:
        crashed.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "record_linked", crash)
        async with running(configured) as daemon:
            daemon.drop("a", b"first")
            async with asyncio.timeout(20):
                await crashed.wait()
    faulty_s3.fault(**{"method": "HEAD", "asks": "versionId", "times": FOREVER, **AWAY})
    async with running(configured) as daemon:
        await daemon.done()
        [link] = links(daemon)
    assert named(link) == "v1"
    assert (tmp_path / "drop" / "a.link.txt").read_text() == link["url"] + "\n"


async def test_a_version_called_null_is_whatever_the_key_holds(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """Versions are suspended, or there never were any."""
    faulty_s3.fault(**{**VERSIONED, "headers": {"x-amz-version-id": "null"}})
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", b"first")
        await daemon.done()
        [link] = links(daemon)
    assert named(link) == ""


@pytest.mark.parametrize(("me", "version"), [({"versions": True}, "v1"), ({}, "")], ids=["a broker", "an older one"])
async def test_a_broker_that_knows_no_versions_is_asked_for_none(
    faulty_s3: FaultyS3, tmp_path: Path, broker: FakeBroker, me: dict[str, Any], version: str
) -> None:
    """It would refuse all that is asked with it."""
    broker.me |= me
    key = f"{broker.me['prefix']}a"
    faulty_s3.fault(**{**VERSIONED, "key": key})
    async with running(by_broker(tmp_path, faulty_s3, broker)) as daemon:
        daemon.drop("a", b"first")
        await daemon.done()
        [link] = links(daemon)
    assert (link["version_id"], named(link)) == ("v1", version)
    asked = [grant for seen in broker.asked for grant in seen.grants]
    assert any("version_id" in grant for grant in asked) is bool(version)
