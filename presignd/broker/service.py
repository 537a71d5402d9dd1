"""The broker as a service: it listens, reloads what changes, and drains at the end."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from datetime import datetime

from aiohttp import web

from presignd.broker import control, metrics
from presignd.broker.api import Api
from presignd.broker.certificate import certificate_end, end_problem, tls_context, tls_stamps
from presignd.broker.config import BrokerConfig, BrokerSection, is_in_the_clear
from presignd.broker.fleet.serving import FleetPage
from presignd.broker.fleet.snapshots import Counts
from presignd.broker.invitations.sweep import Sweeper
from presignd.broker.limits import LIMITS, Limits
from presignd.broker.load import of_store
from presignd.broker.state.database import NO_DATABASE, StateAway
from presignd.broker.state.links import Links
from presignd.broker.state.outbox import StateOutbox
from presignd.broker.state.place import LoggedDatabase, database_at
from presignd.broker.tokens import Tokens
from presignd.broker.webhook_commands import WebhookCommands
from presignd.broker.webhook_messages import webhooks_of
from presignd.config import PresignConfig, UploadConfig
from presignd.errors import PresigndError, PresignerFault, Unavailable, UsageError
from presignd.pages.html import count
from presignd.pages.serving import running
from presignd.presign.local import LocalPresigner
from presignd.runtime import heartbeat
from presignd.runtime.http_server import HttpServer
from presignd.runtime.service import Service, log_reloaded
from presignd.runtime.systemd import Notifier
from presignd.runtime.tasks import Loops, looping, unless, within
from presignd.store.signed import SignedStore, signed_store
from presignd.system.clock import utcnow
from presignd.telemetry.log import get_logger, setup
from presignd.webhooks.webhooks import Prepared

SPARE_FILES = 128
"""Descriptors kept from connections: token files and folders need some."""
LOOK_SECONDS = 1.0
"""Seconds between two looks at the files of tokens and certificates."""
SWEEP_SECONDS = 5.0
"""Seconds between two sweeps of guests' unfinished uploads."""
CREDENTIALS_SECONDS = 5.0
"""How long the start waits for credentials; without them the broker still listens, and logs that."""
RETIRE_SECONDS = 60.0
"""How long after a reload the old signer is closed."""
CUT_SECONDS = 1.0
"""How long an answer may take after the drain, before it is cut off."""

log = get_logger()


