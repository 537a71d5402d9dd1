"""[web] listen: valid addresses, and whether other machines can reach them."""

from __future__ import annotations

from pathlib import Path

import pytest

from presignd.config.addresses import Listen, parse_listen


@pytest.mark.parametrize(
    ("text", "listen", "local"),
    [
        ("127.0.0.1:8321", Listen("127.0.0.1", 8321), True),
        ("127.9.9.9:0", Listen("127.9.9.9", 0), True),
        ("localhost:80", Listen("localhost", 80), True),
        ("[::1]:8321", Listen("::1", 8321), True),
        ("unix:/run/presignd/web.sock", Listen(path=Path("/run/presignd/web.sock")), True),
        ("0.0.0.0:8321", Listen("0.0.0.0", 8321), False),
        ("[::]:8321", Listen("::", 8321), False),
        ("Status.Example.org:65535", Listen("status.example.org", 65535), False),
    ],
)
def test_an_address_is_read_and_known_as_local_or_not(text: str, listen: Listen, local: bool) -> None:
    assert parse_listen(text) == listen
    assert parse_listen(text).is_local is local


@pytest.mark.parametrize(
    "text", ["8321", ":8321", "*:8321", "a:b", "::1:80", "h:99999", "http://h:1", "unix:", "u x:1"]
)
def test_what_would_listen_somewhere_unsaid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_listen(text)
