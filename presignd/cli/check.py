"""``presignd check``: one line for each part, with cause and fix."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from presignd.cli import loop, show
from presignd.cli.layout import wrapped
from presignd.cli.options import AsJson, ConfigFile
from presignd.cli.streams import clean

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from presignd.checks import CheckResult

LABELS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL", "skipped": "skip"}
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}


def check_command(
    config: ConfigFile = None,
    offline: Annotated[bool, typer.Option("--offline", help="Check only what is on this machine.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check each part of the setup, with real requests: one line each, with cause and fix.

    Ends with 0 when nothing failed, 2 when something on this machine failed, 3 when only the store or the
    presigner did. A running daemon is not disturbed.

    Example: presignd check -c /etc/presignd/config.toml
    """
    raise SystemExit(check(config, offline=offline, as_json=as_json))


def check(config: Path | None, *, offline: bool = False, as_json: bool = False) -> int:
    """Run the checks, print each as it ends (or one JSON document at the end), and return the exit code."""
    return loop.run(_check(config, offline=offline, as_json=as_json))


async def _check(config: Path | None, *, offline: bool, as_json: bool) -> int:
    from presignd.checks import exit_code  # noqa: PLC0415 - help must be fast

    results = []
    async for result in _results(config, offline=offline):
        results.append(result)
        if not as_json:
            print_result(result)
    code = exit_code(results)
    if as_json:
        show.document({"ok": code == 0, "checks": [_entry(result) for result in results]})
    return code


async def _results(config: Path | None, *, offline: bool) -> AsyncIterator[CheckResult]:
    from presignd import checks  # noqa: PLC0415 - help must be fast
    from presignd.config import load  # noqa: PLC0415 - as above
    from presignd.errors import UsageError  # noqa: PLC0415 - as above

    try:
        loaded = load(config)
        async with checks.context_of(loaded.config) as context:
            for warning in loaded.warnings:
                cause, _, fix = warning.rpartition("; ")
                yield checks.warn("config", cause, fix)
            yield checks.ok("config", str(loaded.file or "from the environment alone"))
            async for result in checks.run_checks(context, checks.local_checks() if offline else checks.CHECKS):
                yield result
    except UsageError as refusal:
        for problem in refusal.problems or (refusal.message,):
            yield checks.problem_result("config", problem, refusal.fix)


def print_result(result: CheckResult) -> None:
    """Print one result on stdout; on a terminal in colour, and wrapped between words."""
    if not sys.stdout.isatty():
        show.result(_line(result))
        return
    first, *others = wrapped(clean(_line(result)), show.width(), hang=len(LABELS[result.outcome]) + 1)
    show.lines([first._replace(style=STYLES[result.outcome], styled=len(LABELS[result.outcome])), *others])


def _line(result: CheckResult) -> str:
    """Return one result as text: "FAIL endpoint: cause (fix: what to do)"."""
    fix = f" (fix: {result.fix})" if result.fix else ""
    return f"{LABELS[result.outcome]} {result.name}: {result.detail}{fix}"


def _entry(result: CheckResult) -> dict[str, Any]:
    fields = {"name": result.name, "outcome": str(result.outcome), "detail": result.detail}
    return {**fields, "fix": result.fix, "code": result.code}