class Broker:
    """The running broker; ``load`` reads the configuration again, in a thread."""

    def __init__(self, config: BrokerConfig, load: Callable[[], BrokerConfig], limits: Limits = LIMITS) -> None:
        self._load, self._limits = load, limits
        self.config = config
        self.tokens = Tokens(config.file, config.broker.token_files, config.tokens)
        self.signer = _signer(config.store)
        self.database = LoggedDatabase(database_at(config.state)) if config.links.url else NO_DATABASE
        self.outbox = StateOutbox(self.database)
        self.webhooks = webhooks_of(self.outbox)
        self.webhook_commands = WebhookCommands(self.webhooks)
        self._hooks = self.webhooks.prepare(config.webhooks)
        self.outbox.want([courier.hook for courier in self._hooks])  # from the first request on
        self.api = Api(
            config.broker,
            self.tokens,
            _presigner_of(self.signer),
            limits,
            links=config.links,
            database=self.database,
            store=lambda: self.signer,
            outbox=self.outbox,
            webhooks=self.webhooks,
        )
        self.servers: list[HttpServer] = []
        self._main: HttpServer | None = None
        self._stamps = tls_stamps(config.broker)
        self._certificate_ends: datetime | None = None
        self._problems: dict[str, str] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    async def open(self, stack: AsyncExitStack) -> list[str]:
        """Listen until ``stack`` closes; return the addresses."""
        context = tls_context(self.config.broker)
        self._main = await self._listen(stack, self.api.app(), "listen")
        if self.config.broker.metrics_listen:
            await self._listen(stack, self.api.metrics_app(), "metrics_listen")
        for server in self.servers:
            server.serve(context if server is self._main else None)
        self.note_certificate_end()
        if self.config.fleet.listen:
            count = self._count_links if self.config.links.url else None
            await stack.enter_async_context(running(FleetPage(self.config.fleet, self.api, count)))
        return [server.place for server in self.servers]

    async def _count_links(self) -> Counts:
        return await Links(self.database).alive(utcnow())

    async def _listen(self, stack: AsyncExitStack, app: web.Application, option: str) -> HttpServer:
        server = HttpServer(
            app,
            getattr(self.config.broker, option),
            f"broker.{option}",
            connections=self.api.connections,
            most=lambda: most_connections(self._limits.connections),
            idle_seconds=self._limits.idle,
            cut_seconds=CUT_SECONDS,
        )
        stack.push_async_callback(server.close)
        try:
            await server.open()
        except PresigndError as error:  # 3 in any case: the cause may be gone at the next start
            problem = "; ".join(getattr(error, "problems", ())) or error.message
            raise Unavailable(f"broker.{option}: can't listen at {problem}", fix=error.fix) from None
        self.servers.append(server)
        return server

    async def drain(self) -> None:
        """Accept no more connections, and wait until all requests are answered, ``drain_timeout`` at most.

        aiohttp's own shutdown stops reading bodies, so it comes after this.
        """
        self.api.drain()
        for server in self.servers:
            await server.stop_listening()
        await within(self.config.broker.drain_timeout, self.api.idle)

    async def sweeping(self) -> None:
        """End what guests left unfinished, until cancelled."""
        sweeper = Sweeper(self.database, lambda: self.signer, self.outbox)
        with heartbeat.alive("invitations"):
            while True:
                heartbeat.beat()
                with suppress(StateAway), heartbeat.resting():  # the database logs its outages
                    await sweeper.run(utcnow())
                await asyncio.sleep(SWEEP_SECONDS)

    async def sending(self) -> None:
        """Send the messages that wait for webhooks, until cancelled."""
        await self.webhooks.switch(self._hooks)
        await self.webhooks.run()

    # --- what changes while it runs -------------------------------------------------------------
    async def looking(self) -> None:
        """Read changed files of tokens and certificates, until cancelled; requests also check their own token's."""
        with heartbeat.alive("files"):
            while True:
                heartbeat.beat()
                self.tokens.refresh()
                self._look_at_certificate()
                self.look_at_certificate_end()
                await self.look_at_credentials()
                await asyncio.sleep(LOOK_SECONDS)

    def _look_at_certificate(self) -> None:
        stamps = tls_stamps(self.config.broker)
        if stamps == self._stamps:
            return
        if self._take_certificate():
            self._stamps = stamps

    def _take_certificate(self) -> bool:
        """Serve with the certificate as it is now; log once that one can't be used, and try it again."""
        assert self._main is not None
        try:
            self._main.serve(tls_context(self.config.broker))
        except PresigndError as error:
            self._met("certificate.refused", error)
            return False
        self._problems.pop("certificate.refused", None)
        self.note_certificate_end()
        log.info("certificate.loaded")
        return True

    def note_certificate_end(self) -> None:
        """Keep the expiry of the certificate in use: the file may hold a new one that can't be used."""
        self._certificate_ends = None
        with suppress(UsageError):
            self._certificate_ends = certificate_end(self.config.broker)
        metrics.show_end(metrics.CERTIFICATE_ENDS, self._certificate_ends)

    def look_at_certificate_end(self) -> None:
        """Log once that the certificate expires soon, and once that it did."""
        problem = end_problem(self._certificate_ends, utcnow())
        if problem and self._problems.get("certificate.ends") != problem:
            fix = "renew broker.tls_cert: it is read again when it changes"
            log.warning("certificate.ends", error=problem, expires_at=self._certificate_ends, fix=fix)
        self._problems["certificate.ends"] = problem

    async def look_at_credentials(self) -> None:
        """Look up when the credentials expire; log once that there are none, and once that there are some again."""
        try:
            metrics.show_end(metrics.CREDENTIAL_ENDS, await self.api.presigner.credential_expiry())
        except PresignerFault as fault:
            self._met("presigner.unreachable", fault)
            return
        if self._problems.pop("presigner.unreachable", None):
            log.info("presigner.back")

    def _met(self, event: str, error: PresigndError) -> None:
        if self._problems.get(event) != error.message:
            log.error(event, exc_info=error, fix=of_store(error.fix))
        self._problems[event] = error.message

    async def read_again(self) -> tuple[BrokerConfig, SignedStore, Prepared]:
        """Read the configuration again, and prepare all that may fail."""
        config = await asyncio.to_thread(self._load)
        self._refuse_in_the_clear(config.broker)
        tls_context(config.broker)
        return config, _signer(config.store), self.webhooks.prepare(config.webhooks)

    async def switch(self, read: tuple[BrokerConfig, SignedStore, Prepared]) -> None:
        """Switch to another configuration; the old signer still signs the grants in progress."""
        config, signer, hooks = read
        before, retired = self.config, self.signer
        self.config = config
        self.api.config = config.broker
        self.signer, self.api.presigner = signer, _presigner_of(signer)
        self.tokens.configure(config.file, config.broker.token_files, config.tokens)
        self._stamps = tls_stamps(config.broker)
        self._take_certificate()
        if config.links.url:
            await self.webhooks.switch(hooks)
        if config.log != before.log:
            setup(config.log)
        retiring = asyncio.create_task(_retire(retired))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        log_reloaded(_restart_needed(before, config))

    def _refuse_in_the_clear(self, config: BrokerSection) -> None:
        """Refuse plain HTTP at the address in use, as another ``listen`` takes effect only after a restart."""
        assert self._main is not None
        if is_in_the_clear(config.tls_cert, self._main.place, behind_proxy=config.behind_proxy):
            problem = f"broker.tls_cert: is not there, but it listens at {self._main.place} until a restart"
            raise UsageError(problem, problems=(problem,), fix="restart it, or give it its certificate back")

    async def close(self) -> None:
        """Close every signer, and the state."""
        for retiring in self._retiring:
            retiring.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self.signer.close()
        await self.webhooks.close()
        await self.database.close()

    async def status(self) -> str:
        """Return the line of ``systemctl status``."""
        broken = f", {len(self.tokens.broken)} token files refused" if self.tokens.broken else ""
        broken += ", not all folders of tokens can be read" if self.tokens.unlisted else ""
        phase = "draining, " if self.api.draining else ""
        return f"{phase}{count(self.tokens.count, 'token')}{broken}, {count(self.api.in_flight, 'request')} in flight"


