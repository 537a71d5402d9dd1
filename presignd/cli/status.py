"""``presignd status``, ``wait`` and ``retry``: where files stand, and what to do about those that are stuck."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from presignd.cli import loop, show
from presignd.cli.follow import follow
from presignd.cli.one import only
from presignd.cli.options import AsJson, ConfigFile, absolute, seconds
from presignd.cli.report import path_lines, print_path, print_status, status_lines
from presignd.cli.waits import wait_for
from presignd.errors import ExitCode, UsageError
from presignd.system.clock import utcnow


def status_command(
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", readable=False, help="A file: where it stands, its receipt.")
    ] = None,
    *,
    as_json: AsJson = False,
    stay: Annotated[bool, typer.Option("--follow", "-f", help="Stay, and show it again as it changes.")] = False,
    config: ConfigFile = None,
) -> None:
    """Show the queue, or where one file stands.

    What is queued, settling and since when, in flight, blocked, and quarantined with cause and fix.
    Ends with 4 when anything is quarantined (or PATH is, or is missing). In a pipe it prints rows of cells
    apart by tabs.

    Example: presignd status /srv/drop/report.pdf
    """
    request = {"op": "path", "path": absolute(path)} if path else {"op": "status"}
    print_one = print_path if path else print_status
    if stay:
        lines_of = path_lines if path else status_lines
        each = partial(show.document, indent=None) if as_json else print_one
        on_screen = None if as_json else lambda found: lines_of(found, show.width(), utcnow())
        loop.run_while_read(follow(request, config, lines_of=on_screen, print_one=each))
    found = loop.run(only(request, config))
    if as_json:
        show.document(found)
    else:
        print_one(found)
    if _is_stopped(found) if path else found["quarantined_count"]:
        raise SystemExit(ExitCode.REFUSED)


def _is_stopped(found: dict[str, Any]) -> bool:
    """Tell whether a path's version waits for a person, or its file went before it was uploaded."""
    return bool(found["version"]) and found["version"]["state"] in {"quarantined", "vanished"}


def wait_command(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", readable=False, help="Files in watched folders.")],
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="How long to wait.")] = "60s",
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Wait until files have their links.

    Ends with 0 when each file's current content has its link, 4 when one is quarantined or missing, 5
    when the timeout ran out. A folder is refused: name the files in it.

    Example: cp report.pdf /srv/drop/ && presignd wait /srv/drop/report.pdf
    """
    folders = [f"{path} is a folder: name the files in it" for path in paths if _is_folder(path)]
    if folders:
        raise UsageError("wait", problems=tuple(folders))
    limit = seconds("--timeout", timeout)
    results, failure = loop.run(wait_for([absolute(path) for path in paths], limit, config))
    if as_json:
        show.document(results)
    stopped = [found for found in results if found["outcome"] not in {"linked", "pending"}]
    for found in stopped:
        show.say(f"presignd: {found['path']}: {_why(found)}")
    if stopped:
        raise SystemExit(ExitCode.REFUSED)
    if failure:
        raise failure


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a folder of others: what is in it is the daemon's to know
        return False


def _why(found: dict[str, Any]) -> str:
    error = (found["version"] or {}).get("error")
    match found["outcome"]:
        case "quarantined" if error:
            return f"quarantined: {error['cause']} ({error['fix']})"
        case "missing":
            is_special = os.path.lexists(found["path"])
            return "is no regular file; symlinks are not followed" if is_special else "there is no such file"
        case "ignored" if found.get("why"):
            return f"ignored: {found['why']} (presignd put uploads it all the same)"
        case "outside" if found.get("why"):
            return f"{found['why']} (presignd status lists those; presignd put uploads others)"
        case "unreadable":
            return "the daemon can't look at it"
    return str(found["outcome"])


def retry_command(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH", readable=False, help="Quarantined files.")
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All that are quarantined.")] = False,
    watch: Annotated[str, typer.Option(metavar="NAME", help="Those of one watch.")] = "",
    error: Annotated[str, typer.Option(metavar="CODE", help='Those with one error code, e.g. "too_large".')] = "",
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Put quarantined files back into the queue.

    Prints how many. --watch and --error narrow each other down.

    Example: presignd retry --error unreadable
    """
    if not (paths or every or watch or error):
        raise UsageError("retry: which files?", fix="name paths, or say --all, --watch NAME or --error CODE")
    named = [absolute(path) for path in paths or []]
    request = {"op": "retry", "paths": named, "all": every, "watch": watch, "error": error}
    found = loop.run(only(request, config))
    if as_json:
        show.document(found)
        return
    show.result(str(found["count"]))
