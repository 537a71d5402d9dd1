"""``presignd demo``: the daemon with an embedded store and a broker, with nothing to set up."""

from __future__ import annotations

import asyncio
import errno
import os
import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from presignd.app import daemon
from presignd.cli import show as out
from presignd.cli.printer import Printer
from presignd.config import (
    Config,
    ControlConfig,
    InboxConfig,
    LedgerConfig,
    LinksConfig,
    LogConfig,
    PresignConfig,
    UploadConfig,
    WatchConfig,
    WebConfig,
)
from presignd.demo.seaweedfs import EmbeddedStore
from presignd.errors import Unavailable, UsageError
from presignd.ledger import NewArrival
from presignd.ledger.lock import DaemonLock
from presignd.model import Link
from presignd.pipeline.intake import content_type
from presignd.presign.stable import StableLink, StableRequest, new_link_id
from presignd.runtime.tasks import looping
from presignd.store.signed import signed_store
from presignd.system.clock import utcnow
from presignd.system.durable import make_folder
from presignd.system.trust import others_can_write, walked
from presignd.telemetry import log
from presignd.units import short_size


def demo_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to keep the demo in.")] = Path(
        "presignd-demo"
    ),
) -> None:
    """Start a real S3 server, a broker and the daemon: drop files, get links. Ctrl-C stops all of them.

    Example: presignd demo
    then, in another terminal: echo hi > presignd-demo/drop/hi.txt
    """
    from presignd.cli.loop import run  # noqa: PLC0415 - imports asyncio

    log.setup(LogConfig(level="warning"))
    run(serve(directory.absolute(), shown=directory))


async def serve(folder: Path, *, shown: Path) -> None:
    """Run store, broker and daemon below ``folder`` until SIGINT or SIGTERM.

    Raises ``Unavailable`` if the store ends first.
    """
    await asyncio.to_thread(claim, folder)
    loading = asyncio.create_task(asyncio.to_thread(import_module, "presignd.demo.broker"))
    async with EmbeddedStore(folder / "store") as store:
        await loading  # it takes 0.3 s, so it goes on while the store starts
        from presignd.demo.broker import demo_broker  # noqa: PLC0415 - as just said

        async with demo_broker(folder / "broker", store) as broker:
            config = demo_config(folder, broker.presign, store.bucket, broker.invitation)
            greet(shown, broker.address)
            arrived: asyncio.Queue[tuple[NewArrival, Path]] = asyncio.Queue()
            with Printer(show) as printer:
                async with looping() as loops:
                    loops.start("store", store.died())
                    loops.start("arrivals", show_arrivals(config, arrived))
                    await daemon.run(
                        config, on_link=printer, on_arrival=lambda new, path: arrived.put_nowait((new, path))
                    )


async def show_arrivals(config: Config, arrived: asyncio.Queue[tuple[NewArrival, Path]]) -> None:
    """Print each file that came in, and a link to it, until cancelled."""
    store = signed_store(config.presign, config.upload, clock=utcnow)
    links = store.presigner.links
    assert links is not None, "the demo's presigner is a broker's"
    try:
        while True:
            new, path = await arrived.get()
            kind = content_type(config.watches[0], os.fsencode(path.name))
            asked = StableRequest(new_link_id(), new.bucket, new.key, new.size, kind, path.name, None)
            (link,) = await links.make([asked])
            out.say(f"{path.name}  ({short_size(new.size)}) came in: {path}")
            if isinstance(link, StableLink):
                out.result(link.url, as_is=True)
    finally:
        await store.close()


def greet(shown: Path, address: str) -> None:
    """Print how to use the demo. ``shown`` is its folder as the user wrote it, ``address`` its invitation's address."""
    drop, control = shown / "drop", shown / "state" / "control.sock"
    out.say(f"Drop files into {drop}. Links appear here and work while this runs. Press Ctrl-C to stop.")
    out.say(f"Try:  echo hi > {quoted(drop / 'hi.txt')}   then open its link in a browser, or use curl")
    ask = f"PRESIGND_SOCKET={quoted(control)} {quoted(own_name())}"
    out.say(f"Ask:  {ask} status   (or: links, unlink FILE, verify --all)")
    out.say(f"Send: {address}   files dropped there come into {shown / 'inbox'}", as_is=True)


def claim(folder: Path) -> None:
    """Make ``folder``, its drop folder and its inbox, or raise ``UsageError``; ``Unavailable`` while a demo runs there.

    This comes before the store starts. Two stores on the same files would damage them. A folder that others can write
    to (one of theirs in /tmp) may hold their symlinks, and the store would write its files through them.
    """
    try:
        make_folder(folder, 0o755)
        with walked(folder) as place:
            if others_can_write(place.st):
                raise PermissionError(errno.EPERM, "others can write to it, or it belongs to another user")
        for name in ("drop", "inbox"):
            (folder / name).mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"demo: {folder} can't be used: {error.strerror}", fix="name another DIR") from None
    try:
        DaemonLock(folder / "state").close()
    except Unavailable as error:
        raise Unavailable(f"demo: {error.message}", fix="stop that demo, or name another DIR") from None


def demo_config(folder: Path, presign: PresignConfig, bucket: str, invitation: str) -> Config:
    """Return the daemon's configuration: the defaults, with the demo's broker."""
    state = folder / "state"
    return Config(
        presign=presign,
        watches=(WatchConfig(name="drop", path=folder / "drop", bucket=bucket),),
        inboxes=(InboxConfig(name="inbox", path=folder / "inbox", invitation=invitation),),
        upload=UploadConfig(),
        ledger=LedgerConfig(path=state),
        links=LinksConfig(file=state / "links" / "links.jsonl"),
        control=ControlConfig(socket=state / "control.sock"),
        log=LogConfig(level="warning"),
        web=WebConfig(),
    )


def show(link: Link) -> None:
    """Print a link: the file's name on stderr, the URL alone on stdout."""
    out.say(f"{link.key}  ({short_size(link.size)})")
    out.result(link.url, as_is=True)


def quoted(what: Path | str) -> str:
    """Return ``what`` as one word for a shell."""
    return shlex.quote(str(what))


def own_name() -> str:
    """Return what to type to call this command: its name where PATH finds it, else its path."""
    called, found = Path(sys.argv[0]), shutil.which("presignd")
    away = called.name == "presignd" and called.exists() and not (found and called.samefile(found))
    return str(called) if away else "presignd"
