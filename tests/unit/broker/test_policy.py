"""The policy: no request, however it is written, yields a grant outside what its token may have.

``PRESIGND_POLICY_DECISIONS=1000000 pytest --timeout=0 tests/unit/broker/test_policy.py`` is the long run: five
minutes or so.
"""

from __future__ import annotations

import itertools
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from presignd.broker.config import TokenConfig
from presignd.broker.policy import CLOCK_SLACK, CONTENT_HEADERS, Refusal, RefusalCode, decide
from presignd.config import PresignConfig
from presignd.presign import Grant, GrantRequest, Operation
from presignd.presign.credentials import Credentials, CredentialSource
from presignd.presign.local import LocalPresigner
from presignd.s3.sigv4 import Keys

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
MD5, SHA256 = "md5:" + "00" * 16, "sha256:" + "00" * 32
ENDPOINT = "http://127.0.0.1:9000"
EXAMPLES = -(-int(os.environ.get("PRESIGND_POLICY_DECISIONS", "4500")) // len(Operation))


def token(**options: Any) -> TokenConfig:
    given = {"name": "scanner-1", "hash": "sha256:" + "0" * 64, "bucket": "bucket", **options}
    return TokenConfig.model_validate(given)


TOKEN = token(max_size="1MiB", max_put_expires="1h", max_link_expires="1d")
PUT = GrantRequest(Operation.PUT, "bucket", "scanner-1/a", 60, size=5, checksum=MD5)


def code_of(answer: GrantRequest | Refusal) -> str:
    return answer.code if isinstance(answer, Refusal) else ""


# --- what hypothesis tries ------------------------------------------------------------------------------

PREFIXES = ("scanner-1/", "", "a/b c/", "caf\u00e9/", "cafe\u0301/", "100%/")
PIECES = st.sampled_from(
    [
        *("/", "\\", "//", ".", "..", "...", "../", "..\\", "%2e%2e/", "%2E%2e%2f", "%252e%252e%252f", "%5c", "%00"),
        *(
            "\x00",
            "\n",
            "\r\n",
            "\uff0e\uff0e/",
            "\uff0e\uff0e\uff0f",
            "\u2025/",
            "\u2024\u2024/",
            "\uff05%2e",
            "%ef%bc%8e",
        ),
        *("%c0%ae%c0%ae%c0%af", "..;/", "..;x=1/", ";", "?", "#", "&", "=", "+", " ", "%", "%2", "%zz", "\ud800"),
        *(
            "scanner-1",
            "scanner-2",
            "scanner-10/",
            "secret",
            "a",
            ".presignd-check",
            "caf\u00e9",
            "cafe\u0301",
            "\u212b",
        ),
        *("?X-Amz-Signature=x", "uploads", "\u202e", "\ufeff", "\ufffe", "bucket/", "http://h/"),
    ]
)
SCRAPS = st.lists(PIECES | st.text(max_size=4), max_size=8).map("".join)
COATS = (
    "../",
    "%2e%2e/",
    "%252E%252e%252f",
    "..%2f",
    "..%5c",
    "\uff0e\uff0e/",
    "%ef%bc%8e%ef%bc%8e/",
    "%c0%ae%c0%ae/",
    "..;/",
)
CLIMBS = st.tuples(
    st.sampled_from(PREFIXES), st.sampled_from(COATS), st.integers(1, 4), st.sampled_from(["a", "scanner-2/a"])
).map(lambda parts: parts[0] + parts[1] * parts[2] + parts[3])
KEYS = st.one_of(
    CLIMBS,
    st.sampled_from(["a", "scanner-2/a", "scanner-10/a", "scanner-1", "caf\u00e9/a", "b c/a", "100%25/a"]),
    st.tuples(st.sampled_from(PREFIXES), SCRAPS).map("".join),
    SCRAPS,
    st.text(max_size=30),
    st.just("x" * 1100),
)
HEADER_NAMES = st.sampled_from(
    [
        *("x-amz-acl", "X-Amz-Grant-Read", "x-amz-copy-source", "x-amz-copy-source-range", "Host", "Content-Length"),
        *("x-amz-meta-a", "X-AMZ-META-B", "x-amz-tagging", "x-amz-storage-class", "Cache-Control", "content-md5"),
        *("Content-Disposition", "x-amz-website-redirect-location", "x-amz-object-lock-mode", "Transfer-Encoding"),
        *("x-amz-server-side-encryption", "x-amz-server-side-encryption-customer-key", "x-amz-checksum-sha256", ""),
        *("x-amz-meta-a\r\nx-amz-acl", "x-amz-security-token", "x-amz-content-sha256", "Authorization", "Range"),
    ]
)
HEADERS = st.dictionaries(
    HEADER_NAMES | st.text(max_size=8), st.sampled_from(["1", "a b", "x\r\ny: z", "é"]), max_size=3
)
OPERATIONS = ("put", "multipart", "head", "get", "delete")
TOKENS = st.builds(
    token,
    prefix=st.sampled_from(PREFIXES),
    operations=st.sets(st.sampled_from(OPERATIONS), max_size=2).map(
        lambda out: [o for o in OPERATIONS if o not in out]
    ),
    headers=st.lists(
        st.sampled_from(["x-amz-meta-*", "x-amz-tagging", "cache-control", "x-amz-server-side-encryption*"]),
        unique=True,
    ),
    max_size=st.sampled_from(["", 0, 5, 5, 6, "1MiB"]),
    max_put_expires=st.sampled_from(["1s", "1h", "7d"]),
    max_link_expires=st.sampled_from(["1s", "15m", "7d"]),
)
NUMBERS = st.integers(1, 10) | st.sampled_from([0, 1, 5, 6, 1 << 20, (1 << 20) + 1, 1 << 63, -1]) | st.integers()
DATES = st.sampled_from(
    [
        NOW,
        NOW + timedelta(minutes=5),
        NOW + timedelta(minutes=6),
        NOW + timedelta(days=365),
        datetime(999, 1, 1, tzinfo=UTC),
    ]
) | st.datetimes(timezones=st.sampled_from([UTC, None]))
CRC = "crc64nvme:" + "00" * 8
OF_CHECKSUMS = {f"x-amz-checksum-{name}" for name in ("sha256", "crc64nvme", "algorithm", "type", "mode")}
ODD: dict[str, st.SearchStrategy[Any]] = {
    "bucket": st.sampled_from(["other", "", "Bucket", "bucket/", "bucket/../other", "."]),
    "key": KEYS,
    "expires": st.sampled_from([1, 3600, 3601, 604_800, 604_801, 1 << 70, 0, -1]),
    "size": st.none() | NUMBERS,
    "content_type": st.sampled_from(["", "a\r\nb"]),
    "checksum": st.sampled_from(["", SHA256, CRC, "md5:", "crc32:00000000", "sha256:" + "zz" * 32]),
    "checksum_algorithm": st.sampled_from(["CRC64NVME", "crc64nvme", "a\r\nb"]),
    "checksum_type": st.sampled_from(["FULL_OBJECT", "COMPOSITE", "x"]),
    "checksum_mode": st.sampled_from(["ENABLED", "enabled"]),
    "headers": HEADERS,
    "if_none_match": st.just(True),
    "if_match": st.sampled_from(['"x"', "a\nb"]),
    "date": DATES,
    "public": st.just(True),
    "upload_id": st.sampled_from(["", "u&partNumber=1", "../x", "?"]),
    "part_number": NUMBERS,
}
"""What each field of a request can be made; a request is as it should be but for a few of them."""


@st.composite
def asked_of(draw: st.DrawFn) -> tuple[TokenConfig, GrantRequest]:
    """Make a token, and a request that is within it but for up to three fields."""
    of = draw(TOKENS)
    key = of.prefix + draw(SCRAPS | st.just("a/b.txt"))
    right = replace(PUT, key=key, size=5, content_type="text/plain", upload_id="u", part_number=1)
    odd = draw(st.sets(st.sampled_from(sorted(ODD)), max_size=3))
    return of, replace(right, **{name: draw(ODD[name]) for name in sorted(odd)})


# --- and what no grant may be ---------------------------------------------------------------------------

SETTINGS = PresignConfig(
    endpoint=ENDPOINT,
    access_key="a",
    secret_key=SecretStr("secret-key"),
    region="r",
    public_endpoint="https://p.example",
)
CREDENTIALS = Credentials(Keys("a", "secret-key"), "test")


async def _region(_: str) -> str:
    return "r"


SIGNER = LocalPresigner(
    SETTINGS,
    region_of=_region,
    credentials=CredentialSource(SETTINGS, clock=lambda: NOW, find=lambda: CREDENTIALS),
    clock=lambda: NOW,
)
CHANGES: tuple[Callable[[str], str], ...] = (
    unquote,
    lambda path: unicodedata.normalize("NFKC", path),
    lambda path: unicodedata.normalize("NFC", path),
    lambda path: path.replace("\\", "/"),
    lambda path: path.partition("\0")[0],
    lambda path: re.sub(r";[^/]*", "", path),
)


def readings(path: str) -> set[str]:
    """Return how any chain of three careless servers could read a path, resolved; an oracle of its own."""
    found = {path}
    for chain in itertools.product(CHANGES, repeat=3):
        text = path
        for change in chain:
            text = change(text)
            found.add(text)
    return {posixpath.normpath(text) for text in found}


def assert_within(of: TokenConfig, asked: GrantRequest, grant: Grant) -> None:
    """Judge a grant by what is sent alone: its method, URL and headers."""
    parts = urlsplit(grant.url)
    query = parse_qs(parts.query, keep_blank_values=True)
    assert f"{parts.scheme}://{parts.netloc}" == ("https://p.example" if asked.public else ENDPOINT)
    assert grant.url.isascii()
    assert grant.url.isprintable()
    root = f"/{of.bucket}/{of.prefix}"
    sent = unquote(parts.path)
    assert sent.startswith(root)
    for path in readings(sent) if not re.fullmatch(r"[\w./ -]*", sent, re.ASCII) else {posixpath.normpath(sent)}:
        assert any(path.startswith(start.rstrip("/")) for start in readings(root)), path
    _assert_operation(of, asked.operation, grant.method, sent, query)
    _assert_bound(of, asked.operation, grant, query)


def _assert_operation(of: TokenConfig, asked: Operation, method: str, path: str, query: dict[str, list[str]]) -> None:
    own = {name for name in query if not name.startswith("X-Amz-")}
    many = {name: values for name, values in query.items() if len(values) > 1}
    assert not many
    what = {
        ("PUT", frozenset()): "put",
        ("GET", frozenset()): "get",
        ("HEAD", frozenset()): "head",
        ("DELETE", frozenset()): "delete",
        ("POST", frozenset({"uploads"})): "multipart",
        ("PUT", frozenset({"uploadId", "partNumber"})): "multipart",
        ("GET", frozenset({"uploadId"})): "multipart",
        ("GET", frozenset({"uploadId", "part-number-marker"})): "multipart",
        ("POST", frozenset({"uploadId"})): "multipart",
        ("DELETE", frozenset({"uploadId"})): "multipart",
    }[method, frozenset(own)]
    assert what == asked.partition(".")[0]
    if what == "delete":
        assert path.endswith("/.presignd-check")
        assert {"put", "delete"} & set(of.operations)
    else:
        assert what in of.operations


def _assert_bound(of: TokenConfig, asked: Operation, grant: Grant, query: dict[str, list[str]]) -> None:
    names = [name.lower() for name in grant.headers]
    assert sorted([*names, "host"]) == query["X-Amz-SignedHeaders"][0].split(";")
    own = {"content-length", "if-none-match", "if-match", *OF_CHECKSUMS} | CONTENT_HEADERS
    for name in set(names) - own:
        assert any(re.fullmatch(pattern.replace("*", ".*"), name) for pattern in of.headers), name
        assert not re.match(r"x-amz-(acl|grant|copy)", name)
    for value in grant.headers.values():
        assert not re.search(r"[\r\n\0]", value)
    sent = {name.lower(): value for name, value in grant.headers.items()}
    if asked in (Operation.PUT, Operation.MULTIPART_PART):
        part = int(query.get("partNumber", ["1"])[0])
        assert of.max_size is None or int(sent["content-length"]) * part <= of.max_size
        assert sent.keys() & {"content-md5", "x-amz-checksum-sha256", "x-amz-checksum-crc64nvme"}
    assert "x-amz-checksum-mode" not in sent or asked is Operation.HEAD
    assert not sent.keys() & {"x-amz-checksum-algorithm", "x-amz-checksum-type"} or asked is Operation.MULTIPART_CREATE
    limit = of.max_link_expires if asked is Operation.GET else of.max_put_expires
    date = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    ends = date + timedelta(seconds=int(query["X-Amz-Expires"][0]))
    assert ends <= NOW + CLOCK_SLACK + timedelta(seconds=limit)
    assert grant.expires_at == ends


@settings(max_examples=EXAMPLES)
@given(asked_of())
def test_no_request_yields_a_grant_outside_what_its_token_may_have(asked_of: tuple[TokenConfig, GrantRequest]) -> None:
    of, request = asked_of
    for operation in Operation:
        asked = replace(request, operation=operation)
        decided = decide(of, asked, NOW)
        if isinstance(decided, Refusal):
            assert decided.code in RefusalCode
            continue
        answer = SIGNER._answer(decided, CREDENTIALS, "r", NOW)
        if isinstance(answer, Grant):
            assert_within(of, asked, answer)


# --- and that it grants what it should ------------------------------------------------------------------


@pytest.mark.parametrize("operation", [each for each in Operation if each is not Operation.DELETE])
def test_what_a_token_may_do_is_granted_as_it_was_asked(operation: Operation) -> None:
    asked = replace(PUT, operation=operation, upload_id="u", part_number=1)
    assert decide(TOKEN, asked, NOW) == asked


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "a/b c/100%.txt",
        "a%2Fb%20c%41",
        "cafe\u0301",
        "caf\u00e9",
        "...",
        "a..b",
        "\U0001f5c2\ufe0f",
        "x;y",
        "\u202e",
    ],
)
def test_odd_names_below_the_prefix_are_granted(key: str) -> None:
    asked = replace(PUT, key=f"scanner-1/{key}")
    assert decide(TOKEN, asked, NOW) == asked


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"bucket": "other"}, RefusalCode.OUTSIDE_BUCKET),
        ({"key": "scanner-10/a"}, RefusalCode.OUTSIDE_PREFIX),
        ({"key": "scanner-1"}, RefusalCode.OUTSIDE_PREFIX),
        ({"key": "SCANNER-1/a"}, RefusalCode.OUTSIDE_PREFIX),
        ({"key": "scanner-1/../a"}, RefusalCode.KEY_REFUSED),
        ({"key": "scanner-1/..\\a"}, RefusalCode.KEY_REFUSED),
        ({"key": "scanner-1/%2e%2e/a"}, RefusalCode.OUTSIDE_PREFIX),
        ({"key": "scanner-1/%252e%252e%252fa"}, RefusalCode.OUTSIDE_PREFIX),
        ({"key": "scanner-1/\uff0e\uff0e/a"}, RefusalCode.OUTSIDE_PREFIX),
        ({"key": "scanner-1/%ef%bc%8e%ef%bc%8e/a"}, RefusalCode.OUTSIDE_PREFIX),
        ({"key": "scanner-1/\uff052e\uff052e/a"}, RefusalCode.OUTSIDE_PREFIX),
        ({"key": "scanner-1/%c0%ae%c0%ae/a"}, RefusalCode.OUTSIDE_PREFIX),
        ({"key": "scanner-1/..;/a"}, RefusalCode.OUTSIDE_PREFIX),
        ({"key": "scanner-1/;/\uff0e\uff0e/a"}, RefusalCode.OUTSIDE_PREFIX),
        ({"key": "scanner-1/a/%2e%2e/b"}, RefusalCode.OUTSIDE_PREFIX),
        ({"key": "scanner-1/a\0"}, RefusalCode.KEY_REFUSED),
        ({"key": "scanner-1/\ud800"}, RefusalCode.KEY_REFUSED),
        ({"size": None}, RefusalCode.SIZE_REQUIRED),
        ({"checksum": ""}, RefusalCode.CHECKSUM_REQUIRED),
        ({"size": (1 << 20) + 1}, RefusalCode.TOO_LARGE),
        ({"headers": {"x-amz-meta-a": "1"}}, RefusalCode.HEADER_REFUSED),
        ({"headers": {"x-amz-copy-source": "/bucket/other"}}, RefusalCode.HEADER_REFUSED),
        ({"headers": {"Content-Length": "1"}}, RefusalCode.HEADER_REFUSED),
        ({"operation": Operation.DELETE}, RefusalCode.OPERATION_REFUSED),
        ({"operation": Operation.MULTIPART_LIST, "upload_id": "../../b"}, RefusalCode.UPLOAD_REFUSED),
        ({"date": NOW + CLOCK_SLACK + timedelta(seconds=1)}, RefusalCode.DATE_REFUSED),
        ({"date": NOW.replace(tzinfo=None)}, RefusalCode.DATE_REFUSED),
    ],
    ids=repr,
)
def test_each_refusal_has_its_code(change: dict[str, Any], code: RefusalCode) -> None:
    assert code_of(decide(TOKEN, replace(PUT, **change), NOW)) == code


