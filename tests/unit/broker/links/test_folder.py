"""The files of a link to a folder: what is believed of a manifest, and the page that lists them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from presignd.broker.links.folder_files import KEPT, KEPT_SECONDS, LARGEST, File, FolderFiles, NoManifest, files_in
from presignd.broker.links.folder_page import ON_PAGE, Shown, folder_page
from presignd.broker.links.words import GERMAN
from presignd.broker.state.links import Link, NewLink
from presignd.presign import GrantRequest
from presignd.s3.responses import Response
from presignd.store.signed import SignedStore
from tests.versions import LATER, NOW

KEY = "in/shoot/MANIFEST.json"


def manifest(*files: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"unit": "shoot", "made": "x", "files": files, **more}).encode()


def entry(path: str, key: str = "", size: Any = 1) -> dict[str, Any]:
    return {"path": path, "key": key or f"in/shoot/{path}", "size": size, "checksum": "md5:aa"}


def link(**more: Any) -> Link:
    new = NewLink(
        id=b"i" * 32,
        token="scanner",
        bucket="bucket",
        key=KEY,
        version_id="",
        size=100,
        content_type="application/json",
        filename="shoot <1>",
        disposition="inline",
        note="",
        pin="",
        made_at=NOW,
        ends_at=None,
        max_downloads=None,
        unit=True,
    )
    return Link(new._replace(**more), 0, None, None, kept=False)


def test_the_files_come_in_the_manifests_order() -> None:
    assert list(files_in(manifest(entry("b"), entry("a/c.jpg", size=5)), KEY).values()) == [
        File("b", "in/shoot/b", 1),
        File("a/c.jpg", "in/shoot/a/c.jpg", 5),
    ]
    assert files_in(manifest(), "MANIFEST.json") == {}


@pytest.mark.parametrize(
    "key", ["in/other/a", "in/shoot", "other", "in/shoot/../other/a", "in/shoot/./a", "in/shoot//a", "in/shoot/"]
)
def test_a_key_outside_the_manifests_folder_is_left_out(key: str) -> None:
    """Whoever writes the manifest could name the files of others."""
    assert files_in(manifest(entry("a", key), entry("b")), KEY) == {"b": File("b", "in/shoot/b", 1)}


def test_an_entry_without_a_path_or_with_an_impossible_size_is_left_out() -> None:
    assert files_in(manifest(entry("", "in/shoot/x"), entry("a", size=-1)), KEY) == {}


@pytest.mark.parametrize("body", [b"", b"[]", b'{"files": 5}', manifest(entry("a", size="big")), b'{"files": [{}]}'])
def test_what_is_no_manifest_is_refused(body: bytes) -> None:
    with pytest.raises(NoManifest):
        files_in(body, KEY)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("a/b.jpg", "image/jpeg"), ("x.tar.gz", "application/octet-stream"), ("none", "application/octet-stream")],
)
def test_a_file_has_the_type_of_its_name(path: str, kind: str) -> None:
    file = File(path, f"in/{path}", 1)
    assert (file.name, file.kind) == (path.rpartition("/")[2], kind)


class Store:
    """Stands in for the store: answers with ``body``, in two pieces."""

    def __init__(self, body: bytes | None) -> None:
        self.body, self.asked = body, list[GrantRequest]()

    async def send(
        self, request: GrantRequest, *, accept: tuple[int, ...], into: Callable[[bytes], Awaitable[None]]
    ) -> Response:
        self.asked.append(request)
        if self.body is None:
            return Response(accept[0], {})
        half = len(self.body) // 2
        await into(self.body[:half])
        await into(self.body[half:])
        return Response(200, {})


def reading(store: Store, now: list[float]) -> FolderFiles:
    return FolderFiles(lambda: cast("SignedStore", store), lambda: now[0])


async def test_a_manifest_is_read_once_and_again_after_a_while() -> None:
    store, now = Store(manifest(entry("a"))), [5.0]
    files = reading(store, now)
    assert [*await files.of(link().new)] == ["a"]
    store.body = manifest(entry("b"))
    assert [*await files.of(link().new)] == ["a"]
    now[0] += KEPT_SECONDS
    assert [*await files.of(link().new)] == ["b"]
    assert [(asked.operation, asked.key) for asked in store.asked] == [("get", KEY)] * 2


async def test_visitors_who_come_at_once_cause_one_request() -> None:
    store = Store(manifest(entry("a")))
    files = reading(store, [5.0])
    files._turns = asyncio.Semaphore(1)
    found = await asyncio.gather(*(files.of(link().new) for _ in range(3)))
    assert [[*each] for each in found] == [["a"]] * 3
    assert len(store.asked) == 1


async def test_only_a_few_manifests_are_kept() -> None:
    store, now = Store(manifest()), [5.0]
    files = reading(store, now)
    for number in range(KEPT + 1):
        await files.of(link(version_id=str(number)).new)
    await files.of(link(version_id="0").new)
    assert [asked.version_id for asked in store.asked] == [*map(str, range(KEPT + 1)), "0"]


async def test_a_missing_and_an_endless_manifest_are_told_alike() -> None:
    for body in (None, b" " * (LARGEST + 1)):
        with pytest.raises(NoManifest):
            await reading(Store(body), [5.0]).of(link().new)


def page(files: list[File], number: int = 1, **more: Any) -> str:
    return folder_page(Shown(link(**more), LATER, "/l/ID/shoot%20%3C1%3E/", number), files)


def test_the_page_shows_names_as_text_and_links_each() -> None:
    files = [File("a b/<i>.html", "k", 2048), File("sum%.txt", "k", 1)]
    text = page(files, note="for <you>")
    assert "<i>" not in text
    assert "shoot &lt;1&gt;" in text
    assert "for &lt;you&gt;" in text
    assert 'href="/l/ID/shoot%20%3C1%3E/a%20b/%3Ci%3E.html"' in text
    assert 'href="/l/ID/shoot%20%3C1%3E/sum%25.txt"' in text
    assert 'href="/l/ID/shoot%20%3C1%3E/MANIFEST.json"' in text
    assert "2 files" in text
    assert "scanner" in text
    assert "Until" in text
    assert "<nav" not in text
    assert "<script" not in text


def test_the_page_is_in_german_too() -> None:
    files = [File(f"{number:05}", "k", 1) for number in range(2 * ON_PAGE + 1)]
    shown = Shown(link(), LATER, "/l/ID/x/", 2)
    text = folder_page(shown, files, GERMAN)
    assert '<html lang="de">' in text
    for said in (
        "2001 Dateien",
        "Gr\u00f6\u00dfe",
        "Geteilt von",
        "Bis",
        "Seite 2 von 3",
        "Weiter",
        "Die Liste als JSON",
    ):
        assert said in text
    for english in ("Holds", "file", "Shared", "Until", "Page", "Next", "checksums"):
        assert f">{english}" not in text
    assert "1 Datei" in folder_page(shown, files[:1], GERMAN)


def test_a_link_without_an_end_shows_none() -> None:
    assert "Until" not in folder_page(Shown(link(), None, "/l/ID/x/", 1), [])


def test_many_files_have_several_pages() -> None:
    files = [File(f"{number:05}", "k", 1) for number in range(2 * ON_PAGE + 1)]
    first, last = page(files), page(files, 3)
    assert first.count("<li>") == ON_PAGE
    assert last.count("<li>") == 1
    assert ("?page=2" in first, "Previous" in first) == (True, False)
    assert ("?page=2" in last, "Next" in last) == (True, False)
    assert page(files, 9).count("<li>") == 0
