"""Expiring credentials from real HTTP services on loopback: STS, container and instance metadata."""

from __future__ import annotations

import os
import traceback
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web

from presignd.config import PresignConfig
from presignd.errors import PresignerFault
from presignd.presign.credentials import Credentials, CredentialSource
from presignd.redaction import redact
from presignd.s3.sigv4 import Keys

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENDS = "2026-01-01T06:00:00Z"
TOKEN = "canary-web-identity-token"
FOUND = Keys("role-access", "role-secret", "role-token")

STS_ANSWER = f"""<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>role-access</AccessKeyId>
<SecretAccessKey>role-secret</SecretAccessKey><SessionToken>role-token</SessionToken>
<Expiration>{ENDS}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""
METADATA_ANSWER = {
    "Code": "Success",
    "AccessKeyId": "role-access",
    "SecretAccessKey": "role-secret",
    "Token": "role-token",
    "Expiration": ENDS,
}
ROLES = "/latest/meta-data/iam/security-credentials/"


class Services:
    """One server that is all three; ``refuse`` makes it answer 403, ``redirect`` 307."""

    def __init__(self) -> None:
        self.refuse = self.redirect = False
        self.asked: list[web.Request] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        if self.refuse:
            return web.Response(status=403, text=str(request.rel_url))
        if self.redirect:
            return web.Response(status=307, headers={"Location": f"/elsewhere?{request.query_string}"})
        if request.query.get("Action") == "AssumeRoleWithWebIdentity":
            return web.Response(text=STS_ANSWER)
        plain = {"/latest/api/token": "session", ROLES: "uploader"}.get(request.path)
        return web.Response(text=plain) if plain else web.json_response(METADATA_ANSWER)


@pytest.fixture
async def services(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Services]:
    for name in [name for name in os.environ if name.startswith(("AWS_", "MINIO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    served = Services()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", served.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield served
    await runner.cleanup()
    redact.forget_all()


@pytest.fixture
def web_identity(services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/uploader")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", services.url)


async def lookup() -> Credentials:
    return await CredentialSource(PresignConfig(), clock=lambda: NOW).get()


@pytest.mark.usefixtures("web_identity")
async def test_a_web_identity_token_becomes_credentials(services: Services) -> None:
    assert await lookup() == Credentials(FOUND, "web identity", datetime(2026, 1, 1, 6, tzinfo=UTC))
    assert services.asked[0].query["RoleArn"] == "arn:aws:iam::1:role/uploader"


@pytest.mark.usefixtures("web_identity")
async def test_a_refused_web_identity_token_is_never_quoted(services: Services) -> None:
    services.refuse = True
    with pytest.raises(PresignerFault, match="web identity gave none") as caught:
        await lookup()
    assert TOKEN in str(services.asked[0].rel_url)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


@pytest.mark.usefixtures("web_identity")
async def test_the_log_of_the_http_library_shows_no_token_once_redacted(
    services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    """Urllib3 logs each request's line at debug, its query included."""
    with caplog.at_level("DEBUG"):
        await lookup()
    assert TOKEN in caplog.text
    assert TOKEN not in redact.redact(caplog.text)


@pytest.mark.usefixtures("web_identity")
async def test_a_redirect_does_not_carry_the_token_elsewhere(services: Services) -> None:
    services.redirect = True
    with pytest.raises(PresignerFault, match="web identity gave none"):
        await lookup()
    assert [request.path for request in services.asked] == ["/"]


async def test_a_container_gets_its_credentials(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{services.url}/v1/credentials")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "container-token")
    found = await lookup()
    assert (found.keys, found.source) == (FOUND, "container metadata")
    assert services.asked[0].headers["Authorization"] == "container-token"


async def test_an_instance_gets_its_roles_credentials(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"{services.url}/")
    found = await lookup()
    assert (found.keys, found.source) == (FOUND, "instance metadata")
    assert [request.path for request in services.asked] == ["/latest/api/token", ROLES, f"{ROLES}uploader"]


async def test_without_any_place_the_message_says_where_was_looked(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.refuse = True
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", services.url)
    with pytest.raises(PresignerFault, match=r"none in the config, AWS_\*.*instance metadata gave none"):
        await lookup()
