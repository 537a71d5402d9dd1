"""Kills the daemon again and again under a seeded workload and a misbehaving proxy, and audits in between."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from presignd.runtime import crash_points
from tests import postgres
from tests.power.disk import Cut
from tests.power.mounted import PowerDisk, power_disk
from tests.stores import Store
from tests.system.crash.audit import LINK_FILE, Audit, Watched
from tests.system.crash.events import Log
from tests.system.crash.signers import ByBroker, OwnKeys, Presigner
from tests.system.crash.stable import LinkState, StableLinks
from tests.system.crash.tree import Kept, Taken
from tests.system.crash.workload import Workload
from tests.system.harness import Presignd
from tests.system.proxy import Proxy, calm, stormy

BROKEN = Path(__file__).with_name("broken")
CHECKOUT = Path(__file__).parents[3]
FAULT_RATE = 0.3
"""Share of the requests that meet a fault of the proxy's."""
ON_POWER = ("ledger", "links", "folder")
LONGEST_LIFE = 2.5
"""Seconds a daemon lives at most; twice that where it waits for a named point: these begin when it is ready."""
LONGEST_START = 20.0
"""Seconds until it is ready, at most: on a busy machine a start takes longer than a life."""
POINT_SHARE = 0.6
"""Share of the kills that aim at a named point; one that isn't reached in its life becomes a random one."""
_UNITS = ("record_sha256", "complete_unit", "close_unit")
_WEBHOOKS = ("add_message", "settle_messages", "switch_off", "switch_on")
ELSEWHERE = ("unit.", *(f"commit.{change}." for change in (*_UNITS, *_WEBHOOKS)))
"""How points begin to which this workload never leads: it has neither folders as one, at whose points
``test_folder_units`` kills, nor webhooks, which ``test_webhook_kills`` has."""
ONCE_A_LIFE = ("commit.begin_run.", "commit.configure_webhooks.", "commit.release.", "commit.set_meta.")
SETTLE_TIMEOUT = 600.0
"""Seconds: at a load of 30 all was well after two minutes, and not before."""
EXPECTED_STOPS = frozenset({"internal_error", "bad_digest", "connection_reset", "rejected", "precondition_failed"})
"""What may quarantine a file under all this: three unclean exits alone in flight, ten faults of its own."""


@dataclass(frozen=True, slots=True)
class Options:
    """One run, replayable as far as threads and processes are: the same seed makes the same decisions."""

    seed: int
    kills: int
    audit_every: int = 50
    seconds: float | None = None
    broken: str = ""
    power: Collection[str] = ()
    """What is on a disk that loses its power with each kill, of ``ON_POWER``."""
    presigner: Presigner = "local"
    """Who signs; a broker is killed as often as the daemon."""
    links: LinkState = ""
    """Links are a broker's, and it has its state here; PostgreSQL is killed as often as the daemon too."""
    keep_log: Path | None = None
    """Where the daemon's log goes when a promise was broken."""
    tell: Callable[[str], None] = lambda _: None
    """Hears how far it is, after each audit."""


