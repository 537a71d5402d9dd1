"""The broker of ``presignd demo``: in the demo's process, on loopback, with its state in the demo's folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from pydantic import SecretStr

from presignd.broker import token_writer
from presignd.broker.config import BrokerConfig, BrokerSection, FleetSection, LinksSection, StatePlace
from presignd.broker.service import Broker
from presignd.broker.tokens import hash_of, new_token
from presignd.config import LogConfig, PresignConfig
from presignd.demo.seaweedfs import LOOPBACK, EmbeddedStore, free_ports, is_free
from presignd.errors import UsageError, reason_of
from presignd.runtime.tasks import looping
from presignd.system.durable import make_folder, write_file

NAME = "demo"
"""The token's name, the same at every start: links belong to the token of this name."""
OPERATIONS = ["put", "multipart", "head", "get", "link"]


@asynccontextmanager
async def demo_broker(folder: Path, store: EmbeddedStore) -> AsyncIterator[PresignConfig]:
    """Run a broker that signs for ``store`` while the body runs; yield how a daemon asks it.

    ``folder`` keeps its port and its state. Only the token's hash is written there: each start has a new token.
    Raises ``UsageError`` where nothing can be written, ``Unavailable`` where no port is free.
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
            yield PresignConfig(kind="broker", endpoint=store.endpoint, url=config.broker.url, token=SecretStr(token))
    finally:
        await broker.close()


def _port(file: Path, store: EmbeddedStore) -> int:
    """Return the last start's port, so that its links open again; another one if that is taken now."""
    last = file.read_text("ascii", "replace").strip() if file.exists() else ""
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
