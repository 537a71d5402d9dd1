"""No secret stays, nothing else changes, and redacting twice changes nothing more."""

from __future__ import annotations

import base64
import json
import string
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from presignd.redaction import redact as redact_module
from presignd.redaction.redact import (
    MIN_LITERAL,
    REDACTED,
    are_plain,
    forget_all,
    is_clean,
    redact,
    redact_value,
    register,
)

SIGNATURE = "0123456789abcdef" * 4
CREDENTIAL = "AKIDEXAMPLE12345/20261123/us-east-1/s3/aws4_request"
TOKEN = "FwoGZXIvYXdzEXAMPLE//token+of/a=session=="
PLACE = "http://h:9000/b/my%20key.txt"


@pytest.fixture(autouse=True)
def nothing_registered() -> Iterator[None]:
    forget_all()
    yield
    forget_all()


def signed(place: str = PLACE, signature: str = SIGNATURE, credential: str = CREDENTIAL) -> str:
    return (
        f"{place}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={quote(credential, safe='')}"
        "&X-Amz-Date=20261123T000000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host"
        f"&X-Amz-Security-Token={quote(TOKEN, safe='')}&X-Amz-Signature={signature}"
    )


URL = signed()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (URL, f"{PLACE}?REDACTED"),
        (f"PUT {URL} failed", f"PUT {PLACE}?REDACTED failed"),
        (f"({URL}).", f"({PLACE}?REDACTED)."),
        (f"{URL},{URL}", f"{PLACE}?REDACTED,{PLACE}?REDACTED"),
        (f"url=URL('{URL}')", f"url=URL('{PLACE}?REDACTED')"),
        (f"<{URL}>", f"<{PLACE}?REDACTED>"),
        (URL[:140], f"{PLACE}?REDACTED"),
        (URL.replace("&", "&amp;"), f"{PLACE}?REDACTED"),
        (URL.lower(), f"{PLACE}?REDACTED"),
        (f"http://other/?next={URL}", f"http://other/?next={PLACE}?REDACTED"),
        (f"http://other/?next={quote(URL, safe='')}", f"http://other/?next={quote(PLACE, safe='')}%3FREDACTED"),
        (quote(URL, safe=""), f"{quote(PLACE, safe='')}%3FREDACTED"),
        (json.dumps({"u": URL}).replace("&", r"\u0026"), f'{{"u": "{PLACE}?REDACTED"}}'),
        (json.dumps({"u": URL}).replace("/", r"\/"), f'{{"u": "{PLACE}?REDACTED"}}'.replace("/", r"\/")),
        (f"{PLACE}?AWSAccessKeyId=AKID&Expires=17&Signature=ab%2Bc%3D", f"{PLACE}?REDACTED"),
        (f"{PLACE}?X-Goog-Signature=abc", f"{PLACE}?REDACTED"),
        ("http://127.0.0.1:8321/?token=abcdef", "http://127.0.0.1:8321/?REDACTED"),
        ("https://user:pass@proxy:3128/", "https://REDACTED@proxy:3128/"),
        ("https%3A%2F%2Fuser%3Apass%40proxy%2F", "https%3A%2F%2FREDACTED%40proxy%2F"),
    ],
)
def test_of_a_signed_url_host_bucket_and_key_stay(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"X-Amz-Signature={SIGNATURE}", "X-Amz-Signature=REDACTED"),
        (f"x-amz-signature%253D{SIGNATURE}", "x-amz-signature%253DREDACTED"),
        (f"a=1&X-Amz-Signature={SIGNATURE}&b=2", "a=1&X-Amz-Signature=REDACTED&b=2"),
        (f"{{'X-Amz-Signature': ['{SIGNATURE}']}}", "{'X-Amz-Signature': ['REDACTED']}"),
        (f'{{"x-amz-security-token": "{TOKEN}"}}', '{"x-amz-security-token": "REDACTED"}'),
        ("X-Amz-Signature=short", "X-Amz-Signature=REDACTED"),
        ("AWS_SECRET_ACCESS_KEY=abc/def", "AWS_SECRET_ACCESS_KEY=REDACTED"),
        (
            f"Authorization: AWS4-HMAC-SHA256 Credential={CREDENTIAL}, SignedHeaders=host, Signature={SIGNATURE}\nx",
            "Authorization: REDACTED\nx",
        ),
        (
            f"sent AWS4-HMAC-SHA256 Credential={CREDENTIAL}, SignedHeaders=host, Signature={SIGNATURE}",
            "sent AWS4-HMAC-SHA256 REDACTED",
        ),
        ("{'Authorization': 'Bearer abc', 'Host': 'h'}", "{'Authorization': 'REDACTED', 'Host': 'h'}"),
        ("[(b'authorization', b'Bearer abc')]", "[(b'authorization', b'REDACTED')]"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "{'Authorization': 'REDACTED'}"),
        ("token was Bearer abcdefgh12", "token was Bearer REDACTED"),
        (
            "<Error><AWSAccessKeyId>AKID</AWSAccessKeyId><StringToSign>AWS4\n2026\nab</StringToSign></Error>",
            "<Error><AWSAccessKeyId>REDACTED</AWSAccessKeyId><StringToSign>REDACTED</StringToSign></Error>",
        ),
        ("<SignatureProvided>abcd", "<SignatureProvided>REDACTED"),
    ],
)
def test_a_secret_without_its_url_goes_too(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "photos/2026/summer ü.jpg",
        "signature_mismatch: the signature does not match (403)",
        "set presign.access_key and presign.secret_key (or secret_key_file), AWS_* or a shared file",
        "presign.secret_key: must not be empty",
        "the X-Amz-Signature header is missing",
        "http://h/b/k?uploadId=abc&partNumber=3",
        "http://h/b/k?response-content-type=text/plain",
        "mail a@b.example about http://h/k",
        "file:///srv/a@b/c",
        "what? yes: http://h/k",
        "token.txt and X-Amz-report.txt",
        "line one\nline two\n\tindented",
        "C:\\new\\raw",
        "authorization is by token",
    ],
)
def test_what_holds_no_secret_is_left_alone(text: str) -> None:
    assert redact(text) == text