def test_a_token_may_do_only_its_operations() -> None:
    may = token(operations=["get"])
    allowed = [each for each in Operation if not code_of(decide(may, replace(PUT, operation=each), NOW))]
    assert allowed == [Operation.GET]


@pytest.mark.parametrize("operation", [each for each in Operation if each is not Operation.DELETE])
def test_a_version_is_named_only_to_read_it_and_to_delete_one_of_the_check_object(operation: Operation) -> None:
    """A link opens the version that it was made for."""
    asked = replace(PUT, operation=operation, version_id="v", upload_id="u", part_number=1)
    readable = operation in (Operation.GET, Operation.HEAD)
    assert (code_of(decide(TOKEN, asked, NOW)) == RefusalCode.OPERATION_REFUSED) is not readable
    check = GrantRequest(Operation.DELETE, "bucket", "scanner-1/.presignd-check", 60, version_id="v")
    assert decide(TOKEN, check, NOW) == check


@pytest.mark.parametrize("key", ["scanner-1/.presignd-check", "scanner-1/photos/.presignd-check"])
def test_a_token_that_may_put_may_delete_its_check_objects_alone(key: str) -> None:
    asked = GrantRequest(Operation.DELETE, "bucket", key, 60)
    assert decide(TOKEN, asked, NOW) == asked
    assert code_of(decide(token(operations=["get", "head"]), asked, NOW)) == RefusalCode.OPERATION_REFUSED
    assert code_of(decide(token(operations=["delete"]), replace(asked, key="scanner-1/a"), NOW)) == (
        RefusalCode.OPERATION_REFUSED
    )


