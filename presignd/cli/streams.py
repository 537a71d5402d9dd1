"""A command's stdout, for results, and stderr, for messages to a person.

Everything that a command prints passes through here. So no line holds a secret, a line break or a terminal's escape
sequence, and a stdout that can't be written to ends every command in the same way.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import stat
import sys
from typing import TYPE_CHECKING

from presignd.errors import Unavailable, reason_of
from presignd.redaction.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_ONE_WAY = {_STDIN: os.O_WRONLY, _STDOUT: os.O_RDONLY}


def clean(text: str) -> str:
    """Return ``text`` on one line, redacted."""
    from presignd.redaction.redact import redact  # noqa: PLC0415 - help must be fast

    return one_line(redact(text))


def say(line: str) -> None:
    """Print one line on stderr, in order with the log; ignore a stderr that can't be written to."""
    from presignd.telemetry import log  # noqa: PLC0415 - help must be fast

    log.say(line)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Write on stdout in the body, and flush it at the end.

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
    """Flush the output that other code left in stdout's buffer."""
    with writing():
        pass


def not_written(problem: OSError) -> Unavailable:
    """Return the failure for a stdout that is closed or on a full disk, and write nothing more to it."""
    mute(sys.stdout)
    fix = "redirect it to a place that can be written; what the command did is done"
    return Unavailable(f"the result can't be written to stdout: {reason_of(problem)}", fix=fix)


def escape_what_stdout_lacks() -> None:
    r"""Make stdout write a character that its encoding lacks (Latin-1, ASCII) as ``\u6f22``: names may have any.

    In JSON this is the same text.
    """
    codecs.register_error("presignd", _escaped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="presignd")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{high:02x}{low:02x}" for high, low in zip(units[::2], units[1::2], strict=True)), error.end


def is_pipe(stream: TextIO) -> bool:
    """Return whether ``stream`` is a pipe to another program."""
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except OSError:  # io.UnsupportedOperation is one
        return False


def mute(stream: TextIO) -> None:
    """Discard all further output on ``stream``, the flush at exit included."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_standard_streams() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that was closed at the start (``>&-``).

    Else the next file to be opened, a ledger or a socket, would get its number, and be written to in its place. A
    closed stdout is opened for reading and a closed stdin for writing, so that using them fails, as in any other
    program: `put -` must not take a closed stdin for an empty one.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        if number in _ONE_WAY:
            os.close(number)
            number = os.open(os.devnull, _ONE_WAY[number])
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdin", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: PTH123, SIM115 - for the whole run
    if sys.stdout is None:
        sys.stdout = open(_STDOUT, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for the whole run
