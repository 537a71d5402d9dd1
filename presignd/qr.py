"""QR codes, as half blocks for a terminal and as SVG for a page. Pure; a text that no code can hold is a ValueError."""

from __future__ import annotations

import io
from collections.abc import Sequence

import segno

QUIET = 4
"""Modules of light space around a code, as ISO/IEC 18004 demands."""

_BLOCKS = {(0, 0): " ", (1, 0): "\N{UPPER HALF BLOCK}", (0, 1): "\N{LOWER HALF BLOCK}", (1, 1): "\N{FULL BLOCK}"}
# Fixed entries of the 256-colour palette: a theme changes the first 16, and scanners want dark on light.
_BLACK_ON_WHITE, _RESET = "\x1b[38;5;16;48;5;231m", "\x1b[0m"


def for_terminal(text: str) -> list[str]:
    """Return lines of half blocks, black on white in any theme: two modules a character, one above the other."""
    rows = [list(row) for row in _code(text).matrix_iter(border=QUIET)]
    if len(rows) % 2:
        rows.append([0] * len(rows[0]))
    return [f"{_BLACK_ON_WHITE}{_line(*pair)}{_RESET}" for pair in zip(rows[::2], rows[1::2], strict=True)]


def _line(above: Sequence[int], below: Sequence[int]) -> str:
    return "".join(_BLOCKS[bool(high), bool(low)] for high, low in zip(above, below, strict=True))


def columns(text: str) -> int:
    """Return how wide ``for_terminal`` is."""
    return len(_code(text).matrix) + 2 * QUIET


def as_svg(text: str) -> bytes:
    """Return an SVG document without styles and scripts, black on white, that scales to any size."""
    written = io.BytesIO()
    _code(text).save(written, kind="svg", border=QUIET, light="#fff", xmldecl=False, omitsize=True)
    return written.getvalue()


def _code(text: str) -> segno.QRCode:
    """Return the code with the fewest modules: a link of 300 characters has 61 of them a side."""
    return segno.make_qr(text, error="l")