ON_AN_UPLOAD = [each for each in Operation if each.startswith("multipart.") and each is not Operation.MULTIPART_CREATE]


@pytest.mark.parametrize("operation", ON_AN_UPLOAD)
@pytest.mark.parametrize(
    "upload_id",
    [
        *(
            "../../b",
            "..",
            ".",
            "...",
            "a/b",
            "/a",
            "a\\b",
            "%2e%2e",
            "a%2fb",
            "a\0",
            "a\nb",
            "a b",
            "a?b",
            "a&b=c",
            "a#b",
        ),
        *("\uff0e\uff0e", "\u00e9", "\ud800", ";", "x" * 1025),
    ],
)
def test_an_upload_id_that_a_store_could_read_as_a_path_is_refused(operation: Operation, upload_id: str) -> None:
    asked = replace(PUT, operation=operation, upload_id=upload_id, part_number=1)
    assert code_of(decide(TOKEN, asked, NOW)) == RefusalCode.UPLOAD_REFUSED


@pytest.mark.parametrize("operation", ON_AN_UPLOAD)
@pytest.mark.parametrize(
    "upload_id",
    [
        "4Nq.NBdqI..kKG-35tI2LB9VDPiCgTy_",  # AWS: dots beside each other come in one of thirty
        "2~9SmzpmfvIQrTlGPHkuD1nQHlUPYJe5B",  # Ceph
        "YWJj+ZGVm=",  # base64
        "b4b3b6a0-6dc0-4b5f-a0a7-6ff1fd1ae0a2",  # JuiceFS, MinIO
        "4_z27c88f1d182b150646ff0b16_f200ec6f269a3f2d5_d20150330",  # Backblaze
        "x" * 1024,
    ],
)
def test_upload_ids_as_stores_make_them_are_granted(operation: Operation, upload_id: str) -> None:
    asked = replace(PUT, operation=operation, upload_id=upload_id, part_number=1)
    assert decide(TOKEN, asked, NOW) == asked


