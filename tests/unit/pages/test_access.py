"""Who is let in: the token, its cookie, this machine's host names, and the origin of a request."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from presignd.config.addresses import parse_listen
from presignd.errors import UsageError
from presignd.pages.access import (
    LOGIN_SECONDS,
    MOST_CODES,
    Access,
    LoginCodes,
    SignedCodes,
    is_our_host,
    is_same_origin,
    load_token,
)

PORT = parse_listen("127.0.0.1:8321")
NAMED = parse_listen("status.example.org:8321")
UNIX = parse_listen("unix:/run/web.sock")
OPTION = "web.token_file"


def access_of(token: str) -> Access:
    return Access(token, 1, "web", LoginCodes())


@pytest.mark.parametrize("host", ["127.0.0.1:8321", "[::1]:8321", "localhost", "LOCALHOST:9", socket.gethostname()])
def test_this_machines_names_are_ours(host: str) -> None:
    assert is_our_host(host, PORT)


@pytest.mark.parametrize(
    "host", ["", ":80", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "[::1"]
)
def test_a_strangers_name_is_not(host: str) -> None:
    assert not is_our_host(host, PORT)


def test_the_configured_name_is_ours_and_behind_a_socket_every_name() -> None:
    assert is_our_host("status.example.org:8321", NAMED)
    assert not is_our_host("status.example.org", PORT)
    assert is_our_host("any.example", UNIX)


def test_only_the_page_itself_is_the_same_origin() -> None:
    host = {"Host": "localhost:8321"}
    assert is_same_origin({**host, "Origin": "http://localhost:8321"})
    assert is_same_origin({**host, "Origin": "https://LOCALHOST:8321", "Sec-Fetch-Site": "same-origin"})
    for origin in ("", "null", "http://localhost", "http://127.0.0.1:8321", "ftp://localhost:8321", "localhost:8321"):
        assert not is_same_origin({**host, "Origin": origin}), origin
    for site in ("same-site", "cross-site", "none"):
        assert not is_same_origin({**host, "Origin": "http://localhost:8321", "Sec-Fetch-Site": site})


def test_the_cookie_changes_with_the_token_and_is_not_it() -> None:
    one, other = access_of("a" * 20), access_of("b" * 20)
    assert one.cookie != other.cookie
    assert one.has_cookie({one.cookie_name: one.cookie})
    assert not other.has_cookie({one.cookie_name: one.cookie})
    assert not one.has_cookie({one.cookie_name: one.token})
    assert not one.has_cookie({})


@pytest.mark.parametrize(
    ("given", "known"),
    [("Bearer " + "a" * 20, True), ("bearer  " + "a" * 20, True), ("Basic " + "a" * 20, False), ("Bearer ", False)],
)
def test_a_program_shows_the_token_as_bearer(given: str, known: bool) -> None:
    assert access_of("a" * 20).has_bearer({"Authorization": given}) is known


def test_a_token_is_made_once_and_an_empty_file_is_filled(tmp_path: Path) -> None:
    place = tmp_path / "token"
    place.touch(0o644)
    token = load_token(place, OPTION)
    assert place.stat().st_mode & 0o777 == 0o600
    assert load_token(place, OPTION) == token
    assert len(token) >= 40


@pytest.mark.parametrize("content", [b"short", b"\xff" * 40, b" " * 10 + b"x"])
def test_what_is_no_token_is_refused_without_showing_it(tmp_path: Path, content: bytes) -> None:
    place = tmp_path / "token"
    place.write_bytes(content)
    with pytest.raises(UsageError, match=r"web\.token_file") as refused:
        load_token(place, OPTION)
    assert "short" not in str(refused.value)


def test_a_token_file_where_none_can_be_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory"):
        load_token(tmp_path / "missing" / "token", OPTION)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="Too many levels of symbolic links"):
        load_token(tmp_path / "link", OPTION)


@pytest.mark.needs("root")
@pytest.mark.parametrize("content", ["a" * 20, ""])
def test_a_token_of_another_user_is_refused(tmp_path: Path, content: str) -> None:
    """He knows it; an empty one he could read later."""
    place = tmp_path / "token"
    place.write_text(content)
    os.chown(place, 65534, 65534)
    with pytest.raises(UsageError, match=r"web\.token_file: .*token: it belongs to nobody, .* chown root"):
        load_token(place, OPTION)
    assert place.read_text() == content


def test_a_token_that_anybody_may_write_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "token"
    place.write_text("a" * 20)
    place.chmod(0o622)
    with pytest.raises(UsageError, match="anybody may write it"):
        load_token(place, OPTION)


def test_a_fifo_in_place_of_the_token_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token")
    with pytest.raises(UsageError, match="no regular file"):
        load_token(tmp_path / "token", OPTION)


def test_a_login_code_is_good_once_and_for_a_while() -> None:
    now = 0.0
    codes = LoginCodes(lambda: now)
    first, late = codes.new(), codes.new()
    assert [codes.spend(first), codes.spend(first), codes.spend("")] == [True, False, False]
    now = LOGIN_SECONDS
    assert not codes.spend(late)


def test_login_codes_that_nobody_uses_take_no_room() -> None:
    codes = LoginCodes()
    made = [codes.new() for _ in range(MOST_CODES + 1)]
    assert [codes.spend(code) for code in (made[0], made[1], made[-1])] == [False, True, True]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_signed_code_of_another_process_is_good_once_and_for_a_while() -> None:
    clock = Clock()
    served, other = SignedCodes("a" * 20, clock), SignedCodes("a" * 20, clock)
    first, late = other.new(), other.new()
    assert [served.spend(first), served.spend(first)] == [True, False]
    clock.now += LOGIN_SECONDS
    assert not served.spend(late)
    assert [served.spend(again := other.new()), served.spend(again)] == [True, False]


def test_a_signed_code_is_of_one_token_and_of_one_start() -> None:
    clock = Clock()
    served, stranger = SignedCodes("a" * 20, clock), SignedCodes("b" * 20, clock)
    code = served.new()
    assert not served.spend(stranger.new())
    for forged in ("", ".", "..", "1.2.3", "1001" + code[4:], code[:-1], code + "0", "\udcff", "nan.x." + code[-64:]):
        assert not served.spend(forged), forged
    clock.now += 1
    assert not SignedCodes("a" * 20, clock).spend(code), "the start before may have spent it"
    assert served.spend(code)
