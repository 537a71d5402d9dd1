"""``presignd init --with-broker``: the configuration of a broker on the same machine, for links that can be revoked."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from presignd.config.toml import toml_text

if TYPE_CHECKING:
    from presignd.cli.init import Answers

LISTEN = "127.0.0.1:8420"
URL = f"http://{LISTEN}"
"""The broker's address for the daemon, and for links if they are opened only on this machine."""
OFFER = "Do you want links that last, and that you can revoke? It takes a broker, a second service on this machine"
NAME = "daemon"
"""The name of the daemon's token."""
OPERATIONS = ["put", "multipart", "head", "get", "link"]


def broker_file(target: Path) -> Path:
    """Return the file of the broker beside the daemon whose file is ``target``."""
    from presignd.broker.config import SYSTEM_FILE  # noqa: PLC0415 - help must be fast
    from presignd.cli import init  # noqa: PLC0415 - it imports this module

    return SYSTEM_FILE if target == init.SYSTEM_FILE else target.with_name("broker.toml")


def require_none(target: Path) -> None:
    """Raise ``UsageError`` if there is a broker's file beside ``target`` already: its tokens would be lost with it."""
    from presignd.errors import UsageError  # noqa: PLC0415 - help must be fast

    file = broker_file(target)
    if file == target:
        raise UsageError(f"{file} is where the broker's configuration goes", fix="name another file for the daemon's")
    if os.path.lexists(file):
        fix = f"to use that broker, make a token (presignd broker token create), then: presignd init --broker {URL}"
        raise UsageError(f"{file} exists and was not changed", fix=fix)


def ask_for_links(answers: Answers) -> Answers:
    """Ask where and how long links open; return ``answers`` with that, and with a new token for the daemon."""
    from presignd.broker.tokens import new_token  # noqa: PLC0415 - help must be fast
    from presignd.cli.init import ask  # noqa: PLC0415 - it imports this module
    from presignd.config.addresses import parse_site  # noqa: PLC0415 - as above

    url = ask(
        f"Address of links, as browsers see it (a TLS proxy there passes it to {LISTEN})", parse_site, default=URL
    )
    expires = ask("How long links live, e.g. 90d (empty: until you revoke them)", lifetime, default="")
    return replace(answers, links_url=url, link_expires=expires, broker=URL, token=new_token())


def lifetime(text: str) -> str:
    """Return how long stable links live, "" for those without an end; raise ``ValueError``."""
    from presignd.config.rules import check_expiry  # noqa: PLC0415 - help must be fast
    from presignd.units import format_duration, parse_whole_seconds  # noqa: PLC0415 - as above

    return format_duration(check_expiry(parse_whole_seconds(text), signed=False)) if text else ""


def render_broker(answers: Answers) -> str:
    """Return broker.toml: the keys, and the hash of the daemon's token, which may use the whole bucket.

    So an object's key is the file's path, as without a broker.
    """
    from presignd.broker import token_writer  # noqa: PLC0415 - help must be fast
    from presignd.broker.tokens import hash_of  # noqa: PLC0415 - as above

    # The proxy passes on the client's address, by which tries are limited.
    proxy = "" if answers.links_url == URL else "behind_proxy = true\n"
    keys = ""
    if answers.access_key:
        keys = f"access_key = {toml_text(answers.access_key)}\nsecret_key = {toml_text(answers.secret_key)}\n"
    token = {"name": NAME, "hash": hash_of(answers.token), "bucket": answers.bucket, "prefix": ""}
    return f"""\
# Written by presignd init. Every option, its default and unit: broker.example.toml

[broker]
listen = {toml_text(LISTEN)}
url = {toml_text(URL)}
{proxy}token_files = ["tokens.d/*.toml"]

[store]
endpoint = {toml_text(answers.endpoint)}
region = {toml_text(answers.region)}
{keys}
[links]
url = {toml_text(answers.links_url)}

{token_writer.render({**token, "operations": OPERATIONS})}"""


def next_steps(target: Path, broker: Path) -> list[str]:
    """Return the commands that come next, a line each."""
    from presignd.cli import init  # noqa: PLC0415 - it imports this module

    if target == init.SYSTEM_FILE:
        by_script = "systemd/install.sh --broker && systemd/install.sh"
        start = "systemctl enable --now presignd-broker presignd" if init.is_packaged() else by_script
        return [
            f"To start both as services: {start}",
            "To see how they are: systemctl status presignd-broker presignd",
            f"To test the broker again: sudo -u presignd-broker presignd broker check -c {broker}",
        ]
    return [
        f"To start the broker: presignd broker run -c {broker}",
        f"To start the daemon, in another terminal: presignd run -c {target}",
        f"To test the broker again: presignd broker check -c {broker}",
    ]
