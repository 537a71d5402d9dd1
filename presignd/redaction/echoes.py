"""What an answer says again of the request's own secrets, taken out. Pure.

By its look a bare signature is a checksum, so ``presignd.redaction.redact`` lets it pass. Whoever sent it knows it: in
any case, percent-encoded, as entities, in base64, or with anything but letters and digits in between.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from urllib.parse import unquote

from presignd.redaction.redact import MIN_LITERAL, REDACTED

PIECE = 12
"""Letters and digits in a row that tell a secret: no etag or checksum has so many in common with one by chance."""

BLOCK = PIECE // 2
"""Of text in blocks, a ``BLOCK`` each and one character between two, any ``PIECE`` has a whole one in it."""

QUARTER, ROOM = 16, 4096
"""Hex digits of a signature that was sent before, and how many such signatures are remembered."""

_LAYERS = 3
_IN_URL = re.compile(r"x-amz-(signature|credential|security-token)=([^&]*)")
_CUSTOMER_KEY = "x-amz-server-side-encryption-customer-key"
_NO_WORD = bytes(set(range(256)) - set(b"0123456789abcdefghijklmnopqrstuvwxyz"))
_HEX = re.compile(rf"[0-9a-f]{{{QUARTER},}}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}")
_TEXT = re.compile(r">([^<]+)<")


class Secrets:
    """Knows what was sent to one store: the secrets of the request in hand, and the last ``ROOM`` signatures.

    What a store was told with a PUT, it may say as the object's ETag at the HEAD that follows.
    """

    def __init__(self) -> None:
        self._quarters: dict[str, None] = {}

    def of(self, url: str, headers: Mapping[str, str]) -> Echoes:
        """Return what finds in an answer what nobody may be told; of a credential that is the access key."""
        found = {name: unquote(value) for name, value in _IN_URL.findall(url.lower())}
        access_key = found.pop("credential", "").partition("/")[0]
        keys = [value for name, value in headers.items() if name.lower() == _CUSTOMER_KEY]
        self._remember(found.get("signature", ""))
        return Echoes([*found.values(), *keys], [access_key], self._quarters.keys())

    def _remember(self, signature: str) -> None:
        self._quarters |= dict.fromkeys(signature[at : at + QUARTER] for at in range(0, len(signature), QUARTER))
        while len(self._quarters) > 4 * ROOM:
            del self._quarters[next(iter(self._quarters))]


class Echoes:
    """Finds ``secrets`` in text, whole or a ``PIECE`` of one, and ``names``, which are secret but may be any word.

    Of ``older`` signatures it finds each ``QUARTER``. What is too short to be told from a word is left alone.
    """

    def __init__(
        self, secrets: Iterable[str], names: Iterable[str] = (), older: AbstractSet[str] = frozenset()
    ) -> None:
        self._secrets = _told_apart(secrets)
        self._all = (*self._secrets, *_told_apart(names))
        self._older = older

    def are_in(self, text: str) -> bool:
        """Tell whether ``text`` says any of them again."""
        return _says(self._all, self._older, text)

    def silenced(self, headers: Mapping[str, str], body: bytes) -> tuple[Mapping[str, str], bytes]:
        """Return an answer's headers and body without them: a header or an XML text that has one is ``REDACTED``.

        A body that has a secret elsewhere, or cut in two by a comment, is dropped.
        """
        text = body.decode("latin-1")
        if not self.are_in("\n".join((*headers.values(), text))):
            return headers, body
        kept = {name: REDACTED if self.are_in(value) else value for name, value in headers.items()}
        text = _TEXT.sub(lambda match: f">{REDACTED}<" if self.are_in(match[1]) else match[0], text)
        return kept, b"" if _says(self._secrets, self._older, text) else text.encode("latin-1")


def _says(secrets: tuple[str, ...], older: AbstractSet[str], text: str) -> bool:
    for plain in (_plain(text), *_decoded(text)):
        for run in _HEX.findall(plain):
            if not older.isdisjoint([run[at : at + QUARTER] for at in range(len(run) - QUARTER + 1)]):
                return True
        blocks = [plain[at : at + BLOCK] for at in range(0, len(plain) - BLOCK + 1, BLOCK + 1)]
        for secret in secrets:
            if _has_piece(secret, plain, blocks):
                return True
    return False


def _has_piece(secret: str, plain: str, blocks: list[str]) -> bool:
    """Tell whether ``plain`` has a ``PIECE`` of a secret; hardly any text has even a block of one."""
    if len(secret) <= PIECE:
        return secret in plain
    for block in blocks:  # a generator would take twice as long, at each answer
        if block in secret:
            return any(secret[at : at + PIECE] in plain for at in range(len(secret) - PIECE + 1))
    return False


def _told_apart(secrets: Iterable[str]) -> tuple[str, ...]:
    """Return the letters and digits of those that can be told from a word."""
    return tuple([plain for plain in map(_words, secrets) if len(plain) >= MIN_LITERAL])


def _plain(text: str) -> str:
    """Return the letters and digits of ``text``, in lower case, out of the coats of URLs and XML."""
    for _ in range(_LAYERS):
        bare = html.unescape(unquote(text))
        if bare == text:
            break
        text = bare
    return _words(text)


def _decoded(text: str) -> Iterable[str]:
    for run in _BASE64.findall(text):
        whole = run[: len(run) // 4 * 4].replace("-", "+").replace("_", "/")
        yield _only_words(base64.b64decode(whole))


def _words(text: str) -> str:
    return _only_words(text.encode("ascii", "ignore"))


def _only_words(raw: bytes) -> str:
    return raw.lower().translate(None, _NO_WORD).decode("ascii")
