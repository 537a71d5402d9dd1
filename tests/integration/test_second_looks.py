"""Requests to a running daemon (a retry, a wait, a given key) change no rule."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from presignd.errors import Refused
from presignd.ledger import Selection
from tests.faulty_s3 import FaultyS3
from tests.running import config, running, watch


async def test_a_file_whose_key_is_taken_is_retried_like_any_other(tmp_path: Path, faulty_s3: FaultyS3) -> None:
    """It was recorded without a key: that is no bug to stumble over."""
    async with running(config(tmp_path, faulty_s3, watch(tmp_path, collision="refuse", key="{name}"))) as daemon:
        (tmp_path / "drop" / "a").mkdir()
        (tmp_path / "drop" / "b").mkdir()
        daemon.drop("a/x")
        await daemon.done(1)
        daemon.drop("b/x")
        await daemon.said_by_now("file.quarantined", 1)
        await daemon.view.requeue(Selection(watch="drop"))
        await daemon.said_by_now("file.quarantined", 2)
        assert daemon.codes("file.quarantined") == ["key_taken", "key_taken"]


async def test_a_retry_doesn_t_get_past_max_size(tmp_path: Path, faulty_s3: FaultyS3) -> None:
    async with running(config(tmp_path, faulty_s3, watch(tmp_path, max_size=4))) as daemon:
        daemon.drop("large", b"12345")
        await daemon.said_by_now("file.quarantined", 1)
        await daemon.view.requeue(Selection(watch="drop"))
        await daemon.said_by_now("file.quarantined", 2)
        assert daemon.codes("file.quarantined") == ["too_large", "too_large"]


async def test_a_key_given_by_hand_doesn_t_get_past_max_size(tmp_path: Path, faulty_s3: FaultyS3) -> None:
    (tmp_path / "large").write_bytes(b"12345")
    fd = os.open(tmp_path / "large", os.O_RDONLY)
    async with running(config(tmp_path, faulty_s3, watch(tmp_path, max_size=4))) as daemon:
        put = daemon.view.put(
            fd, os.fsencode(tmp_path / "large"), "drop", key="k", expires=None, by_uid=0, progress=lambda _: None
        )
        with pytest.raises(Refused, match="at most 4"):
            await put
    os.close(fd)


@pytest.mark.parametrize("name", ["file.part", "sub/file", "file.ok", ".presignd-x", "file.link.txt"])
async def test_waiting_for_an_ignored_file_uploads_it_not(tmp_path: Path, faulty_s3: FaultyS3, name: str) -> None:
    rules = watch(tmp_path, recursive=False, ready_marker="{name}.ok", link_file="{name}.link.txt")
    async with running(config(tmp_path, faulty_s3, rules)) as daemon:
        await daemon.said_by_now("watch.started")
        (tmp_path / "drop" / "sub").mkdir()
        for each in (name, f"{name}.ok", "wanted", "wanted.ok"):
            daemon.drop(each)
        for each in (name, "wanted"):
            daemon.view.hint("drop", os.fsencode(each))
        await daemon.until(lambda: not daemon.view.settling() and daemon.links(), "a link and no more to come")
        assert daemon.links() == ["wanted"]


@pytest.mark.parametrize("rest", ["", "file.part"])
async def test_what_has_its_link_does_not_settle_again_without_its_marker_or_beside_a_download(
    tmp_path: Path, faulty_s3: FaultyS3, rest: str
) -> None:
    """People remove markers, and an event of a file that did not change (chmod) comes at any time."""
    rules = watch(tmp_path, ready_marker="" if rest else "{name}.ok")
    async with running(config(tmp_path, faulty_s3, rules)) as daemon:
        await daemon.said_by_now("watch.started")
        daemon.drop("file")
        daemon.drop("file.ok")
        await daemon.until(lambda: "file" in daemon.links(), "a link")
        if rest:
            daemon.drop(rest)
        else:
            (tmp_path / "drop" / "file.ok").unlink()
        daemon.view.hint("drop", b"file")
        daemon.drop("other")
        await daemon.until(lambda: b"other" in {each.path for each in daemon.view.settling()} or rest, "it waits")
        await daemon.until(lambda: b"file" not in {each.path for each in daemon.view.settling()}, "it is as it was")
