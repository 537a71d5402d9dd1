"""Find secrets in text and remove them: the third defence, after hidden reprs and translated errors.

A secret is known in two ways. By its shape: the query of a signed URL, its parameters alone, the value of an
Authorization header, userinfo in a URL, the id of a stable link, the parts of an S3 error that repeat the signature;
plain, percent-encoded any number of times, JSON-escaped, or (but ids) wrapped over lines. And by its text: every secret
given to ``register``. Host, bucket and key of a URL stay: ``http://h/b/k?REDACTED``.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import date, time, timedelta
from functools import cached_property
from typing import Any
from urllib.parse import quote, quote_plus

REDACTED = "REDACTED"
MIN_LITERAL = 8
"""Shorter secrets are not searched for. They occur in ordinary words: removing them would garble the log, and
the gaps would reveal the secret. No S3 server accepts a secret key shorter than this."""

_MAX_LITERALS = 256
_MAX_DEPTH = 12
_MAX_PLAIN = 4096

# --- shapes -------------------------------------------------------------------------------------
# Every repetition is bounded, or matches in only one way, so that no text takes more than linear time.
_PCT = r"%(?:25)*"
_ESC = r"\\{1,8}"
_EQ = rf"(?:=|{_PCT}3d|{_ESC}u003d)"
_BREAK = rf"(?:\\{{0,8}}[\r\n]|{_ESC}[rn])+[ \t|]*"  # tracebacks of exception groups have a margin of bars
_QUOTE = r"\\{0,8}[\"']"
_OPEN = rf"\s*[\[(]?(?:b?{_QUOTE})?"
_SLASHES = rf"(?::(?:\\{{0,8}}/){{2}}|{_PCT}3a(?:{_PCT}2f){{2}})"


def _any(*names: str) -> str:
    return "(?:" + "|".join(names) + ")"


def _name(words: str) -> str:
    """Return a pattern for a parameter's name: any case, hyphens encoded, wrapped at any place."""
    hyphen = rf"(?:[-_]|{_PCT}2d)"
    return rf"(?:{_BREAK})?".join(hyphen if letter == "-" else letter for letter in words)


_VENDOR = _any(_name("x-amz-"), _name("x-goog-"))
_SECRET = _VENDOR + _any(_name("signature"), _name("credential"), _name("security-token"))
_FIELD_NAMES = _any(_SECRET, "(?:secret_?)?access_?key(?:_?id)?", "secret_?key", "session_?token", "GoogleAccessId")
_BARE_NAMES = _any(_FIELD_NAMES, r"(?<![\w-])(?:Signature|Credential)")
_PARAMETERS = _any("Signature", "AWSAccessKeyId", "GoogleAccessId", "sig", "(?:access_|session_)?token")

# A character of a query, which ends where another URL starts; and a line that continues a wrapped query.
_CHAR = rf"(?:(?!https?{_SLASHES})[^\s\"'<>\\`{{}}|^]|{_ESC}(?:u00|x)[0-9a-f]{{2}}|{_ESC}/)"
_LINE_END = rf"(?=[ \t]*(?:\\{{0,8}}[\r\n\"'>)]|{_ESC}[rn]|$))"
_WHOLE_LINE = rf"(?=[a-f]+{_LINE_END}|[\w.~+/-]*[0-9%&=])[\w%&=.~+/-]++{_LINE_END}"
_BEFORE_WORDS = r"(?=[\w%&=.~+/-]*?(?:[0-9a-f]{8}|%2f|&x-))[\w%&=.~+/-]++"
_MORE = rf"{_BREAK}(?:{_WHOLE_LINE}|{_BEFORE_WORDS})"
_VALUE = rf"(?:(?![&,;]){_CHAR})"
_LINE = rf"(?:(?!{_ESC}[rn\"'])[^\r\n\"'])+"


class _Pattern:
    """A pattern for any case, compiled at its first use: few texts are searched for most of them."""

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self._text, re.IGNORECASE)

    def search(self, text: str) -> re.Match[str] | None:
        return self._compiled.search(text)

    def sub(self, by: str | Callable[[re.Match[str]], str], text: str) -> str:
        return self._compiled.sub(by, text)


