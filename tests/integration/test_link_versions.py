"""A link opens the version it was made for, if the bucket has versions and the store lets a link name one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import pytest

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