@dataclass(slots=True)
class Report:
    """The result of a run."""

    options: Options
    store: str
    kills: int = 0
    broker_kills: int = 0
    state_kills: int = 0
    at_points: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    audits: int = 0
    acts: int = 0
    links: int = 0
    stopped: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    violations: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the report as lines of text."""
        missed = sorted(set(all_points()) - set(self.at_points))
        lines = [
            f"store {self.store}, seed {self.options.seed}{self.options.broken and ', broken: ' + self.options.broken}",
            *([f"power lost with each kill under: {', '.join(self.options.power)}"] if self.options.power else []),
            *([f"{self.broker_kills} kills of the broker"] if self.options.presigner == "broker" else []),
            *([f"stable links in {self.options.links}"] if self.options.links else []),
            *([f"{self.state_kills} kills of the database"] if self.options.links == "postgresql" else []),
            f"{self.kills} kills survived, {self.at_points.total()} of them at {len(self.at_points)} named points",
            f"{self.acts} acts, {self.links} links, {self.audits} audits, {self.ended - self.began:.0f} s",
            f"faults met: {', '.join(f'{number} {kind}' for kind, number in sorted(self.met.items()))}",
            f"quarantined and taken back: {dict(self.stopped)}",
            f"points never reached: {missed}",
            f"{len(self.violations)} violations",
            *(f"  {violation}" for violation in self.violations),
        ]
        return "\n".join(lines)


def all_points() -> list[str]:
    """Return every named point that the workload can lead to."""
    commits = [f"commit.{change}.{side}" for change in crash_points.CHANGES for side in ("before", "after")]
    return [point for point in (*crash_points.POINTS, *commits) if not point.startswith(ELSEWHERE)]


class Victim(Presignd):
    """The daemon, armed for one run, and perhaps a broken build."""

    armed = ""
    broken = ""

    @property
    def environ(self) -> dict[str, str]:
        more = {crash_points.VARIABLE: self.armed} if self.armed else {}
        more["PYTHONPATH"] = str(CHECKOUT)  # a copy of the project tests itself, not what is installed
        if self.broken:
            more |= {"PYTHONPATH": f"{BROKEN}:{CHECKOUT}", "PRESIGND_TEST_BROKEN": self.broken}
        return super().environ | more

    def started_at(self, point: str) -> subprocess.Popen[bytes]:
        """Start it with ``point`` armed, and return at once."""
        self.armed = point
        self.start(ready=False)
        self.armed = ""
        assert self.process is not None
        return self.process


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything lies: ``base`` keeps the configuration and the log, ``far`` is another filesystem."""

    base: Path
    state: Path
    links: Path
    files: Path
    far: Path
    disks: Sequence[PowerDisk] = ()
    """Those that lose their power with each kill."""


