"""Two independent daemons, one bucket, the same names at the same time.

Contract §6.6 on a store that honours conditional writes: nobody's object is ever overwritten.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.stores import Store
from tests.system.harness import Presignd, config_for, fetch

NAMES = [f"{number:02}.txt" for number in range(40)]
HOSTS = ("left", "right")


class Pair:
    """Two daemons with folders and ledgers of their own, on one bucket."""

    def __init__(self, store: Store, folder: Path, policy: str, more: str = "") -> None:
        self.store, self.bucket = store, store.new_bucket()
        self.daemons = {}
        for host in HOSTS:
            own = folder / host
            own.mkdir()
            watch = f'settle = "0s"\ncollision = "{policy}"\n' + more.format(own=own)
            text = config_for(store, own, self.bucket, watch=watch)
            self.daemons[host] = Presignd(own, text, secrets=(store.secret_key,))

    def start(self) -> None:
        """Start both, the second while the first comes up."""
        for daemon in self.daemons.values():
            daemon.start(ready=False)
        for daemon in self.daemons.values():
            daemon.until(partial(daemon.events, "watch.started"), "watch.started")

    def drop(self, rng: random.Random, content: str) -> None:
        """Drop every name on both sides in an order of its own; ``{host}`` and ``{name}`` make contents differ."""
        for name in rng.sample(NAMES, len(NAMES)):
            for host in rng.sample(HOSTS, 2):
                path = self.daemons[host].folder / "drop" / name
                path.write_text(content.format(host=host, name=name), encoding="utf-8")

    def links(self, host: str) -> dict[str, str]:
        """Return the newest link of each name."""
        links = sorted(self.daemons[host].links(), key=lambda link: str(link["time"]))
        return {Path(link["path"]).name: link["url"] for link in links}

    def all_ended(self, host: str) -> bool:
        """Return whether each name is linked or quarantined."""
        daemon = self.daemons[host]
        linked = [event for event in daemon.events("file.done") if event["status"] in ("linked", "adopted")]
        return {Path(event["path"]).name for event in [*linked, *daemon.events("file.quarantined")]} == set(NAMES)

    def until_all_ended(self) -> None:
        """Wait until every name of both has a link or a person to wait for."""
        for host, daemon in self.daemons.items():
            daemon.until(partial(self.all_ended, host), f"an end of all on the {host}")

    def objects(self) -> dict[str, bytes]:
        """Return every object but the check object."""
        keys = [key for key in self.store.list(self.bucket) if not key.startswith(".")]
        return {key: self.store.read(self.bucket, key) for key in keys}


@pytest.fixture
def policy(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def pair(seaweedfs: Store, tmp_path: Path, policy: str) -> Iterator[Pair]:
    made = Pair(seaweedfs, tmp_path, policy)
    made.start()
    yield made
    for daemon in made.daemons.values():
        daemon.end()


def text(host: str, name: str, content: str = "{host} {name}") -> bytes:
    return content.format(host=host, name=name).encode()


@pytest.mark.parametrize("policy", ["update", "rename"], indirect=True)
def test_each_has_its_own_object_and_a_link_to_it(pair: Pair) -> None:
    pair.drop(random.Random(1), "{host} {name}")
    pair.until_all_ended()
    for host, daemon in pair.daemons.items():
        assert daemon.events("file.quarantined") == []
        assert {name: fetch(url) for name, url in pair.links(host).items()} == {n: text(host, n) for n in NAMES}
    stems = [Path(name).stem for name in NAMES]
    assert set(pair.objects()) == {f"{stem}{number}.txt" for stem in stems for number in ("", "~2")}


@pytest.mark.parametrize("policy", ["refuse"], indirect=True)
def test_the_first_wins_and_the_other_waits_for_a_person(pair: Pair) -> None:
    pair.drop(random.Random(2), "{host} {name}")
    pair.until_all_ended()
    winners = {name: host for host in HOSTS for name in pair.links(host)}
    assert sum(len(pair.links(host)) for host in HOSTS) == len(NAMES)
    assert pair.objects() == {name: text(winners[name], name) for name in NAMES}
    stopped = [event for daemon in pair.daemons.values() for event in daemon.events("file.quarantined")]
    assert {event["error_code"] for event in stopped} == {"exists"}


@pytest.mark.parametrize("policy", ["update"], indirect=True)
def test_the_same_bytes_are_one_object_for_both(pair: Pair) -> None:
    pair.drop(random.Random(3), "the same {name}")
    pair.until_all_ended()
    assert pair.objects() == {name: b"the same " + name.encode() for name in NAMES}
    for host in HOSTS:
        assert {name: fetch(url) for name, url in pair.links(host).items()} == pair.objects()


@pytest.mark.parametrize("policy", ["update"], indirect=True)
def test_what_is_dropped_again_while_it_uploads_ends_as_its_last_content(pair: Pair) -> None:
    rng, last = random.Random(4), "{host} {name}, the last content"
    for content in ("{host} {name}", "{host} {name}, again", last):
        pair.drop(rng, content)
    for host, daemon in pair.daemons.items():
        wanted = {name: text(host, name, last) for name in NAMES}

        def all_linked(daemon: Presignd = daemon, wanted: dict[str, bytes] = wanted) -> bool:
            sizes = {Path(link["path"]).name: link["size"] for link in daemon.links()}
            return sizes == {name: len(content) for name, content in wanted.items()}

        daemon.until(all_linked, f"the last contents of the {host} linked")
        assert {name: fetch(url) for name, url in pair.links(host).items()} == wanted
        assert daemon.events("file.quarantined") == []
    assert len(pair.objects()) == 2 * len(NAMES)


# --- every policy with every end ------------------------------------------------------------------

FEW = NAMES[:10]
ENDS = {
    "keep": 'link_file = "{{name}}.link.txt"',
    "move": 'after = "move"\nmove_to = "{own}/done"\nlink_file = "{{name}}.link.txt"',
    "delete": 'after = "delete"\nlink_file = "{{name}}.link.txt"',
}
DROPS = ("{host} {name}", "{host} {name}, again", "{host} {name}, the last content")
"""Each longer than the one before, so that sizes tell them apart."""


class Contest:
    """A pair in which everything is dropped again while it uploads, and what stands at the end."""

    def __init__(self, pair: Pair, policy: str, after: str) -> None:
        self.pair, self.policy, self.after = pair, policy, after

    def wanted(self, host: str, name: str) -> bytes:
        """Return the last content that was dropped."""
        return text(host, name, DROPS[-1])

    def drop_all(self) -> None:
        """Drop every name on both sides three times, in orders of their own."""
        rng = random.Random(f"{self.policy}/{self.after}")
        for content in DROPS:
            for name, host in rng.sample([(name, host) for name in FEW for host in HOSTS], 2 * len(FEW)):
                path = self.pair.daemons[host].folder / "drop" / name
                fresh = path.with_name(f".{name}.fresh")  # whole at once: each content is a version, or none
                fresh.write_bytes(text(host, name, content))
                fresh.rename(path)

    def ends(self, host: str) -> dict[str, str]:
        """Return how the last content of each name ended: linked, adopted or quarantined."""
        found: dict[str, str] = {}
        for event in self.pair.daemons[host].events("file.queued", "file.done", "file.quarantined"):
            name = Path(event["path"]).name
            if event["size"] == len(self.wanted(host, name)):
                found[name] = event.get("status") or event.get("error_code", "")
            else:
                found.pop(name, None)
        return {name: status for name, status in found.items() if status}

    def until_all_ended(self) -> None:
        """Wait until the last content of each name on both sides has its end."""
        for host, daemon in self.pair.daemons.items():
            daemon.until(lambda host=host: set(self.ends(host)) == set(FEW), f"an end of all on the {host}")  # type: ignore[misc] # mypy infers no lambda with a default

    def local(self, host: str) -> dict[str, set[bytes]]:
        """Return the contents that lie on a side, by folder, link files left out."""
        own = self.pair.daemons[host].folder
        return {
            folder: {path.read_bytes() for path in (own / folder).glob("*") if not path.name.endswith(".link.txt")}
            for folder in ("drop", "done")
        }


@pytest.fixture
def contest(request: pytest.FixtureRequest, seaweedfs: Store, tmp_path: Path) -> Iterator[Contest]:
    policy, after = request.param
    pair = Pair(seaweedfs, tmp_path, policy, ENDS[after])
    pair.start()
    yield Contest(pair, policy, after)
    for daemon in pair.daemons.values():
        daemon.end()


CONTESTS = [
    *(("update", after) for after in ENDS),
    *(("refuse", after) for after in ("keep", "delete")),
    *(("overwrite", after) for after in ("keep", "delete")),
    ("rename", "move"),
]


@pytest.mark.long
@pytest.mark.parametrize("contest", CONTESTS, indirect=True, ids="-".join)
def test_whatever_the_policy_and_the_end_no_last_content_is_lost_torn_or_another_s(contest: Contest) -> None:
    """Each link leads to what it was issued for, save where another host may overwrite it by the policy."""
    contest.drop_all()
    contest.until_all_ended()
    pair, objects = contest.pair, contest.pair.objects()
    whole = {text(host, name, content) for host in HOSTS for name in FEW for content in DROPS}
    assert set(objects.values()) <= whole
    for host in HOSTS:
        ended, links, local = contest.ends(host), pair.links(host), contest.local(host)
        stopped = {name for name, status in ended.items() if status not in ("linked", "adopted")}
        assert stopped == set() or contest.policy == "refuse"
        assert {ended[name] for name in stopped} <= {"exists"}
        for name in FEW:
            check_one(contest, host, name, stopped=name in stopped, url=links.get(name, ""), local=local)
    if contest.policy == "refuse":
        assert all(len([host for host in HOSTS if contest.ends(host)[name] == "exists"]) == 1 for name in FEW)


def check_one(contest: Contest, host: str, name: str, *, stopped: bool, url: str, local: dict[str, set[bytes]]) -> None:
    """Check one name of one side: its object, its file, and the link beside it."""
    wanted = contest.wanted(host, name)
    if stopped:
        assert wanted in local["drop"], "what is not uploaded stays where it is"
        return
    either = {contest.wanted(each, name) for each in HOSTS} if contest.policy == "overwrite" else {wanted}
    assert fetch(url) in either
    assert (wanted in local["drop"]) == (contest.after == "keep")
    assert (wanted in local["done"]) == (contest.after == "move")
    beside = contest.pair.daemons[host].folder / "drop" / f"{name}.link.txt"
    assert beside.read_text("utf-8").strip() == url
