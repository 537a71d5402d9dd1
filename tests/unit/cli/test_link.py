"""``presignd link``, ``unlink`` and ``links --issued``: what they ask, and what of a link they show."""

from __future__ import annotations

import getpass
import io
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from presignd.cli import issued, link
from presignd.errors import UsageError

NOW = datetime(2026, 3, 4, tzinfo=UTC)
URL = "https://files.example.org/l/" + "x" * 22 + "/a"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Answer each request with one link; the requests are in the list."""
    requests: list[dict[str, Any]] = []

    async def ask_once(request: dict[str, Any], _config: Path | None) -> dict[str, Any]:
        requests.append(request)
        return {"link": {"url": URL}, "revoked": {}}

    monkeypatch.setattr(link, "ask_once", ask_once)
    return requests


def test_without_terms_a_link_of_the_file_is_asked_for(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    link.link_command("a")
    link.link_command("a", expires="1m")
    assert [(each["op"], each["expires"]) for each in asked] == [("link", None), ("link", 60)]
    assert capsys.readouterr().out == f"{URL}\n{URL}\n"


def test_a_pin_that_is_made_is_shown_once_and_one_s_own_is_not(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    link.link_command("a", pin=True)
    shown = capsys.readouterr()
    assert f"PIN: {asked[0]['pin']} " in shown.err
    assert (asked[0]["op"], len(asked[0]["pin"])) == ("stable_link", 6)
    link.link_command("a", pin=True, as_json=True)
    assert f'"pin": "{asked[1]["pin"]}"' in capsys.readouterr().out
    (tmp_path / "pin").write_text("my own\n")
    link.link_command("a", pin_from=str(tmp_path / "pin"))
    assert asked[2]["pin"] == "my own"
    assert "my own" not in "".join(capsys.readouterr())


def test_one_s_own_pin_comes_from_stdin_or_is_asked_for(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("2580\nmore\n"))
    monkeypatch.setattr(os, "isatty", lambda _: False)
    link.link_command("a", pin_from="-")
    monkeypatch.setattr(os, "isatty", lambda _: True)
    monkeypatch.setattr(getpass, "getpass", lambda _: "1379")
    link.link_command("a", pin_from="-")
    assert [each["pin"] for each in asked] == ["2580", "1379"]


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe", b"123\n", b"12\x0734\n", b"x" * 65])
def test_a_pin_that_can_t_be_read_or_used_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "pin").write_bytes(content)
    with pytest.raises(UsageError, match="--pin-from"):
        link.link_command("a", pin_from=str(tmp_path / "pin"))


@pytest.mark.parametrize(
    "options",
    [
        {"expires": "1m", "days": 1},
        {"expires": "1m", "pin": True},
        {"pin": True, "pin_from": "-"},
        {"as_json": True, "as_qr": True},
    ],
)
def test_what_excludes_each_other_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        link.link_command("a", **options)


def test_a_link_to_revoke_is_read_from_stdin(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{URL}\n"))
    link.unlink_command("-")
    link.unlink_command(URL)
    assert [each["link"] for each in asked] == [URL, URL]
    with pytest.raises(UsageError, match="stdin"):
        link.unlink_command("-")


@pytest.mark.parametrize(
    ("changed", "cell", "shown"),
    [
        ({}, 2, "3"),
        ({"max_downloads": 5}, 2, "3 of 5"),
        ({}, 3, ""),
        ({"opened_at": "2026-03-02T05:06:07.000000Z", "state": "revoked"}, 3, "2026-03-02 05:06"),
        ({}, 4, "no end"),
        ({"expires_at": "2026-03-06T00:00:00.000000Z"}, 4, "2026-03-06 00:00 (in 2 d)"),
        ({"expires_at": "2026-03-06T00:00:00.000000Z", "state": "revoked"}, 4, "2026-03-06 00:00"),
        ({"pin": True}, 5, "alive, PIN"),
        ({}, 6, "bucket/k"),
    ],
)
def test_a_row_of_a_link(changed: dict[str, Any], cell: int, shown: str) -> None:
    document = {
        "ref": "r",
        "bucket": "bucket",
        "key": "k",
        "made_at": "2026-03-01T04:05:06.000000Z",
        "expires_at": None,
        "opened": 3,
        "opened_at": None,
        "max_downloads": None,
        "state": "alive",
        "pin": False,
    }
    row = issued.row_of(document | changed, NOW)
    assert (row[0], row[1], row[cell]) == ("r", "2026-03-01 04:05", shown)
