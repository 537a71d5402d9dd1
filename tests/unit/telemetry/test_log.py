"""One event a line, in order, never forged, without secrets; and a log that stops nothing."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.config import LogConfig
from presignd.errors import CODES, Fault
from presignd.redaction import redact
from presignd.telemetry import log
from presignd.telemetry.log import LoggedLink, get_logger, setup
from tests.canary import assert_no_secrets, assert_no_signatures

SIGNATURE = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
URL = f"http://h:9000/b/k.txt?X-Amz-Credential=AKID%2Fx&X-Amz-Signature={SIGNATURE}"
CLEAN = "http://h:9000/b/k.txt?REDACTED"

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    yield io.StringIO()
    redact.forget_all()


@pytest.fixture
def lines(stream: io.StringIO) -> Lines:
    """Log as JSON at ``info``; the function returns what was logged so far."""
    setup(LogConfig(format="json"), stream=stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def console(stream: io.StringIO, **fields: Any) -> str:
    setup(LogConfig(format="console"), stream=stream)
    get_logger().info("file.done", **fields)
    return stream.getvalue()


def test_a_line_begins_with_time_level_event_then_fields_in_the_contracts_order(lines: Lines) -> None:
    get_logger().info("file.done", status="linked", extra=1, key="k", watch="drop", file_id="f", path="a")
    (line,) = lines()
    assert list(line) == ["time", "level", "event", "file_id", "watch", "path", "key", "status", "extra"]
    assert (line["level"], line["event"]) == ("info", "file.done")


def test_time_is_rfc_3339_utc_with_microseconds(lines: Lines) -> None:
    get_logger().info("x", expires_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    (line,) = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["time"])
    assert line["expires_at"] == "2026-01-02T03:04:05.000000Z"


def test_a_bound_field_stands_in_every_line(lines: Lines) -> None:
    bound = get_logger().bind(watch="drop")
    bound.info("one")
    bound.warning("two")
    assert [(line["event"], line["watch"], line["level"]) for line in lines()] == [
        ("one", "drop", "info"),
        ("two", "drop", "warning"),
    ]


def test_below_the_level_nothing_is_said_and_libraries_speak_from_warning_on(lines: Lines) -> None:
    get_logger().debug("quiet")
    logging.getLogger("watchfiles.main").info("1 change detected")
    logging.getLogger("urllib3").warning("retrying %s", URL)
    (line,) = lines()
    assert (line["event"], line["logger"], line["message"]) == ("log", "urllib3", f"retrying {CLEAN}")


def test_at_debug_libraries_are_heard_in_full_and_redacted(stream: io.StringIO) -> None:
    setup(LogConfig(level="debug", format="json"), stream=stream)
    get_logger().debug("ours", url=URL)
    logging.getLogger("aiohttp.client").debug("GET %s", URL)
    assert stream.getvalue().count(CLEAN) == 2
    assert_no_secrets(stream.getvalue())


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_passes_in_any_field_key_or_depth(stream: io.StringIO, form: Any) -> None:
    redact.register("super-secret-key")
    setup(LogConfig(format=form), stream=stream)
    get_logger().error(
        f"failed {URL}",
        url=URL,
        nested={"a": [URL, {URL: URL.encode()}]},
        error=ValueError(URL),
        **{URL: 1},
        token="short",
        note="super-secret-key",
    )
    assert_no_secrets(stream.getvalue(), "super-secret-key", "short", SIGNATURE)
    assert CLEAN in stream.getvalue()


def test_a_full_link_passes_only_as_the_url_of_link_created_and_only_wrapped(lines: Lines) -> None:
    get_logger().info("link.created", url=LoggedLink(URL))
    get_logger().info("link.created", url=URL)
    get_logger().info("link.created", other=LoggedLink(URL))
    get_logger().info("file.done", url=LoggedLink(URL))
    get_logger().info("link.created", list=[LoggedLink(URL)])
    first, *others = lines()
    assert first["url"] == URL
    assert [line.get("url") for line in others] == [CLEAN, None, "REDACTED", None]
    assert_no_secrets(json.dumps(others), SIGNATURE)


def fail(error: BaseException, cause: BaseException | None = None) -> None:
    raise error from cause


def raised(error: BaseException) -> BaseException:
    """Return ``error`` with a traceback and a cause."""
    try:
        fail(error, ValueError(f"cause with {URL}"))
    except type(error) as caught:
        return caught
    raise AssertionError


def test_an_unexpected_error_has_its_traceback_with_causes_redacted(lines: Lines) -> None:
    get_logger().error("internal", exc_info=raised(RuntimeError(f"GET {URL}")))
    (line,) = lines()
    assert "Traceback (most recent call last)" in line["exception"]
    assert f"ValueError: cause with {CLEAN}" in line["exception"]
    assert line["exception"].endswith(f"RuntimeError: GET {CLEAN}")


COATS: st.SearchStrategy[Callable[[str], str]] = st.sampled_from(
    [str, repr, json.dumps, quote, lambda text: quote(quote(text)), lambda text: json.dumps([text])]
)
WRAPS = st.sampled_from(["", "\n", "\r\n  ", "\\n"])


@st.composite
def told(draw: st.DrawFn) -> str:
    """Return a signed URL in some coat, wrapped over lines or not."""
    text, wrap = draw(COATS)(URL), draw(WRAPS)
    return wrap.join(text[at : at + 70] for at in range(0, len(text), 70)) if wrap else text


def trees() -> st.SearchStrategy[Exception]:
    """Return exceptions with causes, contexts, notes and groups, each of which tells the URL."""

    def grown(below: st.SearchStrategy[Exception]) -> st.SearchStrategy[Exception]:
        groups = st.builds(ExceptionGroup, told(), st.lists(below, min_size=1, max_size=3))
        return groups | st.builds(_chained, below | st.builds(KeyError, told()), below, st.sampled_from(CHAINS))

    leaves = st.builds(ValueError, told()) | st.builds(OSError, st.just(5), told(), told())
    return st.recursive(leaves, grown, max_leaves=6)


CHAINS = ("__cause__", "__context__", "__notes__")


def _chained(error: Exception, other: Exception, how: str) -> Exception:
    if how == "__notes__":
        error.add_note(f"seen with {other!r}")
    else:
        setattr(error, how, other)
    return error


@given(trees(), st.sampled_from(["json", "console"]))
def test_no_piece_of_a_signature_passes_in_any_cause_note_or_group(error: Exception, form: Any) -> None:
    stream = io.StringIO()
    setup(LogConfig(format=form), stream=stream)
    get_logger().error("failed", exc_info=error, error=error, errors=[error, {"nested": error}])
    log.install_loop_handler(loop := asyncio.new_event_loop())
    loop.call_exception_handler({"message": str(error), "exception": error})
    loop.close()
    assert_no_secrets(stream.getvalue())
    assert_no_signatures(stream.getvalue(), {SIGNATURE})


def test_an_expected_error_is_one_line_with_its_code_and_no_traceback(lines: Lines) -> None:
    get_logger().warning("watch.blocked", exc_info=raised(Fault("access_denied")))
    (line,) = lines()
    assert line["error_code"] == "access_denied"
    assert line["error"] == CODES["access_denied"].cause
    assert "exception" not in line


def test_exception_takes_the_one_being_handled(lines: Lines) -> None:
    try:
        fail(KeyError("here"))
    except KeyError:
        get_logger().exception("oops")
    (line,) = lines()
    assert line["level"] == "error"
    assert line["exception"].endswith("KeyError: 'here'")


NASTY = "a\n2026-01-01T00:00:00Z info file.done status=linked\x1b[2J\r\x85\u2028\u202e\x9b"


def test_a_file_name_can_not_forge_a_line(stream: io.StringIO, lines: Lines) -> None:
    get_logger().info("file.queued", path=NASTY)
    text = stream.getvalue()
    assert len(text.splitlines()) == 1
    assert lines()[0]["path"] == NASTY
    assert all(character.isprintable() for character in text.rstrip("\n"))


def test_a_file_name_can_not_forge_a_line_on_the_console(stream: io.StringIO) -> None:
    text = console(stream, path=NASTY)
    assert len(text.splitlines()) == 1
    assert all(character.isprintable() for character in text.rstrip("\n"))


@given(st.text(), st.text())
def test_whatever_is_logged_a_line_stays_a_line(name: str, value: str) -> None:
    for form in ("json", "console"):
        stream = io.StringIO()
        setup(LogConfig.model_validate({"format": form}), stream=stream)
        get_logger().info(name, field={name: value}, path=value.encode("utf-8", "backslashreplace"))
        assert len(stream.getvalue().splitlines()) == 1


def test_a_traceback_on_the_console_is_indented_so_that_it_passes_for_no_line(stream: io.StringIO) -> None:
    setup(LogConfig(format="console"), stream=stream)
    get_logger().error("oops", exc_info=raised(RuntimeError("2026 info file.done\nstatus=linked\x1b[2J")))
    first, *others = stream.getvalue().splitlines()
    assert " oops" in first
    assert others
    assert all(line.startswith("    ") for line in others)
    assert "\x1b" not in stream.getvalue()


def test_the_console_is_readable(stream: io.StringIO) -> None:
    text = console(stream, path="a b.txt", key="a/ü.txt", size=5, status="linked")
    assert re.fullmatch(r'\S+Z info     file\.done path="a b\.txt" key=a/ü\.txt size=5 status=linked\n', text), text


@pytest.mark.parametrize("path", [b"caf\xe9.txt", os.fsdecode(b"caf\xe9.txt"), Path(os.fsdecode(b"caf\xe9.txt"))])
def test_a_name_that_is_no_utf8_is_shown_escaped(lines: Lines, path: object) -> None:
    get_logger().info("file.quarantined", path=path)
    assert lines()[0]["path"] == r"caf\xe9.txt"


def test_a_lone_surrogate_breaks_nothing(lines: Lines) -> None:
    get_logger().info("x", path="\ud800a")
    assert lines()[0]["path"] == r"\ud800a"


def test_a_huge_value_is_cut(lines: Lines) -> None:
    get_logger().error("x", body="y" * 10_000_000)
    assert len(lines()[0]["body"]) < log.MAX_TEXT + 100


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")


def test_a_value_that_breaks_when_shown_does_not_break_the_caller(lines: Lines) -> None:
    get_logger().info("x", thing=Broken(), nan=float("nan"), token=Broken())
    logging.getLogger("lib").warning("%d", "no number")
    first, second = lines()
    assert (first["event"], first["thing"], first["nan"], first["token"]) == ("x", "<Broken>", "nan", "REDACTED")
    assert second["message"] == "%d"


def test_warnings_are_logged(lines: Lines) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn(f"old {URL}", stacklevel=1)
    (line,) = lines()
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")
    assert CLEAN in line["message"]


def test_an_unhandled_error_is_logged_redacted(lines: Lines) -> None:
    error = raised(RuntimeError(URL))
    sys.excepthook(type(error), error, error.__traceback__)
    (line,) = lines()
    assert (line["event"], line["level"]) == ("crashed", "critical")
    assert_no_secrets(json.dumps(line), SIGNATURE)


def test_a_thread_that_dies_is_logged(lines: Lines) -> None:
    def die() -> None:
        raise RuntimeError(URL)

    thread = threading.Thread(target=die, name="hasher")
    thread.start()
    thread.join()
    (line,) = lines()
    assert (line["event"], line["thread"]) == ("unexpected_error", "hasher")
    assert_no_secrets(json.dumps(line), SIGNATURE)


class FailsAtItsEnd:
    def __del__(self) -> None:
        raise RuntimeError(URL)


def test_an_error_in_a_destructor_is_logged(lines: Lines) -> None:
    thing = FailsAtItsEnd()
    del thing
    (line,) = lines()
    assert line["event"] == "unexpected_error"
    assert "__del__" in line["where"]
    assert_no_secrets(json.dumps(line), SIGNATURE)


async def test_what_the_loop_could_give_to_nobody_is_logged(lines: Lines) -> None:
    loop = asyncio.get_running_loop()
    log.install_loop_handler(loop)
    loop.call_exception_handler({"message": f"lost {URL}", "exception": raised(RuntimeError(URL))})
    (line,) = lines()
    assert (line["event"], line["message"]) == ("unexpected_error", f"lost {CLEAN}")
    assert_no_secrets(json.dumps(line), SIGNATURE)


def test_setup_again_replaces_the_first(stream: io.StringIO, lines: Lines) -> None:
    later = io.StringIO()
    setup(LogConfig(format="json"), stream=later)
    get_logger().info("once")
    logging.getLogger("lib").error("once")
    assert lines() == []
    assert stream.getvalue() == ""
    assert len(later.getvalue().splitlines()) == 2


def run(code: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    program = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(program, check=False, timeout=60, **options)


def test_a_broken_stderr_does_not_end_the_process_nor_change_its_exit_code() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run(
        """
        import logging
        from presignd.config import LogConfig
        from presignd.telemetry.log import get_logger, setup
        setup(LogConfig())
        for _ in range(1000):
            get_logger().error("nobody hears", text="x" * 1000)
            logging.getLogger("lib").error("nobody hears")
        print("alive")
        """,
        stdout=subprocess.PIPE,
        stderr=writer,
    )
    os.close(writer)
    assert (done.returncode, done.stdout) == (0, b"alive\n")


def test_a_stderr_that_nobody_reads_keeps_no_line_of_a_person_nor_the_end_waiting() -> None:
    """Not even a crash: its traceback finds no reader, and its exit code is told all the same."""
    reader, writer = os.pipe()
    done = run(
        """
        from presignd.telemetry import log
        from presignd.config import LogConfig
        log.setup(LogConfig())
        for _ in range(1000):
            log.say("nobody hears " + "x" * 1000)
            log.get_logger().error("nobody hears")
        print("alive", flush=True)
        raise RuntimeError("x" * 100_000)
        """,
        stdout=subprocess.PIPE,
        stderr=writer,
    )
    os.close(writer)
    os.close(reader)
    assert (done.returncode, done.stdout) == (1, b"alive\n")


def test_what_a_person_is_told_stands_in_order_with_the_log() -> None:
    code = """
        from presignd.telemetry import log
        for number in range(100):
            log.get_logger().warning(str(number))
            log.say(str(number))
    """
    said = run(code, capture_output=True).stderr.splitlines()
    assert [line if n % 2 else json.loads(line)["event"].encode() for n, line in enumerate(said)] == [
        b"%d" % (n // 2) for n in range(200)
    ]


def test_lines_that_were_dropped_are_an_event_and_pass_no_secret(stream: io.StringIO) -> None:
    setup(LogConfig(format="json"), stream=stream)
    said = json.loads(log._outputs[-1].writer.notice(3, datetime(2026, 1, 2, tzinfo=UTC)))
    assert (said["level"], said["event"], said["count"]) == ("warning", "log.dropped", 3)
    assert said["since"] == "2026-01-02T00:00:00.000000Z"
    assert said["fix"]


def test_a_stderr_that_was_closed_does_not_end_the_process() -> None:
    code = "from presignd.telemetry.log import get_logger; get_logger().error('nobody hears'); print('alive')"
    shell = ["/bin/sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code]
    done = subprocess.run(shell, check=False, stdout=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"alive\n")


def test_before_setup_a_line_goes_to_stderr_redacted() -> None:
    code = f"from presignd.telemetry.log import get_logger; get_logger().warning('early', url={URL!r})"
    done = run(code, capture_output=True)
    assert done.stdout == b""
    assert json.loads(done.stderr)["url"] == CLEAN


def test_an_unexpected_end_prints_one_redacted_event_and_exits_1() -> None:
    code = f"""
        from presignd.config import LogConfig
        from presignd.telemetry.log import setup
        setup(LogConfig())
        raise RuntimeError({URL!r})
    """
    done = run(code, capture_output=True)
    assert done.returncode == 1
    assert json.loads(done.stderr)["event"] == "crashed"
    assert_no_secrets(done.stderr, SIGNATURE)


def test_lines_of_many_threads_do_not_mix() -> None:
    code = """
        import threading
        from presignd.config import LogConfig
        from presignd.telemetry.log import get_logger, setup
        setup(LogConfig())
        def talk(n):
            for i in range(200):
                get_logger().info("x", n=n, i=i, text="y" * 5000)
        threads = [threading.Thread(target=talk, args=(n,)) for n in range(4)]
        for t in threads: t.start()
        for t in threads: t.join()
    """
    done = run(code, capture_output=True)
    seen = [(line["n"], line["i"]) for line in map(json.loads, done.stderr.splitlines())]
    assert sorted(seen) == [(n, i) for n in range(4) for i in range(200)]


def test_in_the_journal_each_line_begins_with_its_priority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``journalctl -p warning`` goes by it; journald takes it off, so that what is left is JSON (sd-daemon(3))."""
    with (tmp_path / "journal").open("w+", encoding="utf-8") as journal:
        found = os.fstat(journal.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        setup(LogConfig(level="debug"), stream=journal)
        for level in ("debug", "info", "warning", "error", "critical"):
            getattr(get_logger(), level)("an event\n<0>forged")
        assert log.flush()
        said = (tmp_path / "journal").read_text(encoding="utf-8").splitlines()
    assert [line[:3] for line in said] == ["<7>", "<6>", "<4>", "<3>", "<2>"]
    assert {json.loads(line[3:])["event"] for line in said} == {"an event\n<0>forged"}


def test_elsewhere_no_line_has_a_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    with (tmp_path / "log").open("w", encoding="utf-8") as file:
        setup(LogConfig(format="json"), stream=file)
        get_logger().info("an event")
        assert log.flush()
    assert (tmp_path / "log").read_text(encoding="utf-8").startswith("{")


VALUES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["X-Amz-Signature=abcdef0123456789", "a/b.txt", "Bearer abcdefghijkl", "s3cr3t-l1teral", "x\x7f"]),
    st.integers(),
    st.booleans(),
    st.none(),
    st.datetimes(timezones=st.just(UTC)),
)


