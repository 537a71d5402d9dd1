"""If a store repeats the request's signature, access key or token, it is removed; all else stays."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import time
from collections.abc import Callable
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.redaction.echoes import PIECE, ROOM, Secrets

SIGNATURE = hashlib.sha256(b"canary").hexdigest()
ACCESS_KEY = "AKIDCANARY0123456789"
SESSION = "FwoGZXIvYXdzEXAMPLE//token+of/a=session=="
URL = (
    f"http://h/b/k?X-Amz-Credential={ACCESS_KEY}%2F20261128%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Expires=900"
    f"&X-Amz-Security-Token={quote(SESSION, safe='')}&X-Amz-Signature={SIGNATURE}"
)
CUSTOMER_KEY = "Y3VzdG9tZXIta2V5LTAxMjM0NTY3ODk="
SECRETS = [SIGNATURE, ACCESS_KEY, SESSION, CUSTOMER_KEY]
ECHOES = Secrets().of(URL, {"x-amz-server-side-encryption-customer-key": CUSTOMER_KEY})
COATS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "upper case": str.upper,
    "percent": lambda text: "".join(f"%{ord(char):02x}" for char in text),
    "percent twice": lambda text: quote("".join(f"%{ord(char):02X}" for char in text)),
    "entities": lambda text: "".join(f"&#{ord(char)};" for char in text),
    "split": lambda text: " - ".join(text[at : at + 5] for at in range(0, len(text), 5)),
    "wrapped": lambda text: "\r\n\t".join(text[at : at + 20] for at in range(0, len(text), 20)),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "in a sentence": lambda text: f"the signature {text} you sent",
    "half": lambda text: text[: max(12, len(text) // 2)],
}


@pytest.mark.parametrize("coat", COATS)
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_said_again_in_any_form_is_silenced(secret: str, coat: str) -> None:
    said = COATS[coat](secret)
    headers = {"etag": f'"{said}"', "date": "Sat, 28 Nov 2026 17:00:00 GMT"}
    body = f"<Error><Code>AccessDenied</Code><Message>{said}</Message></Error>".encode()
    kept, text = ECHOES.redacted(headers, body)
    assert kept == {"etag": "REDACTED", "date": headers["date"]}
    assert text == b"<Error><Code>AccessDenied</Code><Message>REDACTED</Message></Error>"


@pytest.mark.parametrize(
    "body", [f"<{SIGNATURE}/>", f"<Error a='{SIGNATURE}'>", SIGNATURE, f"<!--{SIGNATURE}--><a>b</a>"]
)
def test_a_body_that_says_it_anywhere_else_is_dropped(body: str) -> None:
    assert ECHOES.redacted({}, body.encode())[1] == b""


@given(st.integers(0, len(SIGNATURE) - PIECE), st.integers(0, 40), st.integers(0, 40))
def test_a_piece_is_found_wherever_it_stands(start: int, before: int, after: int) -> None:
    assert ECHOES.are_in("z" * before + SIGNATURE[start : start + PIECE] + "z" * after)


HONEST = st.lists(
    st.one_of(
        st.sampled_from(
            ["us-east-1", "aws4_request", "Signature", "X-Amz-Credential", "20261128", "AKIDOTHER0123456789"]
        ),
        st.text(max_size=30),
        st.binary(min_size=16, max_size=16).map(bytes.hex),
        st.binary(min_size=32, max_size=32).map(lambda raw: base64.b64encode(raw).decode()),
    ),
    max_size=6,
).map(" ".join)


@given(HONEST, HONEST)
def test_an_honest_answer_stays_as_it_is(header: str, text: str) -> None:
    headers = {"etag": header}
    body = f"<Error><Message>{html.escape(text)}</Message></Error>".encode()
    assert ECHOES.redacted(headers, body) == (headers, body)


@given(st.binary())
def test_any_bytes_are_looked_at_without_harm(body: bytes) -> None:
    assert ECHOES.redacted({}, body) == ({}, body)


@pytest.mark.parametrize(
    "text", [SIGNATURE[10:16] + "z", f">{SIGNATURE[10:16]}zz<", SIGNATURE[:15] + "z", "0", "&amp;"]
)
def test_no_body_takes_long_to_search(text: str) -> None:
    """A hostile store repeats a block of the signature 9,000 times, and the loop must not stop for it."""
    body = (text * (64 << 10))[: 64 << 10].encode()
    started = time.process_time()
    ECHOES.redacted({"etag": body.decode()}, body)
    assert time.process_time() - started < 2


def test_an_access_key_may_be_any_word() -> None:
    """A short one isn't looked for; a longer one goes from what is told, but the bytes of an object stay whole."""
    short = Secrets().of("http://h/?X-Amz-Credential=test%2F2026&X-Amz-Signature=", {})
    assert not short.are_in("test-bucket")
    word = Secrets().of(f"http://h/?X-Amz-Credential=presignd%2F2026&X-Amz-Signature={SIGNATURE}", {})
    assert word.redacted({}, b"presignd check\n") == ({}, b"presignd check\n")
    assert word.redacted({}, b"<Message>no key presignd</Message>") == ({}, b"<Message>REDACTED</Message>")


