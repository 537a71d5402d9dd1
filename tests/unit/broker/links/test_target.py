"""What a target answers with: a disposition that no name can break, and nothing shown that a browser would run."""

from __future__ import annotations

import re
from email.message import Message
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.broker.links.names import safe_filename
from presignd.broker.links.target import PLAIN, content_disposition, media_type, overrides
from tests.unit.broker.links.test_link_policy import recorded

# RFC 6266 and RFC 8187, as far as this writes them.
_VALUE = re.compile(
    r'(attachment|inline); filename="([ !#$&-\[\]^-~]*)"(?:; filename\*=UTF-8\'\'((?:%[0-9A-F]{2}|[\w!#$&+.^`|~-])+))?',
    re.ASCII,
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("report 1.pdf", 'attachment; filename="report 1.pdf"'),
        ("R\u00e9.pdf", "attachment; filename=\"R_.pdf\"; filename*=UTF-8''R%C3%A9.pdf"),
        ('a"b', "attachment; filename=\"a_b\"; filename*=UTF-8''a%22b"),
        ("a%41.txt", "attachment; filename=\"a_41.txt\"; filename*=UTF-8''a%2541.txt"),
        ("a;b'c", 'attachment; filename="a;b\'c"'),
    ],
)
def test_a_disposition_has_the_name_for_old_and_new_browsers(name: str, value: str) -> None:
    assert content_disposition(name, inline=False) == value


@given(st.text(max_size=60), st.booleans())
def test_no_name_breaks_the_header_and_each_is_read_back(name: str, inline: bool) -> None:
    filename = safe_filename(name)
    value = content_disposition(filename, inline=inline)
    found = _VALUE.fullmatch(value)
    assert found is not None, value
    assert found[1] == ("inline" if inline else "attachment")
    assert (unquote(found[3]) if found[3] else found[2]) == filename
    message = Message()
    message["Content-Disposition"] = value
    assert message.get_content_disposition() == found[1]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Image/PNG", "image/png"),
        ("text/plain", "text/plain; charset=utf-8"),
        ("text/plain; charset=latin-1", "text/plain; charset=latin-1"),
        ("text/html;charset=utf-8", "text/html;charset=utf-8"),
        ("", PLAIN),
        ("nonsense", PLAIN),
        ("a/b, text/html", PLAIN),
        ("text/html\r\nX: y", PLAIN),
        ("a/" + "b" * 128, PLAIN),
    ],
)
def test_a_type_is_one_or_that_of_plain_bytes(text: str, kind: str) -> None:
    assert media_type(text) == kind


@pytest.mark.parametrize(
    "kind", ["image/png", "image/jpeg", "audio/mpeg", "video/mp4", "text/plain", "application/pdf"]
)
def test_what_runs_nothing_is_shown_where_it_is_wanted(kind: str) -> None:
    shown = overrides(recorded(content_type=kind, disposition="inline").new)
    assert shown["response-content-disposition"].startswith("inline;")
    saved = overrides(recorded(content_type=kind, disposition="attachment").new)
    assert saved["response-content-disposition"].startswith("attachment;")


@given(
    st.sampled_from(["text/html", "image/svg+xml", "text/xml", "application/xhtml+xml", "text/javascript", "image/x"])
    | st.text(max_size=20)
)
def test_nothing_else_is_shown(kind: str) -> None:
    found = overrides(recorded(content_type=kind, disposition="inline").new)
    assert found["response-content-disposition"].startswith("attachment;")
