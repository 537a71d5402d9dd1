"""XML in a store's answers: complete elements are read, whatever follows; nothing in it is trusted."""

from __future__ import annotations

import pytest

from presignd.s3.responses import Response

LIST = b"""<?xml version="1.0" encoding="UTF-8"?>
<ListPartsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Bucket>b</Bucket>
<Part><PartNumber>1</PartNumber><ETag>&#34;aa&#34;</ETag><Size>5</Size></Part>
<Part>
  <ETag>&quot;bb&quot;</ETag>
  <PartNumber>2</PartNumber>
</Part></ListPartsResult>"""
PARTS = [{"PartNumber": "1", "ETag": '"aa"', "Size": "5"}, {"ETag": '"bb"', "PartNumber": "2"}]


def answer(body: bytes) -> Response:
    return Response(200, {}, body)


def test_each_row_is_read_in_whatever_order_and_entities_it_is_written() -> None:
    assert answer(LIST).elements("Part") == PARTS


def test_of_a_list_that_is_cut_the_whole_rows_are_read() -> None:
    for end in range(len(LIST)):
        assert answer(LIST[:end]).elements("Part") == PARTS[: LIST[:end].count(b"</Part>")]


@pytest.mark.parametrize(
    "body",
    [
        b"<Error><Code>A&amp;B</Code></Error>",
        b"<s3:Error xmlns:s3='urn:x'><s3:Code>A&#38;B</s3:Code></s3:Error>",
        b"<Error><Code><![CDATA[A&B]]></Code></Error>",
        b"<Error><Code>A&amp;B</Code><Message>cut he",
        b"   \n  <?xml version='1.0'?><Error><Code>A&amp;B</Code></Error>",
        b"<html><p>Bad <b>gateway<br><Code>A&amp;B</Code>",
        b"<Error><Key>\x01</Key><Code>A&amp;B</Code></Error>",
    ],
)
def test_an_errors_code_is_read_in_every_coat(body: bytes) -> None:
    assert answer(body).code == "A&B"


@pytest.mark.parametrize("body", [b"", b"Bad gateway", b"\xff\xfe\x00", b"<Code>", b"{}", b"<Code></Code>"])
def test_what_has_no_code_has_none(body: bytes) -> None:
    assert answer(body).code == ""
    assert answer(body).elements("Part") == []


def test_entities_of_its_own_mean_nothing() -> None:
    """A billion laughs: each names the one before ten times."""
    names = [b'<!ENTITY a0 "ha">', *(b'<!ENTITY a%d "%s">' % (n, b"&a%d;" % (n - 1) * 10) for n in range(1, 10))]
    bomb = b"<!DOCTYPE r [" + b"".join(names) + b"]><r><Part><ETag>&a9;</ETag></Part></r>"
    assert answer(bomb).elements("Part") == []
    assert len(answer(bomb).element("ETag")) < 10


def test_a_text_is_taken_up_to_a_length() -> None:
    assert len(answer(b"<Code>" + b"x" * 5000 + b"</Code>").code) <= 1024
