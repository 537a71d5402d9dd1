"""Parse XML in a store's responses by expat. It may be cut off, and it may be no XML at all."""

from __future__ import annotations

from collections.abc import Callable
from xml.parsers import expat


class _Stop(Exception):
    """Ends the parsing."""


def first_text(body: bytes, name: str) -> str:
    """Return the text of the first non-empty element ``name``, without its children's; "" if there is none."""
    found = ""

    def end(tag: str, text: str) -> None:
        nonlocal found
        if tag == name and text:
            found = text
            raise _Stop

    _parse(body, lambda _: None, end)
    return found


def rows(body: bytes, name: str) -> list[dict[str, str]]:
    """Return the texts of the children, by name, of each complete element ``name``."""
    found: list[dict[str, str]] = []
    open_row: dict[str, str] = {}

    def begin(tag: str) -> None:
        if tag == name:
            open_row.clear()

    def end(tag: str, text: str) -> None:
        if tag == name:
            found.append(dict(open_row))
        open_row[tag] = text

    _parse(body, begin, end)
    return found


def _parse(body: bytes, begin: Callable[[str], None], end: Callable[[str, str], None]) -> None:
    """Call ``begin`` and ``end`` for each element, up to the first error: a body may be cut anywhere.

    A document type counts as an error, because it can declare entities that expand to gigabytes. Names come without
    their namespace, texts without surrounding spaces.
    """
    texts: list[list[str]] = [[]]

    def started(tag: str, _: dict[str, str]) -> None:
        texts.append([])
        begin(tag.rpartition(" ")[2])

    def ended(tag: str) -> None:
        end(tag.rpartition(" ")[2], "".join(texts.pop()).strip())

    def said(text: str) -> None:
        texts[-1].append(text)

    def refused(*_: object) -> None:
        raise _Stop

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler = started, ended
    parser.CharacterDataHandler = said
    parser.StartDoctypeDeclHandler = refused
    try:
        # A body may begin with white space, by which some stores keep a connection alive.
        parser.Parse(body.lstrip(), True)
    except (expat.ExpatError, _Stop):
        return
