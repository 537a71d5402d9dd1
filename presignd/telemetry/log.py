"""The event log: one event a line, from our code (structlog) and from libraries (stdlib logging).

Every line takes the same path: ``_fields`` (what happened, and when), ``_Lines`` (removes secrets with ``_scrub``, and
renders, so that no text can look like a line of its own), ``_Output`` (a broken stderr stops nothing).
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import re
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from datetime import time as day_time
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, TextIO, cast

from presignd.errors import PresigndError
from presignd.redaction.redact import REDACTED, are_plain, redact, redact_item, redact_key
from presignd.redaction.text import json_text, one_line
from presignd.system.clock import utcnow
from presignd.system.imports import without
from presignd.telemetry.line_writer import LineWriter
from presignd.units import rfc3339

with without("rich"):  # structlog would load it for a console renderer that is not used: half of its time
    import structlog

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import TracebackType

    from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

    from presignd.config import LogConfig

ORDER = (
    *("time", "level", "event", "file_id", "watch", "path", "bucket", "key", "size", "checksum", "etag"),
    *("attempt", "duration_ms", "error_code", "status", "expires_at", "by_uid"),
)
"""The first fields of a line, in this order; others follow as they were given."""

MAX_TEXT = 64 << 10
"""Characters of one value that are kept: a store's error body can have any size."""

PRIORITY = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
"""Syslog's priorities (sd-daemon(3)): for the journal a line begins with ``<N>``, which the journal removes."""

_PLAIN_NAMES = frozenset(ORDER) | {"by", "client", "operation", "count", "ref", "agent", "opened"}
_PLAIN_TYPES = frozenset({str, int, datetime})
_COLOURS = {"debug": "2", "warning": "33", "error": "31", "critical": "1;31"}
LAST_SECONDS = 2.0
"""How long to wait at the end for the last lines to be written."""

SAY_SECONDS = 0.5
"""How long to wait for a line for a person to be written, so that it comes before the results on stdout."""


_PLAIN_WORD = re.compile(r"[\w./:@%+,~*?&#$!<>()\[\]-]+")


@dataclass(frozen=True, slots=True)
class LoggedLink:
    """A full link for the log (``links.in_log``): it passes only as the ``url`` of ``link.created``."""

    url: str = field(repr=False)


LEFT_OUT = object()
"""In a list of lines: this line lacks the field."""


def get_logger() -> FilteringBoundLogger:
    """Return the logger of our events: ``log.info("file.done", file_id=…, status="linked")``.

    ``log.info("file.done", each={"file_id": [...], …})`` writes a line for each of a list, all of the same time, for a
    fifth of the cost: ``each`` has for each field, in the order of their line, its value in each line, or ``LEFT_OUT``.
    Returns how many lines, from the first, the log had room for; None below its level.
    """
    return cast("FilteringBoundLogger", structlog.get_logger())


def setup(config: LogConfig, *, stream: TextIO | None = None) -> None:
    """Send our events, stdlib logging, warnings and unhandled errors to ``stream`` (default: stderr).

    Libraries log from ``warning`` on, or from ``debug`` when that is the level. May be called again.
    """
    output = _STDERR if stream is None else _Output(stream)
    _outputs[1:] = [output]
    console = config.format == "console" or (config.format == "auto" and output.is_terminal())
    level = logging.getLevelNamesMapping()[config.level.upper()]
    _configure(level, _Console(colour=output.has_colour()) if console else _render_json, output)
    _route_stdlib(level)
    _route_unhandled()


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Return whether ``fd`` is systemd's journal: $JOURNAL_STREAM has its device and inode (systemd.exec(5))."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def install_loop_handler(loop: asyncio.AbstractEventLoop) -> None:
    """Log exceptions that asyncio can pass to no caller as ``unexpected_error``, with their traceback."""
    loop.set_exception_handler(_on_loop_error)


def render_exception(error: BaseException) -> str:
    """Return a redacted traceback, including causes."""
    return redact("".join(traceback.format_exception(error)).rstrip())


