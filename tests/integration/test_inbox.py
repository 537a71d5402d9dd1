"""A daemon with an inbox: what comes in by the invitation lands in the folder, whole, once, and under a safe name."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from presignd.checks import CHECKS
from presignd.checks.base import Check, CheckResult, Outcome, context_of, run_checks
from presignd.checks.inboxes import check_inboxes, check_invitations
from presignd.config import Config, InboxConfig
from presignd.config.load import load
from presignd.control.documents import overview
from presignd.s3.limits import CHECK_NAME
from tests.inboxes import BODY, PART, Site, site_of
from tests.running import Running, running, watch
from tests.stores import Store
from tests.unprivileged import without_rights, world_readable

BIG = random.Random(1).randbytes(2 * PART + 5)


@pytest.fixture
def site(seaweedfs: Store, tmp_path: Path) -> Iterator[Site]:
    with site_of(tmp_path, seaweedfs) as found:
        yield found


async def all_there(daemon: Running, site: Site, files: dict[str, bytes]) -> None:
    """Wait until the inbox holds these files and no other, and the broker lists none."""
    await daemon.said_by_now("inbox.received", len(files))
    await daemon.until(lambda: not site.listed(), "acknowledgements")
    assert site.files() == files


async def test_what_comes_in_lands_in_the_folder(site: Site) -> None:
    before = site.send("before.txt")
    async with running(site.config()) as daemon:
        await daemon.said_by_now("inbox.received")
        site.send("Scans/M\u00e4rz/a b.txt")
        site.send("Scans/empty", b"")
        site.send("big.bin", BIG)
        await all_there(daemon, site, site.sent)
        (event, *_) = daemon.events("inbox.received")
        assert (event["inbox"], event["path"], event["size"], event["key"]) == (
            "scans",
            str(site.inbox / "before.txt"),
            len(BODY),
            before["key"],
        )
        (inbox,) = (await overview(daemon.view))["inboxes"]
        assert (inbox["name"], inbox["waiting"], inbox["stopped"], inbox["received"]) == ("scans", 0, 0, 4)
        assert inbox["last_at"] is not None
    assert event["ref"] in {event["ref"] for event in site.broker.events("inbox.acked")}
    umask = os.umask(0)
    os.umask(umask)
    assert (site.inbox / "before.txt").stat().st_mode & 0o777 == 0o666 & ~umask


async def test_no_file_is_replaced_and_no_name_leads_elsewhere(site: Site, tmp_path: Path) -> None:
    config = site.config()
    outside = tmp_path / "outside"
    outside.mkdir()
    (site.inbox / "a.txt").write_bytes(b"mine")
    (site.inbox / "link").symlink_to(outside)
    (site.inbox / "file").write_bytes(b"mine")
    async with running(config) as daemon:
        for path in ("a.txt", "link/b.txt", "file/c.txt", "a.txt", ".ssh/authorized_keys"):
            site.send(path)
        await daemon.said_by_now("inbox.received", 5)
        mine = {"a.txt": b"mine", "file": b"mine"}
        names = ("a (2).txt", "a (3).txt", "link (2)/b.txt", "file (2)/c.txt", "_.ssh/authorized_keys")
        assert site.files() == mine | dict.fromkeys(names, BODY)
    assert list(outside.iterdir()) == []


def _sent(site: Site) -> list[str]:
    """Return what the watch has sent, without the object of its probes."""
    return [key for key in site.store.list(site.broker.bucket, "sent/") if not key.endswith(CHECK_NAME)]


async def test_a_watch_on_the_same_folder_sends_nothing_back_but_a_later_edit(site: Site) -> None:
    (site.folder / "in").mkdir()
    own = watch(site.folder, "in", bucket=site.broker.bucket, key="{prefix}sent/{path}", links="presigned")
    async with running(site.config(own)) as daemon:
        site.send("a.txt")
        site.send("Scans/b.txt")
        await all_there(daemon, site, site.sent)
        await daemon.rescan()
        (site.inbox / "a.txt").rename(site.inbox / "renamed.txt")
        await daemon.rescan()
        assert _sent(site) == []
        with (site.inbox / "renamed.txt").open("ab") as file:
            file.write(b"edited")
        (done,) = await daemon.done()
        assert done["path"].endswith("renamed.txt")
        await daemon.rescan()
        assert _sent(site) == ["sent/renamed.txt"]
        assert daemon.events("file.left_aside") == []


async def test_an_object_with_other_bytes_or_none_is_told_and_left_on_the_list(site: Site) -> None:
    wrong, gone = site.send("wrong.txt"), site.send("gone.txt")
    site.store.client.put_object(Bucket=site.broker.bucket, Key=wrong["key"], Body=bytes(len(BODY)))
    site.store.client.delete_object(Bucket=site.broker.bucket, Key=gone["key"])
    config = site.config()
    async with running(config) as daemon:
        failed = await daemon.said_by_now("inbox.failed", 2)
        assert {(event["path"], event["error_code"]) for event in failed} == {
            ("wrong.txt", "wrong_bytes"),
            ("gone.txt", "missing_object"),
        }
        site.send("good.txt")
        await daemon.said_by_now("inbox.received")
        assert {path for path in site.files() if not path.startswith(".presignd-")} == {"good.txt"}
        await daemon.until(lambda: len(site.listed()) == 2, "the acknowledgement of the good one")
        (inbox,) = (await overview(daemon.view))["inboxes"]
        assert (inbox["waiting"], inbox["stopped"], inbox["received"]) == (2, 2, 1)
    site.store.client.put_object(Bucket=site.broker.bucket, Key=wrong["key"], Body=BODY)
    async with running(config) as daemon:
        await daemon.said_by_now("inbox.received")
        assert daemon.events("inbox.failed") == [], "it was told before"
        assert site.files()["wrong.txt"] == BODY


async def test_a_broker_that_is_away_is_waited_for_and_told_once(site: Site) -> None:
    config = site.config()
    async with running(config) as daemon:
        site.send("a.txt")
        await daemon.said_by_now("inbox.received")
        site.broker.stop()
        (blocked,) = await daemon.said_by_now("inbox.blocked")
        assert (blocked["inbox"], blocked["error_code"]) == ("scans", "presigner_unreachable")
        told = [found for found in (await overview(daemon.view))["blocked"] if found["part"] == "inbox"]
        assert [found["what"] for found in told] == ["the inbox scans"]
        site.broker.start()
        site.send("b.txt")
        await all_there(daemon, site, site.sent)
        assert len(daemon.events("inbox.blocked")) == len(daemon.events("inbox.unblocked")) == 1


async def test_a_folder_that_is_away_is_waited_for(site: Site) -> None:
    async with running(site.config()) as daemon:
        shutil.rmtree(site.inbox)
        site.send("a.txt")
        (blocked,) = await daemon.said_by_now("inbox.blocked")
        assert blocked["error_code"] == "inbox_failed"
        site.inbox.mkdir()
        await all_there(daemon, site, site.sent)


async def test_an_invitation_that_the_token_has_not_is_told(site: Site) -> None:
    other = InboxConfig(name="other", path=site.folder, invitation="april")
    async with running(site.config(inboxes=(other,))) as daemon:
        (blocked,) = await daemon.said_by_now("inbox.blocked")
        assert blocked["error_code"] == "no_inbox"


async def test_a_reload_adds_and_removes_inboxes(site: Site) -> None:
    with_inbox = site.config()
    read: list[Config] = [with_inbox]
    async with running(site.config(inboxes=()), load=lambda: read[0]) as daemon:
        site.send("a.txt")
        daemon.reload.set()
        await all_there(daemon, site, site.sent)
        read[0] = site.config(inboxes=())
        daemon.reload.set()
        await daemon.said_by_now("config.reloaded", 2)
        site.send("b.txt")
        await daemon.rescan()
        assert [file["path"] for file in site.listed()] == ["b.txt"]


async def test_what_was_begun_of_files_that_others_fetched_is_removed(site: Site) -> None:
    config = site.config()
    (site.inbox / ".presignd-inbox-scans-AAAAAAAAAAAAAAAA").write_bytes(b"half")
    (site.inbox / ".presignd-inbox-scans-2-AAAAAAAAAAAAAAAA").write_bytes(b"another's")
    site.send("a.txt")
    async with running(config) as daemon:
        await daemon.said_by_now("inbox.received")
        await daemon.until(lambda: len(site.files()) == 2, "its removal")
        assert set(site.files()) == {"a.txt", ".presignd-inbox-scans-2-AAAAAAAAAAAAAAAA"}


async def test_an_inbox_needs_no_watch(site: Site) -> None:
    text, _, rest = site.toml().partition("[[watch]]")
    file = site.folder / "config.toml"
    file.write_text(f"{text}[[inbox]]{rest.partition('[[inbox]]')[2]}", "utf-8")
    file.chmod(0o600)
    config = load(file).config
    assert config.watches == ()
    async with running(config) as daemon:
        site.send("a.txt")
        await all_there(daemon, site, site.sent)
        assert (await overview(daemon.view))["watches"] == []
    async with context_of(config) as context:
        results = [result async for result in run_checks(context, CHECKS)]
    assert [(result.name, result.detail) for result in results if result.outcome is not Outcome.OK] == []
    assert {"broker", "clock", "inbox scans", "invitation march"} <= {result.name for result in results}


CHECKED = (Check("inboxes", check_inboxes), Check("invitations", check_invitations, remote=True))


async def checked(config: Config) -> dict[str, CheckResult]:
    """Return what ``presignd check`` says of inboxes, by name."""
    async with context_of(config) as context:
        return {result.name: result async for result in run_checks(context, CHECKED)}


async def test_check_tells_whether_an_inbox_works(site: Site) -> None:
    config = site.config()
    found = await checked(config)
    assert found["inbox scans"].outcome is Outcome.OK
    assert found["invitation march"].detail == "files that wait at the broker: 0"
    site.send("waits.txt")
    assert (await checked(config))["invitation march"].detail == "files that wait at the broker: 1"


async def test_check_tells_what_is_wrong_with_an_inbox(site: Site) -> None:
    with world_readable() as folder:
        folder.chmod(0o555)
        wrong = InboxConfig(name="scans", path=folder, invitation="april")
        config = site.config(inboxes=(wrong,))
        with without_rights():
            found = await checked(config)
    assert (found["inbox scans"].outcome, found["inbox scans"].code) == (Outcome.FAIL, "inbox_failed")
    assert (found["invitation april"].outcome, found["invitation april"].code) == (Outcome.FAIL, "no_inbox")