def test_the_signature_of_an_earlier_request_is_known_for_a_while() -> None:
    """A hostile store says at a HEAD what it was sent with the PUT before."""
    secrets = Secrets()
    secrets.of(URL, {})
    later = [secrets.of(f"http://h/?X-Amz-Signature={hashlib.sha256(bytes([n])).hexdigest()}", {}) for n in range(9)]
    for said in (SIGNATURE, SIGNATURE.upper(), SIGNATURE[:32], SIGNATURE[20:52]):
        assert later[-1].redacted({"etag": f'"{said}"'}, b"")[0] == {"etag": "REDACTED"}
    for number in range(ROOM):
        last = secrets.of(f"http://h/?X-Amz-Signature={hashlib.sha256(number.to_bytes(4, 'big')).hexdigest()}", {})
    assert not last.are_in(SIGNATURE), "memory has a bound"


def test_the_signature_of_a_request_that_is_on_its_way_is_known_too() -> None:
    """A hostile store says in one answer what it was sent with another request at the same time."""
    secrets = Secrets()
    first, second = secrets.of("http://h/?X-Amz-Signature=" + "0123456789abcdef" * 4, {}), secrets.of(URL, {})
    assert secrets.redacted(second, {"etag": '"honest"'}, b"") == ({"etag": '"honest"'}, b"")
    assert secrets.redacted(first, {"etag": f'"{SIGNATURE}"'}, b"") == ({"etag": "REDACTED"}, b"")


def test_a_header_is_searched_whenever_it_differs_from_that_of_the_last_answer() -> None:
    secrets = Secrets()
    echoes = secrets.of(URL, {})
    for said in ("one", "two", SIGNATURE, SIGNATURE, "two", SIGNATURE):
        kept, _ = secrets.redacted(echoes, {"etag": said, "server": "s"}, b"")
        assert kept == {"etag": "REDACTED" if said == SIGNATURE else said, "server": "s"}
    _, body = secrets.redacted(echoes, {"etag": "two", "server": "s"}, SIGNATURE.encode())
    assert body == b""


def looked_through(text: str) -> bool:
    """Look for each piece of each secret in each form, without any of the short cuts."""
    plain = text
    for _ in range(3):
        plain = html.unescape(unquote(plain))
    runs = re.findall(r"[A-Za-z0-9+/]{16,}", text.replace("-", "+").replace("_", "/"))
    forms = [plain, *(base64.b64decode(run[: len(run) // 4 * 4]).decode("latin-1") for run in runs)]
    bare = ["".join(re.findall(r"[a-z0-9]", form.encode("ascii", "ignore").decode().lower())) for form in forms]
    secrets = ["".join(re.findall(r"[a-z0-9]", secret.lower())) for secret in SECRETS]
    pieces = [secret[at : at + PIECE] for secret in secrets for at in range(len(secret) - PIECE + 1)]
    return any(piece in form for piece in pieces for form in bare)


ECHOED = st.builds(
    lambda secret, coat, start, end: COATS[coat](secret[start:end]),
    st.sampled_from(SECRETS),
    st.sampled_from(sorted(COATS)),
    st.integers(0, 20),
    st.integers(0, 64),
)


@given(st.lists(st.one_of(ECHOED, HONEST), max_size=4).map("".join))
def test_the_short_cuts_find_what_a_search_for_each_piece_finds(text: str) -> None:
    assert ECHOES.are_in(text) == looked_through(text)


@pytest.mark.parametrize("place", ["first", "between", "last"])
def test_a_signature_is_known_wherever_it_stands_in_the_query(place: str) -> None:
    """A broker may put the parameters in any order."""
    others = [f"X-Amz-Credential={ACCESS_KEY}%2F20261128", f"X-Amz-Security-Token={quote(SESSION, safe='')}"]
    others.insert(["first", "between", "last"].index(place), f"X-Amz-Signature={SIGNATURE}")
    echoes = Secrets().of(f"http://h/b/k?{'&'.join(others)}", {})
    assert all(echoes.are_in(secret) for secret in (SIGNATURE, ACCESS_KEY, SESSION))