# --- where lines go -------------------------------------------------------------------------------
class _Output:
    """Writes whole lines. A stream that is closed, full, broken or stuck loses lines, but stops nothing.

    A thread writes directly to the stream's descriptor (``LineWriter``): a Python buffer that fails to flush at exit
    would change the exit code.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self.writer = LineWriter(lambda: self._target().fileno(), _plain_notice)

    def is_terminal(self) -> bool:
        try:
            return self._target().isatty()
        except ValueError:
            return False

    def is_journal(self) -> bool:
        try:
            return is_journal(self._target().fileno(), os.environ)
        except (OSError, ValueError, AttributeError):  # closed, not a file, or no stderr at all
            return False

    def has_colour(self) -> bool:
        return self.is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def write(self, lines: Sequence[str]) -> int:
        """Write or queue lines; return how many, from the first, had room."""
        try:
            self._target().fileno()
        except (OSError, ValueError, AttributeError):
            self._write_at_once("".join(f"{line}\n" for line in lines))
            return len(lines)
        return self.writer.write(*[line.encode("utf-8", "backslashreplace") + b"\n" for line in lines])

    debug = info = warning = error = critical = write

    def _write_at_once(self, text: str) -> None:
        with self._lock, suppress(OSError, ValueError, AttributeError):  # closed, or no stderr at all
            stream = self._target()
            stream.write(text)
            stream.flush()

    def _target(self) -> TextIO:
        return self._stream or sys.stderr


def _plain_notice(count: int, since: datetime) -> str:
    return f"presignd: {count} lines were dropped since {rfc3339(since)}: the reader of stderr was stuck"


@dataclass(frozen=True, slots=True)
class Mark:
    """A position in the log: after every line so far."""

    _writer: LineWriter
    _lines: int

    def is_past(self) -> bool:
        """Return whether all lines before it are written or lost."""
        return self._writer.is_past(self._lines)

    def none_refused_since(self, before: Mark) -> bool:
        """Return whether stderr accepted every line since an earlier mark; true for a stream without a descriptor."""
        return not self._writer.has_refused(before._lines if before._writer is self._writer else 0)


def mark() -> Mark:
    """Return the position in the log after every line so far."""
    writer = _outputs[-1].writer
    return Mark(writer, writer.mark())


def flush(seconds: float = LAST_SECONDS) -> bool:
    """Wait until every line is written, for ``seconds`` at most; return whether all are."""
    flushed = [output.writer.flush(seconds) for output in _outputs]
    return all(flushed)


def say(line: str) -> None:
    """Write a line for a person on stderr, unchanged and in order with the log; wait for it a moment."""
    _STDERR.write([line])
    _STDERR.writer.flush(SAY_SECONDS)


# --- the fields of a line -------------------------------------------------------------------------
def _fields(_: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Add time, level and the exception's fields, and put the fields in order."""
    _explain(event, event.pop("exc_info", None))
    event["time"] = rfc3339(utcnow())
    event["level"] = method
    return {name: event[name] for name in _in_order(tuple(event))}


