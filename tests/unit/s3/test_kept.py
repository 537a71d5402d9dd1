"""What a HEAD shows of an upload's headers, and of an object's lock."""

from __future__ import annotations

import pytest

from presignd.s3.kept import locked_until, lost
from presignd.s3.responses import Response


@pytest.mark.parametrize(
    ("sent", "there", "told"),
    [
        ({"Content-Type": "text/plain"}, {"content-type": "text/plain"}, []),
        ({"x-amz-meta-Team": " lab "}, {"x-amz-meta-team": "lab"}, []),
        ({"x-amz-meta-team": "lab"}, {}, ["x-amz-meta-team"]),
        ({"x-amz-storage-class": "STANDARD"}, {}, []),
        ({"x-amz-storage-class": "STANDARD_IA"}, {}, ["x-amz-storage-class (STANDARD instead)"]),
        ({"x-amz-storage-class": "GLACIER"}, {"x-amz-storage-class": "GLACIER"}, []),
        ({"x-amz-tagging": "a=1&b=2"}, {"x-amz-tagging-count": "2"}, []),
        ({"x-amz-tagging": "a=1&b=2"}, {"x-amz-tagging-count": "0"}, ["x-amz-tagging (0 of 2 tags)"]),
        ({"x-amz-tagging": "a=1"}, {}, ["x-amz-tagging (no count of 1 tags)"]),
        ({"x-amz-server-side-encryption": "aws:kms"}, {}, ["x-amz-server-side-encryption"]),
        ({"x-amz-acl": "private", "x-amz-server-side-encryption-customer-key": "k"}, {}, []),
    ],
)
def test_headers_that_are_lost_or_changed_are_told(
    sent: dict[str, str], there: dict[str, str], told: list[str]
) -> None:
    assert lost(sent, Response(200, there)) == told


@pytest.mark.parametrize(
    ("there", "until"),
    [
        ({}, ""),
        ({"x-amz-object-lock-legal-hold": "OFF"}, ""),
        ({"x-amz-object-lock-retain-until-date": "2027-01-01T00:00:00Z"}, "2027-01-01T00:00:00Z"),
        ({"x-amz-object-lock-legal-hold": "ON"}, "its legal hold ends"),
    ],
)
def test_a_lock_is_seen_by_a_head(there: dict[str, str], until: str) -> None:
    assert locked_until(Response(200, there)) == until
