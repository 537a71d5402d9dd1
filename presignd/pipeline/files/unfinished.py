"""Files that have an unfinished download beside them: a browser's placeholder, or a file that aria2 fills. Pure.

Firefox makes an empty ``report.pdf`` and fills ``report.pdf.part`` or ``report.k3Jd81-x.pdf.part`` beside it; aria2
fills ``report.iso`` itself and keeps ``report.iso.aria2`` beside it until it is complete.
"""

from __future__ import annotations

import re

UNFINISHED = (b".part", b".partial", b".filepart", b".crdownload", b".opdownload", b".download", b".part.minio")
CONTROL = (b".aria2", b".lftp-pget-status")
"""Beside a file that is itself being filled: there until the file is complete."""

FRESH = 3600.0
"""Seconds for which an unfinished download counts beside a file that is not empty: an abandoned one stays for ever,
and the file may be an older, complete one."""

MOST = 16
"""Unfinished downloads that count for one file, those seen last: a user of the folder could make a million."""

_SALTED = re.compile(rb"(?P<stem>.+)\.[\w-]{8}(?P<suffix>(?:\.[^.]+)?)\.part", re.IGNORECASE)


def held(path: bytes) -> list[bytes]:
    """Return the paths of the files that may wait for the unfinished download at ``path``."""
    folder, slash, name = path.rpartition(b"/")
    names = [name[: -len(suffix)] for suffix in (*UNFINISHED, *CONTROL) if name.lower().endswith(suffix)]
    if placeholder := _placeholder(name):
        names.append(placeholder)
    return [folder + slash + each for each in names if each]


def holds(partner: bytes, *, size: int, age: float) -> bool:
    """Return whether a file of ``size`` waits for ``partner``, which changed ``age`` seconds ago.

    An empty file waits without limit, and so does one that is itself being filled.
    """
    return size == 0 or partner.lower().endswith(CONTROL) or abs(age) < FRESH


def _placeholder(name: bytes) -> bytes | None:
    match = _SALTED.fullmatch(name)
    return match["stem"] + match["suffix"] if match else None


class Unfinished:
    """The unfinished downloads that were seen in one watch, by the files that may wait for them.

    Events and scans add them, so that a look at a file costs nothing more where there are none.
    """

    def __init__(self) -> None:
        self._of: dict[bytes, tuple[bytes, ...]] = {}

    def seen(self, partner: bytes) -> list[bytes]:
        """Note a path that the watch ignores; return the files that may wait for it: none, for most paths."""
        files = held(partner)
        for file in files:
            self._of[file] = (*self._without(file, partner)[1 - MOST :], partner)
        return files

    def gone(self, partner: bytes) -> None:
        """Forget one that is gone."""
        for file in held(partner):
            if left := self._without(file, partner):
                self._of[file] = left
            else:
                self._of.pop(file, None)

    def of(self, file: bytes) -> tuple[bytes, ...]:
        """Return the unfinished downloads that ``file`` may wait for."""
        return self._of.get(file, ())

    def _without(self, file: bytes, partner: bytes) -> tuple[bytes, ...]:
        return tuple(each for each in self.of(file) if each != partner)
