"""The page of an invitation in Chromium and in Firefox, against two stores: what guests may rely on in both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.guests import invite
from tests.stable import Sharing, sharing
from tests.stores import Store
from tests.system.guest_tabs import GuestPage, check_asked_only, digest_of, stored, tab_of

MIB = 1 << 20
PART = 16 * MIB
ODD = "<img src=x onerror=alert(1)> \u00fc \u05d0 %2e #?&'\"~.txt"
GIB = 1 << 30
AT_ONCE = 6
"""Requests that the page sends side by side, at most."""
HOSTILE = (
    ODD,
    "plain.txt",
    "e\u0301 or \u00e9",
    "\u202egnp.exe",
    "..two dots",
    ".hidden",
    "dot.",
    "a b  c",
    "100%25 + ?x=1&y=2#z",
    "CON:*|.txt",
    "\U0001f4f7.jpg",
    "n" * 200,
    "{key} ${HOME} $(id)",
)
EVERYWHERE = [
    pytest.param(browser, store, marks=pytest.mark.needs(browser), id=f"{browser}-{store}")
    for browser in ("chromium", "firefox")
    for store in ("seaweedfs", "juicefs")
]
_names = (f"both-{number}" for number in count())


class Visit:
    """A guest's page, and the store behind it."""

    def __init__(self, page: GuestPage, broker: Sharing, store: Store, prefix: str) -> None:
        self.page, self.tab, self.broker, self._store, self._prefix = page, page.tab, broker, store, prefix

    def stored(self) -> dict[str, str]:
        """Return the SHA-256 of what came in, by path."""
        return stored(self._store, self.broker.bucket, self._prefix)

    async def cut_and_restart(self) -> None:
        """Cut the network, kill the broker, and bring both back."""
        await self.tab.offline(True)
        await asyncio.to_thread(self.broker.kill)
        await self.tab.offline(False)
        await asyncio.to_thread(self.broker.start)


@pytest.fixture
def broker(request: pytest.FixtureRequest, where: str, tmp_path: Path) -> Iterator[Sharing]:
    store: Store = request.getfixturevalue(where)
    bucket = store.new_bucket() if where == "seaweedfs" else store.bucket  # a gateway has the one bucket
    with sharing(tmp_path / "broker", store, bucket) as broker:
        yield broker


@pytest.fixture
async def visit(request: pytest.FixtureRequest, name: str, where: str, broker: Sharing) -> AsyncIterator[Visit]:
    store: Store = request.getfixturevalue(where)
    invitation = next(_names)
    url = invite(broker, invitation, "--note", "M\u00e4rz & <b>", prefix=f"{invitation}/")["url"]
    async with tab_of(name) as tab:
        page = GuestPage(tab, url)
        await page.open()
        yield Visit(page, broker, store, f"{invitation}/")
        check_asked_only(tab, broker, store)


def file_of(path: Path, size: int) -> Path:
    """Make a file that is no part's repetition: each MiB begins with its number, and holds holes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for start in range(0, size, MIB):
            file.seek(start)
            file.write(f"{path.name} {start}".encode()[: size - start])
        file.truncate(size)
    return path


def folder_of(folder: Path, small: int, *large: int) -> dict[str, Path]:
    """Make ``small`` small files with odd names, each fifth one empty, and large ones; return them by their paths."""
    sizes = {f"{number % 7}/{number} {ODD}": number % 5 * 1000 for number in range(small)}
    sizes |= {f"below/deep/large {size}.bin": size for size in large}
    paths = [file_of(folder / name, size) for name, size in sizes.items()]
    return {str(path.relative_to(folder.parent)): path for path in paths}


async def expect_all(visit: Visit, paths: dict[str, Path]) -> None:
    """Wait until everything is there: byte-identical, each once, with its receipt."""
    await visit.page.all_received()
    receipt = await visit.page.receipt()
    assert await asyncio.to_thread(visit.stored) == {name: digest_of(path) for name, path in paths.items()}
    assert {each["path"]: each["size"] for each in receipt["files"]} == {
        name: path.stat().st_size for name, path in paths.items()
    }
    assert len(receipt["files"]) == len(paths)
    assert all(each["checksum"] for each in receipt["files"])
    assert receipt["note"] == "M\u00e4rz & <b>"


# --- what holds in both -------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "where"), EVERYWHERE)
async def test_a_folder_that_is_dropped_comes_in_whole_with_a_receipt(visit: Visit, tmp_path: Path) -> None:
    paths = folder_of(tmp_path / "all", 15, PART, 2 * PART + 7)
    await visit.tab.drop(tmp_path / "all")
    await visit.page.until_listed(len(paths))
    assert await visit.tab.run("() => document.images.length") == 0, "names are text"
    await expect_all(visit, paths)


@pytest.mark.parametrize(("name", "where"), EVERYWHERE)
async def test_after_a_reload_no_part_is_sent_again(visit: Visit, tmp_path: Path) -> None:
    path = file_of(tmp_path / "large.bin", 5 * PART + 1)
    await visit.tab.choose(path)
    noted = await visit.page.pause_after_a_part()
    assert noted
    before = len(visit.page.parts_sent())
    await visit.page.open()
    await visit.page.until_says("#list", "Choose this file again")
    await visit.tab.choose(path)
    await expect_all(visit, {"large.bin": path})
    # A busy store may refuse a part for the moment: that one is sent again, as it was not noted.
    assert {*visit.page.parts_sent()[before:]} == {"1", "2", "3", "4", "5", "6"} - noted


@pytest.mark.parametrize(("name", "where"), EVERYWHERE)
async def test_a_cut_network_and_a_killed_broker_are_waited_for(visit: Visit, tmp_path: Path) -> None:
    paths = folder_of(tmp_path / "all", 30, 3 * PART)
    await visit.tab.drop(tmp_path / "all")
    await visit.page.until_listed(len(paths))
    await visit.cut_and_restart()
    await expect_all(visit, paths)


@pytest.mark.series
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "where"), EVERYWHERE)
async def test_300_odd_files_and_one_of_2_gib_come_in_whatever_is_cut(visit: Visit, tmp_path: Path) -> None:
    """The network is cut twice, the tab reloaded twice, and the broker killed twice."""
    visit.page.patience = 1500
    folder = tmp_path / "all"
    sizes = {f"{number % 7}/{number} {HOSTILE[number % len(HOSTILE)]}": number % 5 * 1000 for number in range(300)}
    files = [file_of(folder / name, size) for name, size in {**sizes, "below/deep/large.bin": 2 * GIB}.items()]
    paths = {str(path.relative_to(tmp_path)): path for path in files}
    for _ in range(2):
        await visit.tab.drop(folder)
        await visit.page.until_listed(len(paths))
        await visit.page.until_more_parts_than(len(visit.page.parts_sent()))
        await visit.cut_and_restart()
        await visit.page.until_more_parts_than(len(visit.page.parts_sent()))
        await visit.page.open()
    await visit.tab.drop(folder)
    await expect_all(visit, paths)
    sent, needed = visit.page.parts_sent(), 2 * GIB // PART
    assert set(sent) == {str(number) for number in range(1, needed + 1)}
    assert len(sent) <= needed + 4 * AT_ONCE, "what was there is not sent again"
