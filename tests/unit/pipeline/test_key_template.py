"""Keys: rendered as the template says, refused where servers would store something else."""

from __future__ import annotations

import posixpath
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.config import WatchConfig
from presignd.errors import FileFault
from presignd.model import Fingerprint
from presignd.pipeline.intake import check_key, host_name, needs_hash, render_for
from presignd.s3.limits import key_problem

QUEUED = datetime(2026, 3, 4, 23, 30, tzinfo=UTC)
MTIME_NS = int(datetime(2025, 12, 31, 23, 30, tzinfo=UTC).timestamp()) * 10**9


def watch(key: str = "{path}", **more: object) -> WatchConfig:
    return WatchConfig(name="drop", path=Path("/srv/drop"), bucket="bucket", key=key, **more)


def rendered(template: str, path: str | bytes = "a/b/c.tar.gz", **more: object) -> str:
    raw = path if isinstance(path, bytes) else path.encode()
    fingerprint = Fingerprint(1, 2, MTIME_NS, 4)
    return render_for(watch(template, **more), raw, "id-1", fingerprint, QUEUED, sha256="5a")


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("{path}", "a/b/c.tar.gz"),
        ("{name}", "c.tar.gz"),
        ("{stem}-x{suffix}", "c.tar-x.gz"),
        ("{parent}/{name}", "a/b/c.tar.gz"),
        ("{watch}/{host}/{uuid}", f"drop/{host_name()}/id-1"),
        ("{sha256}", "5a"),
        ("{mtime:%Y/%m/%d}/{name}", "2025/12/31/c.tar.gz"),
        ("{queued:%Y}", "2026"),
    ],
)
def test_templates(template: str, key: str) -> None:
    assert rendered(template) == key


def test_times_are_in_the_watch_s_zone() -> None:
    assert rendered("{mtime:%Y-%m-%d}", timezone="Europe/Berlin") == "2026-01-01"
    assert rendered("{queued:%d %H}", timezone="Europe/Berlin") == "05 00"


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Etc/GMT+12"])
@pytest.mark.parametrize(
    ("seconds", "years"), [(2**62, {"9999"}), (253_402_300_800, {"9999"}), (-62_135_596_801, {"0001", "1"})]
)
def test_a_year_that_no_calendar_here_knows_is_the_nearest_that_it_does(
    seconds: int, years: set[str], zone: str
) -> None:
    """Filesystems keep such times. They would end the daemon at each start, whatever the template asks for."""
    fingerprint = Fingerprint(1, 2, seconds * 10**9, 4)

    def key(template: str) -> str:
        return render_for(watch(template, timezone=zone), b"a", "id-1", fingerprint, QUEUED)

    assert key("{path}") == "a"
    assert key("{mtime:%Y}") in years


def test_a_file_at_the_top_has_no_parent() -> None:
    assert rendered("{parent}/{name}", "x.txt") == "x.txt"


def test_braces_in_a_name_are_no_template() -> None:
    assert rendered("{path}", "{sha256}.txt") == "{sha256}.txt"


@pytest.mark.parametrize("path", ["a\\b", "ctrl\x01", "a" * 600 + "/" + "b" * 600, b"latin\xe9"])
def test_what_servers_would_store_otherwise_is_refused(path: str | bytes) -> None:
    with pytest.raises(FileFault) as refused:
        rendered("{path}", path)
    assert refused.value.code == "key_refused"


@pytest.mark.parametrize("name", ["a b", "a+b", "100%", "q?", "h#", "x&y", "it's", 'say "hi"', "😀", "é", "e\u0301"])
def test_odd_names_stay_as_they_are(name: str) -> None:
    assert rendered("{path}", name) == name


@given(st.text(min_size=1, max_size=40))
def test_an_accepted_key_is_its_own_normal_form(key: str) -> None:
    """Whatever is accepted: no server that folds slashes or dots can come to another key."""
    if key_problem(key) is None:
        assert posixpath.normpath(key) == key
        assert not key.startswith("/")
        assert "\\" not in key
        key.encode("utf-8")


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("{path}", ".presignd-check"),
        ("in/{path}", "in/.presignd-check"),
        ("a/b-{name}", "a/.presignd-check"),
        ("fixed", ".presignd-check"),
    ],
)
def test_the_check_key_lies_in_the_template_s_literal_folder(template: str, key: str) -> None:
    assert check_key(watch(template)) == key


def test_only_a_template_with_the_hash_needs_it() -> None:
    assert needs_hash("{sha256}/{name}")
    assert not needs_hash("{path}")


def test_a_file_put_from_elsewhere_is_named_by_its_last_component_alone() -> None:
    """A file's absolute path stays private, whatever the template needs."""
    assert rendered("{sha256}-{path}", "/home/me/a.txt") == "5a-a.txt"


@pytest.mark.parametrize(
    ("template", "prefix", "key"),
    [
        ("{prefix}{path}", "scanner-1/", "scanner-1/a.txt"),
        ("{prefix}{path}", "", "a.txt"),
        ("{prefix}in/{parent}/{name}", "scanner-1/", "scanner-1/in/a.txt"),
        ("{prefix}{path}", "odd {path}/{0}/", "odd {path}/{0}/a.txt"),
    ],
)
def test_a_presigner_s_prefix_begins_the_key(template: str, prefix: str, key: str) -> None:
    fingerprint = Fingerprint(1, 2, MTIME_NS, 4)
    assert render_for(watch(template), b"a.txt", "id-1", fingerprint, QUEUED, prefix=prefix) == key


@pytest.mark.parametrize("prefix", ["../", "/", "a//", "a\\", "a\x01/"])
def test_a_prefix_that_makes_no_storable_key_is_refused(prefix: str) -> None:
    """It is told by a broker, which is believed nothing."""
    with pytest.raises(FileFault):
        render_for(watch("{prefix}{path}"), b"a", "id-1", Fingerprint(1, 2, MTIME_NS, 4), QUEUED, prefix=prefix)


@pytest.mark.parametrize(
    ("template", "prefix", "key"),
    [
        ("{prefix}{path}", "scanner-1/", "scanner-1/.presignd-check"),
        ("{prefix}in/b-{path}", "scanner-1/", "scanner-1/in/.presignd-check"),
        ("{prefix}{path}", "", ".presignd-check"),
        ("{prefix}{path}", "scan", "scan.presignd-check"),
        ("{prefix}{path}", "a/scan", "a/scan.presignd-check"),
        ("{prefix}/in/{path}", "a/scan", "a/scan/in/.presignd-check"),
        ("{prefix}{path}", "odd{/", "odd{/.presignd-check"),
        ("other/{path}", "scanner-1/", "other/.presignd-check"),
    ],
)
def test_the_check_key_lies_inside_the_prefix(template: str, prefix: str, key: str) -> None:
    assert check_key(watch(template), prefix) == key