class Harness:
    """One store, one proxy, one daemon over many lives, four watches."""

    def __init__(self, places: Places, store: Store, proxy: Proxy, options: Options, signer: OwnKeys) -> None:
        self._rng = random.Random(options.seed)
        self._options, self._proxy, self._places, self._signer = options, proxy, places, signer
        self.report = Report(options, store.name)
        self.watches = [
            self._watch(Kept, name="keep", after="keep"),
            self._watch(Taken, name="delete", after="delete"),
            self._watch(Taken, name="move", after="move", move_to=places.files / "moved"),
            self._watch(Taken, name="far", after="move", move_to=places.far / "moved"),
        ]
        self.workload = Workload([watch.folder for watch in (self.watches[0], *self.watches)], self._fork())
        text = config(self.watches, signer, proxy.endpoint, places)
        self.daemon = Victim(places.base, text, secrets=signer.secrets)
        self.daemon.broken = ",".join(filter(None, [options.broken, "on_fuse" if places.disks else ""]))
        self.daemon.log.touch()
        self.log = Log(self.daemon.log, signer.secrets)
        self._audit = Audit(
            self.watches, store, self.log, places.links, lambda links: signer.violations(links, places.state)
        )
        self._points: list[str] = []

    def _fork(self) -> random.Random:
        return random.Random(self._rng.getrandbits(64))

    def _watch(self, kind: type[Kept | Taken], *, name: str, after: str, move_to: Path | None = None) -> Watched:
        bucket, begin, prefix = self._signer.place(name)
        files, durable = self._places.files, bool(self._places.disks)
        folder = kind(files / "watched" / name, files / "staging" / name, self._fork(), durable=durable)
        return Watched(name, folder, bucket, after, move_to, begin, prefix)

    # --- the run --------------------------------------------------------------------------------
    def run(self) -> Report:
        """Kill as often as asked, audit in between and at the end, until the first violations."""
        self.workload.start()
        try:
            while not self.report.violations and self._goes_on():
                self._proxy.plan = stormy(self._fork(), FAULT_RATE)
                for _ in range(min(self._options.audit_every, self._options.kills - self.report.kills)):
                    if self.report.violations or not self._goes_on():
                        break
                    self._live_and_die()
                self._check()
        finally:
            self.workload.end()
            self.daemon.end()
            self._signer.end()
            if self.report.violations and self._options.keep_log:
                shutil.copy(self.daemon.log, self._options.keep_log)
            self.report.met = self._proxy.met
            self.report.acts, self.report.links = self.workload.acts, self.log.counts["link.created"]
            self.report.ended = time.monotonic()
        return self.report

    def _goes_on(self) -> bool:
        late = self._options.seconds is not None and time.monotonic() - self.report.began > self._options.seconds
        return self.report.kills < self._options.kills and not late

    def _live_and_die(self) -> None:
        with self._signer.dying(self._fork()) if self._options.presigner == "broker" else nullcontext():
            self._live_and_be_killed()
        self.report.broker_kills, self.report.state_kills = self._signer.deaths, self._signer.state_deaths
        self.report.violations += [self._signer.problem] if self._signer.problem else []
        with self.workload.still():
            self._cut_power()

    def _live_and_be_killed(self) -> None:
        aimed = self._rng.random() < POINT_SHARE
        point = self._next_point() if aimed else ""
        self.log.read()
        ready = self.log.counts["daemon.ready"]
        passes = 1 if point.startswith(ONCE_A_LIFE) else self._rng.choice((1, 1, 1, 2, 4))
        process = self.daemon.started_at(f"{point}:{passes}" if aimed else "")
        if aimed:
            self._until_ready(process, ready)
        self._provoke(point)
        try:
            code = process.wait(2 * LONGEST_LIFE if aimed else self._rng.uniform(0.2, LONGEST_LIFE))
        except subprocess.TimeoutExpired:
            self.daemon.kill()
        else:
            self._died(code, point)
        self.report.kills += 1

    def _until_ready(self, process: subprocess.Popen[bytes], before: int) -> None:
        """Wait until the daemon says that it is ready, which it did ``before`` times, or has ended."""
        deadline = time.monotonic() + LONGEST_START
        while process.poll() is None and time.monotonic() < deadline:
            self.log.read()
            if self.log.counts["daemon.ready"] > before:
                return
            time.sleep(0.05)

    def _cut_power(self) -> None:
        """Lose, on disks that can, what was not synced when the daemon was killed."""
        for disk in self._places.disks:
            disk.cut(self._rng.choice(list(Cut)), self._rng.getrandbits(32))

    def _provoke(self, point: str) -> None:
        """Ask for what leads to a point that no file does: the commits of ``retry`` and of a clean end."""
        asked = point.split(".")[1] if point.startswith("commit.") else ""
        if asked in ("requeue", "set_meta"):
            time.sleep(self._rng.uniform(1.0, 2.0))
        if asked == "requeue":
            self.daemon.run("retry", "--all", "-c", self.daemon.config)
        if asked == "set_meta" and self.daemon.process is not None:
            self.daemon.process.terminate()

    def _died(self, code: int, point: str) -> None:
        asked_to_end = "set_meta" in point and code in (0, -signal.SIGTERM)
        if code == -signal.SIGKILL and point:
            self.report.at_points[point] += 1
        elif not asked_to_end:
            self.report.violations.append(f"the daemon ended by itself with {code}:\n{self.log.tail()}")

    def _next_point(self) -> str:
        """Take each point in a shuffled round, those not reached so far three times, then the next round."""
        if not self._points:
            points = all_points()
            self._points = points + 2 * [point for point in points if point not in self.report.at_points]
            self._rng.shuffle(self._points)
        return self._points.pop()

    # --- audits ---------------------------------------------------------------------------------
    def _check(self) -> None:
        """Let everything settle with the faults off, look, and kill what looked."""
        if self.report.violations:
            return
        with self.workload.still():
            self._proxy.plan = calm
            self._signer.wait()
            self.daemon.start(ready=False)
            problem = self._settle()
            self.report.violations += [problem] if problem else self._audit.violations()
            self.report.audits += 1
            self.daemon.kill()
            self._cut_power()
        self._options.tell(f"{self.report.kills} kills, {len(self.report.violations)} violations")

    def _settle(self) -> str:
        """Wait until nothing is under way any more; "" or why that did not come."""
        scans = self.log.counts["scan.finished"]
        deadline = time.monotonic() + SETTLE_TIMEOUT
        idle = 0
        while idle < 2:
            if self.daemon.process is None or self.daemon.process.poll() is not None:
                return f"the daemon ended by itself during an audit:\n{self.log.tail()}"
            if time.monotonic() > deadline:
                return f"it did not settle in {SETTLE_TIMEOUT:.0f} s: {self._status()}\n{self.log.tail()}"
            time.sleep(0.3)
            self.log.read()
            if self.log.counts["scan.finished"] >= scans + len(self.watches):
                idle = idle + 1 if self._is_idle(self._status()) else 0
        return ""

    def _status(self) -> dict[str, object]:
        shown = self.daemon.run("status", "--json", "-c", self.daemon.config).stdout
        found: dict[str, object] = json.loads(shown) if shown else {}
        return found

    def _is_idle(self, status: Mapping[str, object]) -> bool:
        if not status or self._took_back(status):
            return False
        counts = Counter[str]()
        for watch in status["watches"]:  # type: ignore[attr-defined] # JSON
            counts.update(watch["counts"])
        under_way = sum(counts[state] for state in ("queued", "uploading", "verified", "linked"))
        return not (under_way or status["settling_count"] or status["in_flight"] or status["blocked"])

    def _took_back(self, status: Mapping[str, object]) -> bool:
        """Give quarantined files another chance, as a person would; one that may not be there is a violation."""
        stopped: Sequence[Mapping[str, dict[str, str]]] = status["quarantined"]  # type: ignore[assignment] # JSON
        for version in stopped:
            error = version["error"]
            self.report.stopped[error["code"]] += 1
            if error["code"] not in EXPECTED_STOPS or ("internal" in error["code"] and "unclean" not in error["cause"]):
                told = self.log.exceptions.get(version["file_id"], "")  # type: ignore[call-overload] # JSON
                self.report.violations.append(f"quarantined: {version['watch']} {version['path']}: {error}\n{told}")
        if stopped:
            self.daemon.run("retry", "--all", "-c", self.daemon.config)
        return bool(stopped)


