"""Remove the request's own secrets from a store's answer that repeats them. Pure.

A bare signature looks like a checksum, so ``presignd.redaction.redact`` lets it pass. The sender knows it, and finds it
in upper or lower case, percent-encoded, as entities, in base64, or with other characters between letters and digits.
"""

from __future__ import annotations

import binascii
import html
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from urllib.parse import unquote

from presignd.redaction.redact import MIN_LITERAL, REDACTED

PIECE = 12
"""Letters and digits in a row that identify a secret: an ETag or checksum does not share so many by chance."""

BLOCK = PIECE // 2
"""Text is cut into blocks of this size, one character apart, so every run of ``PIECE`` characters has a whole block."""

QUARTER, ROOM = 16, 4096
"""The hex digits that identify an earlier signature, and how many earlier signatures are kept."""

_LAYERS = 3
_SIGNATURE = "x-amz-signature="
_IN_QUERY = re.compile(r"x-amz-(credential|security-token)=([^&]*)")
_CUSTOMER_KEY = "x-amz-server-side-encryption-customer-key"
_LOWER = bytes(range(256)).lower()
_NO_WORD = bytes(byte for byte in range(256) if not bytes([byte]).isalnum())
_HEX = re.compile(rf"[0-9a-f]{{{QUARTER},}}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}")
_TEXT = re.compile(r">([^<]+)<")


class Secrets:
    """The secrets sent to one store: those of the current request, and the last ``ROOM`` signatures.

    A store may repeat a PUT's signature as the object's ETag in its answer to the next HEAD, or in that to another
    request which it has at the same time. So ``of`` is called before a request is sent.
    """

    def __init__(self) -> None:
        self._clean: Mapping[str, str] = {}
        self._older: OrderedDict[str, None] = OrderedDict()

    def of(self, url: str, headers: Mapping[str, str]) -> Echoes:
        """Return the finder for one request's secrets in its answer; of a credential it finds the access key."""
        query, _, rest = url.partition("?")[2].lower().partition(_SIGNATURE)
        signature, _, rest = rest.partition("&")
        tokens, access_keys = _in_query(query + rest)
        keys = [headers[name] for name in _customer_keys(tuple(headers))]
        signature = unquote(signature)
        self._remember(signature)
        return Echoes((*long_enough([signature, *keys]), *tokens), access_keys, self._older.keys())

    def redacted(self, echoes: Echoes, headers: Mapping[str, str], body: bytes) -> tuple[Mapping[str, str], bytes]:
        """Return an answer without the secrets that ``of`` found, as ``Echoes.redacted`` does.

        A header that is as in the last answer was searched with that: the store did not know a later secret then.
        """
        fresh = [value for name, value in headers.items() if self._clean.get(name) != value]
        if echoes.are_in("\n".join((*fresh, body.decode("latin-1")))):
            return echoes.redacted(headers, body)
        self._clean = headers
        return headers, body

    def _remember(self, signature: str) -> None:
        older = self._older
        for at in range(0, len(signature), QUARTER):
            older[signature[at : at + QUARTER]] = None
        while len(older) > 4 * ROOM:
            older.popitem(last=False)  # a dict would pass the gaps of all removed before


class Echoes:
    """Finds ``secrets`` in text, whole or a ``PIECE`` of one, and ``names``, which are secret but may be any word.

    All are as ``long_enough`` returns them. Of ``older`` signatures it finds each ``QUARTER``.
    """

    def __init__(
        self, secrets: Iterable[str], names: Iterable[str] = (), older: AbstractSet[str] = frozenset()
    ) -> None:
        self._secrets = tuple(secrets)
        self._all = (*self._secrets, *names)
        self._joined = " ".join(self._all)
        self._older = older

    def are_in(self, text: str) -> bool:
        """Return whether ``text`` repeats any of them."""
        for plain in (_plain(text), *_decoded(text)):
            if len(plain) < MIN_LITERAL:
                continue  # as is most of what a checksum decodes to
            for run in _HEX.findall(plain):
                if not self._older.isdisjoint([run[at : at + QUARTER] for at in range(len(run) - QUARTER + 1)]):
                    return True
            for secret in self._all:
                if secret in plain:
                    return True
            if self._has_piece(plain):
                return True
        return False

    def _has_piece(self, plain: str) -> bool:
        """Return whether ``plain`` has a ``PIECE`` of a secret; search for it once, however many blocks it has."""
        for at in range(0, len(plain) - BLOCK + 1, BLOCK + 1):  # hardly any text has even a block of a secret
            if plain[at : at + BLOCK] in self._joined:
                return any(piece in plain for secret in self._all for piece in _pieces(secret))
        return False

    def redacted(self, headers: Mapping[str, str], body: bytes) -> tuple[Mapping[str, str], bytes]:
        """Return an answer's headers and body without them: a header or an XML text that has one becomes ``REDACTED``.

        A body with a secret elsewhere, or one cut in two by a comment, becomes empty.
        """
        kept = {name: REDACTED if self.are_in(value) else value for name, value in headers.items()}
        text = _TEXT.sub(lambda match: f">{REDACTED}<" if self.are_in(match[1]) else match[0], body.decode("latin-1"))
        return kept, b"" if Echoes(self._secrets, older=self._older).are_in(text) else text.encode("latin-1")


def _pieces(secret: str) -> list[str]:
    return [secret[at : at + PIECE] for at in range(len(secret) - PIECE + 1)]


@lru_cache(maxsize=64)
def _customer_keys(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.lower() == _CUSTOMER_KEY]


@lru_cache(maxsize=64)
def _in_query(query: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tokens and access keys of a query without its signature: many requests of one second share it."""
    found = {name: unquote(value) for name, value in _IN_QUERY.findall(query)}
    access_key = found.pop("credential", "").partition("/")[0]
    return long_enough(found.values()), long_enough([access_key])


def long_enough(secrets: Iterable[str]) -> tuple[str, ...]:
    """Return the letters and digits of the secrets that are too long to be a word by chance."""
    return tuple([plain for each in secrets if len(plain := _words(each.encode("ascii", "ignore"))) >= MIN_LITERAL])


def _plain(text: str) -> str:
    """Return the letters and digits of ``text`` in lower case, with URL and XML encoding removed."""
    for _ in range(_LAYERS if "%" in text or "&" in text else 0):
        bare = html.unescape(unquote(text))
        if bare == text:
            break
        text = bare
    return _words(text.encode("ascii", "ignore"))


def _decoded(text: str) -> Iterable[str]:
    for run in _BASE64.findall(text):
        if run.islower():
            continue  # hex, such as an MD5: base64 of 12 letters and digits has a capital, but for 3 in a million
        whole = run[: len(run) // 4 * 4].replace("-", "+").replace("_", "/")
        yield _words(binascii.a2b_base64(whole))


def _words(raw: bytes) -> str:
    return raw.translate(_LOWER, _NO_WORD).decode("ascii")