def test_expiries_are_cut_to_the_tokens_limits() -> None:
    long = replace(PUT, expires=1 << 40)
    assert decide(TOKEN, long, NOW) == replace(long, expires=3600)
    link = replace(long, operation=Operation.GET)
    assert decide(TOKEN, link, NOW) == replace(link, expires=86400)


def test_the_parts_of_an_honest_upload_are_never_too_large() -> None:
    """The last part is shorter; it stands at the end."""
    for size in (1, 5, 64, 99, 100):
        for part in (1, 3, 7, 100):
            cut = [(number + 1, min(part, size - start)) for number, start in enumerate(range(0, size, part))]
            for number, length in cut:
                asked = replace(PUT, operation=Operation.MULTIPART_PART, upload_id="u", part_number=number, size=length)
                assert not code_of(decide(token(max_size=size), asked, NOW))


def test_all_parts_that_can_be_signed_are_under_ten_times_the_limit() -> None:
    """The bound that a broker without state can keep (docs/security.md)."""
    limit, whole = 50 << 30, 0
    limited = token(max_size="50GiB")
    for number in range(1, 10_001):
        part = replace(PUT, operation=Operation.MULTIPART_PART, upload_id="u", part_number=number)
        largest = limit // number
        assert isinstance(decide(limited, replace(part, size=largest), NOW), GrantRequest)
        assert code_of(decide(limited, replace(part, size=largest + 1), NOW)) == RefusalCode.TOO_LARGE
        whole += largest
    assert whole < 10 * limit


