"""``check`` reports paths that other users could replace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from presignd.checks import CheckResult, Outcome
from presignd.checks.base import Context
from presignd.checks.trust import check_trust, trust_results
from presignd.config import Config

if TYPE_CHECKING:
    from presignd.store.signed import SignedStore


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def configured(tmp_path: Path, *, state: Path | None = None, web: str = "", **watch: Any) -> Config:
    state = state or tmp_path / "state"
    document: dict[str, Any] = {name: {} for name in ("presign", "upload", "control", "log")}
    document |= {"ledger": {"path": state}, "links": {"file": state / "links/links.jsonl"}, "web": {"listen": web}}
    (tmp_path / "drop").mkdir(exist_ok=True)
    document["watch"] = [{"bucket": "bucket", "name": "drop", "path": tmp_path / "drop", **watch}]
    return Config.model_validate(document)


def results(tmp_path: Path, **options: Any) -> list[CheckResult]:
    return list(trust_results(configured(tmp_path, **options)))


def test_nothing_is_said_where_nobody_else_can_change_anything(tmp_path: Path) -> None:
    (tmp_path / "own").symlink_to("done")
    (tmp_path / "done").mkdir()
    assert results(tmp_path, after="move", move_to=tmp_path / "own", web="127.0.0.1:0") == []
    assert results(tmp_path, after="move", move_to=tmp_path / "drop" / "done") == []


@pytest.mark.parametrize("inside", [True, False])
def test_a_symlink_that_is_not_followed_is_told_before_a_file_waits_for_it(
    tmp_path: Path, shared: Path, inside: bool
) -> None:
    folder = tmp_path / "drop" if inside else shared
    folder.mkdir(exist_ok=True)
    (folder / "done").symlink_to(tmp_path)
    (told,) = results(tmp_path, after="move", move_to=folder / "done")
    assert (told.name, told.outcome) == ("move_to drop", Outcome.FAIL)
    assert "done is a symlink" in told.detail


def test_a_ledger_that_others_can_swap_is_warned_of(tmp_path: Path, shared: Path) -> None:
    (told,) = results(tmp_path, state=shared / "state")
    assert (told.name, told.outcome) == ("ledger.path", Outcome.WARN)
    assert f"others can write in {shared}" in told.detail
    assert f"chmod go-w {shared}" in told.fix


def test_a_token_of_the_page_that_anybody_may_write_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    token = tmp_path / "state" / "web.token"
    token.write_text("a" * 20)
    token.chmod(0o666)
    (told,) = results(tmp_path, web="127.0.0.1:0")
    assert (told.name, told.outcome) == ("web", Outcome.FAIL)
    assert "anybody may write it" in told.detail
    assert results(tmp_path) == [], "there is no page"


async def test_a_kernel_that_lets_anybody_link_any_file_is_warned_of(tmp_path: Path) -> None:
    setting = tmp_path / "protected_hardlinks"
    context = Context(configured(tmp_path), cast("SignedStore", None))

    async def told() -> list[CheckResult]:
        return [result async for result in check_trust(context, hardlinks=setting)]

    assert await told() == [], "it can't be read here"
    setting.write_text("1\n")
    assert await told() == []
    setting.write_text("0\n")
    (warned,) = await told()
    assert warned.outcome is Outcome.WARN
    assert "fs.protected_hardlinks=1" in warned.fix