def config(watches: Sequence[Watched], signer: OwnKeys, endpoint: str, places: Places) -> str:
    """Return the daemon's configuration: short settling, small link files, everything told."""
    head = f"""
[presign]
endpoint = "{endpoint}"
{signer.presign}
get_expires = "12h"
[ledger]
path = "{places.state}"
[links]
file = "{places.links}"
rotate_size = "24KiB"
keep = 100000
[upload]
multipart_threshold = "5MiB"
part_size = "5MiB"
[log]
level = "debug"
format = "json"
"""
    return head + "".join(_watch_table(watch, signer.watch) for watch in watches)


def _watch_table(watch: Watched, signed: str) -> str:
    more = f"{signed}\n"
    more += f'link_file = "{LINK_FILE}"' if watch.keeps else ""
    more += f'move_to = "{watch.move_to}"' if watch.move_to else ""
    return f"""
[[watch]]
name = "{watch.name}"
path = "{watch.folder.root}"
bucket = "{watch.bucket}"
key = "{watch.key}"
after = "{watch.after}"
settle = "0s"
{more}
"""


@contextmanager
def places(power: Collection[str] = ()) -> Iterator[Places]:
    """Give a folder for everything, and one that files are moved to, on another filesystem where there is one.

    ``power`` names what lies on disks that can lose their power, of ``ON_POWER``.
    """
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="presignd-crash.")))
        shm = Path("/dev/shm")
        elsewhere = shm if os.access(shm, os.W_OK) else base
        far = Path(tempfile.mkdtemp(prefix="presignd-crash.", dir=elsewhere))
        stack.callback(shutil.rmtree, far, ignore_errors=True)
        on = {what: stack.enter_context(power_disk(base / f"disk-of-{what}")) for what in power}
        if "folder" in on:
            on["far"] = stack.enter_context(power_disk(base / "far"))
        where = {what: disk.path for what, disk in on.items()}
        state = where.get("ledger", base) / "state"
        links = where["links"] / "links" if "links" in on else base / "links"
        files, far = where.get("folder", base), where.get("far", far)
        yield Places(base, state, links / "links.jsonl", files, far, list(on.values()))


def crash(store: Store, options: Options) -> Report:
    """Run the harness on a started store and return what came out."""
    with places(options.power) as where, Proxy(store.endpoint) as proxy, ExitStack() as stack:
        return Harness(where, store, proxy, options, _signer(store, where.base, proxy.endpoint, options, stack)).run()


def _signer(store: Store, folder: Path, endpoint: str, options: Options, stack: ExitStack) -> OwnKeys:
    if options.links:
        database = stack.enter_context(postgres.server()) if options.links == "postgresql" else None
        return StableLinks(store, folder, endpoint, database)
    return ByBroker(store, folder, endpoint) if options.presigner == "broker" else OwnKeys(store)
