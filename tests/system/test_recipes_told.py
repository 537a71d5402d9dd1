"""The recipes that tell people: ntfy, a chat, mail. As on their pages, with real receivers and hostile names."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from aiosmtpd.controller import Controller

from presignd.config import load
from presignd.demo.seaweedfs import LOOPBACK, free_ports
from presignd.links import encode
from tests.faulty_s3 import FaultyS3
from tests.recipes import block, replaced
from tests.running import config, running, watch
from tests.served import Served, link_for, served
from tests.system.test_recipes import NAMES, machine, run, shown

__all__ = ["machine", "served"]

pytestmark = pytest.mark.needs("dash", "bash", "jq", "curl")


# --- receivers ------------------------------------------------------------------------------------
@dataclass
class Site:
    """An HTTP server that takes what ``judge`` finds nothing wrong with; ``away`` it answers 503."""

    judge: Callable[[web.Request, bytes], str]
    taken: list[dict[str, Any]] = field(default_factory=list)
    away: bool = False
    url: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.away:
            return web.Response(status=503)
        if wrong := self.judge(request, body):
            return web.Response(status=400, text=wrong)
        self.taken.append(json.loads(body))
        return web.Response(text="ok")


@asynccontextmanager
async def site(judge: Callable[[web.Request, bytes], str]) -> AsyncIterator[Site]:
    found = Site(judge)
    app = web.Application(client_max_size=1 << 20)
    app.router.add_route("*", "/{path:.*}", found.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, 0).start()
    found.url = f"http://{LOOPBACK}:{runner.addresses[0][1]}"
    try:
        yield found
    finally:
        await runner.cleanup()


NTFY: dict[str, type] = {
    **dict.fromkeys(
        ("topic", "title", "message", "click", "icon", "attach", "filename", "email", "call", "delay"), str
    ),
    **dict.fromkeys(("tags", "actions"), list),
    "priority": int,
    "markdown": bool,
}
"""What a message in JSON may have (docs.ntfy.sh/publish, "Publish as JSON")."""
NTFY_BYTES = 8192
"""ntfy refuses a longer one."""


def wrong_for_ntfy(request: web.Request, body: bytes) -> str:
    """Return what ntfy would refuse of a message in JSON, which is posted to the server's root."""
    if request.headers.get("Authorization") != "Bearer tk_AgQdq7mVBoFD37zQVN29RhuMzNIz2":
        return "not allowed"
    if (request.method, request.path, len(body) <= NTFY_BYTES) != ("POST", "/", True):
        return "no message in JSON"
    message = json.loads(body)
    for name, value in message.items():
        if name not in NTFY or not isinstance(value, NTFY[name]):
            return f"{name} is wrong"
    if not re.fullmatch(r"[-_A-Za-z0-9]{1,64}", message["topic"]) or len(message.get("actions", ())) > 3:
        return "topic or actions are wrong"
    actions = [action.keys() >= {"action", "label", "url"} for action in message.get("actions", ())]
    return "" if all(actions) else "an action lacks something"


def wrong_for_a_chat(request: web.Request, body: bytes) -> str:
    """Return what an incoming webhook of Slack or Mattermost would refuse."""
    if request.path != "/hooks/xxx-generatedkey-xxx":
        return "invalid_token"
    if request.content_type != "application/json":
        return "invalid_payload"
    message = json.loads(body)
    return "" if set(message) == {"text"} and message["text"] else "no_text"


class Post:
    """What an SMTP server took; ``away`` it answers 451."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, list[str], EmailMessage]] = []
        self.away = False

    async def handle_DATA(self, _server: object, _session: object, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's
        if self.away:
            return "451 try again later"
        assert b"\n" not in envelope.original_content.replace(b"\r\n", b""), "each line ends with CR LF"
        message = message_from_bytes(envelope.original_content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        self.taken.append((envelope.mail_from, envelope.rcpt_tos, message))
        return "250 OK"


# --- running a page's commands --------------------------------------------------------------------
def prepare(machine: Path, page: str, *files: str, **by: str) -> str:
    """Write a page's ``files`` into ``machine``; return its command, which ends once all links are told."""
    (machine / "bin/curl").unlink()
    (machine / "bin/curl").symlink_to(shutil.which("curl") or "none")
    for name in files:
        kind = name.partition(".")[2]
        text = block(page, f"{page}-{kind}")
        (machine / name).write_text(replaced(text, by) if kind == "curl" else text)
        (machine / name).chmod(0o600)
    command = block(page, f"{page}-{'smtp' if page == 'mail' else 'links'}")
    assert not any(secret in command for secret in ("tk_", "generatedkey", "password")), "it would be in the arguments"
    return replaced(command, {" --follow": "", "/var/lib": machine, "/etc/presignd": machine})


def issue(served: Served, *names: str) -> list[str]:
    """Write the links of files with these names; return them."""
    urls = [f"http://127.0.0.1/bucket/{quote(name, errors='surrogateescape')}?a=1&b=2" for name in names]
    links = [link_for(name, 5)._replace(url=url) for name, url in zip(names, urls, strict=True)]
    served.view.config.links.file.write_bytes(b"".join(map(encode, links)))
    return urls


def is_shown(name: str, text: str) -> bool:
    """Return whether a text that people read is one line, and is the name but for what could not be shown."""
    return text.isprintable() and len(text) == len(shown(name))