def json_text(text: str) -> str:
    return json.dumps({"u": text, "n": 1})


def quoted(text: str) -> str:
    return quote(text, safe="")


def twice_quoted(text: str) -> str:
    return quoted(quoted(text))


def go_json(text: str) -> str:
    """Escape ``&`` as Go's encoder does."""
    return json_text(text).replace("&", r"\u0026")


def twice_json(text: str) -> str:
    return json.dumps(json_text(text))


COATS = st.sampled_from([str, repr, json_text, go_json, twice_json, quoted, twice_quoted, quote])
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
KEY_ID = st.text(string.ascii_uppercase + string.digits, min_size=16, max_size=20)
PLACES = st.builds(
    lambda host, path: f"http://{host}:9000/bucket/{quote(path)}",
    st.sampled_from(["127.0.0.1", "minio.example", "[::1]"]),
    st.text(min_size=1, max_size=12).filter(lambda text: text.encode("utf-8", "ignore").decode() == text),
)
WORDS = st.text(string.ascii_lowercase + " .,", max_size=20).map(lambda text: f" {text} ")


@given(PLACES, HEX, KEY_ID, COATS, st.tuples(WORDS, WORDS))
def test_no_part_of_a_signed_url_stays_in_any_coat_and_the_rest_does(
    place: str, signature: str, key_id: str, coat: Callable[[str], str], around: tuple[str, str]
) -> None:
    before, after = around
    url = signed(place, signature, f"{key_id}/20261123/r/s3/aws4_request")
    shown = redact(before + coat(url) + after)
    assert signature not in shown
    assert key_id not in shown
    assert "EXAMPLE" not in shown
    assert shown.startswith(before)
    assert shown.endswith(after)
    assert REDACTED in shown
    assert "bucket" in shown


