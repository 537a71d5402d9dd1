"""The wrapper of every command: errors become one line and an exit code."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from presignd.cli import streams
from presignd.errors import ExitCode, PresigndError
from presignd.redaction.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

FRAMEWORK = (typer.Exit, typer.Abort, typer.BadParameter)
"""Typer ends the command on these itself."""

UNAWAITED = threading.Event()
"""Set while threads still run whose results are not needed: the process ends without them."""


def leave(code: object) -> NoReturn:
    """End the process with an exit code (``SystemExit``'s, None for 0) without waiting for threads."""
    from presignd.telemetry import log  # noqa: PLC0415 - help must be fast

    log.flush()
    os._exit(code if isinstance(code, int) else ExitCode.BUG if code else ExitCode.DONE)


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``command``: an expected failure is one line on stderr and its exit code (docs/commands.md).

    A bug ends with 1 and its traceback, redacted. A reader that went away (``| head``) is not a failure; a stdout that
    can't be written to is one (``streams.writing``).
    """

    @functools.wraps(command)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            result = command(*args, **kwargs)
            if not UNAWAITED.is_set():  # else a thread may hold stdout's lock while its reader is stuck
                streams.flush()
        except KeyboardInterrupt:
            raise SystemExit(ExitCode.INTERRUPTED) from None
        except FRAMEWORK:
            raise
        except Exception as error:  # noqa: BLE001 - the outermost handler: every error gets an exit code
            _fail(error)
        return result

    return call


@contextlib.contextmanager
def logging_bugs(event: str) -> Iterator[None]:
    """Log a bug in the body as ``event``, because a daemon's stderr is the event log, and end with 1."""
    try:
        yield
    except PresigndError:
        raise
    except Exception as bug:  # noqa: BLE001 - a bug ends the process, and the log holds its traceback
        from presignd.telemetry import log  # noqa: PLC0415 - help must be fast

        log.get_logger().critical(event, exc_info=bug)
        raise SystemExit(ExitCode.BUG) from None


def _reader_gone() -> NoReturn:
    """End with 0 and without a message."""
    streams.mute(sys.stdout)
    raise SystemExit(0)


def _fail(error: Exception) -> NoReturn:
    found = _expected(error)
    if isinstance(found, BrokenPipeError):
        _reader_gone()
    if isinstance(found, PresigndError):
        print_lines(error_lines(found), level="error")
        raise SystemExit(found.exit_code) from None
    streams.say(_traceback(found))
    raise SystemExit(ExitCode.BUG) from None


def _expected(error: Exception) -> Exception:
    """Return the error without the task group around it, if there is one."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def print_lines(lines: list[str], *, level: str) -> None:
    """Print lines for a person on stderr; for the journal with a priority."""
    from presignd.telemetry.log import PRIORITY, is_journal  # noqa: PLC0415 - help must be fast

    prefix = f"<{PRIORITY[level]}>" if is_journal(2, os.environ) else ""
    for line in lines:
        streams.say(prefix + streams.clean(line))


def warn(warnings: Iterable[str]) -> None:
    """Print each warning about a configuration on stderr."""
    print_lines([f"presignd: {warning}" for warning in warnings], level="warning")


def error_lines(error: PresigndError) -> list[str]:
    """Render an expected failure: "presignd: what: why. fix", each problem of several on a line of its own."""
    problems = getattr(error, "problems", ())
    if not problems:
        return [one_line(f"presignd: {error.message}" + (f" ({error.fix})" if error.fix else ""))]
    return [one_line(f"presignd: {line}") for line in (*problems, error.fix) if line]


def _traceback(error: Exception) -> str:
    import traceback  # noqa: PLC0415 - only for a bug

    from presignd.redaction.redact import redact  # noqa: PLC0415 - only for a bug

    return redact("".join(traceback.format_exception(error)).rstrip())
