"""Settled content becomes a version: its key, its type, its priority, and the limits."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.config import WatchConfig
from presignd.errors import Fault, fault
from presignd.model import Fingerprint, NewVersion, Source, State
from presignd.pipeline.intake import content_type, host_name, make_version, with_key
from presignd.s3.limits import LARGEST_OBJECT


def made(path: bytes = b"a/b.txt", source: Source = Source.EVENT, size: int = 5, **watch: Any) -> NewVersion:
    rules = WatchConfig(name="drop", path=Path("/srv/drop"), bucket="bucket", **watch)
    return make_version(rules, path, Fingerprint(1, size, 1, 1), source)


def test_a_version_is_queued_under_the_key_of_its_template() -> None:
    version = made(key="{host}/{path}")
    assert (version.state, version.key, version.content_type) == (State.QUEUED, f"{host_name()}/a/b.txt", "text/plain")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"hi.txt", "text/plain"),
        (b"x.tar.gz", "application/gzip"),
        (b"noext", "application/octet-stream"),
        (b"d.txt/img.PNG", "image/png"),
    ],
)
def test_the_content_type_is_guessed_from_the_name(name: bytes, kind: str) -> None:
    assert made(path=name).content_type == kind
    assert made(path=name, content_type="video/x").content_type == "video/x"


@given(st.lists(st.sampled_from(["a", ".", ".txt", ".tar", ".gz", ".tgz", ".PNG", ".br", ":", "data:", ",", "é"])))
def test_the_type_that_two_suffixes_decide_is_that_of_the_whole_name(parts: list[str]) -> None:
    kind, encoding = mimetypes.guess_type(name := "".join(parts), strict=False)
    packed = {"gzip": "application/gzip", None: kind or "application/octet-stream"}
    watch = WatchConfig(name="drop", path=Path("/srv/drop"), bucket="bucket")
    assert content_type(watch, b"a.d/" + name.encode()) == packed.get(encoding, "application/octet-stream")


def test_each_version_has_an_id_of_its_own() -> None:
    assert made().file_id != made().file_id


def test_a_key_that_needs_the_content_is_left_to_the_upload() -> None:
    assert (made(key="{sha256}").key, made(key="{sha256}").state) == (None, State.QUEUED)


def test_a_key_that_needs_the_presigner_s_prefix_is_left_to_the_upload() -> None:
    """A broker that is away keeps nothing from being queued."""
    assert (made(key="{prefix}{path}").key, made(key="{prefix}{path}").state) == (None, State.QUEUED)


@pytest.mark.parametrize(
    ("template", "path", "key", "code"),
    [
        ("{prefix}{path}", b"a.txt", "box-1/a.txt", ""),
        ("{path}", b"a.txt", "a.txt", ""),
        ("{prefix}{sha256}", b"a.txt", None, ""),
        ("{prefix}{path}", b"caf\xe9", None, "key_refused"),
        ("{path}", b"caf\xe9", None, "key_refused"),
    ],
)
def test_what_is_planned_shows_the_key_below_the_prefix(template: str, path: bytes, key: str | None, code: str) -> None:
    rules = WatchConfig(name="drop", path=Path("/srv/drop"), bucket="bucket", key=template)
    planned = make_version(rules, path, Fingerprint(1, 5, 1, 1), Source.SCAN, prefix="box-1/")
    assert (planned.key, planned.error_code) == (key, code)


def test_new_events_go_before_the_backlog_and_a_put_before_both() -> None:
    assert made(source=Source.PUT).priority < made(source=Source.EVENT).priority < made(source=Source.BACKLOG).priority
    assert made(source=Source.SCAN).priority == made(source=Source.EVENT).priority


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"size": 11, "max_size": 10}, "too_large"),
        ({"size": LARGEST_OBJECT + 1}, "too_large"),
        ({"path": b"caf\xe9"}, "key_refused"),
        ({"path": b"a\\b"}, "key_refused"),
        ({"path": b"a/.presignd-check"}, "key_refused"),
        ({"path": b"x" * 255, "key": "y" * 800 + "{path}"}, "key_refused"),
    ],
)
def test_what_can_t_go_is_quarantined_from_the_start_with_its_cause(options: dict[str, Any], code: str) -> None:
    version = made(**options)
    assert (version.state, version.error_code, version.key) == (State.QUARANTINED, code, None)
    assert version.error.startswith(fault(code).message)


@pytest.mark.parametrize("size", [0, 10])
def test_a_file_of_just_max_size_goes(size: int) -> None:
    assert made(size=size, max_size=10).state is State.QUEUED


def test_what_was_met_while_it_settled_stops_it() -> None:
    rules = WatchConfig(name="drop", path=Path("/srv/drop"), bucket="bucket")
    unreadable = fault("unreadable")
    version = make_version(rules, b"a", Fingerprint(1, 1, 1, 1), Source.EVENT, fault=unreadable)
    assert (version.state, version.error_code) == (State.QUARANTINED, "unreadable")


@pytest.mark.parametrize(
    ("policy", "fresh", "numbered"),
    [("update", False, True), ("rename", True, True), ("refuse", False, False), ("overwrite", False, False)],
)
def test_the_policy_says_whether_keys_are_fresh_or_numbered(policy: str, *, fresh: bool, numbered: bool) -> None:
    version = made(collision=policy)
    assert (version.fresh_key, version.next_key) == (fresh, numbered)


def test_a_key_by_hand_takes_the_place_of_one_the_name_doesn_t_make() -> None:
    version = with_key(made(path=b"caf\xe9"), "cafe")
    assert (version.state, version.key, version.error_code) == (State.QUEUED, "cafe", "")
    with pytest.raises(Fault, match="storable"):
        with_key(version, "/cafe")
    with pytest.raises(Fault, match="presignd's own objects"):
        with_key(version, "a/.presignd-check")