@given(PLACES, HEX, KEY_ID, st.tuples(WORDS, WORDS))
def test_of_a_signed_url_in_a_sentence_only_the_query_goes(
    place: str, signature: str, key_id: str, around: tuple[str, str]
) -> None:
    """Of a key that has a question mark of its own the rest may go with it: it looks like an encoded URL."""
    assume("%3F" not in place)
    before, after = around
    url = signed(place, signature, f"{key_id}/20261123/r/s3/aws4_request")
    assert redact(before + url + after) == f"{before}{place}?{REDACTED}{after}"


@given(HEX, st.integers(20, 120), st.sampled_from(["\n", "\r\n", "\n    ", "\\\n", "\\n", "\\n\t"]))
def test_a_url_wrapped_over_lines_keeps_no_piece_of_its_signature(signature: str, width: int, wrap: str) -> None:
    url = signed(signature=signature)
    wrapped = wrap.join(url[start : start + width] for start in range(0, len(url), width))
    shown = redact(f"sent {wrapped}\nThe next line stays")
    pieces = {signature[start : start + 8] for start in range(len(signature) - 7)}
    assert not [piece for piece in pieces if piece in shown]
    assert "EXAMPLE" not in shown
    assert shown.endswith("\nThe next line stays")


@given(PLACES, HEX, KEY_ID, COATS)
def test_redacting_twice_changes_no_more(place: str, signature: str, key_id: str, coat: Callable[[str], str]) -> None:
    once = redact(coat(signed(place, signature, key_id)))
    assert redact(once) == once


PIECES = st.sampled_from(
    [
        *("?", "&", "=", "%3F", "%253D", "\\u0026", "\\n", "\n", " ", '"', "'", ",", ";", ")", "\\", "/", ":", "b"),
        *("X-Amz-Signature", "X-Amz-", "Signature", "Credential", "token", "Bearer ", "Authorization", "http://"),
        *("AWS4-HMAC-SHA256 ", "@", "%40", "<StringToSign>", "</StringToSign>", "secret_key", "abc1", "REDACTED"),
    ]
)


