"""The valid values of each option, and the message for an invalid one."""

from __future__ import annotations

import re
import zoneinfo
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.config import rules
from presignd.config.addresses import mask_userinfo, parse_broker_url, parse_endpoint, parse_proxy
from presignd.config.templates import TemplatePart, check_key_template, check_name_template, template_fields


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("https://s3.example.com", "https://s3.example.com"),
        ("https://s3.example.com/", "https://s3.example.com"),
        ("minio:9000", "https://minio:9000"),
        ("minio", "https://minio"),
        (" http://minio:9000/ ", "http://minio:9000"),
        ("HTTP://MinIO:9000", "http://minio:9000"),
        ("http://[::1]:9000", "http://[::1]:9000"),
        ("[::1]:9000", "https://[::1]:9000"),
        ("http://[0:0:0::1]", "http://[::1]"),
        ("http://minio_1.net_a:9000", "http://minio_1.net_a:9000"),
        ("http://bücher.example:9000", "http://xn--bcher-kva.example:9000"),
        ("http://s3.test.:9000", "http://s3.test:9000"),
        ("https://s3.test./", "https://s3.test"),
        ("http://S3.Test.:80", "http://s3.test"),
        ("http://127.0.0.1.:9000", "http://127.0.0.1:9000"),
        ("http://127.1:9000", "http://127.0.0.1:9000"),
        ("http://0x7f.1:9000", "http://127.0.0.1:9000"),
        ("http://2130706433:9000", "http://127.0.0.1:9000"),
        ("http://[::FFFF:127.0.0.1]:9000", "http://[::ffff:7f00:1]:9000"),
    ],
)
def test_an_endpoint_is_understood_and_made_scheme_host_port(text: str, endpoint: str) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize(
    ("text", "endpoint"), [("http://minio:80", "http://minio"), ("https://minio:443", "https://minio")]
)
def test_the_schemes_own_port_is_left_out_as_clients_leave_it_out_of_the_signed_host(text: str, endpoint: str) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("http://", "has no host"),
        ("http://:9000", "has no host"),
        ("http://minio:9000/bucket", "has a path"),
        ("http://minio:9000?x=1", "has a query"),
        ("http://minio:9000/#x", "has a query"),
        ("http://minio:9000?", "has a query"),
        ("ftp://minio", "unknown scheme"),
        ("s3://bucket", "unknown scheme"),
        ("htp:/minio", "unknown scheme"),
        ("http:minio", 'lacks the "//"'),
        ("https:/minio", 'lacks the "//"'),
        ("http://minio:0", "bad port"),
        ("http://minio:65536", "bad port"),
        ("http://minio:", "bad port"),
        ("http://minio:90a", "bad port"),
        ("http://minio:\u0661", "bad port"),
        ("::1", "in brackets"),
        ("http://::1:9000", "in brackets"),
        ("http://[::1", "in brackets"),
        ("http://[::1]x:9000", "IPv6 address"),
        ("http://[::g]:9000", "IPv6 address"),
        ("http://mi nio", "a space"),
        ("http://minio\n:9000", "control character"),
        ("http://minio\\x", "backslash"),
        ("http://-minio", "host name"),
        ("http://mi..nio", "host name"),
        ("http://minio..", "host name"),
        ("http://.", "host name"),
        ("http://256.1.1.1", "host name"),
        ("http://1.2.3.4.5", "host name"),
        ("http://minio.1", "host name"),
        ("http://[fe80::1%eth0]:9000", "with a zone"),
        ("http://[fe80::1%25eth0]:9000", "with a zone"),
    ],
)
def test_any_other_endpoint_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_endpoint(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://AKIA:hunter2@minio:9000",
        "AKIA:hunter2@minio:9000",
        "http://AKIA:hun/ter2@minio",
        "http://AKIA:hunter2?@minio",
        "ftp://AKIA:hunter2@minio",
        "http://AKIA:hunter2@[::1",
    ],
)
def test_credentials_in_an_endpoint_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"holds|has") as caught:
        parse_endpoint(text)
    assert "hun" not in str(caught.value)
    assert "AKIA" not in str(caught.value)


