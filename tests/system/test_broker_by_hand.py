"""README's curl and fetch() examples for the broker do what they say, as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import playwright
import pytest

from presignd.broker.policy import Code
from tests.brokers import Broker, broker_for
from tests.stores import Store

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


def block(marker: str) -> str:
    """Return the fenced block behind a marker."""
    [found] = re.findall(rf"^<!-- {marker} -->\n```\w*\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL)
    return str(found)


def node() -> Path:
    """Return a node that is surely there and new: the one that playwright brings."""
    return Path(playwright.__file__).parent / "driver" / "node"


@pytest.fixture
def broker(tmp_path: Path, seaweedfs: Store) -> Iterator[Broker]:
    with broker_for(tmp_path / "broker", seaweedfs) as broker:
        yield broker


def environ(broker: Broker, store: Store) -> dict[str, str]:
    """Return what the examples take as given."""
    secret = broker.token("scanner-1", store.bucket)
    return {"PATH": os.defpath, "BROKER": broker.url, "TOKEN": secret, "BUCKET": store.bucket}


@pytest.mark.skipif(not (shutil.which("jq") or os.environ.get("CI")), reason="needs jq")
def test_the_ten_lines_of_curl_upload_and_fetch(broker: Broker, seaweedfs: Store, tmp_path: Path) -> None:
    body = os.urandom(100_000)
    (tmp_path / "report.pdf").write_bytes(body)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block("broker-curl")],
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


def test_the_fetch_example_uploads_and_fetches(broker: Broker, seaweedfs: Store, tmp_path: Path) -> None:
    given = "const { BROKER: broker, TOKEN: token, BUCKET: bucket } = process.env;\n"
    (tmp_path / "example.mjs").write_text(given + block("broker-fetch"), encoding="utf-8")
    done = subprocess.run(
        [node(), tmp_path / "example.mjs"],
        env=environ(broker, seaweedfs),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "hello\n")
    assert seaweedfs.read(seaweedfs.bucket, "scanner-1/hello.txt") == b"hello"


def test_the_readme_names_every_code_of_a_refusal() -> None:
    section = README.split("## Uploaders without keys", 1)[1].split("\n## ", 1)[0]
    assert {code for code in Code if f"`{code}`" not in section} == set()
