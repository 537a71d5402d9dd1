"""Progress bars on stderr, where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.progress import Progress

BYTES = ("BarColumn", "DownloadColumn", "TransferSpeedColumn", "TimeRemainingColumn")
COUNT = ("BarColumn", "MofNCompleteColumn", "TimeRemainingColumn")
"""Columns after the description, by their names in ``rich.progress``, which is imported only on a terminal."""


@contextlib.contextmanager
def progress(columns: Sequence[str]) -> Iterator[Progress | None]:
    """Show progress bars with these columns; yield None if stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as rich_progress  # noqa: PLC0415 - only on a terminal
    from rich.console import Console  # noqa: PLC0415 - as above

    made = (getattr(rich_progress, name)() for name in columns)
    with rich_progress.Progress(
        rich_progress.TextColumn("{task.description}", markup=False),
        *made,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as shown:
        yield shown


@contextlib.contextmanager
def hidden(shown: Progress | None) -> Iterator[None]:
    """Hide the bars while a line is printed: rich would wrap the line, and a wrapped link is broken."""
    if shown is None:
        yield
        return
    shown.stop()
    try:
        yield
    finally:
        shown.start()
