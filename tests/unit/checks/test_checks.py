"""``check`` reports the first cause once, skips what depends on it, and exits as the contract says."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from presignd.checks import Outcome, exit_code, local, run_checks
from presignd.checks.base import Check, CheckResult, Context, fail, ok, warn
from presignd.checks.buckets import distinct
from presignd.checks.endpoint import Endpoint
from presignd.checks.local import (
    events_result,
    inotify_result,
    judge_inotify,
    ledger_result,
    problem_result,
    writable_result,
    writer_result,
)
from presignd.checks.presigner import judge_clock, judge_token
from presignd.config import (
    Config,
    ControlConfig,
    LedgerConfig,
    LinksConfig,
    LogConfig,
    PresignConfig,
    UploadConfig,
    WatchConfig,
    WebConfig,
)
from presignd.errors import fault
from presignd.pipeline.files import lease as writer_check
from presignd.presign.remote import Me
from tests.unprivileged import without_rights

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

NOBODY_ASKS = cast("Context", None)


def check(name: str, *results: CheckResult, needs: tuple[str, ...] = (), remote: bool = False) -> Check:
    async def run(_: Context) -> AsyncIterator[CheckResult]:
        for result in results:
            yield result

    return Check(name, run, needs, remote)


def refused(name: str, code: str) -> Check:
    async def run(_: Context) -> AsyncIterator[CheckResult]:
        yield ok(name, "begun")
        raise fault(code)

    return Check(name, run, remote=True)


async def lines(*checks: Check) -> list[CheckResult]:
    return [result async for result in run_checks(NOBODY_ASKS, checks)]


async def test_what_needs_a_failed_check_is_skipped_and_says_what_it_needs() -> None:
    first = check("endpoint", fail("endpoint", "nothing listens", "start the store"))
    second = check("clock", ok("clock", "fine"), needs=("endpoint",))
    third = check("bucket", ok("bucket", "fine"), needs=("clock",))
    told = await lines(first, second, third)
    assert [result.outcome for result in told] == [Outcome.FAIL, Outcome.SKIPPED, Outcome.SKIPPED]
    assert [result.detail for result in told[1:]] == ["needs endpoint", "needs clock"]


async def test_a_warning_holds_nothing_up() -> None:
    told = await lines(check("a", warn("a", "slow")), check("b", ok("b", "fine"), needs=("a",)))
    assert [result.outcome for result in told] == [Outcome.WARN, Outcome.OK]


async def test_a_fault_becomes_a_failed_line_with_its_cause_fix_and_code() -> None:
    told = await lines(refused("bucket", "no_such_bucket"))
    assert told[-1] == replace(
        fail("bucket", "the bucket does not exist (404)", "create it, or correct the watch's bucket"),
        code="no_such_bucket",
        remote=True,
    )


async def test_one_failed_line_among_many_breaks_the_check() -> None:
    folders = check("folders", fail("folder a", "missing", "mkdir"), ok("folder b", "fine"))
    told = await lines(folders, check("inotify", ok("inotify", "fine"), needs=("folders",)))
    assert told[-1].outcome is Outcome.SKIPPED


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ([], 0),
        ([ok("a", ""), warn("b", "")], 0),
        ([fail("folder", "", "")], 2),
        ([replace(fail("endpoint", "", ""), remote=True)], 3),
        ([fail("folder", "", ""), replace(fail("endpoint", "", ""), remote=True)], 2),
        ([CheckResult("a", Outcome.SKIPPED, "")], 0),
    ],
)
def test_the_exit_code_tells_this_machine_from_the_store(results: list[CheckResult], code: int) -> None:
    assert exit_code(results) == code


@pytest.mark.parametrize(
    ("offset", "outcome", "told"),
    [
        (0.0, Outcome.OK, "within 0 s"),
        (-30.0, Outcome.OK, "within 30 s"),
        (31.0, Outcome.WARN, "31 s behind the store"),
        (-3600.0, Outcome.FAIL, "3600 s ahead of the store"),
        (301.0, Outcome.FAIL, "301 s behind the store"),
    ],
)
def test_a_clock_is_judged_by_how_far_it_is_off(offset: float, outcome: Outcome, told: str) -> None:
    result = judge_clock(offset)
    assert result.outcome is outcome
    assert told in result.detail


@pytest.mark.parametrize(
    ("offset", "told", "fix"),
    [
        (3.0, "the broker is within 3 s of the store's", ""),
        (40.0, "the broker is 40 s behind the store", "at the broker or at the store"),
        (None, "the answer of the store has no Date", ""),
    ],
)
def test_a_broker_s_clock_is_told_apart_from_ours(offset: float | None, told: str, fix: str) -> None:
    result = judge_clock(offset, here="the broker")
    assert told in result.detail
    assert fix in result.fix
    assert "this machine is 40 s behind the broker" in judge_clock(40.0, there="the broker").detail


NOW = datetime(2026, 11, 23, tzinfo=UTC)


def judged(told: dict[str, object], **of_watch: object) -> list[CheckResult]:
    section = PresignConfig(kind="broker", url="https://broker:8420")
    watches = (watch(Path("/srv/drop"), **{"key": "{prefix}{path}", **of_watch}),)
    config = Config(
        presign=section,
        watches=watches,
        upload=UploadConfig(),
        ledger=LedgerConfig(path=Path("/state")),
        links=LinksConfig(file=Path("/state/links.jsonl")),
        control=ControlConfig(),
        log=LogConfig(),
        web=WebConfig(),
    )
    return list(judge_token(config, Me.model_validate(told), NOW))


def test_a_token_that_may_all_is_told_with_its_name_and_end() -> None:
    token, operations, links = judged(
        {"name": "box", "operations": ["put", "multipart", "head", "get"], "valid_until": "2027-06-30T00:00:00Z"}
    )
    assert (token.outcome, operations.outcome) == (Outcome.OK, Outcome.OK)
    assert token.detail == "https://broker:8420 knows the token box, good until 2027-06-30 00:00 UTC"
    assert operations.detail == "put, multipart, head, get"
    assert (links.name, links.outcome, links.detail) == ("links of drop", Outcome.OK, "presigned")


def test_a_token_that_ends_soon_is_a_warning() -> None:
    token, _ = judged({"valid_until": "2026-12-01T00:00:00+01:00"})
    assert token.outcome is Outcome.WARN
    assert "2026-11-30 23:00 UTC" in token.detail


@pytest.mark.parametrize(
    ("told", "of_watch", "outcome", "words"),
    [
        ({"operations": ["put", "head"]}, {}, Outcome.FAIL, "lacks get"),
        ({"operations": []}, {}, Outcome.FAIL, "lacks put, head, get"),
        ({"operations": ["put", "head", "get"]}, {}, Outcome.WARN, "lacks multipart"),
        ({"bucket": "theirs"}, {}, Outcome.FAIL, "its bucket is bucket, the token's is theirs"),
        ({"prefix": "box-1/"}, {"key": "{path}"}, Outcome.FAIL, "do not begin with the token's prefix 'box-1/'"),
        ({"prefix": "box-1/"}, {"key": "box-1/{path}"}, Outcome.OK, "knows the token"),
        ({"prefix": "box-1/"}, {"key": "box-10/{path}"}, Outcome.FAIL, "do not begin with"),
    ],
)
def test_what_a_token_lacks_for_the_watches_is_told_before_a_file_meets_it(
    told: dict[str, object], of_watch: dict[str, object], outcome: Outcome, words: str
) -> None:
    result = [found for found in judged(told, **of_watch) if found.name != "links of drop"][-1]
    assert result.outcome is outcome
    assert words in result.detail
    assert bool(result.fix) == (outcome is not Outcome.OK)


@pytest.mark.parametrize(
    ("of_watch", "has_links", "outcome", "words"),
    [
        ({}, True, Outcome.OK, "stable, at https://files.example.org"),
        ({}, False, Outcome.OK, "presigned"),
        ({"links": "presigned"}, True, Outcome.OK, "presigned"),
        ({"links": "stable"}, True, Outcome.OK, "stable, at https://files.example.org"),
        ({"links": "stable"}, False, Outcome.FAIL, "no stable links"),
        ({"link_expires": "90d"}, True, Outcome.OK, "stable"),
        ({"link_expires": "90d"}, False, Outcome.WARN, "end after 7d"),
    ],
)
def test_which_links_a_watch_gives_is_told(
    of_watch: dict[str, object], outcome: Outcome, words: str, *, has_links: bool
) -> None:
    told: dict[str, object] = {
        "operations": ["put", "multipart", "head", "get", "link"],
        "links_url": "https://files.example.org",
    }
    result = judged(told if has_links else {}, **of_watch)[-1]
    assert (result.name, result.outcome) == ("links of drop", outcome)
    assert words in result.detail
    assert bool(result.fix) == (outcome is not Outcome.OK)


def test_how_long_stable_links_live_at_most_is_told() -> None:
    told: dict[str, object] = {"operations": ["get", "link"], "links_url": "https://h", "max_stable_link": 90 * 86400}
    assert judged(told)[-1].detail == "stable, at https://h, 90d at most"


@pytest.mark.parametrize(
    ("wanted", "outcome"), [(0, Outcome.OK), (80, Outcome.OK), (81, Outcome.WARN), (101, Outcome.WARN)]
)
def test_inotify_warns_before_the_limit_is_reached(wanted: int, outcome: Outcome) -> None:
    assert judge_inotify(wanted, 100).outcome is outcome


def test_a_tree_beyond_the_limit_is_told_with_the_setting_to_raise() -> None:
    result = judge_inotify(101, 100)
    assert "more than 100 of 100" in result.detail
    assert "fs.inotify.max_user_watches" in result.fix


def watch(path: Path, **settings: object) -> WatchConfig:
    return WatchConfig.model_validate({"name": "drop", "path": path, "bucket": "bucket", **settings})


def test_directories_are_counted_below_recursive_watches_only(tmp_path: Path) -> None:
    for name in ("a/b", "c"):
        (tmp_path / name).mkdir(parents=True)
    deep, flat = watch(tmp_path), watch(tmp_path, recursive=False)
    assert "4 of 100" in inotify_result([deep], 100).detail
    assert "1 of 100" in inotify_result([flat], 100).detail


def test_where_the_kernel_reports_no_events_polling_is_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "reports_events", lambda _root: False)
    found = events_result(watch(tmp_path))
    assert found.outcome is Outcome.WARN
    assert 'polling = "always"' in found.fix


def test_where_events_come_from_is_told_and_why(tmp_path: Path) -> None:
    assert events_result(watch(tmp_path, events="watchfiles")).detail == 'from watchfiles: events = "watchfiles"'
    polled = watch(tmp_path, polling="always", poll_interval="30s")
    assert events_result(polled).detail == 'scanned every 30 s: polling = "always"'


def test_a_polled_folder_needs_no_inotify_watch(tmp_path: Path) -> None:
    result = inotify_result([watch(tmp_path, polling="always")], 100)
    assert result.detail == "0 of 100 watches needed; polled: drop"


def test_an_unreadable_limit_is_no_fault(tmp_path: Path) -> None:
    """Hardened units hide /proc/sys, and nothing depends on events alone."""
    assert inotify_result([watch(tmp_path)], None).outcome is Outcome.OK


def test_a_move_to_whose_parent_is_missing_names_cause_and_fix(tmp_path: Path) -> None:
    result = writable_result(watch(tmp_path, after="move", move_to=tmp_path / "no" / "sent"))
    assert result.outcome is Outcome.FAIL
    assert "(move_to) is no folder" in result.detail
    assert "mkdir -p" in result.fix


def test_a_move_to_that_finish_will_make_is_fine(tmp_path: Path) -> None:
    assert writable_result(watch(tmp_path, after="move", move_to=tmp_path / "sent")).outcome is Outcome.OK


@pytest.mark.parametrize(
    ("problem", "detail", "fix"),
    [
        ("watch.drop.path: /in does not exist; create it", "watch.drop.path: /in does not exist", "create it"),
        ("watch.drop.bukket: is no option", "watch.drop.bukket: is no option", "see the example"),
    ],
)
def test_a_problem_of_the_configuration_is_a_line_with_its_fix(problem: str, detail: str, fix: str) -> None:
    assert problem_result("config", problem, "see the example") == fail("config", detail, fix)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Make a folder that every user can reach: pytest's are private."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.parametrize("which", ["move_to", "watched"])
def test_no_write_permission_where_files_are_moved_is_named(open_folder: Path, which: str) -> None:
    target, watched = open_folder / "sent", open_folder / "drop"
    for folder in (target, watched):
        folder.mkdir()
        folder.chmod(0o777)
    closed = target if which == "move_to" else watched
    closed.chmod(0o555)
    with without_rights():
        result = writable_result(watch(watched, after="move", move_to=target))
    assert result.outcome is Outcome.FAIL
    assert f"no write permission on {closed}" in result.detail
    assert "setfacl" in result.fix


def test_another_users_ledger_is_told_with_what_to_do(open_folder: Path) -> None:
    (open_folder / "ledger.sqlite3").touch()
    open_folder.chmod(0o555)
    with without_rights():
        result = ledger_result(open_folder)
    assert result.outcome is Outcome.FAIL
    assert "daemon's user" in result.fix


@pytest.mark.skipif(sys.platform != "linux", reason="leases are Linux's")
def test_without_cap_lease_the_writer_check_warns_of_other_users_files(open_folder: Path) -> None:
    open_folder.chmod(0o777)
    with without_rights():
        writer_check.ignore_sigio()
        result = writer_result(watch(open_folder))
    assert result.outcome is Outcome.WARN
    assert "own files only" in result.detail
    assert "CAP_LEASE" in result.fix


def test_a_folder_where_the_writer_check_can_not_work_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test machine need have NFS: what it answers is the writer check's own test."""
    answer = writer_check.WriterCheck("quiet", "NFS does not report writers on other hosts")
    monkeypatch.setattr(writer_check, "writer_check_of", lambda _: answer)
    result = writer_result(watch(tmp_path, settle="30s"))
    assert result.outcome is Outcome.WARN
    assert result.detail.startswith("can't work here: NFS does not report")
    assert "quiet time of 30 s" in result.detail
    assert "ready_marker" in result.fix


