"""Checksums: known values, how S3 writes them, and that the parts' CRCs combine to that of the whole."""

from __future__ import annotations

import base64
import sys
import threading
import time
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.s3.checksums import (
    _CRCS,
    HEADERS,
    _by_table,
    checksum_of,
    combined,
    header_of,
    is_of_whole,
    native,
    new,
)
from presignd.s3.multipart import checksum_of_parts, etag_of_parts
from presignd.s3.responses import Response

CHECK = b"123456789"
"""The input of the check values in the catalogue of parametrised CRC algorithms."""

KNOWN = {
    "md5": "25f9e794323b453885f5181f1b624d0b",
    "sha256": "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
    "crc64nvme": "ae8b14860a799888",
    "crc32c": "e3069283",
}
crcs = pytest.mark.parametrize("algorithm", ["crc64nvme", "crc32c"])


@pytest.mark.parametrize(("algorithm", "digest"), KNOWN.items())
def test_each_has_its_known_value(algorithm: str, digest: str) -> None:
    assert checksum_of(CHECK, algorithm) == f"{algorithm}:{digest}"
    name, value = header_of(f"{algorithm}:{digest}")
    assert (name, base64.b64decode(value).hex()) == (HEADERS[algorithm], digest)


@crcs
def test_the_code_for_where_awscrt_is_missing_has_the_known_value_too(algorithm: str) -> None:
    assert f"{_by_table(CHECK, 0, crc=_CRCS[algorithm]):x}" == KNOWN[algorithm]


@crcs
@given(pieces=st.lists(st.binary(max_size=40), max_size=6))
def test_piece_by_piece_is_as_at_once_with_awscrt_and_without(algorithm: str, pieces: list[bytes]) -> None:
    whole, made, by_table = b"".join(pieces), new(algorithm), 0
    for piece in pieces:
        made.update(memoryview(piece))
        by_table = _by_table(piece, by_table, crc=_CRCS[algorithm])
    assert f"{algorithm}:{made.hexdigest()}" == checksum_of(whole, algorithm)
    assert made.digest() == by_table.to_bytes(len(made.digest()), "big")
    assert (native(algorithm) or partial(_by_table, crc=_CRCS[algorithm]))(whole, 0) == by_table


@crcs
@given(parts=st.lists(st.binary(max_size=300), max_size=6))
def test_the_parts_crcs_combine_to_that_of_the_whole(algorithm: str, parts: list[bytes]) -> None:
    digests = [(checksum_of(part, algorithm).partition(":")[2], len(part)) for part in parts]
    assert f"{algorithm}:{combined(algorithm, digests)}" == checksum_of(b"".join(parts), algorithm)
    assert checksum_of_parts(algorithm, digests) == checksum_of(b"".join(parts), algorithm)


@crcs
def test_the_sizes_of_parts_may_be_any(algorithm: str) -> None:
    """A part of zeros after another: only the power of x counts, up to S3's largest object."""
    part = combined(algorithm, [(KNOWN[algorithm], 9), ("0" * len(KNOWN[algorithm]), 5 << 40)])
    again = combined(algorithm, [(KNOWN[algorithm], 9), *[("0" * len(KNOWN[algorithm]), 5 << 30)] * 1024])
    assert part == again


def test_a_thread_that_hashes_leaves_the_others_the_gil() -> None:
    """Two files are hashed on two processors, and the event loop goes on."""
    update = native("crc64nvme") or pytest.skip("needs awscrt")
    body, spans, ticks = bytes(64 << 20), list[tuple[float, float]](), list[float]()

    def hash_once() -> None:
        began = time.perf_counter()
        update(body, 0)
        spans.append((began, time.perf_counter()))

    before = sys.getswitchinterval()
    sys.setswitchinterval(60)  # only a thread that releases the GIL lets another run
    try:
        for _ in range(100):
            thread = threading.Thread(target=hash_once)
            thread.start()
            while thread.is_alive():
                ticks.append(time.perf_counter())
                time.sleep(0)
            if any(began < tick < ended for began, ended in spans[-1:] for tick in ticks):
                return
    finally:
        sys.setswitchinterval(before)
    pytest.fail("no other thread ran meanwhile")


def test_of_md5_parts_it_is_that_of_the_etag() -> None:
    assert checksum_of_parts("md5", [(KNOWN["md5"], 9)] * 2) == f"md5:{etag_of_parts([KNOWN['md5']] * 2)}"


@pytest.mark.parametrize(
    "wrong", ["", "md5", "md5:", "md5:0", "crc64nvme:AE8B14860A799888", "sha1:00", "crc32c:é3069283"]
)
def test_what_no_body_can_have_is_no_header(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"crc64nvme:<16 hex digits>"):
        header_of(wrong)


def test_only_those_of_a_whole_object_in_a_known_algorithm_can_be_compared() -> None:
    assert is_of_whole("crc64nvme:ae8b14860a799888")
    assert not is_of_whole("crc64nvme:ae8b14860a799888-2")
    assert not is_of_whole("sha1:00")


def test_what_the_answer_to_a_complete_tells() -> None:
    body = b"<C><ETag>e</ETag><ChecksumCRC64NVME>rosUhgp5mIg=</ChecksumCRC64NVME></C>"
    assert Response(200, {}, body).checksum_in_body("crc64nvme") == "crc64nvme:ae8b14860a799888"
    assert Response(200, {}, body).checksum_in_body("crc32c") == ""
    assert Response(200, {"x-amz-checksum-crc64nvme": "rosUhgp5mIg="}).checksums == ("crc64nvme:ae8b14860a799888",)