def _restart_needed(before: BrokerConfig, config: BrokerConfig) -> list[str]:
    """Return the changed options that only a restart brings into effect."""
    taken = {
        "broker": ("listen", "url", "metrics_listen"),
        "links": ("url", "target_expires"),
        "fleet": ("listen", "token_file"),
        "control": ("socket", "group"),
    }
    changed = [
        f"{section}.{name}"
        for section, names in taken.items()
        for name in names
        if getattr(getattr(before, section), name) != getattr(getattr(config, section), name)
    ]
    return changed + (["state"] if before.state != config.state else [])


def _signer(config: PresignConfig) -> SignedStore:
    """Return the presigner of [store]. Its client sends one kind of request: for a bucket's region."""
    return signed_store(config, UploadConfig(), clock=utcnow)


def _presigner_of(signer: SignedStore) -> LocalPresigner:
    assert isinstance(signer.presigner, LocalPresigner), "a broker's configuration has kind = local"
    return signer.presigner


async def _retire(signer: SignedStore) -> None:
    """Close a signer once no request uses it any more."""
    try:
        await asyncio.sleep(RETIRE_SECONDS)
    finally:
        await signer.close()


def most_connections(limit: int) -> int:
    """Return ``limit``, or the fewer connections that the limit on open files (``ulimit -n``) allows."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit if files == resource.RLIM_INFINITY else max(1, min(limit, files - SPARE_FILES))


async def run(config: BrokerConfig, *, load: Callable[[], BrokerConfig]) -> None:
    """Serve until SIGTERM or SIGINT, which drain; a second one ends it. SIGHUP reloads.

    Raises ``UsageError`` and ``Unavailable`` if it can't listen.
    """
    service = Service("broker", Notifier.of(os.environ, os.getpid()))
    async with service.running():
        broker = Broker(config, load)
        try:
            async with AsyncExitStack() as stack, looping() as loops:
                await _serve(broker, service, stack, loops)
        finally:
            await broker.close()


async def _serve(broker: Broker, service: Service, stack: AsyncExitStack, loops: Loops) -> None:
    places = await broker.open(stack)
    await stack.enter_async_context(control.serving(broker.config, broker.database, broker.webhook_commands))
    await unless(service.stop.requested, _first_look(broker))
    loops.start("status line", service.systemd.show_always(broker.status))
    loops.start("files", broker.looking())
    if broker.config.links.url:
        loops.start("invitations", broker.sweeping())
        loops.start("webhooks", broker.sending())
    loops.start("reload", service.reload_when_asked(broker.read_again, broker.switch))
    log.info("broker.ready", listen=places, tokens=broker.tokens.count)
    service.systemd.ready()
    await service.stop.requested.wait()
    seconds = broker.config.broker.drain_timeout
    await service.drain(broker.drain(), seconds=seconds, in_flight=broker.api.in_flight)


async def _first_look(broker: Broker) -> None:
    try:
        async with asyncio.timeout(CREDENTIALS_SECONDS):
            await broker.look_at_credentials()
    except TimeoutError:
        log.warning("presigner.slow", timeout=CREDENTIALS_SECONDS)