@lru_cache(maxsize=256)
def _in_order(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of fields in the order of their line; cached, as nearly all lines have the same few lists."""
    return (*(name for name in ORDER if name in names), *(name for name in names if name not in ORDER))


def _explain(event: EventDict, exc_info: Any) -> None:
    """Turn an exception into fields: code and message if it is an expected failure, else its traceback."""
    error = _exception_of(exc_info)
    if isinstance(error, PresigndError):
        event.setdefault("error_code", error.code)
        event.setdefault("error", error.message)
    elif error is not None:
        event["exception"] = render_exception(error)


def _exception_of(exc_info: Any) -> BaseException | None:
    if isinstance(exc_info, tuple):
        exc_info = exc_info[1]
    elif exc_info and not isinstance(exc_info, BaseException):
        exc_info = sys.exc_info()[1]
    return exc_info if isinstance(exc_info, BaseException) else None


def _clean_lines(columns: Mapping[str, Sequence[Any]], head: str = "{") -> list[str] | None:
    """Render a list of events that have only plain fields, all the same ones, and no secret; None for any other.

    ``columns`` has for each field its value in each event; each line begins with ``head``. This is the fast path, which
    nearly all events take: scrubbing a dozen fields one by one took as long as sending the file.
    """
    values = [*columns.values()]
    kinds = {*zip(*[map(type, column) for column in values], strict=True)}
    form, times = _line_form((*columns,), *kinds) if len(kinds) == 1 else ("", ())
    if not form:
        return None
    for at in times:
        values[at] = [*map(_time_text, values[at])]
    form = head.replace("%", "%%") + form
    lines = [form % event for event in zip(*values, strict=True)]
    texts = chain.from_iterable([column for column in values if type(column[0]) is str])
    return lines if are_plain(texts) and max(map(len, lines)) <= MAX_TEXT else None


@lru_cache(maxsize=256)
def _line_form(names: tuple[str, ...], types: tuple[type, ...]) -> tuple[str, tuple[int, ...]]:
    """Return fields with these names and types as in a JSON object, with ``%s`` for each value, and which are times.

    It is "" unless all are plain. A text stands between its quotes as it is: json's encoder took more time than all
    else, for each field of three lines a file.
    """
    if not (_PLAIN_NAMES.issuperset(names) and _PLAIN_TYPES.issuperset(types)):
        return "", ()
    fields = [f'"{name}": %s' if kind is int else f'"{name}": "%s"' for name, kind in zip(names, types, strict=True)]
    return ", ".join(fields) + "}", tuple(at for at, kind in enumerate(types) if kind is datetime)


_time_text = lru_cache(maxsize=64)(rfc3339)
"""Many links of one burst end at the same time."""


def _scrub(event: EventDict) -> EventDict:
    """Redact every key and value, as the last step before rendering; the one exception is ``LoggedLink``."""
    is_link = event.get("event") == "link.created"
    return {_text(redact_key(name)): _scrub_field(name, value, is_link) for name, value in event.items()}


def _scrub_field(name: str, value: Any, is_link: bool) -> Any:
    if isinstance(value, LoggedLink):
        return _text(value.url) if is_link and name == "url" else REDACTED
    return _plain(redact_item(name, value))


def _plain(value: Any) -> Any:
    """Turn a redacted value into JSON's types."""
    if isinstance(value, Mapping):
        return {_text(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _text(value) if isinstance(value, (str, bytes)) else _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, (date, day_time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any) -> str:
    r"""Return text that UTF-8 can encode: other bytes become ``\xff``, in paths from ``fsdecode`` too."""
    if isinstance(value, str):
        try:
            value = value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            value = value.encode("utf-8", "backslashreplace")
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text) - MAX_TEXT} more)"


# --- how a line looks -----------------------------------------------------------------------------
def _render_json(value: Any) -> str:
    """Return JSON on one line, with nothing in it that a terminal or a line reader acts on."""
    return json_text(value, default=str)


