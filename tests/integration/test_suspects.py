"""After an unclean end what was in flight goes one at a time, before all else; then the daemon works as ever."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from presignd.config import Config
from presignd.ledger import open_ledger
from presignd.model import State
from presignd.system.clock import utcnow
from tests.faulty_s3 import FOREVER, FaultyS3
from tests.running import Running, config, running, watch
from tests.versions import claim

PART = 1 << 20
LARGE = b"x" * (3 * PART)


def in_parts(folder: Path, store: FaultyS3) -> Config:
    made = config(folder, store)
    limits = {"multipart_threshold": PART, "part_size": PART, "part_concurrency": 2}
    return made.model_copy(update={"upload": made.upload.model_copy(update=limits)})


async def crash(
    configured: Config, store: FaultyS3, names: Collection[str], content: bytes = b"content", *, exits: int = 1
) -> None:
    """Drop these files, and end runs uncleanly while they are in flight; none was sent."""
    store.fault(hang="before", when=lambda _, key: key in names, times=FOREVER)
    async with running(configured) as daemon:
        for name in names:
            daemon.drop(name, content)
        await daemon.said_by_now("file.queued", len(names))
    store.heal()
    store.requests.clear()
    await end_uncleanly(configured, names, exits)


async def end_uncleanly(configured: Config, names: Collection[str], exits: int = 1) -> None:
    """End runs uncleanly while these files are in flight."""
    for _ in range(exits):
        ledger = await open_ledger(configured.ledger.path)
        await ledger.release(unclean=not await ledger.begin_run())
        claimed = await claim(ledger, "drop", 1000, utcnow())
        assert {version.path.decode() for version in claimed} == {*names}
        await ledger.close(clean=False)


def sent(store: FaultyS3) -> list[str]:
    """Return the keys of all that was sent, but for the probes."""
    return [seen.key for seen in store.seen("PUT") if not seen.key.startswith(".")]


def in_flight(daemon: Running) -> list[str]:
    return [one.version.path.decode() for one in daemon.view.in_flight()]


async def unclean(daemon: Running, name: str) -> int:
    found = await daemon.ledger.by_path("drop", name.encode())
    assert found is not None
    return found.unclean


async def test_suspects_go_one_at_a_time_before_all_else(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    names = [f"suspect {number}" for number in range(5)]
    configured = config(tmp_path, faulty_s3)
    await crash(configured, faulty_s3, names)
    hang = faulty_s3.fault(method="PUT", hang="after", when=lambda _, key: key in names)
    async with running(configured) as daemon:
        await daemon.until(lambda: not hang.times, "the first")
        daemon.drop("another")
        await daemon.said_by_now("file.queued")
        await daemon.rescan()
        assert in_flight(daemon) in [[name] for name in names]
    async with running(configured) as daemon:
        await daemon.done(len(names) + 1)
        assert sorted(daemon.links()[:-1]) == names
        assert daemon.links()[-1] == "another"


async def test_a_reload_lets_no_other_beside_a_suspect(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    names = ["suspect 1", "suspect 2"]
    configured = config(tmp_path, faulty_s3)
    await crash(configured, faulty_s3, names)
    hang = faulty_s3.fault(method="PUT", hang="after", when=lambda _, key: key in names)
    changed = config(tmp_path, faulty_s3, watch(tmp_path), watch(tmp_path, "two", key="two/{path}"))
    async with running(configured, load=lambda: changed) as daemon:
        await daemon.until(lambda: not hang.times, "the first")
        daemon.drop("before", watch="drop")
        daemon.reload.set()
        await daemon.said_by_now("config.reloaded")
        daemon.drop("after", watch="two")
        await daemon.said_by_now("file.queued", 2)
        await daemon.rescan()
        assert in_flight(daemon) in [[name] for name in names]
        assert await daemon.ledger.in_state(State.QUEUED) != []


async def test_of_large_suspects_each_sends_one_part_and_goes_on_with_the_others(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    names = ["large 1", "large 2", "large 3"]
    configured = in_parts(tmp_path, faulty_s3)
    await crash(configured, faulty_s3, names, LARGE)
    async with running(configured) as daemon:
        await daemon.done(len(names))
        assert daemon.events("file.quarantined", "upload.retry") == []
        resumed = [event["key"] for event in daemon.events("upload.resumed")]
    assert sorted(sent(faulty_s3)[:2]) == sorted(resumed), "the last one has no reason to give way"
    assert sorted(sent(faulty_s3)) == sorted(3 * names), "no part went twice"
    assert all(found.body == LARGE for (_, key), found in faulty_s3.objects.items() if key in names)


async def test_a_large_suspect_without_a_part_to_send_gives_no_way(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    names = ["large 1", "large 2"]
    configured = in_parts(tmp_path, faulty_s3)
    hang = faulty_s3.fault("POST", asks="uploadId", when=lambda _, key: key in names, hang="before", times=len(names))
    async with running(configured) as daemon:
        for name in names:
            daemon.drop(name, LARGE)
        await daemon.until(lambda: not hang.times, "the ends of the uploads")
    await end_uncleanly(configured, names)
    async with running(configured) as daemon:
        await daemon.done(len(names))
        assert len(daemon.events("upload.resumed")) == len(names), "each in one attempt"


async def test_what_was_in_flight_at_many_unclean_ends_among_others_is_not_quarantined(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    names = ["1", "2"]
    configured = config(tmp_path, faulty_s3)
    await crash(configured, faulty_s3, names, exits=9)
    async with running(configured) as daemon:
        await daemon.done(len(names))
        assert [await unclean(daemon, name) for name in names] == [0, 0]


async def test_one_that_was_alone_at_three_unclean_ends_is_quarantined_at_the_start(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    configured = config(tmp_path, faulty_s3)
    await crash(configured, faulty_s3, ["a"], exits=3)
    async with running(configured) as daemon:
        (event,) = await daemon.said_by_now("file.quarantined")
        assert event["error_code"] == "internal_error"
        assert (await daemon.ledger.in_state(State.QUARANTINED))[0].path == b"a"
    assert sent(faulty_s3) == []