async def test_ntfy_gets_a_notification_of_each_link(served: Served, machine: Path) -> None:
    urls = issue(served, *NAMES)
    async with site(wrong_for_ntfy) as ntfy:
        command = prepare(machine, "ntfy", "ntfy.curl", **{"https://ntfy.example.org": ntfy.url})
        ntfy.away = True
        code, _, _ = await asyncio.to_thread(run, served, machine, command)
        assert (code, ntfy.taken) == (4, [])
        ntfy.away = False
        code, _, told = await asyncio.to_thread(run, served, machine, command)
    assert (code, told) == (0, "")
    assert [note["click"] for note in ntfy.taken] == [note["actions"][0]["url"] for note in ntfy.taken] == urls
    assert all(is_shown(name, note["title"]) for name, note in zip(NAMES, ntfy.taken, strict=True))


async def test_a_chat_gets_a_message_of_each_link_in_which_no_name_is_markup(served: Served, machine: Path) -> None:
    urls = issue(served, *NAMES, "`@channel` <!here> & *x*")
    async with site(wrong_for_a_chat) as chat:
        command = prepare(machine, "chat", "chat.curl", **{"https://chat.example.org": chat.url})
        chat.away = True
        code, _, _ = await asyncio.to_thread(run, served, machine, command)
        assert (code, chat.taken) == (4, [])
        chat.away = False
        code, _, told = await asyncio.to_thread(run, served, machine, command)
    assert (code, told) == (0, "")
    lines = [message["text"].split("\n") for message in chat.taken]
    assert [link for _, link in lines] == [f"<{url}>" for url in urls]
    assert all(re.fullmatch(r"`[^`<>&]+`", name) and name.isprintable() for name, _ in lines)
    assert lines[-1][0] == "`_@channel_ _!here_ _ *x*`"


async def test_a_mail_of_each_link_goes_out_by_smtp(served: Served, machine: Path) -> None:
    urls, post, (port,) = issue(served, *NAMES), Post(), free_ports(1)
    server = Controller(post, hostname=LOOPBACK, port=port)
    of_ours = {
        "smtps://smtp.example.org": f"smtp://{LOOPBACK}:{port}",
        'user = "presignd@example.org:the-password"\n': "",
    }
    command = prepare(machine, "mail", "mail.curl", "mail.jq", **of_ours)
    server.start()
    try:
        post.away = True
        code, _, _ = await asyncio.to_thread(run, served, machine, command)
        assert (code, post.taken) == (4, [])
        post.away = False
        code, _, told = await asyncio.to_thread(run, served, machine, command)
    finally:
        server.stop()
    assert (code, told) == (0, "")
    assert {(sender, *to) for sender, to, _ in post.taken} == {("presignd@example.org", "you@example.org")}
    mails = [mail for _, _, mail in post.taken]
    assert [mail.get_content().splitlines()[0] for mail in mails] == urls
    assert all(is_shown(name, mail["Subject"]) for name, mail in zip(NAMES, mails, strict=True))
    assert all(mail.defects == [] and mail["Date"].datetime and mail["Message-ID"] for mail in mails)
    assert {mail["To"] for mail in mails} == {"you@example.org"}
    assert not [mail for mail in mails if mail["Bcc"]]


# --- a webhook ------------------------------------------------------------------------------------
async def test_ntfy_makes_a_text_of_a_webhooks_message(tmp_path: Path, faulty_s3: FaultyS3) -> None:
    """Its templates are Go's; a field that the message lacks would be shown as "<no value>"."""
    rendered = list[dict[str, str]]()

    def render(request: web.Request, body: bytes) -> str:
        assert (request.method, request.path, request.query["template"]) == ("POST", "/files", "yes")
        message = json.loads(body)
        texts = {name: request.query[name] for name in ("title", "message")}
        rendered.append({name: templated(text, message) for name, text in texts.items()})
        return ""

    async with site(render) as ntfy:
        (tmp_path / "ntfy.url").write_text(replaced(block("ntfy", "ntfy-url"), {"https://ntfy.example.org": ntfy.url}))
        (tmp_path / "ntfy.secret").write_text("whsec_" + "A" * 43 + "=")
        file = tmp_path / "config.toml"
        file.write_text(replaced(block("ntfy", "ntfy-webhook"), {"/etc/presignd": tmp_path}) + WATCH)
        [webhook] = load(file, environ={"HOME": str(tmp_path)}).config.webhooks
        large = watch(tmp_path, max_size=3)
        async with running(config(tmp_path, faulty_s3, large, webhooks=[webhook])) as daemon:
            path = daemon.drop("large.bin", b"four")
            [said] = await daemon.said_by_now("file.quarantined")
            await daemon.until(lambda: rendered, "the notification")
    text = f"{path}: {said['error']}. {said['fix']}"
    assert rendered == [{"title": "A file needs you", "message": text}]


WATCH = '\n[[watch]]\nname = "drop"\npath = "drop"\nbucket = "drop"\n'


def templated(text: str, message: dict[str, Any]) -> str:
    """Return a template of ntfy filled in, whose fields are all there."""

    def value(found: re.Match[str]) -> str:
        at: Any = message
        for name in found[1].strip(".").split("."):
            at = at[name]
        return str(at)

    return re.sub(r"\{\{(\.[\w.]+)\}\}", value, text)