_QUERY = _Pattern(rf"(\?|{_PCT}3f|{_ESC}u003f)({_CHAR}+(?:{_MORE})*)")
_SIGNED = _Pattern(rf"{_VENDOR}|(?:^|[&;?]|{_PCT}(?:26|3f)|u0026){_PARAMETERS}{_EQ}")
_FRAGMENT = _Pattern(rf"({_BARE_NAMES}{_EQ}(?:{_QUOTE})?)({_VALUE}+(?:{_MORE})*|(?:{_MORE})+)")
_FIELD = _Pattern(rf"({_FIELD_NAMES}(?:(?:{_QUOTE})?\s*[:=]|{_QUOTE}\s*,){_OPEN})({_VALUE}{{16,}})")
_AUTHORIZATION = _Pattern(rf"(authorization(?:(?:{_QUOTE})?\s*[:=]|{_QUOTE}\s*,){_OPEN}){_LINE}")
_SCHEME = _Pattern(rf"(AWS4-[A-Z0-9-]{{1,64}}\s+)Credential={_LINE}|(\bBearer\s+)[\w.~+/=-]{{8,}}")
_USERINFO = _Pattern(rf"(?<=\w)({_SLASHES})(?:(?!{_PCT}2f)[^\s/?#\"'<>\\])+(@|{_PCT}40)")
# A broker's token (presignd/broker/tokens.py); a whole one inside a word too: the F of %2F may come before it.
_TOKEN = _Pattern(r"(?:\b|(?=psd_[\w-]{20}))psd_[\w-]{8,}")
# The id of a stable link or an invitation: 22 characters of base64url below one of the broker's paths.
_SLASH = rf"(?:\\{{0,8}}/|{_PCT}2f|{_ESC}u002f)"
_LINK_ID = _Pattern(rf"({_SLASH}(?:l|i|v1{_SLASH}links){_SLASH})[\w-]{{22}}(?![\w-])")
_ELEMENT = _Pattern(
    r"(?s)<((?:AWS)?AccessKeyId|SignatureProvided|StringToSign(?:Bytes)?|CanonicalRequest(?:Bytes)?"
    r"|SecretAccessKey|SessionToken|Token-\d+)>.*?(</\1>|$)"
)
_PEM = _Pattern(r"(?s)(-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----).*?(-----END [A-Z ]{0,32}PRIVATE KEY-----|$)")
_WORDS = (
    *("amz", "goog", "signature", "credential", "accesskey", "access_key", "secret", "psd_", "authorization"),
    *("/l/", "/i/", "links/", "bearer", "token", "sig=", "-----begin"),
)
_ENCODED_WORDS = (
    *("2fl/", "2fi/", "l%", "i%", "links%", "l\\", "i\\", "links\\"),
    *("sig%", "sig\\", "<canon", "<string", "@", "%40", "%25"),
)
"""In lower case: each shape of a secret holds one of these words, at the latest once line breaks are removed. An
encoded word stands beside a character of ``_RARE``."""
_WRAPS = ("\\", "\r", "\n")
_SUSPECT = re.compile("|".join(map(re.escape, (*_WORDS, *_ENCODED_WORDS))), re.IGNORECASE)
_RARE = ("%", "<", "@", *_WRAPS)
_SUSPECT_WORDS = (*_RARE, *_WORDS)
"""Searching for the words one by one takes a tenth of a pattern's time, for a character a twentieth of a word's."""
_ESCAPED = bytes(range(32)) + b'"\\\x7f'
"""What JSON's string of an ASCII text has in another form; of DEL, so does ours."""
_WRAP = _Pattern(_BREAK)
_MAY_WRAP = re.compile(f"[{re.escape(''.join(_WRAPS))}]")

_SECRET_NAMES = frozenset(
    {
        *("authorization", "proxy-authorization", "cookie", "set-cookie", "password", "secret", "token"),
        *("secret-key", "secret-access-key", "aws-secret-access-key", "session-token", "aws-session-token"),
        *("x-amz-signature", "x-amz-credential", "x-amz-security-token", "signature", "awsaccesskeyid"),
    }
)


def _hide_query(match: re.Match[str]) -> str:
    return _hide_value(match) if _SIGNED.search(match[2]) else match[0]


def _hide_value(match: re.Match[str]) -> str:
    """Replace the second group; the punctuation of a sentence after it stays."""
    value = match[2]
    return match[1] + REDACTED + value[len(value.rstrip(").,;:!]")) :]


def _hide_shapes(text: str) -> str:
    text = _ELEMENT.sub(rf"<\1>{REDACTED}\2", text)
    text = _AUTHORIZATION.sub(rf"\1{REDACTED}", text)
    text = _SCHEME.sub(lambda match: f"{match[1] or match[2]}{REDACTED}", text)
    text = _PEM.sub(rf"\1{REDACTED}\2", text)
    text = _TOKEN.sub(REDACTED, text)
    text = _LINK_ID.sub(rf"\1{REDACTED}", text)
    text = _USERINFO.sub(rf"\1{REDACTED}\2", text)
    text = _QUERY.sub(_hide_query, text)
    text = _FRAGMENT.sub(_hide_value, text)
    return _FIELD.sub(_hide_value, text)


