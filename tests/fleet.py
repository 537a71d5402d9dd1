"""The fleet page in this process, over tokens in a file and an activity that the test sets."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import presignd
from presignd.broker.api import Api
from presignd.broker.config import BrokerSection, FleetSection
from presignd.broker.fleet.activity import Activity, Call
from presignd.broker.fleet.serving import FleetPage
from presignd.broker.fleet.snapshots import CountLinks
from presignd.broker.state.links import Alive
from presignd.broker.tokens import Tokens
from presignd.config import PresignConfig
from presignd.demo.seaweedfs import LOOPBACK, free_ports
from presignd.pages.pace import PACE, Pace
from presignd.pages.serving import running
from presignd.presign.credentials import CredentialSource
from presignd.presign.local import LocalPresigner
from presignd.system.clock import utcnow
from tests.pages import until


@dataclass
class Fleet:
    """A running fleet page, its tokens' file and what was seen of them."""

    page: FleetPage
    api: Api
    file: Path

    @property
    def activity(self) -> Activity:
        return self.api.activity

    @property
    def login_url(self) -> str:
        return self.page.login_url()

    @property
    def root(self) -> str:
        return self.login_url.partition("/login")[0]

    def add_token(self, name: str, **options: str) -> None:
        """Add a token to the file."""
        digest = name.encode().hex().ljust(64, "0")[:64]
        given = {"name": name, "hash": f"sha256:{digest}", "bucket": "test-bucket", **options}
        with self.file.open("a", encoding="utf-8") as file:
            file.write("\n[[token]]\n" + "".join(f'{key} = "{value}"\n' for key, value in given.items()))
        self.api.tokens.refresh()

    def seen(self, name: str, ago: float, *, client: str = "192.0.2.7", program: str, ahead: float | None = 0) -> None:
        """Record a call, ``ago`` seconds ago, of a client whose clock is ``ahead``; None: it sends no Date."""
        at = utcnow() - timedelta(seconds=ago)
        date = "" if ahead is None else format_datetime(at + timedelta(seconds=ahead), usegmt=True)
        self.activity.called(name, Call(at, client, program, date))

    def answered(self, name: str, minutes_ago: float, granted: int = 0, *refused: str) -> None:
        """Record an answer."""
        self.activity.answered(name, utcnow() - timedelta(minutes=minutes_ago), granted=granted, refused=refused)


@contextlib.asynccontextmanager
async def fleet_of(
    folder: Path, *, count_links: CountLinks | None = None, since: datetime | None = None, pace: Pace = PACE
) -> AsyncIterator[Fleet]:
    """Serve an empty page during the block."""
    file, (port,) = folder / "broker.toml", free_ports(1)
    file.touch(0o600)
    api = Api(BrokerSection(), Tokens(file, [], settled_ns=0), _signer())
    api.activity = Activity(since or utcnow() - timedelta(days=3))
    section = FleetSection(listen=f"{LOOPBACK}:{port}", token_file=folder / "fleet.token")
    async with running(FleetPage(section, api, count_links, pace)) as page:
        await until(lambda: page._url)
        yield Fleet(page, api, file)


def _signer() -> LocalPresigner:
    async def region(_: str) -> str:
        return ""

    config: Any = PresignConfig()
    return LocalPresigner(config, region_of=region, credentials=CredentialSource(config, clock=utcnow), clock=utcnow)


# --- scenes -----------------------------------------------------------------------------------------
LINKS = {
    name: Alive(number, 0)
    for name, number in {"reception": 118, "scanner-1": 12, "scanner-2": 4, "ct-archive": 0, "lab-7": 31}.items()
}


async def count_links() -> dict[str, Alive]:
    """Count the links of the scenes."""
    return LINKS


def busy(fleet: Fleet) -> None:
    """Set a fleet at work; its last hour without minutes that may end before it is shown."""
    daemon = f"presignd/{presignd.__version__}"
    fleet.add_token("reception", prefix="reception/")
    fleet.add_token("scanner-1", valid_until=(utcnow() + timedelta(days=200)).isoformat())
    fleet.add_token("scanner-2")
    fleet.add_token("ct-archive", bucket="archive")
    fleet.seen("reception", 4, client="192.0.2.17", program="curl/8.5.0", ahead=None)
    fleet.seen("scanner-1", 1, client="192.0.2.21", program=daemon)
    fleet.seen("scanner-2", 2700, client="192.0.2.22", program=daemon, ahead=-9.5)
    for minute in range(57):
        if minute % 13 > 1:
            fleet.answered("scanner-1", minute, 40 + 30 * abs((minute % 29) - 14))
    fleet.answered("reception", 3, 64)
    fleet.answered("scanner-2", 45, 250)


def troubled(fleet: Fleet) -> None:
    """Set a token that needs attention."""
    fleet.add_token("lab-7", valid_until=(utcnow() + timedelta(days=6, hours=2)).isoformat())
    fleet.seen("lab-7", 12, client="192.0.2.30", program="presignd/0.0.9", ahead=410)
    fleet.answered("lab-7", 4, 3, *["date_refused"] * 12)


def broken(fleet: Fleet) -> None:
    """Set a file of tokens that can't be used."""
    file = fleet.file.with_name("mri-2.toml")
    file.touch(0o600)
    file.write_text('[[token]]\nname = "mri-2"\n', encoding="utf-8")
    fleet.api.tokens.configure(fleet.file, [str(file)])