@pytest.mark.parametrize("operation", [Operation.PUT, Operation.MULTIPART_CREATE])
def test_a_token_can_require_that_an_uploads_content_type_is_bound(operation: Operation) -> None:
    strict, asked = token(require_content_type=True), replace(PUT, operation=operation)
    for unbound in (asked, replace(asked, content_type=" "), replace(asked, headers={"Content-Language": "en"})):
        assert code_of(decide(strict, unbound, NOW)) == RefusalCode.CONTENT_TYPE_REQUIRED
        assert decide(TOKEN, unbound, NOW) == unbound
    for bound in (replace(asked, content_type="a/b"), replace(asked, headers={"Content-Type": "a/b"})):
        assert decide(strict, bound, NOW) == bound


@pytest.mark.parametrize("operation", [*ON_AN_UPLOAD, Operation.GET, Operation.HEAD])
def test_what_stores_no_content_type_needs_none(operation: Operation) -> None:
    asked = replace(PUT, operation=operation, upload_id="u", part_number=1)
    assert decide(token(require_content_type=True), asked, NOW) == asked


def test_headers_are_known_in_any_case_and_patterns_have_one_star_at_the_end() -> None:
    may = token(headers=["X-Amz-Meta-*", "cache-control"])
    for name in ("x-amz-meta-a", "X-AMZ-META-A", "Cache-Control", "Content-Disposition"):
        assert not code_of(decide(may, replace(PUT, headers={name: "1"}), NOW))
    for name in ("x-amz-tagging", "cache-control2", "x-amz-met"):
        assert code_of(decide(may, replace(PUT, headers={name: "1"}), NOW)) == RefusalCode.HEADER_REFUSED
