"""Sends the messages of one webhook: several at a time, those of one subject in order.

A receiver that is slow or dead holds up nothing else: messages wait in the outbox, and only a few are in memory. A
receiver that accepts nothing is probed by one message at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from presignd.config import WebhookConfig
from presignd.errors import Fault
from presignd.runtime.heartbeat import alive, resting
from presignd.runtime.tasks import within
from presignd.telemetry import metrics
from presignd.telemetry.log import get_logger
from presignd.webhooks.outbox import Away, Hook, Message, Outbox
from presignd.webhooks.schedule import AT_ONCE, Answer, Breaker, Outcome, Schedule
from presignd.webhooks.sender import Sender

GLANCE = 1.0
"""Seconds between two looks for messages while others are being sent."""
AWAY_SECONDS = 5.0
"""Pause after the outbox could not be reached."""

log = get_logger()

Render = Callable[[Message, WebhookConfig], Awaitable[bytes]]
"""Returns a message's body, the same at each try."""


@dataclass
class Standing:
    """The state of a webhook: when a message was last delivered, and since when, why and how often tries fail."""

    delivered_at: datetime | None = None
    failing_since: datetime | None = None
    problem: str = ""
    given_up: int = 0
    off_since: datetime | None = None


@dataclass(eq=False)
class Courier:
    """Sends the messages of one webhook, until it is cancelled; none while the webhook is off.

    ``look`` is the longest time in seconds between two queries for messages: shorter if other processes record some.
    ``away`` is the pause in seconds after the outbox could not be reached.
    """

    webhook: WebhookConfig
    hook: Hook
    outbox: Outbox
    render: Render
    sender: Sender
    schedule: Schedule
    now: Callable[[], datetime]
    look: float
    away: float = AWAY_SECONDS
    standing: Standing = field(default_factory=Standing)
    breaker: Breaker = field(default_factory=Breaker)
    _more: asyncio.Event = field(default_factory=asyncio.Event)
    _sending: dict[asyncio.Task[Answer], Message] = field(default_factory=dict)

    def wake(self) -> None:
        """Look for messages now: some were recorded, or the webhook was switched on."""
        self._more.set()

    async def run(self) -> None:
        """Send messages as they become due, until cancelled."""
        try:
            with alive(f"webhook {self.hook.name}"):
                while True:
                    try:
                        await (self._turn() if self.standing.off_since is None else self._look_whether_on())
                    except Away:  # the outbox's database logs it
                        with resting():
                            await asyncio.sleep(self.away)
        finally:
            await self._cancel()

    async def _turn(self) -> None:
        self._more.clear()
        now = self.now()
        await self._start_due(now)
        if self._sending:
            if not (done := await self._first_done()):
                return
            await self._settle([(self._sending[task], task.result()) for task in done])
            for task in done:
                del self._sending[task]
        else:
            await self._rest(now)

    async def _look_whether_on(self) -> None:
        """Wait, then check whether the webhook was switched on: by another process, in a broker's state."""
        await self._cancel()
        self._more.clear()
        with resting():
            await within(self.look, self._more)
        if self.standing.off_since is not None and await self.outbox.off_since(self.hook.name) is None:
            self.note_on()

    def note_on(self) -> None:
        """Note that the webhook is on again, and log it."""
        self.standing.off_since, self.standing.problem = None, ""
        self.breaker = Breaker()
        log.info("webhook.on", webhook=self.hook.name)
        self.wake()

    async def _start_due(self, now: datetime) -> None:
        """Begin to send due messages, as many as there is room for."""
        here = {message.number for message in self._sending.values()}
        room = self.breaker.room(now) - len(here)
        for message in await self.outbox.due(self.hook.name, now, room, besides=here) if room > 0 else []:
            self._sending[asyncio.create_task(self._send(message), name=f"webhook {self.hook.name}")] = message

    async def _send(self, message: Message) -> Answer:
        try:
            body = await self.render(message, self.webhook)
        except Fault as problem:  # such as a presigner that can't make the link now
            return Answer(0, f"its text can't be made now: {problem.message}")
        except Exception as bug:
            log.exception("unexpected_error")
            return Answer(0, f"a bug in presignd ({type(bug).__name__})")
        return await self.sender.send(message.id, body, self.now())

    async def _first_done(self) -> set[asyncio.Task[Answer]]:
        """Wait until a message was sent; or, while there is room for another, until one may be due."""
        more = asyncio.create_task(self._more.wait())
        watched = {*self._sending, more} if len(self._sending) < AT_ONCE else {*self._sending}
        try:
            with resting():  # each try has its own timeout
                done, _ = await asyncio.wait(watched, timeout=GLANCE, return_when=asyncio.FIRST_COMPLETED)
        finally:
            more.cancel()
        return {task for task in self._sending if task in done}

    async def _rest(self, now: datetime) -> None:
        """Wait until a message may be due, or until the breaker lets one through."""
        next_try = await self.outbox.next_try(self.hook.name, now) if self.breaker.room(now) else self.breaker.until
        seconds = self.look if next_try is None else min(self.look, (next_try - self.now()).total_seconds())
        with resting():
            await within(seconds, self._more)

    # --- what follows from a try ----------------------------------------------------------------------
    async def _settle(self, answers: Sequence[tuple[Message, Answer]]) -> None:
        """Record the outcomes of tries, all in one change."""
        done, later, given_up = list[int](), dict[int, datetime](), list[tuple[Message, Answer]]()
        for message, answer in answers:
            outcome, pause = self.schedule.judge(answer, message.tries + 1)
            metrics.WEBHOOK_TRIES.labels(self.hook.name, "delivered" if answer.is_delivered else "failed").inc()
            if outcome is Outcome.OFF:
                await self._switch_off(answer)
                return
            if outcome is Outcome.RETRY:
                later[message.number] = self.now() + timedelta(seconds=pause)
            else:
                done.append(message.number)
            if outcome is Outcome.GIVE_UP:
                given_up.append((message, answer))
        await self.outbox.settle(done, later)
        self.breaker = self.schedule.breaker(self.breaker, [answer for _, answer in answers], self.now())
        await self._abandon(answers[-1][1])
        await self._note([answer for _, answer in answers])
        for message, answer in given_up:
            self._give_up(message, answer)

    async def _note(self, answers: Sequence[Answer]) -> None:
        """Log once that the receiver fails, and once that all it refused was delivered."""
        failed = [answer for answer in answers if not answer.is_delivered]
        if len(failed) < len(answers):
            self.standing.delivered_at = self.now()
        if failed:
            self.standing.problem = failed[-1].problem.message
            if self.standing.failing_since is None:
                self.standing.failing_since = self.now()
                log.warning("webhook.failing", webhook=self.hook.name, **_fields(failed[0]))
        elif self.standing.failing_since is not None and not await self.outbox.has_failed(self.hook.name):
            self.standing.failing_since, self.standing.problem = None, ""
            log.info("webhook.back", webhook=self.hook.name)

    def _give_up(self, message: Message, answer: Answer) -> None:
        self.standing.given_up += 1
        metrics.WEBHOOK_GIVEN_UP.labels(self.hook.name).inc()
        told = {"message_id": message.id, "told": message.event}
        log.error("webhook.gave_up", webhook=self.hook.name, **told, **_fields(answer))

    async def _abandon(self, answer: Answer) -> None:
        """Give up messages that have waited too long for a receiver that accepts nothing."""
        before = self.breaker.abandons_before(self.now())
        if before is not None and (dropped := await self.outbox.drop(self.hook.name, before)):
            self.standing.given_up += dropped
            metrics.WEBHOOK_GIVEN_UP.labels(self.hook.name).inc(dropped)
            log.error("webhook.gave_up", webhook=self.hook.name, dropped=dropped, **_fields(answer))

    async def _switch_off(self, answer: Answer) -> None:
        dropped = await self.outbox.switch_off(self.hook, self.now())
        self.standing.off_since, self.standing.problem = self.now(), answer.problem.message
        log.error("webhook.off", webhook=self.hook.name, dropped=dropped, **_fields(answer))

    async def _cancel(self) -> None:
        """Stop sending: messages that are not settled are sent again later, under the same id."""
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        self._sending.clear()


def _fields(answer: Answer) -> dict[str, str]:
    """Return the log's fields for a try that failed."""
    problem = answer.problem
    return {"error_code": problem.code, "error": problem.message, "fix": problem.fix}
