"""Ignore rules, the names beside a file, and which file waits for which unfinished download."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pathspec import GitIgnoreSpec

from presignd.config import WatchConfig
from presignd.pipeline.files import ignore as module
from presignd.pipeline.files.ignore import Ignore, beside, marked
from tests.ignoring import ignoring


def watch(**options: object) -> WatchConfig:
    return WatchConfig.model_validate({"name": "drop", "path": Path("/srv/drop"), "bucket": "test-bucket"} | options)


@pytest.mark.parametrize(
    "path",
    [
        b"a.part",
        b"a.partial",
        b"a.filepart",
        b"a.tmp",
        b"a.crdownload",
        b".hidden",
        b"a~",
        b"~$doc.docx",
        b"Thumbs.db",
        b"desktop.ini",
        b"sub/deep/a.tmp",
        b".git/config",
        b"sub/.cache/deep/file",
    ],
)
def test_the_defaults_leave_out_what_is_not_whole_and_litter(path: bytes) -> None:
    assert ignoring().ignores_file(path)
    assert not ignoring(ignore_defaults=False).ignores_file(path)


@pytest.mark.parametrize(
    "path", [b"a", b"tmp", b"a.tmp.txt", b"part", b"~a", b"a.parts", b"sub/a.txt", b"\xff\xfe", b"a\nb", "ä".encode()]
)
def test_ordinary_names_are_taken(path: bytes) -> None:
    assert not ignoring().ignores_file(path)


def test_a_negation_takes_a_default_back() -> None:
    ignore = ignoring("!keep.tmp")
    assert not ignore.ignores_file(b"keep.tmp")
    assert not ignore.ignores_file(b"sub/keep.tmp")
    assert ignore.ignores_file(b"other.tmp")


def test_later_patterns_win_and_slashes_anchor_as_in_git() -> None:
    ignore = ignoring("/top.log", "logs/", "*.bak", "!important.bak", "docs/**/draft")
    assert ignore.ignores_file(b"top.log")
    assert not ignore.ignores_file(b"sub/top.log")
    assert ignore.ignores_file(b"sub/logs/x")
    assert not ignore.ignores_file(b"logs")
    assert ignore.ignores_file(b"a.bak")
    assert not ignore.ignores_file(b"important.bak")
    assert ignore.ignores_file(b"docs/a/b/draft")


def test_a_file_below_an_ignored_directory_is_ignored_whatever_takes_it_back() -> None:
    """A scan prunes the directory and never sees the file: an event must come to the same answer."""
    ignore = ignoring("*", "!*.pdf")
    assert not ignore.ignores_file(b"a.pdf")
    assert ignore.ignores_directory(b"sub")
    assert ignore.ignores_file(b"sub/a.pdf")


def test_own_names_are_ignored_whatever_the_configuration_says() -> None:
    ignore = ignoring("!.presignd-x", "!.presignd-*", ignore_defaults=False)
    assert ignore.ignores_file(b".presignd-x")
    assert ignore.ignores_file(b"sub/.presignd-check")


LINES = st.lists(
    st.sampled_from(["a", "b", "a/", "b/", "/a", "a/b", "*b", "a*", "*a*", "*", "**", "a/**", "**/b", "?a", "[ab]"])
    | st.sampled_from(["a\\*", "*.b", "a.*", "/a/", "!a/", "!*b", "!b"]),
    max_size=4,
)
PATHS = st.lists(st.sampled_from(["a", "b", "ab", "a.b", "ba", "*", "a\nb"]), min_size=1, max_size=3).map("/".join)


@given(LINES, PATHS)
def test_the_short_way_for_ordinary_names_comes_to_what_the_patterns_say(patterns: list[str], path: str) -> None:
    ignore = ignoring(*patterns, ignore_defaults=False)
    spec = GitIgnoreSpec.from_lines(patterns, backend="simple")
    parts = path.replace("\n", "\ufdd0").split("/")
    directories = ["/".join(parts[:count]) + "/" for count in range(1, len(parts))]
    assert ignore.ignores_file(path.encode()) == any(spec.match_file(text) for text in [*directories, "/".join(parts)])


def test_names_that_only_the_defaults_mean_are_told_from_ordinary_ones_without_a_pattern() -> None:
    ignore = ignoring("*.log", "docs/", "!keep.tmp")
    assert ignore.ordinary(b"a.pdf")
    assert not any(ignore.ordinary(name) for name in (b"a.log", b".hidden", b"a.part", b"Thumbs.db", b"keep.tmp"))
    assert not ignoring("docs/*.pdf").ordinary(b"a.txt")


@pytest.mark.parametrize("pattern", ["Übersicht.txt", "*.größe", "Ä*"])
def test_a_pattern_means_its_own_letters_beyond_ascii(pattern: str) -> None:
    ignore, other = ignoring(pattern), pattern.swapcase().replace("*", "a")
    assert ignore.ignores_file(pattern.replace("*", "a").encode())
    assert not ignore.ignores_file(other.encode())
    assert ignore.ordinary(b"a.pdf")


def test_a_line_feed_in_a_name_is_no_end_of_the_name() -> None:
    assert not ignoring().ignores_file(b"a.tmp\n")
    assert not ignoring().ignores_file(b"a.tmp\nb")
    assert ignoring().ignores_file(b"a\nb.tmp")
    assert ignoring().ignores_file(b"a\nb/c.tmp")


def test_names_that_are_no_utf8_are_matched_by_the_part_that_is() -> None:
    assert ignoring().ignores_file(b"\xff\xfe.tmp")


def test_the_root_itself_is_never_ignored() -> None:
    assert not ignoring("*").ignores_directory(b"")


def test_move_to_inside_the_watch_is_ignored_and_only_that() -> None:
    ignore = Ignore(watch(after="move", move_to=Path("/srv/drop/done [1]"), ignore=("!done*",)))
    assert ignore.ignores_directory(b"done [1]")
    assert ignore.ignores_file(b"done [1]/deep/a")
    assert not ignore.ignores_directory(b"done 1")
    assert not ignore.ignores_directory(b"sub/done [1]")


def test_move_to_elsewhere_adds_no_rule() -> None:
    ignore = Ignore(watch(after="move", move_to=Path("/srv/done")))
    assert not ignore.ignores_file(b"done/a")


def test_link_files_and_markers_are_never_candidates() -> None:
    ignore = Ignore(watch(link_file="{name}.link.txt", ready_marker="{stem}.ok", ignore=("!*.ok",)))
    assert ignore.ignores_file(b"sub/a.pdf.link.txt")
    assert ignore.ignores_file(b"sub/a.ok")
    assert ignore.is_marker(b"sub/a.ok")
    assert not ignore.is_marker(b"sub/a.pdf")
    assert not ignore.ignores_file(b"sub/a.pdf")


def test_signs_of_patterns_in_a_template_mean_themselves() -> None:
    ignore = Ignore(watch(ready_marker="[{name}]!ok"))
    assert ignore.is_marker(b"[a]!ok")
    assert not ignore.is_marker(b"a!ok")


def test_without_a_marker_nothing_is_one() -> None:
    assert not Ignore(watch()).is_marker(b"a.ok")


@pytest.mark.parametrize(
    ("template", "path", "expected"),
    [
        ("{name}.ok", b"a.pdf", b"a.pdf.ok"),
        ("{name}.ok", b"x/y/a.pdf", b"x/y/a.pdf.ok"),
        ("{stem}.done", b"x/a.tar.gz", b"x/a.tar.done"),
        ("{stem}-ready{suffix}", b"a.pdf", b"a-ready.pdf"),
        ("{name}.ok", b"x/\xff", b"x/\xff.ok"),
    ],
)
def test_a_template_puts_a_name_beside_the_file(template: str, path: bytes, expected: bytes) -> None:
    assert beside(template, path) == expected


@given(st.binary(min_size=1).filter(lambda name: b"/" not in name and b"\0" not in name))
def test_a_marker_leads_back_to_its_file(name: bytes) -> None:
    assert marked("{name}.ok", beside("{name}.ok", b"sub/" + name)) == b"sub/" + name


@pytest.mark.parametrize(
    ("template", "marker"),
    [("{stem}.ok", b"a.ok"), ("{name}{suffix}.ok", b"a.ok"), ("{name}.ok", b".ok"), ("{name}.ok", b"a")],
)
def test_a_marker_that_may_be_of_several_files_or_none_names_none(template: str, marker: bytes) -> None:
    assert marked(template, marker) is None


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (b"a.part", "the rule *.part of ignore_defaults"),
        (b".git/sub/config", "the rule .* of ignore_defaults"),
        (b"a.log", "the rule *.log of ignore"),
        (b"old/new/a", "the rule old/ of ignore"),
        (b".presignd-x", "the rule .presignd-* for names that presignd and its markers use"),
        (b"a.ok", "the rule *.ok for names that presignd and its markers use"),
        (b"keep.tmp", ""),
        (b"a", ""),
    ],
)
def test_the_rule_that_ignores_a_file_is_named(path: bytes, why: str) -> None:
    rules = Ignore(watch(ignore=["*.log", "old/", "!keep.tmp"], ready_marker="{name}.ok"))
    assert rules.why(path) == why


@given(st.lists(st.sampled_from(["a", "old", ".x", "b.part", "c.log", "keep.tmp", ".presignd-1"]), min_size=1))
def test_a_rule_is_named_for_what_is_ignored_and_for_nothing_else(parts: list[str]) -> None:
    rules = Ignore(watch(ignore=["*.log", "old/", "!keep.tmp", "/a/*/b.part"]))
    path = "/".join(parts).encode()
    assert bool(rules.why(path)) == rules.ignores_file(path)


@pytest.mark.parametrize(
    "name",
    [
        "a.PART",
        "A.Crdownload",
        "a.aria2",
        "a.!qB",
        "a.!QB",
        "a.opdownload",
        "a.part.minio",
        "THUMBS.DB",
        "a.bc!",
        "a.!ut",
    ],
)
def test_the_defaults_mean_their_names_in_any_case(name: str) -> None:
    assert ignoring().ignores_file(name.encode())
    assert name.lower() in ignoring().why(name.encode()).lower() or "ignore_defaults" in ignoring().why(name.encode())
    assert not ignoring(ignore_defaults=False).ignores_file(name.encode())


def test_a_pattern_of_the_configuration_means_its_own_case() -> None:
    assert ignoring("*.bak").ignores_file(b"a.bak")
    assert not ignoring("*.bak").ignores_file(b"a.BAK")
    assert not ignoring("!*.PART").ignores_file(b"a.PART"), "and takes back what it says"
    assert ignoring("!*.PART").ignores_file(b"a.part")


def test_safari_s_download_is_a_folder() -> None:
    assert ignoring().ignores_file(b"report.pdf.download/report.pdf")
    assert not ignoring().ignores_file(b"report.pdf.download")


def test_the_defaults_can_all_be_told_by_methods_of_bytes() -> None:
    """Else every name of a scan would be matched against every pattern."""
    assert ignoring().ordinary(b"report.pdf")


@pytest.mark.parametrize("move_to", ["/srv/drop/done", "/srv/drop/sub/../done", "/srv/x/../drop/done"])
def test_move_to_inside_the_watch_is_left_alone_however_it_is_spelled(move_to: str) -> None:
    watch = WatchConfig(name="drop", path=Path("/srv/drop"), bucket="bucket", after="move", move_to=Path(move_to))
    assert Ignore(watch).ignores_file(b"done/a")
    assert not Ignore(watch).ignores_file(b"sub/a")


@pytest.mark.parametrize(
    ("download", "held"),
    [
        (b"d/report.pdf.part", [b"d/report.pdf"]),
        (b"report.k3Jd81-x.pdf.part", [b"report.k3Jd81-x.pdf", b"report.pdf"]),
        (b"README.k3Jd81-x.part", [b"README.k3Jd81-x", b"README"]),
        (b"a.part.minio", [b"a"]),
        (b"Report.PDF.PART", [b"Report.PDF"]),
        (b"a.iso.aria2", [b"a.iso"]),
        (b"a.txt", []),
        (b"d/.part", []),
    ],
)
def test_an_unfinished_download_tells_by_its_name_which_file_it_is_for(download: bytes, held: list[bytes]) -> None:
    assert module.files_waiting_for(download) == held


def test_what_was_seen_is_remembered_for_each_file_that_may_wait_until_it_is_gone() -> None:
    unfinished = module.Unfinished()
    for download in (b"a.part", b"a.aria2", b"other.txt"):
        unfinished.note(download)
    assert set(unfinished.by_file[b"a"]) == {b"a.part", b"a.aria2"}
    for download in (b"a.part", b"a.aria2", b"a.aria2"):
        unfinished.forget(download)
    assert unfinished.by_file == {}, "and takes no room"


def test_of_the_unfinished_downloads_for_one_file_the_latest_few_count() -> None:
    """Each costs a look at each look at the file, and whoever may write in the folder can make a million."""
    unfinished = module.Unfinished()
    for number in range(100):
        unfinished.note(b"a.%08d.pdf.part" % number)
    unfinished.note(b"a.00000090.pdf.part")
    assert unfinished.by_file[b"a.pdf"] == (*(b"a.%08d.pdf.part" % n for n in [*range(84, 90), *range(91, 100), 90]),)


@pytest.mark.parametrize(
    ("download", "size", "age", "waits"),
    [
        (b"a.part", 0, 10**9, True),
        (b"a.ARIA2", 5, 10**9, True),
        (b"a.part", 5, 60, True),
        (b"a.part", 5, 7200, False),
        (b"a.part", 5, -7200, False),
        (b"a.aria2", 5, 10**9, True),
    ],
)
def test_an_empty_file_waits_for_ever_and_another_while_its_download_goes_on(
    download: bytes, size: int, age: float, waits: bool
) -> None:
    assert module.makes_wait(download, size=size, age=age) is waits
