"""The broker of ``presignd demo``: in the demo's process, on loopback, with its state in the demo's folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from secrets import token_hex, token_urlsafe
from typing import NamedTuple

from pydantic import SecretStr

from presignd.broker import token_writer
from presignd.broker.config import BrokerConfig, BrokerSection, FleetSection, LinksSection, StatePlace
from presignd.broker.service import Broker
from presignd.broker.state.invitations import Invitations, NewInvitation
from presignd.broker.state.links import hash_of as hash_of_id
from presignd.broker.tokens import hash_of, new_token
from presignd.config import LogConfig, PresignConfig
from presignd.demo.seaweedfs import LOOPBACK, EmbeddedStore, free_ports, is_free
from presignd.errors import UsageError, reason_of
from presignd.runtime.tasks import looping
from presignd.system.clock import utcnow
from presignd.system.durable import make_folder, write_file

NAME = "demo"
"""The token's name, the same at every start: links belong to the token of this name."""
OPERATIONS = ["put", "multipart", "head", "get", "link", "receive"]
PREFIX = "guests/"
"""Prefix of what guests send, by the demo's invitation."""
VALID = timedelta(days=30)
"""How long the demo's invitation takes files; a later start makes another."""


class DemoBroker(NamedTuple):
    """The demo's broker: the daemon's [presign] section for it, and its invitation's name and address (secret)."""

    presign: PresignConfig
    invitation: str
    address: str


@asynccontextmanager
async def demo_broker(folder: Path, store: EmbeddedStore) -> AsyncIterator[DemoBroker]:
    """Run a broker that signs for ``store`` while the body runs; yield how to reach it, and its invitation.

    ``folder`` keeps its port, its state and the invitation's id, so that its address stays. Only the token's hash is
    written there: each start has a new token. Raises ``UsageError`` where nothing can be written, ``Unavailable`` where
    no port is free.
    """
    token = new_token()
    try:
        make_folder(folder, 0o700)
        port = _port(folder / "port", store)
        write_file(folder / "token.toml", token_writer.render(_token(token, store)).encode())
    except OSError as error:
        raise UsageError(f"demo: {folder} can't be used: {reason_of(error)}", fix="name another DIR") from None
    config = _config(folder, store, f"{LOOPBACK}:{port}")
    broker = Broker(config, lambda: config)
    try:
        async with AsyncExitStack() as stack, looping() as loops:
            await broker.open(stack)
            loops.start("broker", broker.looking())
            loops.start("invitations", broker.sweeping())
            name, secret = await _invitation(folder / "invitation", broker, store.bucket)
            presign = PresignConfig(
                kind="broker", endpoint=store.endpoint, url=config.broker.url, token=SecretStr(token)
            )
            yield DemoBroker(presign, name, f"{config.links.url}/i/{secret}")
    finally:
        await broker.close()


async def _invitation(file: Path, broker: Broker, bucket: str) -> tuple[str, str]:
    """Return the last start's invitation, its name and its id, or a new one if that has ended."""
    invitations, now = Invitations(broker.database), utcnow()
    last = _last(file)
    known = await invitations.find(hash_of_id(last))
    if known is not None and known.is_open(now):
        return known.new.name, last
    name, secret = f"demo-{token_hex(4)}", token_urlsafe(16)
    new = NewInvitation(
        id=hash_of_id(secret),
        name=name,
        bucket=bucket,
        prefix=PREFIX,
        note="Send files to this demo.",
        pin="",
        made_at=now,
        ends_at=now + VALID,
        max_files=None,
        max_size=None,
        total=None,
    )
    await invitations.make(new)
    write_file(file, f"{secret}\n".encode())
    return name, secret


def _last(file: Path) -> str:
    return file.read_text("ascii", "replace").strip() if file.exists() else ""


def _port(file: Path, store: EmbeddedStore) -> int:
    """Return the last start's port, so that its links open again; another one if it is taken now."""
    last = _last(file)
    if last.isdecimal() and 0 < int(last) < 1 << 16 and is_free(int(last)):
        return int(last)
    port = next(port for port in free_ports(len(store.ports) + 1) if port not in store.ports)
    write_file(file, f"{port}\n".encode())
    return port


def _token(token: str, store: EmbeddedStore) -> dict[str, object]:
    return {"name": NAME, "hash": hash_of(token), "bucket": store.bucket, "prefix": "", "operations": OPERATIONS}


def _config(folder: Path, store: EmbeddedStore, listen: str) -> BrokerConfig:
    """Return the broker's configuration: the defaults, with the embedded store and its keys."""
    keys = PresignConfig(
        endpoint=store.endpoint,
        region="us-east-1",
        access_key=store.access_key,
        secret_key=SecretStr(store.secret_key),
    )
    return BrokerConfig(
        file=folder / "token.toml",
        broker=BrokerSection(listen=listen, url=f"http://{listen}"),
        store=keys,
        log=LogConfig(level="warning"),
        fleet=FleetSection(),
        links=LinksSection(url=f"http://{listen}"),
        state=StatePlace(folder / "state.db"),
    )
