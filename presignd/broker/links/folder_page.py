"""The page of a link to a folder: its files with their sizes, each with a link. It needs no JavaScript. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from presignd.broker.links.folder_files import MANIFEST, File
from presignd.broker.links.page import document
from presignd.broker.state.links import Link
from presignd.pages.html import Html, count, figure, join, name_of, tag
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


def folder_page(shown: Shown, files: Sequence[File]) -> str:
    """Return one page of the files."""
    new, first = shown.link.new, (shown.number - 1) * ON_PAGE
    here = files[first : first + ON_PAGE]
    return document(
        new.filename,
        tag("h1", name_of(new.filename)),
        tag("p", new.note) if new.note else None,
        tag("dl", *(figure(words, value) for words, value in _facts(shown, files))),
        tag("ul", *(_item(shown.root, file) for file in here), class_="files"),
        _others(shown.number, -(-len(files) // ON_PAGE)),
        tag("p", tag("a", "The list as JSON, with checksums", href=shown.root + MANIFEST)),
    )


def _facts(shown: Shown, files: Sequence[File]) -> list[tuple[str, str]]:
    facts = [("Holds", count(len(files), "file")), ("Size", short_size(sum(file.size for file in files)))]
    facts.append(("Shared by", shown.link.new.token))
    if shown.ends is not None:
        facts.append(("Until", f"{shown.ends.astimezone(UTC):%Y-%m-%d %H:%M} UTC"))
    return facts


def _item(root: str, file: File) -> Html:
    return tag(
        "li", tag("a", name_of(file.path), href=root + quote(file.path)), " ", tag("span", short_size(file.size))
    )


def _others(number: int, pages: int) -> Html | None:
    """Return links to the pages before and after this one."""
    if pages <= 1:
        return None
    before = tag("a", "Previous", href=f"?page={number - 1}", rel="prev") if number > 1 else None
    after = tag("a", "Next", href=f"?page={number + 1}", rel="next") if number < pages else None
    return tag("nav", join(before, f" Page {number} of {pages} ", after), aria_label="Pages")