def test_a_ledger_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    """``sudo presignd check`` would leave files of root's in the daemon's way."""
    assert "will be made" in ledger_result(tmp_path / "state" / "presignd").detail
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_ledger_is_told(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite3").write_bytes(b"no database" * 200)
    result = ledger_result(tmp_path)
    assert result.outcome is Outcome.FAIL
    assert "is damaged" in result.detail
    assert result.fix


@pytest.mark.parametrize(
    ("endpoint", "address", "shown"),
    [
        ("http://127.0.0.1:9000", Endpoint("127.0.0.1", 9000, tls=False), "127.0.0.1:9000"),
        ("https://s3.example.org", Endpoint("s3.example.org", 443, tls=True), "s3.example.org:443"),
        ("http://[::1]:9000", Endpoint("::1", 9000, tls=False), "[::1]:9000"),
    ],
)
def test_an_endpoint_is_taken_apart(endpoint: str, address: Endpoint, shown: str) -> None:
    assert Endpoint.of(PresignConfig(endpoint=endpoint)) == address
    assert str(address) == shown


def test_watches_that_share_bucket_and_check_key_are_proven_once(tmp_path: Path) -> None:
    one, same = (watch(tmp_path, name=name, key="in/{path}") for name in ("a", "b"))
    elsewhere = watch(tmp_path, name="c", key="out/{path}")
    headers = watch(tmp_path, name="d", key="in/{path}", headers={"x-amz-meta-a": "1"})
    assert distinct([one, same, elsewhere, headers]) == [one, elsewhere, headers]
