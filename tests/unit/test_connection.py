"""NO_PROXY means the same here as in curl, requests and Go."""

from __future__ import annotations

import pytest

from presignd.connection import is_exempt


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("*", "http://anything:9000"),
        ("a.example,*", "http://anything:9000"),
        ("127.0.0.0/8", "http://127.0.0.1:9000"),
        ("127.0.0.0/8", "http://127.255.0.1"),
        ("10.1.2.3/8", "http://10.9.9.9:9000"),
        ("127.0.0.1", "http://127.0.0.1:9000"),
        ("127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("127.0.0.1:80", "http://127.0.0.1"),
        ("::1", "http://[::1]:9000"),
        ("[::1]", "http://[::1]:9000"),
        ("[::1]:9000", "http://[::1]:9000"),
        ("0:0::1", "http://[::1]"),
        ("fd00::/8", "http://[fd12::1]:9000"),
        ("s3.example.org", "https://s3.example.org"),
        ("S3.Example.Org", "https://s3.example.org"),
        ("example.org", "https://s3.example.org"),
        (".example.org", "https://s3.example.org"),
        ("*.example.org", "https://s3.example.org"),
        (".example.org", "https://example.org"),
        ("example.org.", "https://s3.example.org"),
        ("example.org:443", "https://s3.example.org"),
        ("minio:9000", "http://minio:9000"),
        ("localhost", "http://localhost:9000"),
        ("a.example, b.example c.example", "https://b.example"),
        ("a.example, b.example c.example", "https://c.example"),
        ("127.0.0.0/8,example.org", "https://example.org"),
    ],
)
def test_what_no_proxy_names_is_asked_directly(no_proxy: str, url: str) -> None:
    assert is_exempt(url, no_proxy)


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("", "http://127.0.0.1:9000"),
        (" , ", "http://127.0.0.1:9000"),
        (".", "http://minio:9000"),
        ("127.0.0.0/8", "http://128.0.0.1:9000"),
        ("127.0.0.0/8", "http://localhost:9000"),
        ("127.0.0.0/33", "http://127.0.0.1:9000"),
        ("127.0.0.1:9001", "http://127.0.0.1:9000"),
        ("[::1]:9001", "http://[::1]:9000"),
        ("::2", "http://[::1]:9000"),
        ("7.0.0.1", "http://127.0.0.1:9000"),
        ("example.org", "https://badexample.org"),
        ("example.org:80", "https://s3.example.org"),
        ("s3.example.org", "https://example.org"),
        ("ex*mple.org", "https://example.org"),
        ("a:b:c", "http://minio:9000"),
    ],
)
def test_what_it_does_not_name_goes_through_the_proxy(no_proxy: str, url: str) -> None:
    assert not is_exempt(url, no_proxy)
