"""The canary: searches everything that a test's daemon wrote for secrets."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Protocol
from urllib.parse import quote

import pytest

_SIGNED = re.compile(
    r"(?i)x-amz-(signature|credential|security-token)(=|%(25)*3d)(?!redacted)[^\s\"'&\\]"
    r"|psd_[\w-]{20}"
    r"|AWS4-HMAC-SHA256 +Credential|Bearer +(?!REDACTED)[\w.~+/-]{8}"
)


class Canary(Protocol):
    def __call__(self, text: str | bytes, *secrets: str) -> None: ...


def assert_no_secrets(text: str | bytes, *secrets: str) -> None:
    """Fail when ``text`` holds a signed query, an Authorization value, or one of ``secrets`` in any encoding."""
    shown = text.decode(errors="backslashreplace") if isinstance(text, bytes) else text
    found = _SIGNED.search(shown)
    assert found is None, f"a signed URL leaked: …{shown[max(0, found.start() - 80) : found.end() + 40]}…"
    for secret in secrets:
        for coat in _coats(secret):
            assert coat not in shown, f"a secret leaked: …{shown[max(0, shown.index(coat) - 80) :][:160]}…"


PIECE = 12
"""Hex digits of a signature that are a leak, wherever the rest of it is."""

_NO_TEXT = re.compile(r"\\+[nr]|%(25)*0[ad]|[\s\\\"',|]+", re.IGNORECASE)


def assert_no_signatures(text: str | bytes, signatures: Iterable[str]) -> None:
    """Fail when ``text`` holds a piece of one of these signatures (hex), wrapped over lines or not."""
    shown = text.decode(errors="backslashreplace") if isinstance(text, bytes) else text
    pieces = {one[at : at + PIECE] for one in signatures for at in range(len(one) - PIECE + 1)}
    for whole in (shown, _NO_TEXT.sub("", shown)):
        for run in re.finditer(rf"[0-9a-f]{{{PIECE},}}", whole):
            leaked = [
                run[0][at : at + PIECE] for at in range(len(run[0]) - PIECE + 1) if run[0][at : at + PIECE] in pieces
            ]
            assert not leaked, f"a signature leaked: …{whole[max(0, run.start() - 200) : run.end() + 40]}…"


def _coats(secret: str) -> set[str]:
    """Return the forms a secret could be printed in."""
    encoded = quote(secret, safe="")
    return {
        secret,
        encoded,
        quote(encoded, safe=""),
        json.dumps(secret)[1:-1],
        base64.b64encode(secret.encode()).decode().rstrip("="),
    }


@pytest.fixture
def canary() -> Canary:
    """``canary(output, secret, …)`` in every test that runs the daemon."""
    return assert_no_secrets