@given(st.text(max_size=40) | st.from_regex(r"(https?://)?[^ /?#]{0,20}(:[0-9]{0,6})?/?", fullmatch=True))
def test_any_text_is_an_endpoint_that_stays_itself_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        endpoint = parse_endpoint(text)
        assert parse_endpoint(endpoint) == endpoint
        assert re.fullmatch(r"https?://[\x21-\x7e]+", endpoint)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("https://broker:8420/presign", "the broker is asked at /v1/grants of its host"),
        ("https://broker:8420/v1/grants", "the broker is asked at /v1/grants of its host"),
        ("https://me:secret@broker:8420", "the token goes in token_file"),
        ("", "give the broker's address, e.g. https://broker:8420"),
    ],
)
def test_what_is_wrong_with_a_brokers_address_is_told_in_a_brokers_words(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        parse_broker_url(text)
    assert "bucket" not in str(caught.value)


@given(st.text(max_size=40) | st.from_regex(r"(https?://)?[^ /?#]{0,20}(:[0-9]{0,6})?/?", fullmatch=True))
def test_a_brokers_address_is_read_as_an_endpoint_is(text: str) -> None:
    with suppress(ValueError):
        assert parse_broker_url(text) == parse_endpoint(text)


def test_a_proxy_may_have_a_user_and_is_masked_when_shown() -> None:
    assert parse_proxy("http://me:hunter2@proxy:3128") == "http://me:hunter2@proxy:3128"
    assert mask_userinfo(parse_proxy("me:hunter2@proxy:3128")) == "http://********@proxy:3128"
    assert mask_userinfo("http://proxy:3128") == "http://proxy:3128"


def test_a_socks_proxy_is_refused_without_its_password() -> None:
    with pytest.raises(ValueError, match="http or https") as caught:
        parse_proxy("socks5://me:hunter2@proxy:1080")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{path}",
        "{watch}/{host}/{mtime:%Y/%m/%d}/{uuid}{suffix}",
        "{queued:%Y}/{stem}-{sha256}{suffix}",
        "a{{b}}/{parent}/{name}",
    ],
)
def test_a_key_template_takes_every_field_of_the_contract(template: str) -> None:
    assert check_key_template(template) == template


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("", "is empty"),
        ("{pth}", "did you mean {path}?"),
        ("{sha}", "unknown field {sha}"),
        ("{}", "unknown field {}"),
        ("{zzz}", "known: {path} {name}"),
        ("{path.x}", "unknown field {path.x}"),
        ("{path[0]}", "unknown field"),
        ("{path!r}", "conversion"),
        ("{path:>10}", "only {mtime:…} and {queued:…}"),
        ("{mtime}", "needs a format"),
        ("{queued:Y}", "needs a format"),
        ("a/{prefix}{path}", "begins with it"),
        ("{prefix}{prefix}{path}", "twice"),
        ("{path", "without its partner"),
        ("path}", "without its partner"),
        ("/{path}", "at its start"),
        ("{parent}/", "start or end"),
        ("a//{path}", "two in a row"),
        ("a\\{path}", "backslash"),
        ("a\n{path}", "control character"),
        ("x" * 1025, "1024 bytes"),
    ],
)
def test_a_key_template_that_makes_no_key_is_refused_with_the_reason(template: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        check_key_template(template)


def test_a_template_is_pieces_of_text_each_with_the_field_after_it() -> None:
    assert template_fields("a{{{name}-{mtime:%Y:%m}.z") == (
        TemplatePart("a{", None, ""),
        TemplatePart("", "name", ""),
        TemplatePart("-", "mtime", "%Y:%m"),
        TemplatePart(".z", None, ""),
    )


@pytest.mark.parametrize("template", ["{name}.ok", "{stem}.done", ".{name}", "{stem}-link{suffix}"])
def test_a_name_beside_the_file_is_made_of_its_name(template: str) -> None:
    assert check_name_template(template) == template


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("done", "needs {name} or {stem}"),
        ("{suffix}.x", "needs {name} or {stem}"),
        ("links/{name}", 'has a "/"'),
        ("{name}", "the file itself"),
        ("{stem}{suffix}", "the file itself"),
        ("{path}.ok", "unknown field {path}"),
        ("{nam}.ok", "did you mean {name}?"),
    ],
)
def test_a_name_that_would_not_stand_beside_its_file_is_refused(template: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        check_name_template(template)


@pytest.mark.parametrize("name", ["test-bucket", "abc", "a.b.c", "0" * 63])
def test_a_bucket_has_a_name_that_s3_allows(name: str) -> None:
    assert rules.check_bucket(name) == name


@pytest.mark.parametrize(
    "name", ["", "ab", "a" * 64, "Bucket", "a_b", "-ab", "ab-", "a..b", "192.168.1.1", "a/b", "bücher", "abc\n"]
)
def test_a_bucket_name_that_s3_refuses_is_refused_here(name: str) -> None:
    with pytest.raises(ValueError, match="must be a bucket name"):
        rules.check_bucket(name)


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", "-a", "a\n", "ä", "x" * 65, "[1]"])
def test_a_watch_name_that_logs_and_commands_could_not_carry_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        rules.check_watch_name(name)


def test_a_link_lives_a_second_to_seven_days() -> None:
    assert rules.check_expiry(1) == 1
    assert rules.check_expiry(604800) == 604800
    with pytest.raises(ValueError, match="at least 1s"):
        rules.check_expiry(0)
    with pytest.raises(ValueError, match="at most 7d"):
        rules.check_expiry(604801)


def test_an_unknown_time_zone_is_refused_with_the_nearest() -> None:
    assert rules.check_timezone("Europe/Berlin") == "Europe/Berlin"
    with pytest.raises(ValueError, match=r"did you mean Europe/Berlin\?"):
        rules.check_timezone("Europe/Berln")
    with pytest.raises(ValueError, match="no known time zone"):
        rules.check_timezone("../etc/passwd")


def test_utc_needs_no_time_zone_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slim container has none."""

    def nothing(name: str) -> None:
        raise zoneinfo.ZoneInfoNotFoundError(name)

    monkeypatch.setattr(zoneinfo, "ZoneInfo", nothing)
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    assert rules.check_timezone("UTC") == "UTC"
    with pytest.raises(ValueError, match="install tzdata"):
        rules.check_timezone("Europe/Berlin")


def test_ignore_patterns_are_gitignores() -> None:
    patterns = ["*.bak", "/cache/", "!keep.bak", "a/**/b", "# why", ""]
    assert rules.check_ignore(patterns) == tuple(patterns)
    with pytest.raises(ValueError, match="no gitignore pattern"):
        rules.check_ignore(["*.bak", "!"])
    with pytest.raises(ValueError, match="matches nothing"):
        rules.check_ignore(["[a"])


def test_headers_that_describe_the_object_are_allowed() -> None:
    headers = {
        "x-amz-meta-origin": "scanner 1",
        "X-Amz-Tagging": "a=b&c=d",
        "x-amz-storage-class": "STANDARD_IA",
        "x-amz-server-side-encryption": "AES256",
        "Cache-Control": "no-store",
        "Content-Disposition": 'attachment; filename="a.txt"',
        "Content-Encoding": "gzip",
        "Content-Language": "de",
        "Expires": "Thu, 01 Dec 2033 16:00:00 GMT",
    }
    assert rules.check_headers(headers) == headers


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"x-amz-acl": "public-read"}, "ACLs are never sent"),
        ({"X-Amz-Grant-Read": "id=1"}, "ACLs are never sent"),
        ({"Content-Type": "text/plain"}, "set content_type"),
        ({"Content-Length": "5"}, "presignd sets it"),
        ({"Authorization": "x"}, "is not allowed"),
        ({"x-amz-meta-": "x"}, "is not allowed"),
        ({"x-amz-meta-a b": "x"}, "is not allowed"),
        ({"x-amz-meta-a": "ä"}, "printable ASCII"),
        ({"x-amz-meta-a": "x\r\nx-amz-acl: public-read"}, "printable ASCII"),
        ({"x-amz-meta-a": ""}, "printable ASCII"),
        ({"x-amz-meta-a": " x"}, "no space at either end"),
        ({"x-amz-meta-a": "1", "X-Amz-Meta-A": "2"}, "twice"),
    ],
)
def test_other_headers_are_refused_with_the_reason(headers: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        rules.check_headers(headers)


def test_a_content_type_is_auto_or_a_media_type() -> None:
    for value in ("auto", "text/plain", "text/plain; charset=utf-8", "application/vnd.a+json"):
        assert rules.check_content_type(value) == value
    for value in ("", "text", "text/plain\r\nX: y", "a b/c"):
        with pytest.raises(ValueError, match="media type"):
            rules.check_content_type(value)
