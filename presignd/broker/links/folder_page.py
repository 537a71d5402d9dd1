"""The page of a link to a folder: its files with their sizes, each with a link. It needs no JavaScript. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from presignd.broker.links.folder_files import MANIFEST, File
from presignd.broker.links.page import document
from presignd.broker.links.words import ENGLISH, Words
from presignd.broker.state.links import Link
from presignd.pages.html import Html, figure, join, name_of, tag
from presignd.units import short_size

ON_PAGE = 1000
"""Files on one page."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the page shows: the link and its end, the path below which the files open, and the number of the page."""

    link: Link
    ends: datetime | None
    root: str
    number: int


def folder_page(shown: Shown, files: Sequence[File], words: Words = ENGLISH) -> str:
    """Return one page of the files."""
    new, first = shown.link.new, (shown.number - 1) * ON_PAGE
    here = files[first : first + ON_PAGE]
    return document(
        new.filename,
        tag("h1", name_of(new.filename)),
        tag("p", new.note) if new.note else None,
        tag("dl", *(figure(name, value) for name, value in _facts(shown, files, words))),
        tag("ul", *(_item(shown.root, file) for file in here), class_="files"),
        _others(shown.number, -(-len(files) // ON_PAGE), words),
        tag("p", tag("a", words.list, href=shown.root + MANIFEST)),
        lang=words.language,
    )


def _facts(shown: Shown, files: Sequence[File], words: Words) -> list[tuple[str, str]]:
    held = words.file if len(files) == 1 else words.files.format(len(files))
    facts = [(words.holds, held), (words.size, short_size(sum(file.size for file in files)))]
    facts.append((words.shared_by, shown.link.new.token))
    if shown.ends is not None:
        facts.append((words.until, f"{shown.ends.astimezone(UTC):%Y-%m-%d %H:%M} UTC"))
    return facts


def _item(root: str, file: File) -> Html:
    return tag(
        "li", tag("a", name_of(file.path), href=root + quote(file.path)), " ", tag("span", short_size(file.size))
    )


def _others(number: int, pages: int, words: Words) -> Html | None:
    """Return links to the pages before and after this one."""
    if pages <= 1:
        return None
    before = tag("a", words.previous, href=f"?page={number - 1}", rel="prev") if number > 1 else None
    after = tag("a", words.next, href=f"?page={number + 1}", rel="next") if number < pages else None
    return tag("nav", join(before, f" {words.page.format(number, pages)} ", after), aria_label=words.pages)
