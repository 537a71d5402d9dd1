"""``presignd run``: the daemon, in the foreground."""

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from presignd.app import daemon
from presignd.cli import guard, loop, show
from presignd.cli.options import ConfigFile
from presignd.cli.printer import Printer
from presignd.config.folders import folder_problems
from presignd.config.load import load
from presignd.errors import ExitCode, PresigndError, UsageError
from presignd.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from presignd.config import Config


def run_command(
    config: ConfigFile = None,
    print_links: Annotated[
        bool, typer.Option("--print-links", help="Write each link on stdout (not into the journal).")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would go where, and end.")] = False,
) -> None:
    """Watch, upload and link, in the foreground.

    SIGTERM or Ctrl-C drains and ends with 0; a second one ends at once.

    Example: presignd run -c /etc/presignd/config.toml
    """
    if print_links and log.is_journal(1, os.environ):
        raise UsageError(
            "--print-links: stdout is the journal, where links don't belong",
            fix="read them by presignd links --follow, or from the links file",
        )
    found = read(config)
    log.setup(found.log)
    if dry_run:
        loop.run(_dry_run(found))
    else:
        # A terminal that is closed sends SIGHUP, too: there it is to end.
        serve(found, print_links=print_links, load=None if _on_terminal() else lambda: read(config))


def read(file: "Path | None") -> "Config":
    """Return the configuration and tell its warnings; raise ``UsageError`` with all that is wrong with it."""
    loaded = load(file)
    for warning in loaded.warnings:
        guard.tell([f"presignd: {warning}"], level="warning")
    if problems := folder_problems(loaded.config):
        raise UsageError("watch", problems=tuple(problems))
    return loaded.config


def serve(config: "Config", *, print_links: bool, load: "Callable[[], Config] | None" = None) -> None:
    """Run the daemon; a bug is told as an event, for stderr is the event log, and ends with 1.

    ``load`` reads the configuration again, on SIGHUP.
    """
    with Printer(lambda link: show.result(link.url, as_is=True)) if print_links else nullcontext() as printer:
        try:
            loop.run_daemon(daemon.run(config, on_link=printer, load=load), threads=threads_for(config))
        except PresigndError:
            raise
        except Exception as bug:  # noqa: BLE001 - what ended a loop ends the process, and its log says why
            log.get_logger().critical("daemon.crashed", exc_info=bug)
            raise SystemExit(ExitCode.BUG) from None


def threads_for(config: "Config") -> int:
    """Return the threads that file work may take: each upload reads beside its hash, each watch scans and looks."""
    return 2 * config.upload.concurrency + 4 * len(config.watches) + 8


def _on_terminal() -> bool:
    return os.isatty(0) or os.isatty(2)


async def _dry_run(config: "Config") -> None:
    async for found in daemon.dry_run(config):
        target = f"{found['bucket']}/{found['key']}" if found["key"] else ""
        show.row([found["action"], found["watch"], found["path"], target, str(found["size"])])
