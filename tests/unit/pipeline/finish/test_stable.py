"""What a broker is asked for a version's stable link."""

from __future__ import annotations

from datetime import timedelta

import pytest

from presignd.model import State
from presignd.pipeline.finish.link import end_after, stable_request
from tests.versions import LATER, NOW, in_state

LINK_ID = "mZt3k2pQv9_xY4-aB1cD5e"


def test_a_request_names_the_object_and_the_file() -> None:
    version = in_state(State.VERIFIED, b"in/R\xc3\xa9sum\xc3\xa9.pdf", key="k/1", link_id=LINK_ID, version_id="v1")
    document = stable_request(version, LATER).to_json()
    assert document == {
        "id": LINK_ID,
        "bucket": "bucket",
        "key": "k/1",
        "size": 5,
        "content_type": "text/plain",
        "version_id": "v1",
        "filename": "Résumé.pdf",
        "disposition": "inline",
        "expires_at": "2026-03-04T06:06:07.891011Z",
        "max_downloads": None,
        "pin": "",
    }


@pytest.mark.parametrize(("path", "name"), [(b"/tmp/a.txt", "a.txt"), (b"x/\xff", "\\xff")])
def test_a_name_is_the_file_s_and_always_text(path: bytes, name: str) -> None:
    assert stable_request(in_state(State.VERIFIED, path), None).filename == name


def test_the_version_null_is_whatever_the_key_holds() -> None:
    assert stable_request(in_state(State.VERIFIED, version_id="null"), None).version_id == ""


def test_neither_id_nor_pin_is_in_a_repr() -> None:
    version = in_state(State.VERIFIED, link_id=LINK_ID)
    shown = repr(stable_request(version, None))
    assert LINK_ID not in shown
    assert "pin" not in shown


def test_a_lifetime_counts_from_the_link_s_date() -> None:
    version = in_state(State.VERIFIED, signed_at=NOW)
    assert end_after(version, 60) == NOW + timedelta(seconds=60)
    assert end_after(version, None) is None
