"""No sequence of calls stores more than an invitation allows: ordered, repeated, raced, forged, at any time."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from presignd.broker.invitations.desk import Desk, Honoured, Issued, Receipt
from presignd.broker.invitations.policy import PART, SETTLING
from presignd.broker.invitations.request import DoneRequest, FileRequest, Files, SignRequest, SignRequests
from presignd.broker.invitations.sweep import Sweeper
from presignd.broker.state.invitations import Invitation, Invitations, NewInvitation
from presignd.broker.state.links import hash_of
from presignd.broker.state.tickets import Ticket, Tickets, TicketState
from presignd.errors import Fault
from presignd.presign import Grant, Operation
from presignd.store.signed import SignedStore
from tests.fake_bucket import FakeBucket
from tests.memory_state import MemoryDatabase, run, run_all

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
MD5 = "md5:" + "0" * 32
SIZES = (0, 700, PART, PART + 1, PART + 2, 2 * PART, 3 * PART, 1 << 43, -1)
PATHS: tuple[str, ...] = ("a", "a/b", "b", "c", "d", "d/e.txt", "d/f", "\u00fc", "x y")
PATHS += ("../x", "d/../../x", "%2e%2e/x", "x\\..\\y", "/x", "n\x00", "", ".", "d//e")
OPERATIONS: tuple[str, ...] = (
    "",
    "put",
    "multipart.create",
    "multipart.part",
    "multipart.list",
    "multipart.complete",
    "multipart.abort",
    "get",
    "delete",
    "head",
    "nonsense",
)
LIMITS = (
    {"max_files": 2, "max_size": 3 * PART, "total": 4 * PART},
    {"max_files": 3, "max_size": None, "total": 2 * PART + 5},
    {"max_files": None, "max_size": PART, "total": 2 * PART},
    {"max_files": 1, "max_size": None, "total": None},
)
STEPS = int(os.environ.get("PRESIGND_INVITATION_STEPS", "1000"))

WAITS = [timedelta(0)] * 40 + [timedelta(minutes=3)] * 6 + [timedelta(minutes=9)] * 3 + [timedelta(hours=50)]
ON_UPLOAD = OPERATIONS[3:7]

Call = tuple[str, tuple[Any, ...]]


def some_call(random: Random) -> Call:
    """Return a call that a guest may make, by numbers that stand for what is known then."""
    one, other = random.randrange(30), random.randrange(30)
    name = random.choice(("files", "files", "sign", "sign", "upload", "claim", "done", "cancel", "sweep", "revoke"))
    if name == "files":
        files = [(random.choice(PATHS), random.choice(SIZES)) for _ in range(random.randrange(5))]
        return name, (one, files)
    if name == "sign":
        asked = [_some_request(random) for _ in range(random.randrange(1, 5))]
        return name, (one, asked)
    if name == "sweep":
        return name, ()
    return name, (random.randrange(400),) if name == "revoke" else (one, other)


def _some_request(random: Random) -> tuple[int, str, int, int]:
    return random.randrange(6), random.choice(OPERATIONS), random.randrange(6), random.randrange(-1, 6)


seeds = st.integers(0, 2**20)


class Guests(RuleBasedStateMachine):
    """Two invitations of one bucket, one below the other's prefix, and guests who do what they like."""

    @initialize(honours=st.booleans(), mixes=st.booleans(), limits=st.permutations(LIMITS))
    def open(self, honours: bool, mixes: bool, limits: list[dict[str, int | None]]) -> None:
        self.now = NOW
        self.database = MemoryDatabase()
        self.invitations, self.tickets = Invitations(self.database), Tickets(self.database)
        self.bucket = FakeBucket(honours=honours, mixes=mixes)
        store = cast("SignedStore", self.bucket)

        async def honoured(_bucket: str, _prefix: str) -> Honoured:
            return Honoured(honours, honours)

        self.desk = Desk(self.database, lambda: store, honoured)
        self.sweeper = Sweeper(self.database, lambda: store)
        self.known: list[Issued] = [Issued("forged", "in/forged", 0)]
        self.uploads = ["", "../x", "forged"]
        self.received: dict[str, str] = {}
        self.open_invitations = [
            self._invite(f"guest-{place}", prefix, limits[place]) for place, prefix in enumerate(("in/", "in/sub/"))
        ]

    def _invite(self, name: str, prefix: str, limits: dict[str, int | None]) -> Invitation:
        made = run(
            self.invitations.make(
                NewInvitation(
                    id=hash_of(name),
                    name=name,
                    bucket="b",
                    prefix=prefix,
                    note="",
                    pin="",
                    made_at=NOW,
                    ends_at=NOW + timedelta(days=30),
                    **limits,
                )
            )
        )
        assert made is not None
        return made

    def teardown(self) -> None:
        if not hasattr(self, "desk"):
            return
        self._let_everything_end()
        self.database.connection.close()

    # --- what guests do ---------------------------------------------------------------------------
    steps = 0

    @rule(seed=seeds)
    def call(self, seed: int) -> None:
        """Make up to three calls at once. One number says all: so an example of hypothesis has room for many steps."""
        Guests.steps += 1
        random = Random(seed)
        self.now += random.choice(WAITS)
        asked = [some_call(random) for _ in range(random.choice((1, 1, 2, 3)))]
        run_all([getattr(self, f"_{name}")(*what) for name, what in asked], iter(random.choices(range(3), k=40)))

    @rule(seed=seeds)
    def carry_out(self, seed: int) -> None:
        """Carry out a signed request while it lives, or a little after; complete an upload with some of its parts."""
        Guests.steps += 1
        random = Random(seed)
        which, late = random.randrange(30), random.choice((True, False))
        only = random.choice((None, None, {1}, {1, 2}, {2, 3}))
        if not self.bucket.signed:
            return
        request = self.bucket.signed[-1 - which % len(self.bucket.signed)]
        assert request.date is not None
        ends = request.date + timedelta(seconds=request.expires) + (SETTLING if late else timedelta(0))
        if self.now < ends:
            answer = self.bucket.carry_out(request, only=only)
            if upload_id := answer.element("UploadId"):
                self.uploads.append(upload_id)

    @rule(away=st.sampled_from([True, False, False]))
    def store_goes_away(self, away: bool) -> None:
        self.bucket.away = away

    async def _files(self, invitation: int, asked: list[tuple[str, int]]) -> None:
        files = [FileRequest(path, size, "text/plain") for path, size in asked]
        answers = await self.desk.files(self._invitation(invitation), Files(files, {}), "client", self.now)
        self.known += [each for each in answers if isinstance(each, Issued)]

    async def _sign(self, invitation: int, asked: list[tuple[int, str, int, int]]) -> None:
        requests = []
        for ticket, operation, upload, part in asked:
            checksum = MD5 if operation in ("", "put", "multipart.part") else ""
            is_on_upload = operation.startswith("multipart.") and operation != "multipart.create"
            upload_id = self._upload(upload) if is_on_upload else ""
            with_part = operation in ("multipart.part", "multipart.list")
            requests.append(SignRequest(self._ticket(ticket), operation, upload_id, part if with_part else 0, checksum))
        signed = await self.desk.sign(self._invitation(invitation), SignRequests(requests, {}), self.now)
        assert len(signed) == len(requests)

    async def _upload_whole(self, invitation: int, ticket: str, upload: str) -> list[Any]:
        part = [SignRequest(ticket, "multipart.part", upload, number, MD5) for number in (1, 2, 3)]
        requests = [*part, SignRequest(ticket, "multipart.complete", upload)]
        return await self.desk.sign(self._invitation(invitation), SignRequests(requests, {}), self.now)

    async def _upload_of(self, invitation: int, ticket: str) -> None:
        """Send a file as the page does, as far as it goes."""
        put = SignRequest(ticket, "", "", 0, MD5)
        create = SignRequest(ticket, "multipart.create")
        answers = await self.desk.sign(self._invitation(invitation), SignRequests([put, create], {}), self.now)
        for answer in answers:
            if isinstance(answer, Grant):
                response = self.bucket.carry_out(self.bucket.signed[int(answer.url.rpartition("/")[2])])
                if upload_id := response.element("UploadId"):
                    self.uploads.append(upload_id)
                    for grant in await self._upload_whole(invitation, ticket, upload_id):
                        if isinstance(grant, Grant):
                            self.bucket.carry_out(self.bucket.signed[int(grant.url.rpartition("/")[2])])

    def _upload(self, which: Any, ticket: int | None = None) -> Any:
        if ticket is not None:
            return self._upload_of(which, self._ticket(ticket))
        return self.uploads[-1 - which % len(self.uploads)]

    async def _claim(self, invitation: int, upload: int) -> None:
        """Name one upload for several tickets."""
        upload_id = self._upload(upload)
        tickets = dict.fromkeys(each.ticket for each in self.known[-4:])
        asked = [SignRequest(ticket, "multipart.list", upload_id) for ticket in tickets]
        await self.desk.sign(self._invitation(invitation), SignRequests(asked, {}), self.now)

    async def _done(self, invitation: int, ticket: int) -> None:
        known, answer = self._known(ticket), None
        with suppress(Fault):  # the store is away
            answer = await self.desk.done(self._invitation(invitation), DoneRequest(known.ticket), "client", self.now)
        if isinstance(answer, Receipt):
            self.received.setdefault(known.key, self.bucket.objects[known.key].etag)

    async def _cancel(self, invitation: int, ticket: int) -> None:
        await self.desk.cancel(self._invitation(invitation), self._ticket(ticket), self.now)

    async def _sweep(self) -> None:
        await self.sweeper.run(self.now)

    async def _revoke(self, which: int) -> None:
        if which < len(self.open_invitations):  # seldom: nothing follows
            await self.invitations.revoke(f"guest-{which}", self.now)

    def _invitation(self, which: int) -> Invitation:
        return self.open_invitations[which % len(self.open_invitations)]

    def _known(self, which: int) -> Issued:
        return self.known[-1 - which % len(self.known)]

    def _ticket(self, which: int) -> str:
        return self._known(which).ticket

    # --- what holds -------------------------------------------------------------------------------
    def _all_tickets(self) -> dict[Invitation, list[Ticket]]:
        found = run(self.invitations.all())
        return {invitation: run(self.tickets.of(invitation)) for invitation in found}

    @invariant()
    def only_what_is_allowed_is_stored(self) -> None:
        if not hasattr(self, "desk"):
            return
        keys: set[str] = set()
        for invitation, tickets in self._all_tickets().items():
            new = invitation.new
            own = {ticket.new.key: ticket for ticket in tickets}
            assert len(own) == len(tickets), "each key is made once"
            assert not keys & set(own)
            keys |= set(own)
            stored = {key: found for key, found in self.bucket.objects.items() if key in own}
            assert all(key.startswith(new.prefix) and ".." not in key for key in stored)
            assert all(found.size <= own[key].new.size for key, found in stored.items())
            sizes = [found.size for found in stored.values()]
            assert new.max_files is None or len(sizes) <= new.max_files
            assert new.total is None or sum(sizes) <= new.total
            assert new.max_size is None or max(sizes, default=0) <= new.max_size
            held = [ticket.new.size for ticket in tickets if not ticket.released]
            assert (invitation.files, invitation.bytes) == (len(held), sum(held))
        assert set(self.bucket.objects) <= keys, "every object has a key that the broker made"

    @invariant()
    def an_upload_is_signed_for_one_key(self) -> None:
        if not hasattr(self, "desk"):
            return
        keys = {(each.upload_id, each.key) for each in self.bucket.signed if each.upload_id}
        assert len(keys) == len({upload_id for upload_id, _ in keys})

    @invariant()
    def what_was_received_stays(self) -> None:
        if not hasattr(self, "desk"):
            return
        for key, etag in self.received.items():
            assert key in self.bucket.objects
            assert self.bucket.objects[key].etag == etag or not self.bucket.honours

    def _let_everything_end(self) -> None:
        """After the end, and some sweeps, what is stored is what was received, and no part is left."""
        self.bucket.away = False
        self.now += timedelta(days=40)
        for _ in range(6):
            while run(self.sweeper.run(self.now)):
                self.now += timedelta(minutes=2)
            self.now += timedelta(hours=1)
        received: set[str] = set()
        for invitation, tickets in self._all_tickets().items():
            came_in = [ticket for ticket in tickets if ticket.state is TicketState.RECEIVED]
            assert all(ticket.released for ticket in tickets if ticket.state is not TicketState.RECEIVED)
            assert invitation.files == len(came_in)
            received |= {ticket.new.key for ticket in came_in}
        assert set(self.bucket.objects) == received
        assert not any(upload.parts for upload in self.bucket.uploads.values()), "an upload without parts may be left"


def test_guests_store_only_what_their_invitation_allows() -> None:
    steps = 50
    run_state_machine_as_test(
        Guests,
        settings=settings(
            max_examples=max(1, STEPS // steps),
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_an_operation_that_stores_is_known() -> None:
    assert {Operation(name) for name in OPERATIONS[1:3]} == {Operation.PUT, Operation.MULTIPART_CREATE}