@given(st.dictionaries(st.sampled_from([*sorted(log._PLAIN_NAMES), "token", "url", "else"]), VALUES, max_size=8))
def test_the_quick_way_says_just_what_the_close_look_says(event: dict[str, Any]) -> None:
    """Most lines take it, so a secret must never."""
    redact.register("s3cr3t-l1teral")
    try:
        assert log._clean_lines(log._alone(event)) in (None, [log._render_json(log._scrub(event))])
    finally:
        redact.forget_all()


NAMES = (*log.ORDER[3:], "token", "url")


@given(
    st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES), min_size=1, max_size=4),
    st.sampled_from(["file.done", "100 %s", "s3cr3t-l1teral"]),
)
def test_events_of_a_list_are_the_lines_that_each_alone_would_be(each: list[dict[str, Any]], event: str) -> None:
    columns = {name: [fields.get(name, log.LEFT_OUT) for fields in each] for name in NAMES}
    each = [{name: fields[name] for name in NAMES if name in fields} for fields in each]
    redact.register("s3cr3t-l1teral")
    lines = log._Lines(log._render_json, in_journal=True)
    head = {"time": "2026-03-04T05:06:07.891011Z", "level": "info", "event": event}
    try:
        (listed,), _ = lines(None, "info", {**head, "each": columns})
        assert listed == [lines(None, "info", {**head, **fields})[0][0][0] for fields in each]
    finally:
        redact.forget_all()


