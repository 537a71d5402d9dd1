"""XML of a store's answers, parsed by expat. Nothing of it is believed to be whole, or to be XML at all."""

from __future__ import annotations

from collections.abc import Callable
from xml.parsers import expat


class _Stop(Exception):
    """Enough was seen."""


def first_text(body: bytes, name: str) -> str:
    """Return the text of the first element ``name``, with none inside it; "" where there is none."""
    found = ""

    def end(tag: str, text: str) -> None:
        nonlocal found
        if tag == name and text:
            found = text
            raise _Stop

    _parse(body, lambda _: None, end)
    return found


def rows(body: bytes, name: str) -> list[dict[str, str]]:
    """Return, for each element ``name`` that is there to its end, the texts of those inside it by name."""
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
    """Tell of each element as it begins and ends, up to the first mistake: a body may be cut anywhere.

    A document type is one: whoever may declare entities can have a few bytes mean gigabytes. Names are told
    without their namespace, texts without the spaces around them.
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
        # A store that keeps the connection alive by white space may begin with it.
        parser.Parse(body.lstrip(), True)
    except (expat.ExpatError, _Stop):
        return
