"""Guards of links: a client's tries are limited in bounded memory, and no pass is forged, moved or prolonged."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.broker.links.guard import ClientLimit, is_pass, network_of, new_pass

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SECRET, LINK = b"s" * 32, b"l" * 32


def test_a_client_has_so_many_in_a_window_and_others_have_theirs() -> None:
    limit = ClientLimit(3, MINUTE)
    for _ in range(3):
        assert limit.wait("192.0.2.1", NOW) == 0
        limit.take("192.0.2.1", NOW)
    assert limit.wait("192.0.2.1", NOW) == 60
    assert limit.wait("192.0.2.1", NOW + timedelta(seconds=59.5)) == 1
    assert limit.wait("192.0.2.2", NOW) == 0
    assert limit.wait("192.0.2.1", NOW + MINUTE) == 0
    limit.take("192.0.2.1", NOW + MINUTE)
    assert limit.wait("192.0.2.1", NOW + MINUTE) == 0, "a new window has begun"


def test_what_a_client_took_can_be_forgiven() -> None:
    limit = ClientLimit(1, MINUTE)
    limit.take("192.0.2.1", NOW)
    limit.forgive("192.0.2.1")
    assert limit.wait("192.0.2.1", NOW) == 0
    limit.forgive("192.0.2.9")


def test_as_many_clients_as_there_is_room_for_are_remembered() -> None:
    limit = ClientLimit(1, MINUTE, clients=2)
    for client in ("a", "b", "c"):
        limit.take(client, NOW)
    assert [limit.wait(client, NOW) > 0 for client in ("a", "b", "c")] == [False, True, True]


@pytest.mark.parametrize(
    ("client", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "::ffff:c000:201"),
        ("local", "local"),
        ("", ""),
    ],
)
def test_a_network_of_ipv6_is_one_client(client: str, network: str) -> None:
    assert network_of(client) in {network, "::ffff:192.0.2.1"}


def test_a_pass_opens_its_own_link_until_its_end() -> None:
    given = new_pass(SECRET, LINK, NOW + MINUTE)
    assert is_pass(given, SECRET, LINK, NOW)
    assert not is_pass(given, SECRET, LINK, NOW + MINUTE)
    assert not is_pass(given, SECRET, b"x" * 32, NOW)
    assert not is_pass(given, b"x" * 32, LINK, NOW)
    stamp, _, signature = given.partition(".")
    assert not is_pass(f"{int(stamp) + 60}.{signature}", SECRET, LINK, NOW)


@given(st.text(max_size=100))
def test_nothing_else_is_a_pass(given: str) -> None:
    assert not is_pass(given, SECRET, LINK, NOW)
