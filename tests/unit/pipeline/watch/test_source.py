"""What the system allows a source of events."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

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


def test_a_folder_whose_opening_is_reported_has_events(tmp_path: Path) -> None:
    assert source.reports_events(os.fsencode(tmp_path))


def test_a_kernel_that_accepts_a_watch_and_reports_nothing_has_no_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "inotify_add_watch", lambda *_: 1)
    assert not source.reports_events(os.fsencode(tmp_path))


@pytest.mark.parametrize("call", ["inotify_init", "inotify_add_watch"])
def test_what_can_not_be_tried_says_nothing_about_events(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(source, call, refuse)
    assert source.reports_events(os.fsencode(tmp_path))


def test_other_systems_have_events_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert source.reports_events(os.fsencode(tmp_path))
