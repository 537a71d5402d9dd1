"""The broker page's curl and fetch() examples work exactly as they are on the page."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import playwright.async_api
import pytest

from presignd.broker.policy import RefusalCode
from tests.brokers import Broker, broker_for
from tests.needs import NODE
from tests.stores import Store
from tests.system.scenes import chromium

PAGE = (Path(__file__).parents[2] / "docs" / "broker.md").read_text("utf-8")


def block(marker: str) -> str:
    """Return the fenced block behind a marker."""
    [found] = re.findall(rf"^<!-- {marker} -->\n```\w*\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def broker(tmp_path: Path, seaweedfs: Store) -> Iterator[Broker]:
    with broker_for(tmp_path / "broker", seaweedfs) as broker:
        yield broker


def environ(broker: Broker, store: Store) -> dict[str, str]:
    """Return what the examples take as given."""
    secret = broker.token("scanner-1", store.bucket)
    return {"PATH": os.defpath, "BROKER": broker.url, "TOKEN": secret, "BUCKET": store.bucket}


@pytest.mark.needs("bash", "dash", "curl", "jq")
@pytest.mark.parametrize("shell", [["bash", "-euo", "pipefail"], ["dash", "-eu"]], ids=["bash", "dash"])
def test_the_ten_lines_of_curl_upload_and_fetch(
    broker: Broker, seaweedfs: Store, tmp_path: Path, shell: list[str]
) -> None:
    body = os.urandom(100_000)
    (tmp_path / "report.pdf").write_bytes(body)
    done = subprocess.run(
        [*shell, "-c", block("broker-curl")],
        env=environ(broker, seaweedfs),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert seaweedfs.read(seaweedfs.bucket, "scanner-1/report.pdf") == body
    assert seaweedfs.stat(seaweedfs.bucket, "scanner-1/report.pdf")["ContentType"] == "application/pdf"
    assert subprocess.check_output(["curl", "-fsS", done.stdout.strip()]) == body


@pytest.mark.needs("node")
def test_the_fetch_example_uploads_and_fetches(broker: Broker, seaweedfs: Store, tmp_path: Path) -> None:
    given = "const { BROKER: broker, TOKEN: token, BUCKET: bucket } = process.env;\n"
    (tmp_path / "example.mjs").write_text(given + block("broker-fetch"), encoding="utf-8")
    done = subprocess.run(
        [NODE, tmp_path / "example.mjs"],
        env=environ(broker, seaweedfs),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "hello\n")
    assert seaweedfs.read(seaweedfs.bucket, "scanner-1/hello.txt") == b"hello"


@pytest.mark.needs("chromium")
async def test_the_fetch_example_runs_in_a_page_of_the_brokers_own_origin_and_in_no_other(
    broker: Broker, seaweedfs: Store
) -> None:
    """A broker answers no other origin, as the page says; the store does (SeaweedFS by itself, S3 by PutBucketCors)."""
    given = environ(broker, seaweedfs)
    names = {"broker": "BROKER", "token": "TOKEN", "bucket": "BUCKET"}
    example = "".join(f"const {name} = {json.dumps(given[key])};\n" for name, key in names.items()) + block(
        "broker-fetch"
    )
    async with chromium() as browser:
        tab = await browser.new_page()
        said: list[str] = []
        tab.on("console", lambda message: said.append(message.text) if message.type == "log" else None)
        await tab.goto(f"{broker.url}/healthz")
        await tab.evaluate(f"async () => {{ {example} }}")
        assert said == ["hello"]
        assert seaweedfs.read(seaweedfs.bucket, "scanner-1/hello.txt") == b"hello"
        broker.until(lambda: len(broker.events("grant.issued")) == 2, "the two grants of the page that could")
        await tab.goto(seaweedfs.endpoint)
        with pytest.raises(playwright.async_api.Error, match="Failed to fetch"):
            await tab.evaluate(f"async () => {{ {example} }}")
        assert broker.stop() == 0  # its log is whole
        assert len(broker.events("grant.issued")) == 2


def test_the_page_names_every_code_of_a_refusal() -> None:
    assert {code for code in RefusalCode if f"`{code}`" not in PAGE} == set()
