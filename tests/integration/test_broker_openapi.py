"""The OpenAPI document is correct: compared with the code, and fuzzed against a running broker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import presignd.broker
from presignd.broker.api import Api
from presignd.broker.config import BrokerSection, LinksSection
from presignd.broker.guest_page import page as guest_page
from presignd.broker.openapi import DOCUMENT, WHOLE_CALL
from presignd.broker.tokens import Tokens
from presignd.config import PresignConfig, UploadConfig
from presignd.presign import Operation
from presignd.presign.credentials import CredentialSource
from presignd.presign.local import LocalPresigner
from presignd.store.client import StoreClient
from presignd.store.signed import SignedStore
from tests.contract.test_presigner_local import utc_now
from tests.guests import invite
from tests.stable import OPERATIONS, sharing
from tests.stores import Store

EXAMPLES = os.environ.get("PRESIGND_FUZZ_EXAMPLES", "20")
"""A longer run: PRESIGND_FUZZ_EXAMPLES=1000 pytest tests/integration/test_broker_openapi.py."""


PAGES = ("/l/", "/i/{else}", *(f"{guest_page.PLACE}{name}" for name in guest_page.ASSETS))
"""Paths for people, which no program asks for."""


def test_it_names_every_path_and_method_and_no_other(tmp_path: Path) -> None:
    async def region(_: str) -> str:
        return ""

    config = PresignConfig()
    signer = LocalPresigner(
        config, region_of=region, credentials=CredentialSource(config, clock=utc_now), clock=utc_now
    )
    client = StoreClient(config, UploadConfig())
    app = Api(
        BrokerSection(metrics_listen="127.0.0.1:0"),
        Tokens(tmp_path / "none", []),
        signer,
        links=LinksSection(url="https://files.example.org"),
        store=lambda: SignedStore(signer, client),
    ).app()
    routes = {
        (route.resource.canonical, route.method)
        for route in app.router.routes()
        if route.resource and not route.resource.canonical.startswith(PAGES)
    }
    told = {(path, method.upper()) for path, calls in DOCUMENT["paths"].items() for method in calls}
    assert {route for route in routes if route[1] != "HEAD"} == told


def test_it_names_every_status_that_the_code_refuses_with() -> None:
    source = "".join(file.read_text("utf-8") for file in Path(presignd.broker.__path__[0]).rglob("*.py"))
    raised = {int(status) for status in re.findall(r"Rejected\(\s*(\d{3})", source)}
    assert raised >= {400, 401, 413, 429, 503}
    assert raised | {404, 409, 410, 500} == set(WHOLE_CALL)
    told = {status for calls in DOCUMENT["paths"].values() for call in calls.values() for status in call["responses"]}
    assert {str(status) for status in WHOLE_CALL} | {"200", "201", "204"} == told
    of_links = {"403", "404", "409", "410"}
    assert told - of_links - {"201", "204"} == set(DOCUMENT["paths"]["/v1/grants"]["post"]["responses"])


def test_its_shapes_are_those_of_the_code() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["Operation"]["enum"] == list(Operation)
    assert schemas["GrantRequest"]["required"] == ["operation", "bucket", "key", "expires"]
    assert schemas["Batch"]["additionalProperties"] is False
    assert schemas["GrantRequest"]["additionalProperties"] is True, "such a request is refused in its place"


@pytest.mark.long
def test_a_fuzzer_that_reads_it_finds_nothing(tmp_path: Path, seaweedfs: Store) -> None:
    """schemathesis: every status and shape as documented, no 500, no way around the token."""
    with sharing(tmp_path, seaweedfs, "test-bucket", shared=True) as broker:
        secret = broker.token("scanner-1", "test-bucket", prefix="", operations=OPERATIONS)
        # No fuzzer finds an id of 128 random bits.
        invited = invite(broker, "fuzz")["url"].rpartition("/")[2]
        (tmp_path / "schemathesis.toml").write_text(
            f'[[operations]]\ninclude-path-regex = "^/i/"\nparameters = {{ "path.id" = "{invited}" }}\n'
        )
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{broker.url}/openapi.json", "--checks", "all"),
                *("--header", f"Authorization: Bearer {secret}", "--max-examples", EXAMPLES, "--seed", "1"),
                *("--continue-on-failure", "--no-color"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert "No issues found" in done.stdout, done.stdout[-6000:]
        assert broker.events("grant.issued"), "the document's example is granted"
        assert broker.events("link.created"), "the document's example is a link"
        assert broker.events("upload.reserved"), "files were asked for"
        assert not broker.events("broker.internal_error")
