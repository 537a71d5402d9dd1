"""The commands as processes, against a daemon's socket: exit codes, stdout for results, stderr for people."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from presignd import qr
from presignd.control.view import InFlightView
from presignd.errors import fault
from presignd.pipeline.upload.bucket import StoredObject
from presignd.states import Event
from tests.served import DONE, SECRET, UPLOADED, Replaced, Served, recorded, served
from tests.terminal import shown_until, terminal, without_styles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from presignd.config import WatchConfig

__all__ = ["served"]


@dataclass
class Done:
    code: int
    out: str
    err: str


async def presignd(served: Served, *arguments: str | Path, cwd: Path | None = None) -> Done:
    process = await started(served, *arguments, cwd=cwd)
    out, err = await process.communicate()
    assert "Traceback" not in err.decode()
    return Done(process.returncode or 0, out.decode(), err.decode())


async def started(
    served: Served,
    *arguments: str | Path,
    cwd: Path | None = None,
    stdout: int = asyncio.subprocess.PIPE,
    stderr: int = asyncio.subprocess.PIPE,
    environ: Mapping[str, str] | None = None,
) -> asyncio.subprocess.Process:
    ours = {"PRESIGND_SOCKET": str(served.path), "PYTHONPATH": str(Path.cwd())}
    kept = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "COLUMNS", "LINES", "TERM"}}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "presignd", *map(str, arguments)),
        stdout=stdout,
        stderr=stderr,
        env={**kept, "TERM": "xterm", **ours, **(environ or {})},
        cwd=cwd,
    )


class Held(Replaced):
    """A bucket that answers once it may."""

    def __init__(self, watch: WatchConfig) -> None:
        super().__init__(watch)
        self.go = asyncio.Event()

    async def find(self, _key: str, *, denied_is_absent: bool, with_checksums: bool) -> StoredObject:
        await self.go.wait()
        return await super().find(_key, denied_is_absent=denied_is_absent, with_checksums=with_checksums)


def drop(served: Served) -> Path:
    return served.view.config.watches[0].path


async def test_status_prints_one_document_and_4_when_something_is_stuck(served: Served) -> None:
    assert (await presignd(served, "status", "--json")).code == 0
    await recorded(served, "stuck", Event.QUARANTINE, error_code="too_large", error="over 5 GiB")
    done = await presignd(served, "status", "--json")
    assert done.code == 4
    assert json.loads(done.out)["quarantined"][0]["path"] == str(drop(served) / "stuck")
    plain = await presignd(served, "status")
    assert "over 5 GiB" in plain.out


async def test_status_of_a_path_given_below_the_current_folder(served: Served) -> None:
    await recorded(served, "a", *DONE, checksum="md5:00")
    done = await presignd(served, "status", "a", cwd=drop(served))
    assert (done.code, "md5:00" in done.out) == (0, True)
    unknown = await presignd(served, "status", "b", cwd=drop(served))
    assert (unknown.code, unknown.out, unknown.err.count("\n")) == (4, "", 1)


async def test_status_tells_of_a_large_file_how_far_it_is_and_when_it_is_through(served: Served) -> None:
    version = await recorded(served, "large")
    version = version._replace(fingerprint=version.fingerprint._replace(size=3_000_000_000))
    served.view.moving = [InFlightView(version, 1_000_000_000, 25e6)]
    (told,) = json.loads((await presignd(served, "status", "--json")).out)["in_flight"]
    assert (told["sent"], told["size"], told["rate"], told["seconds_left"]) == (1_000_000_000, 3_000_000_000, 25e6, 80)
    plain = (await presignd(served, "status")).out
    (row,) = [line.split("\t") for line in plain.splitlines() if line.startswith("in flight")]
    assert row[3:] == ["1.0 GB", "3.0 GB", "25.0 MB/s", "80 s"]
    served.view.moving = [InFlightView(version, 1_000_000_000, 0.0)]
    (told,) = json.loads((await presignd(served, "status", "--json")).out)["in_flight"]
    assert told["seconds_left"] is None


async def test_status_tells_for_how_long_a_frozen_store_took_nothing(served: Served) -> None:
    """A rate of 0 bytes/s looks like a beginning."""
    served.view.moving = [InFlightView(await recorded(served, "large"), 0, 0.0, 12.34)]
    (told,) = json.loads((await presignd(served, "status", "--json")).out)["in_flight"]
    assert told["idle_seconds"] == 12.3
    assert "nothing sent for 12 s" in (await presignd(served, "status")).out


@pytest.mark.parametrize("width", [60, 80])
async def test_status_on_a_terminal_breaks_no_word(served: Served, width: int) -> None:
    name = "a-name-that-would-not-fit-beside-the-others.pdf"
    await recorded(served, name, Event.QUARANTINE, error_code="too_large", error="over 5 GiB")
    with terminal(width) as (looked_at, written):
        process = await started(served, "status", stdout=written)
        os.close(written)
        shown = without_styles(await shown_until(r"Fix: .*\n", looked_at))
        assert await process.wait() == 4
    assert f"/{name}" in shown
    assert "(too_large)\n" in shown
    assert "1 quarantined" in " ".join(shown.split())


async def test_no_color_is_honoured(served: Served) -> None:
    for more, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        await recorded(served, f"stuck{coloured}", Event.QUARANTINE, error_code="too_large")
        with terminal(80) as (looked_at, written):
            process = await started(served, "status", stdout=written, environ=more)
            os.close(written)
            shown = await shown_until(r"Fix: .*\n", looked_at)
            await process.wait()
        assert ("\x1b[31m" in shown) is coloured  # red; bold is no colour


async def test_check_on_a_terminal_shows_what_failed_in_red_and_breaks_no_word(served: Served, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[presign]\nendpoint = "http://127.0.0.1:9"\nwach = 1\n')
    with terminal(60) as (looked_at, written):
        process = await started(served, "check", "--offline", "-c", config, stdout=written)
        os.close(written)
        shown = await shown_until(r"watch: .*\n", looked_at)
        assert await process.wait() == 2
    assert "\x1b[1;31mFAIL\x1b[0m config: presign.wach" in shown
    assert all(len(line) <= 60 for line in without_styles(shown).splitlines() if " " in line.strip())


async def test_status_follow_on_a_terminal_goes_on_until_interrupted(served: Served) -> None:
    with terminal(80, 12) as (looked_at, written):
        process = await started(served, "status", "--follow", stdout=written)
        os.close(written)
        await shown_until("0 quarantined", looked_at)
        await recorded(served, "late", Event.QUARANTINE, error_code="too_large")
        await shown_until("1 quarantined", looked_at)
        process.send_signal(signal.SIGINT)
        await shown_until("1 quarantined(.|\n)*late", looked_at)  # the last picture stays on the first screen
        assert await process.wait() == 130


async def test_status_follow_leaves_the_terminal_as_it_was_when_it_is_ended_by_sigterm(served: Served) -> None:
    with terminal(80, 12) as (looked_at, written):
        process = await started(served, "status", "--follow", stdout=written)
        os.close(written)
        shown = await shown_until("0 quarantined", looked_at)
        assert "\x1b[?1049h" in shown, "it draws on the second screen"
        process.send_signal(signal.SIGTERM)
        shown = await shown_until("0 quarantined", looked_at)
        assert shown.rindex("\x1b[?1049l") < shown.rindex("0 quarantined"), "the last state is on the first screen"
        assert "\x1b[?25h" in shown, "the cursor is visible again"
        assert await process.wait() == -signal.SIGTERM


async def test_status_follow_in_a_pipe_prints_a_document_for_each_change(served: Served) -> None:
    process = await started(served, "status", "--follow", "--json")
    assert process.stdout is not None
    first = json.loads(await process.stdout.readline())
    await recorded(served, "late", Event.QUARANTINE, error_code="too_large")
    second = json.loads(await process.stdout.readline())
    assert (first["quarantined_count"], second["quarantined_count"]) == (0, 1)
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 130


async def test_put_on_a_terminal_shows_bytes_rate_and_time_left(served: Served, tmp_path: Path) -> None:
    file, seen = tmp_path / "large", asyncio.Event()
    with file.open("wb") as made:
        made.truncate(1 << 30)

    async def upload(_: int, progress: Callable[[int], None]) -> None:
        for sent in range(50_000_000, 1 << 30, 1_000_000):
            if seen.is_set():
                return
            progress(sent)
            await asyncio.sleep(0.02)

    served.view.on_put = upload
    with terminal(160) as (looked_at, end):
        process = await started(served, "put", file, stderr=end)
        os.close(end)
        await shown_until(r"\d+(\.\d+)?/1\.1 GB +[\d.]+ MB/s +0:\d\d:\d\d", looked_at)
        seen.set()
        assert await process.wait() == 0


async def test_wait_ends_by_what_became_of_each_file(served: Served) -> None:
    await recorded(served, "done", *DONE)
    await recorded(served, "stuck", Event.QUARANTINE, error_code="too_large", error="over 5 GiB")
    await recorded(served, "queued")
    assert (await presignd(served, "wait", drop(served) / "done")).code == 0
    stuck = await presignd(served, "wait", drop(served) / "done", drop(served) / "stuck")
    assert (stuck.code, "over 5 GiB" in stuck.err) == (4, True)
    assert (await presignd(served, "wait", "--timeout", "100ms", drop(served) / "queued")).code == 5
    (drop(served) / "symlink").symlink_to("done")
    (drop(served) / "folder").mkdir()
    for name, why in (
        ("symlink", "symlinks are not followed"),
        ("absent", "there is no such file"),
        ("folder", "it is a folder: name the files in it"),
        (".", "it is a folder: name the files in it"),
    ):
        missing = await presignd(served, "wait", drop(served) / name)
        assert (missing.code, why in missing.err) == (4, True)


async def test_what_a_rule_ignores_is_not_waited_for_and_the_rule_is_named(served: Served) -> None:
    (drop(served) / "a.part").write_bytes(b"hello")
    waited = await presignd(served, "wait", drop(served) / "a.part")
    shown = await presignd(served, "status", drop(served) / "a.part")
    for done in (waited, shown):
        assert (done.code, done.out) == (4, "")
        assert "the rule *.part of ignore_defaults" in done.err
    await recorded(served, "put.part", *DONE)
    assert (await presignd(served, "wait", drop(served) / "put.part")).code == 0, "it has its link: it was put"


async def test_a_wait_for_what_is_in_no_watch_ends_at_once_with_4_and_the_reason_that_status_gives(
    served: Served, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_bytes(b"x")
    for command in (("wait", "--timeout", "7d"), ("status",)):
        done = await presignd(served, *command, tmp_path / "elsewhere")
        assert (done.code, done.out) == (4, "")
        assert "in no watched folder" in done.err


async def test_put_finds_a_name_in_its_other_unicode_form(served: Served, tmp_path: Path) -> None:
    (tmp_path / "cafe\u0301").write_bytes(b"x")
    done = await presignd(served, "put", tmp_path / "caf\u00e9")
    assert done.code == 0
    assert "/cafe\u0301?" in done.out


async def test_link_prints_the_link_and_nothing_else(served: Served) -> None:
    await recorded(served, "a", *UPLOADED)
    done = await presignd(served, "link", "a", "--expires", "1h")
    assert (done.code, SECRET in done.out, done.err) == (0, True, "")


async def test_a_qr_code_follows_the_link_in_a_pipe_too_and_holds_the_link(served: Served) -> None:
    await recorded(served, "a", *UPLOADED)
    done = await presignd(served, "link", "a", "--qr")
    link, *code = done.out.splitlines()
    assert (done.code, done.err) == (0, "")
    assert SECRET in link
    assert code == qr.for_terminal(link)
    assert (await presignd(served, "link", "a", "--qr", "--json")).code == 2


@pytest.mark.parametrize("columns", [40, 200])
async def test_a_terminal_that_is_too_narrow_for_the_qr_code_is_told_and_gets_the_link(
    served: Served, columns: int
) -> None:
    await recorded(served, "a", *UPLOADED)
    with terminal(columns) as (looked_at, written):
        process = await started(served, "link", "a", "--qr", stdout=written)
        os.close(written)
        shown = await shown_until(r"\n", looked_at)
        _, err = await process.communicate()
    assert process.returncode == 0
    assert "https://" in shown or "http://" in shown
    assert ("wider" in err.decode()) is (columns == 40)
    assert SECRET not in err.decode()


async def test_retry_prints_how_many(served: Served) -> None:
    await recorded(served, "a", Event.QUARANTINE, error_code="unreadable")
    assert (await presignd(served, "retry", "--error", "unreadable")).out == "1\n"
    assert (await presignd(served, "retry", drop(served) / "a")).code == 4


async def test_verify_prints_a_line_for_each_that_differs_and_ends_with_a_summary(served: Served) -> None:
    for name in ("a", "b"):
        await recorded(served, name, *DONE, checksum="md5:00")
    await recorded(served, "queued")
    done = await presignd(served, "verify", "--all")
    assert done.code == 4
    rows = sorted(line.split("\t") for line in done.out.splitlines())
    assert [(row[0], Path(row[1]).name) for row in rows] == [("differs", "a"), ("differs", "b")]
    assert all("the object was replaced; the object has 9 bytes, not 5" in row[2] for row in rows)
    assert done.err.splitlines() == [
        "presignd: 3 files: 0 equal, 2 differ, 0 missing, 1 not checked (2 by size)",
        "presignd: 1 not checked: pending: it is queued (presignd wait waits for it)",
    ]
    document = [json.loads(line) for line in (await presignd(served, "verify", "--json", "--all")).out.splitlines()]
    assert [Path(one["file"]["path"]).name for one in document[:-1]] == ["a", "b", "queued"] or len(document) == 4
    assert {name: document[-1]["summary"][name] for name in ("differs", "unchecked", "exit")} == {
        "differs": 2,
        "unchecked": 1,
        "exit": 4,
    }
    named = await presignd(served, "verify", "queued", cwd=drop(served))
    assert (named.code, named.out.split("\t")[0]) == (5, "not checked")
    assert (await presignd(served, "verify", "absent", cwd=drop(served))).code == 4
    for wrong in ([], ["--all", "a"]):
        assert (await presignd(served, "verify", *wrong, cwd=drop(served))).code == 2


async def test_verify_on_a_terminal_shows_how_far_it_is(served: Served) -> None:
    for number in range(3):
        await recorded(served, str(number), *DONE, checksum="md5:00")
    slow = Held(served.view.config.watches[0])
    served.view.bucket = slow
    with terminal(160) as (looked_at, end):
        process = await started(served, "verify", "--all", stderr=end)
        os.close(end)
        await shown_until(r"files +[^\n]*0/3", looked_at)
        slow.go.set()
        assert await process.wait() == 4


async def test_put_prints_links_in_the_order_given_and_goes_on_past_a_bad_one(served: Served, tmp_path: Path) -> None:
    """The first file takes the longest."""

    async def first_last(fd: int, _progress: Callable[[int], None]) -> None:
        await asyncio.sleep(0.3 if os.fstat(fd).st_size == 1 else 0)

    served.view.on_put = first_last
    for size, name in enumerate(["a", "b", "c"], 1):
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "s").symlink_to("a")
    done = await presignd(served, "put", "a", "absent", "s", "b", "c", ".", cwd=tmp_path)
    assert [line.split("?")[0].rpartition("/")[2] for line in done.out.splitlines()] == ["a", "b", "c"]
    assert done.code == 4
    assert done.err.count("\n") == 3
    assert "symlink" in done.err


async def test_put_against_a_store_that_is_away_ends_with_3(served: Served, tmp_path: Path) -> None:
    async def away(_fd: int, _progress: Callable[[int], None]) -> None:
        raise fault("connection_refused")

    served.view.on_put = away
    (tmp_path / "a").write_bytes(b"x")
    done = await presignd(served, "put", "--json", "a", cwd=tmp_path)
    assert done.code == 3
    assert json.loads(done.out)["error"]["code"] == "connection_refused"


async def test_an_interrupted_command_ends_with_130_and_its_put_with_it(served: Served, tmp_path: Path) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def for_ever(_fd: int, _progress: Callable[[int], None]) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    served.view.on_put = for_ever
    (tmp_path / "a").write_bytes(b"x")
    process = await started(served, "put", "a", cwd=tmp_path)
    async with asyncio.timeout(20):
        await began.wait()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
        await ended.wait()
    assert (process.returncode, out, b"Traceback" in err) == (130, b"", False)


@pytest.mark.parametrize("name", [b"caf\xe9", b"new\nline", b"\x1b[31m", b"-x", "é".encode()])
async def test_odd_names_travel_whole_and_forge_no_line(served: Served, tmp_path: Path, name: bytes) -> None:
    (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    done = await presignd(served, "put", "--key", "k", "--", os.fsdecode(name), cwd=tmp_path)
    assert (done.code, done.out.count("\n")) == (0, 1)
    assert served.view.puts[0][0] == os.fsencode(tmp_path) + b"/" + name
    gone = await presignd(served, "status", "--", os.fsdecode(name), cwd=tmp_path)
    assert (gone.code, gone.err.count("\n"), "\x1b" in gone.err) == (4, 1, False)


@pytest.mark.parametrize("command", ["status", "wait", "links", "link", "put", "retry", "verify"])
async def test_no_json_on_stdout_holds_what_controls_a_terminal_and_the_name_is_whole(
    served: Served, command: str
) -> None:
    """A terminal acts on U+009B as on escape, and a reader of lines takes U+2028 for an end."""
    name = "é\x7f\x9b31m\x9d\u202egpj\u2028.exe"
    if command in {"status", "retry"}:
        await recorded(served, name, Event.QUARANTINE, error_code="timeout")
    else:
        await recorded(served, name, *DONE)
    line = {"time": "2026-01-02T00:00:00.000000Z", "file_id": "id", "key": name, "url": "http://h/a"}
    served.view.config.links.file.write_bytes(json.dumps(line).encode() + b"\n")
    of_file: list[str | Path] = [] if command in {"status", "links"} else ["--", drop(served) / name]
    done = await presignd(served, command, "--json", *of_file)
    streams = command == "verify"
    assert name in texts([json.loads(line) for line in done.out.splitlines()] if streams else json.loads(done.out))
    assert "é" in done.out
    assert done.out.replace("\n", "").isprintable()


def texts(document: Any) -> str:
    """Return every text of a document, as it was before JSON."""
    if isinstance(document, (dict, list)):
        return "".join(map(texts, document.values() if isinstance(document, dict) else document))
    return str(document)