class _Console:
    """Renders ``time level event name=value …``; a traceback follows, indented, so that it can't look like a line."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def __call__(self, event: EventDict) -> str:
        exception = event.pop("exception", "")
        time, level, name = (str(event.pop(part, "")) for part in ("time", "level", "event"))
        words = [time, self._paint(level), _word(name), *(f"{_word(k)}={_word(v)}" for k, v in event.items())]
        lines = [f"    {one_line(line)}" for line in str(exception).splitlines()]
        return "\n".join([" ".join(words), *lines])

    def _paint(self, level: str) -> str:
        colour = _COLOURS.get(level) if self._colour else None
        return f"\x1b[{colour}m{level:<8}\x1b[0m" if colour else f"{level:<8}"


def _word(value: Any) -> str:
    return value if isinstance(value, str) and _PLAIN_WORD.fullmatch(value) else _render_json(value)


# --- setting up structlog and logging -------------------------------------------------------------
class _Lines:
    """The last processor: scrubs and renders every event."""

    def __init__(self, render: Callable[[EventDict], str], *, in_journal: bool) -> None:
        self._render = render
        self._in_journal = in_journal

    def __call__(self, _: WrappedLogger, method: str, event: EventDict) -> tuple[tuple[list[str]], dict[str, Any]]:
        """Return the lines of one call, as the argument of ``_Output.write``."""
        each = event.pop("each", None)
        lines = [self._line(event)] if each is None else self._list(event, each)
        prefix = self._prefix(method)
        return ([prefix + line for line in lines] if prefix else lines,), {}

    def _list(self, shared: EventDict, each: Mapping[str, Sequence[Any]]) -> list[str]:
        """Return the lines of events that have the fields of ``shared``, and their own of ``each``."""
        own = {
            name: column
            for name, column in each.items()
            if column[0] is not LEFT_OUT or any(value is not LEFT_OUT for value in column)
        }
        if (head := self._quickly(_alone(shared))) and (lines := self._quickly(own, head[0][:-1] + ", ")):
            return lines
        rows = zip(*each.values(), strict=True)
        given = [{name: value for name, value in zip(each, row, strict=True) if value is not LEFT_OUT} for row in rows]
        return [self._line({**shared, **fields}) for fields in given]

    def _line(self, event: EventDict) -> str:
        return (self._quickly(_alone(event)) or [self._closely(event)])[0]

    def _quickly(self, columns: Mapping[str, Sequence[Any]], head: str = "{") -> list[str] | None:
        with suppress(Exception):  # a value may raise anything: its own line reports it
            return _clean_lines(columns, head) if self._render is _render_json else None
        return None

    def _closely(self, event: EventDict) -> str:
        try:
            return self._render(_scrub(event))
        except Exception as error:  # noqa: BLE001 - a value may raise anything, and logging must not
            failed = {"time": utcnow(), "level": "error", "event": "log.failed", "error": type(error).__name__}
            return self._render(_scrub(failed))

    def notice(self, count: int, since: datetime) -> str:
        """Return the line of the event ``log.dropped``."""
        event = {"time": utcnow(), "level": "warning", "event": "log.dropped", "count": count, "since": since}
        return self._prefix("warning") + self._render(_scrub({**event, "fix": _DROPPED_FIX}))

    def _prefix(self, level: str) -> str:
        return f"<{PRIORITY[level]}>" if self._in_journal else ""


def _alone(event: EventDict) -> dict[str, tuple[Any]]:
    """Return an event as the columns of a list that has no other."""
    return {name: (value,) for name, value in event.items()}


_DROPPED_FIX = "see that stderr is read, and its disk has room; presignd status and links show what the lines said"


def _configure(level: int, render: Callable[[EventDict], str], output: _Output) -> None:
    lines = _Lines(render, in_journal=output.is_journal())
    output.writer.notice = lines.notice
    structlog.configure(
        processors=[_fields, lines],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=False,
    )


class _Bridge(logging.Handler):
    """Turns stdlib log records into events named ``log``, with the logger's name and the message."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - a library's format string may not fit its arguments
            message = str(record.msg)
        level = record.levelname.lower() if record.levelname in logging.getLevelNamesMapping() else "info"
        emit = getattr(structlog.get_logger(), level, structlog.get_logger().info)
        emit("log", logger=record.name, message=message, exc_info=record.exc_info)


def _route_stdlib(level: int) -> None:
    """Replace every root handler (an older one would write unredacted), and capture warnings."""
    logging.raiseExceptions = False
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    root.addHandler(_Bridge())
    root.setLevel(level if level == logging.DEBUG else max(level, logging.WARNING))
    logging.captureWarnings(capture=True)


def _route_unhandled() -> None:
    sys.excepthook = _on_crash
    threading.excepthook = _on_thread_crash
    sys.unraisablehook = _on_unraisable


def _on_crash(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
    if not isinstance(error, KeyboardInterrupt):
        get_logger().critical("crashed", exc_info=error)


def _on_thread_crash(args: threading.ExceptHookArgs) -> None:
    if not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread else ""
        get_logger().error("unexpected_error", thread=name, exc_info=args.exc_value)


def _on_unraisable(args: sys.UnraisableHookArgs) -> None:
    message = args.err_msg or "exception ignored"
    get_logger().error("unexpected_error", message=message, where=args.object, exc_info=args.exc_value)


def _on_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    where = {name: value for name, value in context.items() if name in {"task", "future", "handle"}}
    message = context.get("message", "")
    get_logger().error("unexpected_error", message=message, exc_info=context.get("exception"), **where)


# Until ``setup`` is called, warnings and errors go to stderr, redacted too.
_STDERR = _Output()
_outputs = [_STDERR]
atexit.register(_STDERR.writer.close, LAST_SECONDS)
_configure(logging.WARNING, _render_json, _STDERR)
