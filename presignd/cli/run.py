"""``presignd run``: the daemon, in the foreground."""

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from presignd.app import daemon, local
from presignd.cli import guard, loop, show
from presignd.cli.options import ConfigFile
from presignd.cli.printer import Printer
from presignd.config.folders import folder_problems
from presignd.config.load import load
from presignd.errors import UsageError
from presignd.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from presignd.config import Config


def run_command(
    config: ConfigFile = None,
    print_links: Annotated[
        bool, typer.Option("--print-links", help="Print each link on stdout, unless that is the journal.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print which files would go where, and exit.")] = False,
) -> None:
    """Run the daemon in the foreground: watch folders, upload files, make links.

    SIGTERM or Ctrl-C drains and ends with 0; a second one ends at once. Without a
    terminal, SIGHUP reads the configuration again.

    Example: presignd run -c /etc/presignd/config.toml
    """
    if print_links and log.is_journal(1, os.environ):
        raise UsageError(
            "--print-links: stdout is the journal, and links must not be logged",
            fix="use presignd links --follow, or read the links file",
        )
    found = read(config)
    log.setup(found.log)
    if dry_run:
        loop.run(_dry_run(found))
    else:
        # A terminal that is closed sends SIGHUP too, and must end the daemon.
        serve(found, print_links=print_links, load=None if _on_terminal() else lambda: read(config))


def read(file: "Path | None") -> "Config":
    """Return the configuration and print its warnings; raise ``UsageError`` with all its problems."""
    loaded = load(file)
    guard.warn(loaded.warnings)
    if problems := folder_problems(loaded.config):
        raise UsageError("watch", problems=tuple(problems))
    return loaded.config


def serve(config: "Config", *, print_links: bool, load: "Callable[[], Config] | None" = None) -> None:
    """Run the daemon; ``load`` reads the configuration again, on SIGHUP."""
    printing = Printer(lambda link: show.result(link.url, as_is=True)) if print_links else nullcontext()
    with printing as printer, guard.logging_bugs("daemon.crashed"):
        loop.run_daemon(daemon.run(config, on_link=printer, load=load), threads=threads_for(config))


def threads_for(config: "Config") -> int:
    """Return how many threads file work may use: two for each upload (read, hash), four for each watch (scan, look)."""
    return 2 * config.upload.concurrency + 4 * len(config.watches) + 8


def _on_terminal() -> bool:
    return os.isatty(0) or os.isatty(2)


async def _dry_run(config: "Config") -> None:
    async for found in local.dry_run(config):
        target = f"{found['bucket']}/{found['key']}" if found["key"] else ""
        show.row([found["action"], found["watch"], found["path"], target, str(found["size"])])
