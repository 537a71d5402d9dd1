"""``presignd put``: upload files now, through the daemon or without one, and print their links."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from presignd.cli import bars, loop, show
from presignd.cli.ask import asking
from presignd.cli.guard import error_lines
from presignd.cli.options import AsJson, ConfigFile, Expires, absolute, expiry
from presignd.cli.streams import clean
from presignd.control.paths import forms
from presignd.control.server import failure
from presignd.errors import ExitCode, PresigndError, Refused, Unavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

    from rich.progress import Progress

    from presignd.cli.ask import Asker

    Request = Mapping[str, Any]
    LinkOrError = dict[str, Any] | PresigndError
    Report = Callable[[int, int | None], None]

CONCURRENCY = 4
"""How many files are uploaded at a time."""


def put_command(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", readable=False, help="Files to upload; - is standard input.")
    ],
    *,
    watch: Annotated[
        str,
        typer.Option(metavar="NAME", help="The watch to upload by; default: the one that FILE is in, or the only one."),
    ] = "",
    key: Annotated[str, typer.Option(metavar="KEY", help="The key in the bucket; for one FILE only.")] = "",
    name: Annotated[str, typer.Option(metavar="NAME", help="What standard input (FILE is -) is called.")] = "",
    expires: Expires = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Upload files now and print their links.

    Prints one link a line on stdout, in the order of the files; with --json one object a line. When a
    file fails, the others still go.

    With -, standard input is uploaded as it comes: pg_dump shop | presignd put - --name shop.sql. Its end
    counts as complete, even if what writes it failed: in a script, say set -o pipefail.

    Example: presignd put report.pdf --expires 1h
    """
    if key and len(files) > 1:
        raise UsageError("put: --key names one object, so it takes one FILE", fix="put the files one by one")
    request = {"op": "put", "watch": watch, "key": key, "expires": expiry(expires)}
    if Path("-") in files:
        code = loop.run(_of_stdin(files, name, request, config, as_json=as_json))
    elif name:
        raise UsageError("put: --name is for standard input alone", fix="--key names the object of a FILE")
    else:
        code = loop.run(put_files(files, request, config, as_json=as_json))
    if code:
        raise SystemExit(code)


def _of_stdin(
    files: Sequence[Path], name: str, request: Request, config: Path | None, *, as_json: bool
) -> Coroutine[Any, Any, int]:
    from presignd.cli.put_stdin import check_name, put_stdin  # noqa: PLC0415 - it builds on this module

    if len(files) > 1:
        raise UsageError("put: - is standard input, and can't be put with other files", fix="a file named - is ./-")
    check_name(name)
    return put_stdin(name, request, config, as_json=as_json)


async def put_files(files: Sequence[Path], request: Request, config: Path | None, *, as_json: bool) -> int:
    """Upload ``files`` as ``request`` says and print their links in order; return the exit code.

    ``DONE`` when all have their link, ``REFUSED`` when one is refused or missing, else the first failure's code.
    """
    files = list(map(_existing_form, files))
    slots = asyncio.Semaphore(CONCURRENCY)
    codes: list[int] = []
    async with asking(config, work=True) as asker:
        with bars.progress(bars.BYTES) as progress:
            tasks = [asyncio.create_task(_put(asker, file, request, slots, progress)) for file in files]
            try:
                for file, task in zip(files, tasks, strict=True):
                    outcome = await task
                    with bars.hidden(progress):
                        codes.append(print_outcome(absolute(file), outcome, as_json=as_json))
            finally:
                await _cancel(tasks)
    bad = [code for code in codes if code]
    return ExitCode.REFUSED if ExitCode.REFUSED in bad else next(iter(bad), ExitCode.DONE)


async def _cancel(tasks: Sequence[asyncio.Task[LinkOrError]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _put(
    asker: Asker, file: Path, request: Request, slots: asyncio.Semaphore, progress: Progress | None
) -> LinkOrError:
    """Return the link of one file, or what stopped it."""
    async with slots:
        try:
            with opened(file, "put") as (fd, size), bar(progress, file.name, size) as report:
                return await link_of(asker, {**request, "path": absolute(file)}, fd, report)
        except PresigndError as error:
            return error


async def link_of(asker: Asker, request: Request, fd: int, report: Report) -> dict[str, Any]:
    """Request a link to what ``fd`` reads, and return it; raises ``PresigndError``."""
    async with contextlib.aclosing(asker.ask(request, [fd])) as answers:
        async for answer in answers:
            if link := answer.get("link"):
                return dict(link)
            report(answer["sent"], answer["size"])
    raise Unavailable("put: the daemon ended before the link came", fix="presignd status shows where the file stands")


def _existing_form(file: Path) -> Path:
    """Return ``file`` or, if it is missing, its name in the Unicode form that exists."""
    named = (Path(os.fsdecode(form)) for form in forms(os.fsencode(file)))
    return next((form for form in named if os.path.lexists(form)), file)


@contextlib.contextmanager
def opened(file: Path, command: str) -> Iterator[tuple[int, int]]:
    """Open a regular file for reading, without following a symlink; yield its descriptor and its size in bytes.

    The type is checked before the open too: opening a device or a FIFO has effects. Raises ``Refused``.
    """
    try:
        _check_regular(file, file.lstat(), command)
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise Refused(f"{command}: {file}: {getattr(error, 'strerror', None) or error}") from None
    try:
        found = os.fstat(fd)
        _check_regular(file, found, command)
        yield fd, found.st_size
    finally:
        os.close(fd)


def _check_regular(file: Path, found: os.stat_result, command: str) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    if stat.S_ISLNK(found.st_mode):
        raise Refused(f"{command}: {file}: is a symlink", fix="name the file it points to")
    kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
    raise Refused(f"{command}: {file}: is {kind}", fix="name regular files")


def print_outcome(path: str, outcome: LinkOrError, *, as_json: bool) -> int:
    """Print one file's link or failure; return its exit code."""
    if isinstance(outcome, PresigndError):
        if as_json:
            show.document({"path": path, **failure(outcome)}, indent=None)
        for line in error_lines(outcome):
            show.say(line)
        return outcome.exit_code
    if as_json:
        show.document(outcome, indent=None, as_is=True)
    else:
        show.result(outcome["url"], as_is=True)
    return ExitCode.DONE


@contextlib.contextmanager
def bar(progress: Progress | None, name: str, size: int | None) -> Iterator[Report]:
    """Show a bar for ``size`` bytes (None: unknown); yield a function that takes the bytes sent and the size."""
    if progress is None:
        yield lambda _sent, _size: None
        return
    bar = progress.add_task(clean(name), total=size)
    begun = False

    def report(sent: int, total: int | None) -> None:
        nonlocal begun
        if sent and not begun:  # a resumed upload starts here: what was sent before must not count as speed
            progress.reset(bar, total=total, completed=sent)
            begun = True
        progress.update(bar, completed=sent, total=total)

    yield report
    if size is not None:
        progress.update(bar, completed=size)
