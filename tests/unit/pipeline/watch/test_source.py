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