@given(st.lists(PIECES, max_size=14).map("".join))
def test_whatever_the_text_redacting_twice_changes_no_more(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@given(st.text(alphabet=st.characters(exclude_characters="@%=:\\?<", exclude_categories=["Cs"])))
def test_text_without_a_sign_of_a_secret_never_changes(text: str) -> None:
    if not any(word in text.lower() for word in ("bearer", "authorization", "aws4")):
        assert redact(text) == text


SECRETS = st.text(st.characters(exclude_categories=["Cs"]), min_size=MIN_LITERAL, max_size=40).filter(
    lambda text: text not in REDACTED and REDACTED not in text
)


@given(SECRETS)
def test_a_registered_secret_goes_in_every_form(secret: str) -> None:
    forget_all()
    register(secret)
    raw = secret.encode()
    forms = [
        secret,
        quote(secret, safe=""),
        quote(quote(secret, safe=""), safe=""),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        raw.hex(),
        base64.b64encode(raw).decode().rstrip("="),
        base64.urlsafe_b64encode(raw).decode().rstrip("="),
    ]
    for form in forms:
        shown = redact(f"[{form}]")
        assert form[2:-2] not in shown.replace(REDACTED, "")
        assert redact(f"[{form}]") == shown


@pytest.mark.parametrize("user", ["u", "us", "use", "user"])
def test_a_registered_secret_goes_from_basic_credentials_at_every_alignment(user: str) -> None:
    register("correct-horse-battery")
    basic = base64.b64encode(f"{user}:correct-horse-battery".encode()).decode()
    whole = redact(f"proxy says {basic}")
    assert REDACTED in whole
    assert basic[12:-8] not in whole


def test_a_short_secret_is_not_searched_for() -> None:
    """It occurs in ordinary words: removing it would garble the log and tell the secret by the gaps."""
    register("drop")
    assert redact("dropped in /srv/drop") == "dropped in /srv/drop"


def test_a_session_whose_credentials_rotate_keeps_the_newest() -> None:
    for number in range(1000):
        register(f"session-token-{number:04}")
    assert redact("session-token-0999") == REDACTED
    assert redact("session-token-0000") == "session-token-0000"


class Awkward:
    def __repr__(self) -> str:
        return f"<Awkward {URL}>"


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError(URL)


def test_values_are_redacted_however_deep() -> None:
    value = {
        "plain": [1, 2.5, None, True, "text"],
        "urls": (URL, [URL.encode(), {URL: {"x": URL}}]),
        "error": ValueError(f"GET {URL}"),
        "object": Awkward(),
    }
    assert redact_value(value) == {
        "plain": [1, 2.5, None, True, "text"],
        "urls": (
            f"{PLACE}?REDACTED",
            [f"{PLACE}?REDACTED".encode(), {f"{PLACE}?REDACTED": {"x": f"{PLACE}?REDACTED"}}],
        ),
        "error": f"ValueError: GET {PLACE}?REDACTED",
        "object": f"<Awkward {PLACE}?REDACTED>",
    }


@pytest.mark.parametrize("name", ["Authorization", "secret_key", "X-Amz-Signature", "token", b"authorization"])
def test_a_field_whose_name_says_secret_is_replaced_whole(name: object) -> None:
    assert redact_value({name: "short"}) == {name: REDACTED}
    assert redact_value({name: ""}) == {name: ""}


def test_an_exception_group_and_its_kind_show_no_url() -> None:
    group = ExceptionGroup("uploads", [ValueError(URL), OSError(5, "io", URL)])
    assert SIGNATURE not in str(redact_value([group, group.exceptions]))


def test_a_value_that_holds_itself_or_breaks_when_shown_does_no_harm() -> None:
    loop: list[object] = [URL]
    loop.append(loop)
    assert SIGNATURE not in str(redact_value(loop))
    assert redact_value(Broken()) == "<Broken>"


def test_bytes_that_are_no_utf8_come_back_as_they_were() -> None:
    assert redact_value(b"\xff\xfe caf\xe9") == b"\xff\xfe caf\xe9"
    assert redact_value(b"\xff " + URL.encode()) == b"\xff " + f"{PLACE}?REDACTED".encode()


def test_times_and_paths_keep_their_meaning() -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    assert redact_value({"time": now, "path": Path("/srv/a")}) == {"time": now, "path": "/srv/a"}


@pytest.mark.parametrize(
    "text",
    [
        *("?" * 50_000, "\\" * 50_000, "\n" * 50_000 + "amz", "x-\n" * 10_000 + "amz", "%25" * 20_000 + "40"),
        *("?x-amz-" * 5_000, "X-Amz-Signature=" * 5_000, "x-amz-signature=\n1" * 3_000, "authorization:" * 5_000),
        *("://a" * 10_000 + " @", "http://" + "a" * 100_000 + " @", "<StringToSign>" * 2_000, ")" * 50_000 + "amz"),
        *("authorization: " + "\\" * 50_000, "secret_key='" + "\\'" * 20_000, "?x-amz-" + "\n1" * 20_000),
        "secretAWS4-" * 20_000,
    ],
    ids=lambda text: ascii(text[:16]),
)
def test_no_text_takes_more_than_linear_time(text: str) -> None:
    """A store's error body is a stranger's text; the bound is generous: quadratic would take minutes."""
    started = time.process_time()
    redact(text)
    assert time.process_time() - started < 2


def test_a_text_with_a_registered_secret_is_looked_at_closely() -> None:
    """Whatever it looks like: no shape tells that it is one."""
    assert is_clean("an everyday word")
    register("an everyday word")
    assert not is_clean("about an everyday word, quickly")


WORDS_OF_SECRETS = st.one_of(
    PIECES,
    st.sampled_from(["psd_", "psd_0123456789", "PSD_ABCDEFGHIJ", "-----BEGIN PRIVATE KEY-----", "Token-1", "x-goog-"]),
    st.sampled_from(["<StringToSign>", "<AccessKeyId>", "secret_access_key: ", "sig=", "sig%3D", "u:p@h"]),
    st.text(st.characters(max_codepoint=126, exclude_categories=["Cc"]), max_size=20),
)


@given(st.lists(WORDS_OF_SECRETS, max_size=8).map("".join))
def test_what_a_quick_look_calls_clean_is_changed_by_no_close_one(text: str) -> None:
    """Log lines that look clean are not redacted at all."""
    if is_clean(text):
        assert redact(text) == text


@given(st.lists(WORDS_OF_SECRETS | st.text(max_size=9), max_size=8))
def test_texts_that_a_quick_look_calls_plain_need_neither_redaction_nor_an_escape(texts: list[str]) -> None:
    if are_plain(texts):
        for text in texts:
            assert redact(text) == text
            assert json.dumps(text) == f'"{text}"'


def test_what_was_plain_is_searched_again_once_it_is_a_secret() -> None:
    assert are_plain(["a/plain/path.txt"])
    register("plain/path")
    assert not are_plain(["a/plain/path.txt"])


def test_of_the_texts_that_are_plain_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact_module, "_MAX_PLAIN", 3)
    for number in range(9):
        assert are_plain([f"{number}.txt"])
    assert 0 < len(redact_module._literals.plain) <= 4


