"""The ends of a command: results on stdout, words for a person on stderr.

What a command prints passes here, so no line of it holds a secret, breaks, or plays with the terminal; and a
stdout that takes nothing ends every command in the same way.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING

from presignd.errors import Unavailable, reason_of
from presignd.redaction.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

_STDOUT, _STDERR = 1, 2


def clean(text: str) -> str:
    """Return ``text`` on one line, with nothing secret in it."""
    from presignd.redaction.redact import redact  # noqa: PLC0415 - help is to be fast

    return one_line(redact(text))


def say(line: str) -> None:
    """Print one line on stderr, in order with the log; where that takes none, there is nobody to tell."""
    from presignd.telemetry import log  # noqa: PLC0415 - help is to be fast

    log.say(line)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Write on stdout in here, and have it written at the end.

    A reader that went away is ``BrokenPipeError``, any other failure ``Unavailable``.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise not_written(problem) from None


def write(line: str) -> None:
    """Print one line on stdout, at once."""
    with writing():
        print(line)  # noqa: T201 - results go to stdout


def flush() -> None:
    """Have written what something else left in stdout's buffer."""
    with writing():
        pass


def not_written(problem: OSError) -> Unavailable:
    """Return what to say of a stdout that takes nothing: closed, or on a full disk. Nothing more is tried there."""
    mute(sys.stdout)
    fix = "give it a place that takes it; what the command did stays done"
    return Unavailable(f"the result can't be written to stdout: {reason_of(problem)}", fix=fix)


def is_pipe(stream: TextIO) -> bool:
    """Tell whether ``stream`` goes to another program."""
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except OSError:  # io.UnsupportedOperation is one
        return False


def mute(stream: TextIO) -> None:
    """Let nothing more be said on ``stream``, the flush at exit included."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_standard_streams() -> None:
    """Give what was started without stdin, stdout or stderr (``>&-``) one that leads nowhere.

    Else the next file to be opened, a ledger or a socket, would have its number, and be written to as it. What
    is written to a closed stdout is lost: it fails here, as for any other program.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        if number == _STDOUT:
            os.close(number)
            number = os.open(os.devnull, os.O_RDONLY)
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdin", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: PTH123, SIM115 - for the whole run
    if sys.stdout is None:
        sys.stdout = open(_STDOUT, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for the whole run
