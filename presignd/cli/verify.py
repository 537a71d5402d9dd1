"""``presignd verify``: compare local files with what the store holds now."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from presignd.cli import bars, loop, show
from presignd.cli.ask import asking
from presignd.cli.options import AsJson, ConfigFile, absolute
from presignd.cli.put import opened
from presignd.cli.wait import batches
from presignd.errors import Refused, Unavailable, UsageError, worst

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress, TaskID

    from presignd.cli.ask import Asker

    Document = dict[str, Any]

AT_A_TIME = 4
"""How many files that only this user may open are compared at a time."""

OUTCOMES = {"equal": "equal", "differs": "differ", "missing": "missing", "unchecked": "not checked"}
BY = {"checksum": "checksum", "etag": "ETag", "download": "download", "size": "size"}
"""The daemon's outcomes, and their words in the summary."""


def verify_command(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH", readable=False, help="Uploaded files, or folders in watched folders."),
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All files of all watches.")] = False,
    download: Annotated[
        bool,
        typer.Option("--download", help="Download each object and compare every byte: slow, but it misses nothing."),
    ] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Compare files with what the store holds now.

    The object's own checksum decides, else its ETag, else a download. Prints a line for each file that differs, is
    missing in the store, or could not be checked, and a summary on stderr; with --json one object for each file, and
    the summary as the last. A file that was moved is compared where it is now. Of a file that is gone the recorded
    checksum is compared, and the summary says how many these were.

    Ends with 4 when a file differs or is missing, else with 3 when some could not be checked, and with 5 when some
    are still to be uploaded.

    Example: presignd verify --all
    """
    if bool(paths) == every:
        raise UsageError("verify: which files?", fix="name paths, or give --all")
    request = {"op": "verify", "all": every, "download": download, "list_equal": as_json or not every}
    code = loop.run(_verify([absolute(path) for path in paths or []], request, config, as_json=as_json))
    if code:
        raise SystemExit(code)


async def _verify(paths: Sequence[str], request: Document, config: Path | None, *, as_json: bool) -> int:
    with bars.progress(bars.COUNT) as progress:
        totals = Totals()
        async with asking(config) as asker:
            run = _Run(asker, request, totals, _Output(progress, as_json=as_json))
            try:
                for some in [list[str]()] if request["all"] else batches(paths):
                    await run.ask({**request, "paths": some})
                await run.ask_for_own_files()
            finally:
                run.output.end(totals)
    return totals.exit_code


@dataclass
class Totals:
    """The sum of the summaries of several requests."""

    counts: Counter[str] = field(default_factory=Counter)
    by: Counter[str] = field(default_factory=Counter)
    against: Counter[str] = field(default_factory=Counter)
    problems: dict[str, Document] = field(default_factory=dict)
    codes: set[int] = field(default_factory=set)

    def add(self, summary: Document) -> None:
        """Add one request's summary."""
        self.counts.update({name: summary[name] for name in OUTCOMES})
        self.by.update(summary["by"])
        self.against.update(summary["against"])
        self.codes.add(summary["exit"])
        for problem in summary["problems"]:
            before = self.problems.get(problem["code"], {"count": 0})
            self.problems[problem["code"]] = {**problem, "count": before["count"] + problem["count"]}

    @property
    def exit_code(self) -> int:
        """The worst exit code of all."""
        return worst(self.codes)

    def document(self) -> Document:
        """Render the sum as one of the summaries."""
        problems = list(self.problems.values())
        return {**{name: self.counts[name] for name in OUTCOMES}, "by": self.by, "against": self.against} | {
            "problems": problems,
            "exit": self.exit_code,
        }

    def lines(self) -> list[str]:
        """Render the sum for people."""
        count = self.counts
        outcomes = [f"{count[name]} {word}" for name, word in OUTCOMES.items()]
        by = [f"{self.by[name]} by {word}" for name, word in BY.items() if self.by[name]]
        lines = [f"{_files(sum(count.values()))}: {', '.join(outcomes)}" + (f" ({', '.join(by)})" if by else "")]
        if self.against["receipt"]:
            gone = _files(self.against["receipt"])
            lines.append(f"{gone} gone or not readable here: the object was compared with the recorded checksum")
        if self.against["moved"]:
            lines.append(f"{_files(self.against['moved'])} compared in move_to")
        for found in self.problems.values():
            if found["code"] == Refused.code:  # each has its own line, with a reason of its own
                continue
            fix = f" ({found['fix']})" if found["fix"] else ""
            lines.append(f"{found['count']} not checked: {found['code']}: {found['message']}{fix}")
        return lines


class _Run:
    """The requests of one command."""

    def __init__(self, asker: Asker, request: Document, totals: Totals, output: _Output) -> None:
        self._asker, self._request, self._totals, self.output = asker, request, totals, output
        self._own: list[str] = []

    async def ask(self, request: Document, fds: Sequence[int] = ()) -> None:
        """Send one request, print its answers, and add its summary."""
        summary = None
        async with contextlib.aclosing(self._asker.ask(request, fds)) as answers:
            async for answer in answers:
                if "file" in answer:
                    self.output.file(answer["file"])
                elif "ask" in answer:
                    self._own.append(answer["ask"])
                elif "progress" in answer:
                    self.output.progress(**answer["progress"])
                summary = answer.get("summary", summary)
        if summary is None:
            raise Unavailable("verify: the daemon ended before all files were checked", fix="run it again")
        self._totals.add(summary)

    async def ask_for_own_files(self) -> None:
        """Open the files put from outside the watches, as only their users may, and let the daemon compare them."""
        slots = asyncio.Semaphore(AT_A_TIME)
        async with asyncio.TaskGroup() as tasks:
            for path in self._own:
                await slots.acquire()
                tasks.create_task(self._ask_for_own(path)).add_done_callback(lambda _: slots.release())

    async def _ask_for_own(self, path: str) -> None:
        request = {**self._request, "all": False, "paths": [path]}
        with contextlib.ExitStack() as stack:
            try:
                fd, _ = stack.enter_context(opened(Path(path), "verify"))
            except Refused:  # it is gone, or another user's
                await self.ask({**request, "by_receipt": True})
            else:
                await self.ask(request, [fd])


class _Output:
    """Prints what was found: lines or JSON on stdout, progress on a terminal."""

    def __init__(self, progress: Progress | None, *, as_json: bool) -> None:
        self._progress, self._as_json = progress, as_json
        self._bar: TaskID | None = None

    def file(self, found: Document) -> None:
        """Print the result for one file."""
        with bars.hidden(self._progress):
            if self._as_json:
                show.document({"file": found}, indent=None)
            elif found["outcome"] != "equal":
                outcome = found["outcome"].replace("unchecked", "not checked")
                show.row([outcome, found["path"], _why(found)])

    def progress(self, checked: int, total: int) -> None:
        """Show how many files of one request are checked."""
        if self._progress is not None:
            if self._bar is None:
                self._bar = self._progress.add_task("files", total=total)
            self._progress.update(self._bar, completed=checked, total=total)

    def end(self, totals: Totals) -> None:
        """Print the summary, unless nothing was counted because the first request failed."""
        if not totals.codes:
            return
        with bars.hidden(self._progress):
            if self._as_json:
                show.document({"summary": totals.document()}, indent=None)
            else:
                for line in totals.lines():
                    show.say(f"presignd: {line}")


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"


def _why(found: Document) -> str:
    fix = (found["error"] or {}).get("fix")
    return f"{found['why']} ({fix})" if fix else str(found["why"])