@pytest.mark.parametrize("before", ["", "inbox/", "inbox_", "inbox%2F", "inbox%252F", "\\n", "x", "PSD_"])
def test_a_brokers_token_goes_wherever_it_begins(before: str) -> None:
    """A word's boundary tells nothing: in an encoded path a letter stands before it."""
    token = "psd_" + "0123456789abcdefghijklmnopqrstuvwxyz-ABCDEF"
    assert "0123456789abcdef" not in redact(f'{{"key": "{before}{token}"}}')


@pytest.mark.parametrize("name", ["layers_psd_small.png", "mypsd_export_v2", "psd_x"])
def test_a_name_that_is_too_short_for_a_token_stays(name: str) -> None:
    assert redact(name) == name


def test_a_brokers_token_is_no_clean_text() -> None:
    assert not is_clean('{"key": "inbox/psd_0123456789abcdef", "client": "scanner"}')


@pytest.mark.parametrize("kind", ["", "RSA ", "EC "])
def test_of_a_private_key_only_its_frame_stays(kind: str) -> None:
    begin, end = f"-----BEGIN {kind}PRIVATE KEY-----", f"-----END {kind}PRIVATE KEY-----"
    assert redact(f"x {begin}\nMIIEvQ\n{end} y") == f"x {begin}REDACTED{end} y"
    assert redact(f"{begin}\\nMIIEv") == f"{begin}REDACTED"


LINK_ID = "Ab-_EfGhIjKlMnOpQrSt09"


@pytest.mark.parametrize("place", ["/l/", "/i/", "/v1/links/", "https://files.example.org/l/"])
@pytest.mark.parametrize("after", ["", "/report.pdf", "?x=1", " 302", "\n", '"'])
@pytest.mark.parametrize(
    "coat",
    [
        str,
        lambda text: quote(text, safe=""),
        lambda text: quote(quote(text, safe=""), safe=""),
        lambda text: quote(text, safe="").lower().replace(LINK_ID.lower(), LINK_ID),
        lambda text: text.replace("/", r"\/"),
        lambda text: text.replace("/", r"\u002f"),
        lambda text: text.replace("/", "%2F", 1),
        lambda text: "/".join(text.rsplit("/", 1)).replace(f"/{LINK_ID}", f"%2f{LINK_ID}"),
    ],
)
def test_the_id_of_a_link_goes_and_its_place_stays(place: str, after: str, coat: Callable[[str], str]) -> None:
    text = coat(f"{place}{LINK_ID}") + coat(after)
    assert redact(text) == text.replace(LINK_ID, REDACTED)
    assert not is_clean(text)


@pytest.mark.parametrize("text", ["/v1/links/revoke", f"/l/{LINK_ID}x", "/i/report.pdf", "b/links/a", f"/b/{LINK_ID}"])
def test_what_is_no_id_of_a_link_stays(text: str) -> None:
    assert redact(text) == text
