"""What the system allows a source of events."""

from __future__ import annotations

import errno
import os

import pytest

from presignd.pipeline.watch import source


def test_a_lack_of_inotify_instances_says_nothing_about_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(source, "inotify_init", refused)
    assert source.watches_left(b"/")


@pytest.mark.parametrize(("number", "left"), [(errno.ENOSPC, False), (errno.EACCES, True)])
def test_only_a_full_table_of_watches_means_that_none_is_left(
    monkeypatch: pytest.MonkeyPatch, number: int, *, left: bool
) -> None:
    def refused(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(source, "inotify_add_watch", refused)
    assert source.watches_left(b"/") is left
