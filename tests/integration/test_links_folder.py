"""A stable link to a folder: a page that lists its files, each with its own address below the link."""

from __future__ import annotations

import asyncio
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from tests.brokers import Document, command
from tests.folder_units import SHOOT, fill, folders, linked
from tests.running import config, running
from tests.stable import BROWSER, OPERATIONS, Sharing, ask, sharing
from tests.stores import Store

FILES = {"a.jpg": b"first", "raw/b\n<1>.txt": b"second", "empty": b"", "page.html": b"<script>alert(1)</script>"}


@pytest.fixture(scope="module")
def bucket(seaweedfs: Store) -> str:
    bucket = seaweedfs.new_bucket()
    for path, content in FILES.items():
        seaweedfs.write(bucket, f"one/shoot/{path}", content)
    seaweedfs.write(bucket, "one/secret", b"not in the folder")
    entries = [{"path": p, "key": f"one/shoot/{p}", "size": len(c), "checksum": "md5:"} for p, c in FILES.items()]
    entries.append({"path": "stolen", "key": "one/secret", "size": 1, "checksum": "md5:"})
    manifest = json.dumps({"unit": "shoot", "made": "2026-01-01T00:00:00Z", "files": entries})
    seaweedfs.write(bucket, "one/shoot/MANIFEST.json", manifest.encode())
    seaweedfs.write(bucket, "one/broken/MANIFEST.json", b"no JSON")
    return bucket


@pytest.fixture(scope="module")
def broker(seaweedfs: Store, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharing]:
    with sharing(tmp_path_factory.mktemp("broker"), seaweedfs, bucket) as broker:
        yield broker


def folder(broker: Sharing, **terms: Any) -> Document:
    return broker.link("one/shoot/MANIFEST.json", **{"filename": "shoot", "unit": True, **terms})


def test_the_page_lists_the_files_and_each_opens(broker: Sharing) -> None:
    link = folder(broker)
    assert link["unit"] is True
    page = ask(link["url"], headers=BROWSER)
    assert page.status == 200
    assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'; img-src 'self'")
    assert "stolen" not in page.text
    addresses = [html.unescape(found) for found in re.findall(r'href="(/l/[^"]*/shoot/[^"]*)"', page.text)]
    root = link["url"].removesuffix(f"/l/{link['id']}/shoot")
    targets = [ask(root + address) for address in addresses]
    assert [target.status for target in targets] == [302] * 5
    found = [ask(target.location) for target in targets]
    assert [each.body for each in found[:4]] == [*FILES.values()]
    assert json.loads(found[4].body)["unit"] == "shoot"
    assert found[3].headers["content-disposition"].startswith("attachment"), "nothing runs"
    assert found[1].headers["content-type"] == "text/plain; charset=utf-8"
    assert broker.opened(link) == 5, "what was issued is counted, the page is not"


def test_a_program_gets_the_manifest_and_a_head_a_target_for_head(broker: Sharing) -> None:
    link = folder(broker)
    assert json.loads(ask(ask(link["url"]).location).body)["unit"] == "shoot"
    target = ask(f"{link['url']}/a.jpg", "HEAD")
    assert target.status == 302
    assert ask(target.location, "HEAD").headers["content-length"] == "5"
    assert broker.opened(link) == 1


@pytest.mark.parametrize("path", ["stolen", "other", "a.jpg/", "../secret", "raw"])
def test_only_what_the_manifest_names_below_its_own_folder_opens(broker: Sharing, path: str) -> None:
    link = folder(broker)
    answer = ask(f"{link['url']}/{quote(path, safe='/')}", headers=BROWSER)
    assert answer.status == 404
    assert "There is no such" in answer.text
    assert broker.opened(link) == 0


def test_a_broken_or_missing_manifest_says_so(broker: Sharing) -> None:
    for key in ("one/broken/MANIFEST.json", "one/missing/MANIFEST.json"):
        answer = ask(broker.link(key, unit=True)["url"], headers=BROWSER)
        assert (answer.status, "The files can" in answer.text) == (502, True)


def test_a_pin_and_a_limit_open_the_folder_once_for_all_its_files(broker: Sharing) -> None:
    link = folder(broker, pin="2468", max_downloads=1)
    offer = ask(link["url"], headers=BROWSER)
    assert (offer.status, "a.jpg" in offer.text, "folder" in offer.text) == (200, False, False)
    assert ask(f"{link['url']}/a.jpg", headers=BROWSER).status == 200, "the same page, no file"
    assert ask(link["url"], "POST", BROWSER, pin="0000").status == 403
    opened = ask(link["url"], "POST", BROWSER, pin="2468")
    assert (opened.status, opened.location) == (303, f"/l/{link['id']}/shoot")
    passed = {**BROWSER, "Cookie": opened.cookie}
    assert "a.jpg" in ask(link["url"], headers=passed).text
    assert ask(f"{link['url']}/a.jpg", headers=passed).status == 302
    assert ask(link["url"], "POST", passed).status == 303, "again, by the pass"
    assert ask(link["url"], headers=BROWSER).status == 410, "used up for all others"
    assert broker.opened(link) == 1


def test_a_revocation_holds_for_each_file(broker: Sharing) -> None:
    link = folder(broker)
    assert ask(f"{link['url']}/a.jpg").status == 302
    broker.revoke_link(link)
    assert [ask(url, headers=BROWSER).status for url in (link["url"], f"{link['url']}/a.jpg")] == [410, 410]


def test_a_link_that_outlives_its_token_still_opens_its_folder(bucket: str, broker: Sharing) -> None:
    broker.secret, own = broker.token("left", bucket, operations=OPERATIONS, prefix="one/"), broker.secret
    link = folder(broker)
    broker.secret = own
    command("token", "revoke", "left", "--keep-links", "-c", broker.file)
    assert ask(f"{link['url']}/a.jpg").status == 302


async def test_a_daemons_folder_opens_and_its_files_have_presigned_links(
    seaweedfs: Store, bucket: str, broker: Sharing, tmp_path: Path
) -> None:
    watched = folders(tmp_path, bucket=bucket, key="{prefix}{path}")
    token = broker.token("daemon", bucket, operations=OPERATIONS)
    by_broker: dict[str, Any] = {
        "kind": "broker",
        "url": broker.url,
        "token": SecretStr(token),
        "access_key": "",
        "secret_key": None,
    }
    async with running(config(tmp_path, seaweedfs, watched, **by_broker)) as daemon:
        fill(tmp_path / "drop", "höll & <1>", SHOOT)
        (line,) = await linked(daemon)
        unit, member = [await daemon.ledger.by_path("drop", "höll & <1>".encode() + end) for end in (b"", b"/a.jpg")]
        assert unit is not None
        assert member is not None
        broker.secrets.append(unit.link_id)
        assert (await daemon.view.links.fresh(unit, None, by_uid=0)).url == line["url"]
        own = await daemon.view.links.fresh(member, None, by_uid=0)
    assert "X-Amz-Signature=" in own.url
    page = await asyncio.to_thread(ask, line["url"], "GET", BROWSER)
    assert (page.status, "höll &amp; &lt;1&gt;" in page.text, "3 files" in page.text) == (200, True, True)
    target = await asyncio.to_thread(ask, f"{line['url']}/raw/b.raw")
    assert (await asyncio.to_thread(ask, target.location)).body == SHOOT["raw/b.raw"]
    broker.secret, before = token, broker.secret
    links = broker.call("/v1/links", token)[1]["links"]
    broker.secret = before
    assert [(each["filename"], each["unit"]) for each in links] == [("höll & <1>", True)], "its files have none"
