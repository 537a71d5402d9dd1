"""compose.yaml's services together: a file is dropped, its link opens over nginx's TLS, a guest sends one back."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from tests.canary import assert_no_secrets
from tests.guests import Guest, send
from tests.system.compose import Compose
from tests.system.image import CHECKOUT, Image
from tests.system.machine import until

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.needs("docker-compose", "ip", "nginx", "postgres"),
]

ORDER = ("setup", "store", "database", "broker", "daemon", "proxy")
OWNER = 1000
"""The user whose files are dropped, by default."""
WHOLE = b"a page\n" * 1000


@pytest.fixture(scope="module")
def compose(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """Start all of them, each once those are healthy that it needs; at the end, search what they wrote for secrets."""
    folder = tmp_path_factory.mktemp("compose")
    folder.chmod(0o755)
    found = Compose(folder, image)
    os.chown(found.drop, OWNER, OWNER)
    try:
        for name in ORDER:
            found.run(name)
        yield found
        for name in ("daemon", "broker"):
            assert found.services[name].stop() == 0
    finally:
        found.close()
    files = [file for file in found.volume("secrets").rglob("*") if file.is_file() and file.name != "tls.pem"]
    assert_no_secrets(found.logs(), *(file.read_text() for file in files if "tokens.d" not in file.parts))


def drop(compose: Compose, name: str, content: bytes) -> None:
    path = compose.drop / name
    path.write_bytes(content)
    os.chown(path, OWNER, OWNER)


def of_the_head(service: str) -> list[str]:
    """Return the command that the head of compose.yaml has for a service."""
    text = (CHECKOUT / "compose.yaml").read_text("utf-8")
    [command] = re.findall(rf"^# .*: docker compose exec {service} (.+)$", text, re.MULTILINE)
    return shlex.split(command)


def links(compose: Compose) -> dict[str, str]:
    """Return the links by key."""
    said = compose.services["daemon"].exec(*of_the_head("daemon"), "--json").stdout.splitlines()
    return {link["key"]: link["url"] for link in map(json.loads, said)}


def opened(compose: Compose, link: str) -> bytes:
    """Open a stable link over nginx, and download what it leads to over nginx."""
    redirect = compose.network.inside(lambda: send(link, "GET"))
    assert redirect.status == 302, redirect
    assert redirect.location.startswith("https://localhost:8443/drop/")
    found = compose.network.inside(lambda: send(redirect.location, "GET"))
    assert found.status == 200, found
    return found.body


def test_a_dropped_file_opens_by_its_link_over_tls(compose: Compose) -> None:
    drop(compose, "hello.txt", WHOLE)
    until(lambda: "hello.txt" in links(compose), f"its link: {compose.services['daemon'].log}", 120)
    link = links(compose)["hello.txt"]
    assert link.startswith("https://links.localhost:8443/l/")
    assert opened(compose, link) == WHOLE
    nginx = compose.services["proxy"].log.read_text()
    assert "/l/REDACTED/hello.txt" in nginx
    assert link.split("/")[4] not in compose.logs()


def test_the_daemon_sees_whether_the_owners_files_are_still_being_written(compose: Compose) -> None:
    status = json.loads(compose.services["daemon"].exec("presignd", "status", "--json").stdout)
    assert [watch["writer_check"] for watch in status["watches"]] == ["lease"]


def test_the_proxy_has_the_certificate_that_setup_made(compose: Compose) -> None:
    pem = compose.volume("secrets") / "tls.pem"
    context = ssl.create_default_context(cadata="".join(pem.read_text().partition("-----BEGIN CERTIFICATE")[1:]))

    def shake() -> None:
        with (
            socket.create_connection(("127.0.0.1", 8443)) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1"),
        ):
            pass

    compose.network.inside(shake)


def test_a_guest_sends_a_file_by_an_invitation_over_tls(compose: Compose) -> None:
    broker = compose.services["broker"]
    invited = broker.exec(*of_the_head("broker"), "--json")
    assert invited.returncode == 0, invited.stderr
    url = json.loads(invited.stdout)["url"]
    assert url.startswith("https://links.localhost:8443/i/")

    def sends() -> Any:
        guest = Guest(url)
        [ticket] = guest.tickets(("scan.pdf", len(WHOLE)))
        assert guest.put(ticket, WHOLE).status == 200
        return guest.done(ticket), ticket["key"]

    (status, done), key = compose.network.inside(sends)
    assert (status, done["received"]) == (200, True)
    shown = json.loads(broker.exec("presignd", "broker", "invite", "show", "march", "--json").stdout)
    assert [(file["path"], file["size"], file["key"]) for file in shown["received"]] == [("scan.pdf", len(WHOLE), key)]
    assert opened(compose, linked(compose, key)) == WHOLE
    assert url.rpartition("/")[2] not in compose.logs()


def linked(compose: Compose, key: str) -> str:
    """Have the broker make a link to an object, with the daemon's token; return it."""
    token = (compose.volume("secrets") / "daemon_token").read_text()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = json.dumps({"bucket": "drop", "key": key}).encode()
    place = f"http://127.0.0.1:8420/v1/links/{secrets.token_urlsafe(16)}"
    made = compose.network.inside(lambda: send(place, "PUT", headers, body))
    assert made.status == 201, made
    return str(json.loads(made.body)["url"])


def test_the_commands_ask_the_running_broker(compose: Compose) -> None:
    assert (compose.volume("broker-state") / "control.sock").is_socket()
    assert "control.unavailable" not in compose.logs()


def test_the_checks_find_nothing_that_fails(compose: Compose) -> None:
    for name, command in (("broker", "presignd broker check"), ("daemon", "presignd check")):
        done = compose.services[name].exec(*command.split())
        assert done.returncode == 0, done.stdout + done.stderr
        assert "FAIL" not in done.stdout


def test_a_second_setup_changes_nothing(compose: Compose) -> None:
    """As at each later ``docker compose up``."""
    folder = compose.volume("secrets")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    compose.run("setup")
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
