"""Unfinished downloads, and the files beside them that wait: a browser's placeholder, a file that aria2 fills. Pure.

Firefox makes an empty ``report.pdf`` and fills ``report.pdf.part`` or ``report.k3Jd81-x.pdf.part`` beside it; aria2
fills ``report.iso`` itself and keeps ``report.iso.aria2`` beside it until it is complete.
"""

from __future__ import annotations

import re

FILE_SUFFIXES = (".part", ".partial", ".filepart", ".crdownload", ".opdownload", ".part.minio")
FOLDER_SUFFIXES = (".download",)
"""Suffixes of unfinished downloads. Safari's ``*.download`` is a folder."""

CONTROL_SUFFIXES = (".aria2", ".lftp-pget-status")
"""Suffixes of control files. One exists beside a file that is itself being filled, until that file is complete."""

_CONTROL = tuple(suffix.encode() for suffix in CONTROL_SUFFIXES)
_ALL = (*(suffix.encode() for suffix in (*FILE_SUFFIXES, *FOLDER_SUFFIXES)), *_CONTROL)

FRESH_SECONDS = 3600.0
"""Seconds for which an unfinished download counts beside a file that is not empty: an abandoned one stays for ever,
and the file may be an older, complete one."""

MAX_PER_FILE = 16
"""Most unfinished downloads that count for one file (those seen last): a user of the folder could make a million."""

_SALTED = re.compile(rb"(?P<stem>.+)\.[\w-]{8}(?P<suffix>(?:\.[^.]+)?)\.part", re.IGNORECASE)


def files_waiting_for(path: bytes) -> list[bytes]:
    """Return the paths of the files that may wait for the unfinished download at ``path``."""
    folder, slash, name = path.rpartition(b"/")
    names = [name[: -len(suffix)] for suffix in _ALL if name.lower().endswith(suffix)]
    if placeholder := _placeholder(name):
        names.append(placeholder)
    return [folder + slash + each for each in names if each]


def makes_wait(download: bytes, *, size: int, age: float) -> bool:
    """Return whether a file of ``size`` waits for ``download``, which changed ``age`` seconds ago.

    An empty file waits without limit, and so does one that is itself being filled.
    """
    return size == 0 or download.lower().endswith(_CONTROL) or abs(age) < FRESH_SECONDS


def _placeholder(name: bytes) -> bytes | None:
    match = _SALTED.fullmatch(name)
    return match["stem"] + match["suffix"] if match else None


class Unfinished:
    """The unfinished downloads that were seen in one watch, by the files that may wait for them.

    Events and scans add them, so that a look at a file costs nothing more where there are none.
    """

    def __init__(self) -> None:
        self._of: dict[bytes, tuple[bytes, ...]] = {}

    def note(self, download: bytes) -> list[bytes]:
        """Note an ignored path if it is an unfinished download; return the files that may wait for it."""
        files = files_waiting_for(download)
        for file in files:
            self._of[file] = (*self._without(file, download)[1 - MAX_PER_FILE :], download)
        return files

    def forget(self, download: bytes) -> None:
        """Forget an unfinished download that is gone."""
        for file in files_waiting_for(download):
            if left := self._without(file, download):
                self._of[file] = left
            else:
                self._of.pop(file, None)

    def of(self, file: bytes) -> tuple[bytes, ...]:
        """Return the unfinished downloads that ``file`` may wait for."""
        return self._of.get(file, ())

    def _without(self, file: bytes, download: bytes) -> tuple[bytes, ...]:
        return tuple(each for each in self.of(file) if each != download)
