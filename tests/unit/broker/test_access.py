"""Who the client is: the address in the log, and the token for a client certificate."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from presignd.broker.access import certificate_names, client_of


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ([], "local"),
        (["192.0.2.1"], "192.0.2.1"),
        (["203.0.113.9, 192.0.2.1"], "192.0.2.1"),
        (["203.0.113.9", "192.0.2.1"], "192.0.2.1"),
        (["203.0.113.9,"], ""),
        (["192.0.2.1" + "x" * 200], "192.0.2.1" + "x" * 91),
    ],
)
def test_behind_a_proxy_its_word_counts_which_stands_last(forwarded: list[str], client: str) -> None:
    """What stands before was said by the client itself."""
    request = make_mocked_request("GET", "/", CIMultiDict([("X-Forwarded-For", each) for each in forwarded]))
    request._transport_peername = None
    assert client_of(request, behind_proxy=True) == client
    assert client_of(request, behind_proxy=False) == "local"


SUBJECT = ((("organizationName", "one"),), (("commonName", "box-1"),))


@pytest.mark.parametrize(
    ("certificate", "names"),
    [
        (None, []),
        ({}, []),
        ({"subject": SUBJECT}, ["box-1"]),
        ({"subject": SUBJECT, "subjectAltName": (("IP Address", "192.0.2.1"),)}, ["box-1"]),
        (
            {"subject": SUBJECT, "subjectAltName": (("DNS", "a.example"), ("URI", "spiffe://b"))},
            ["a.example", "spiffe://b"],
        ),
        ({"subject": SUBJECT, "subjectAltName": (("email", "c@d"), ("othername", "<unsupported>"))}, ["c@d"]),
    ],
)
def test_a_certificate_stands_for_its_alternative_names_and_for_its_common_name_only_without_any(
    certificate: Any, names: list[str]
) -> None:
    """Else whoever may have a certificate for a host could name another's token in its subject (RFC 6125, 6.4.4)."""
    assert certificate_names(certificate) == names