# --- registered secrets --------------------------------------------------------------------------
class _Literals:
    """The newest ``_MAX_LITERALS`` registered secrets, in every form they may be printed in.

    ``plain`` are texts in which none of ``forms`` was found (``are_plain``).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secrets: dict[str, None] = {}
        self.forms: tuple[str, ...] = ()
        self.plain: set[str] = set()

    def add(self, secret: str) -> None:
        with self._lock:
            self._secrets.pop(secret, None)
            self._secrets[secret] = None
            while len(self._secrets) > _MAX_LITERALS:
                del self._secrets[next(iter(self._secrets))]
            self._compile()

    def clear(self) -> None:
        with self._lock:
            self._secrets.clear()
            self._compile()

    def _compile(self) -> None:
        forms = {form for secret in self._secrets for form in _forms(secret)}
        self.forms = tuple(sorted(forms, key=lambda form: (-len(form), form)))
        self.plain = set()  # after the forms: what is searched for the old ones meanwhile goes into the old set

    def hide(self, text: str) -> str:
        for form in self.forms:
            if form in text:
                text = text.replace(form, REDACTED)
        return text


def _forms(secret: str) -> set[str]:
    """Return a secret as it is, percent-encoded, escaped for JSON, Python and HTML, in base64 and hex."""
    raw = secret.encode("utf-8", "surrogateescape")
    encoded = {quote(raw, safe=""), quote(raw), quote_plus(raw)}
    encoded |= {quote(form, safe="") for form in encoded}
    encoded |= {re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), form) for form in encoded}
    escaped = {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
    return {secret, html.escape(secret), raw.hex(), *encoded, *escaped, *_base64_forms(raw)}


def _base64_forms(raw: bytes) -> set[str]:
    """Return how ``raw`` looks in base64 at each of the three alignments (``user:secret`` in Basic)."""
    forms = set()
    for offset in range(3):
        text = base64.b64encode(bytes(offset) + raw).decode()
        whole = text[(0, 2, 3)[offset] : (offset + len(raw)) * 8 // 6]
        forms |= {whole, whole.replace("+", "-").replace("/", "_")}
    return forms


_literals = _Literals()


def register(secret: str) -> None:
    """Remove ``secret`` from every text from now on; one shorter than ``MIN_LITERAL`` is ignored."""
    if len(secret) >= MIN_LITERAL:
        _literals.add(secret)


def forget_all() -> None:
    """Drop every registered secret, so that a test's secrets do not change the texts of the next test."""
    _literals.clear()


# --- redaction ------------------------------------------------------------------------------------
def redact(text: str) -> str:
    """Return ``text`` with every secret in it replaced by ``REDACTED``; text without any is unchanged."""
    text = _literals.hide(text)
    if _SUSPECT.search(text) or (_MAY_WRAP.search(text) and _SUSPECT.search(_WRAP.sub("", text))):
        return _hide_shapes(text)
    return text


def is_clean(text: str) -> bool:
    """Return True, quickly, for one line of plain ASCII in which ``redact`` would change nothing, nor in its parts.

    False means that ``redact`` has to look. Every word that a secret's shape needs is in ``_SUSPECT_WORDS``.
    """
    if not text.isascii():
        return False
    for form in _literals.forms:
        if form in text:
            return False
    lower = text.lower()
    for word in _SUSPECT_WORDS:  # noqa: SIM110 - a generator would take twice as long, for each list of files
        if word in lower:
            return False
    return True


def are_plain(texts: Iterable[str]) -> bool:
    """Return whether each text is clean, and JSON's string of it is the text between quotes.

    The last ``_MAX_PLAIN`` are not searched again: the three lines of a file share most of their texts, and there are
    thousands of forms to search for where credentials are renewed each hour.
    """
    plain = _literals.plain
    new = {*texts} - plain
    joined = "|".join(new)
    if not (is_clean(joined) and len(joined.encode().translate(None, _ESCAPED)) == len(joined)):
        return False
    if len(plain) > _MAX_PLAIN:
        plain.clear()
    plain.update(new)
    return True


def redact_value(value: Any, *, depth: int = 0) -> Any:
    """Return ``value`` with every secret replaced, keys of mappings too.

    Numbers, dates, None and text keep their type; containers become dict, list or tuple. A value with a
    secret's name (``authorization``, ``token``, …) is replaced whole. Paths become text, exceptions
    ``Class: message``, anything else its repr, all redacted.
    """
    if value is None or isinstance(value, (bool, int, float, date, time, timedelta)):
        return value
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, (bytes, bytearray)):
        return redact(bytes(value).decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
    if depth < _MAX_DEPTH and isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return _redact_items(value, depth + 1)
    return redact(_shown(value))


def redact_texts(value: Any) -> Any:
    """Return JSON's types with each text redacted, whatever its name: public documents have no secret fields."""
    if isinstance(value, Mapping):
        return {redact(str(name)): redact_texts(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_texts(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def _redact_items(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        return {redact_key(name): redact_item(name, item, depth=depth) for name, item in value.items()}
    items = [redact_value(item, depth=depth) for item in value]
    return tuple(items) if isinstance(value, tuple) else items


def redact_key(name: Any) -> Any:
    """Return the name of a field, redacted."""
    return redact_value(name, depth=_MAX_DEPTH)


def redact_item(name: Any, value: Any, *, depth: int = 0) -> Any:
    """Return the value of the field ``name``, redacted; replaced whole when the name is a secret's."""
    words = name.decode("latin-1") if isinstance(name, bytes) else str(name)
    is_set = len(value) > 0 if isinstance(value, (str, bytes)) else not isinstance(value, (bool, type(None)))
    if words.lower().replace("_", "-") in _SECRET_NAMES and is_set:
        return REDACTED
    return redact_value(value, depth=depth)


def _shown(value: Any) -> str:
    try:
        return f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else repr(value)
    except Exception:  # noqa: BLE001 - a repr may raise anything, and logging must not
        return f"<{type(value).__name__}>"