def test_a_path_that_was_logged_is_redacted_once_it_is_a_secret(lines: Lines) -> None:
    get_logger().info("file.queued", each={"path": ["/srv/s3cr3t-l1teral.txt"]})
    redact.register("s3cr3t-l1teral")
    get_logger().info("file.done", each={"path": ["/srv/s3cr3t-l1teral.txt"]})
    assert [line["path"] for line in lines()] == ["/srv/s3cr3t-l1teral.txt", "/srv/REDACTED.txt"]


def test_one_value_that_breaks_in_a_list_breaks_no_other_line(lines: Lines) -> None:
    get_logger().info(
        "x", each={"key": ["a", Broken(), "c", NASTY], "token": [log.LEFT_OUT, Broken(), log.LEFT_OUT, log.LEFT_OUT]}
    )
    assert [event["event"] for event in lines()] == ["x"] * 4
    assert [event["key"] for event in lines()][::2] == ["a", "c"]


def test_an_everyday_line_takes_the_quick_way() -> None:
    when, key = {"time": datetime.now(UTC), "level": "info"}, {"size": 5, "key": "a/b.txt"}
    assert log._clean_lines(log._alone({**when, "event": "file.done", "path": "/srv/drop/a.txt", **key}))
    who = {"by": "scanner-1", "client": "::1", "operation": "multipart.part", "count": 3}
    issued = {**when, "event": "grant.issued", **who, **key, "expires_at": datetime.now(UTC)}
    assert log._clean_lines(log._alone(issued))
