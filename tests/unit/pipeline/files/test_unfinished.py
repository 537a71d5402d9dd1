"""Which file waits for which unfinished download."""

from __future__ import annotations

import pytest

from presignd.pipeline.files import ignore as module


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
    assert set(unfinished.of(b"a")) == {b"a.part", b"a.aria2"}
    for download in (b"a.part", b"a.aria2", b"a.aria2"):
        unfinished.forget(download)
    assert unfinished.of(b"a") == ()
    assert unfinished._of == {}, "and takes no room any more"


def test_of_the_unfinished_downloads_for_one_file_the_latest_few_count() -> None:
    """Each costs a look at each look at the file, and whoever may write in the folder can make a million."""
    unfinished = module.Unfinished()
    for number in range(100):
        unfinished.note(b"a.%08d.pdf.part" % number)
    unfinished.note(b"a.00000090.pdf.part")
    assert unfinished.of(b"a.pdf") == (*(b"a.%08d.pdf.part" % n for n in [*range(84, 90), *range(91, 100), 90]),)


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
