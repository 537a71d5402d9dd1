"""Which names a watch skips, which files wait for an unfinished download, how files beside a file are named. Pure.

Firefox makes an empty ``report.pdf`` and fills ``report.pdf.part`` or ``report.k3Jd81-x.pdf.part`` beside it; aria2
fills ``report.iso`` itself and keeps ``report.iso.aria2`` beside it until it is complete.
"""

from __future__ import annotations

import os
import posixpath
import re
import string
import sys
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pathspec.pattern import Pattern
    from pathspec.util import CheckResult

    from presignd.config import WatchConfig

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

DEFAULTS = (
    *(f"*{suffix}" for suffix in (*FILE_SUFFIXES, *CONTROL_SUFFIXES)),
    *(f"*{suffix}/" for suffix in FOLDER_SUFFIXES),
    "*.tmp",
    ".*",
    "*~",
    "~$*",
    "Thumbs.db",
    "desktop.ini",
    "*.wkdownload",
    "*.fdmdownload",
    "*.!qB",
    "*.!ut",
    "*.bc!",
    "*.xltd",
)
"""``ignore_defaults`` (docs/files.md): names of incomplete files and of clutter; upper and lower case alike.
Xunlei's ``*.td`` is not in it: other files end so too."""

FOLDERS_ONLY = 'unit = "folder" links whole folders, once each is complete'
"""Why a watch of folders ignores what lies in its own folder, in words."""

OWN_PREFIX = b".presignd-"
"""Prefix of the daemon's own temporary names, which are always ignored."""

INBOX_PREFIX = OWN_PREFIX + b"inbox-"
"""Prefix of what an inbox downloads; no version has such a name."""

_CACHED_DIRECTORIES = 4096

_LITERAL = r"[^*?\[\]\\/!#\s]+"
_PLAIN = re.compile(rf"(?P<name>{_LITERAL})|\*(?P<end>[^*?\[\]\\/\s]+)|(?P<start>{_LITERAL})\*")
"""A pattern that methods of bytes can match: a whole name, its end, or its beginning."""


class Ignore:
    """The rules of one watch. A file below an ignored directory is ignored, as in git.

    Its patterns come after the defaults, so a negation ("!keep.tmp") cancels a default. The names that presignd writes
    beside or below the watch's files, its own and the markers' are ignored whatever the patterns say. Where whole
    folders are linked, files at the top are ignored: each folder there is a unit, and they are in none.
    """

    def __init__(self, watch: WatchConfig) -> None:
        markers = _glob(watch.ready_marker)
        inside = [f"/{_escape(watch.moved_inside)}/"] if watch.moved_inside else []
        self._folders = watch.links_folders
        self._defaults = _defaults() if watch.ignore_defaults else ()
        self._chosen = _spec(watch.ignore, after=self._defaults)
        self._always = _spec([f"{os.fsdecode(OWN_PREFIX)}*", *_glob(watch.link_file), *inside, *markers])
        self._markers = _spec(markers)
        self.ordinary = _ordinary([*self._always.patterns, *self._chosen.patterns])
        """Return quickly whether no pattern matches a name: such a file is ignored only if its directory is."""
        self.ignores_directory = lru_cache(_CACHED_DIRECTORIES)(self._judge_directory)
        """Return whether everything below a path is ignored; False for the root, b""."""

    def ordinary_in(self, directory: bytes) -> Callable[[bytes], bool]:
        """Return ``ordinary`` for the names in a directory."""
        return _none_is if self._folders and not directory else self.ordinary

    def ignores_file(self, path: bytes) -> bool:
        """Return whether the file at ``path`` (below the watch's root) is ignored."""
        directory, _, name = path.rpartition(b"/")
        if self._folders and not directory:
            return True
        return self.ignores_directory(directory) or (not self.ordinary(name) and self._matches(_text(path)))

    def why(self, path: bytes) -> str:
        """Return in words which rule ignores the file at ``path``; "" if none does."""
        if self._folders and b"/" not in path:
            return FOLDERS_ONLY
        parts = _text(path).split("/")
        above = ["/".join(parts[:count]) + "/" for count in range(1, len(parts))]
        return next((why for text in (*above, _text(path)) if (why := self._rule(text))), "")

    def _rule(self, text: str) -> str:
        always, chosen = self._always.check_file(text), self._chosen.check_file(text)
        if always.include:
            return f"the rule {_pattern(self._always, always)} for names that presignd and its markers use"
        if not chosen.include:
            return ""
        default = (chosen.index or 0) < len(self._defaults)
        return f"the rule {_pattern(self._chosen, chosen)} of {'ignore_defaults' if default else 'ignore'}"

    def is_marker(self, path: bytes) -> bool:
        """Return whether ``path`` is a ready marker of a file beside it."""
        return bool(self._markers.patterns) and self._markers.match_file(_text(path))

    def _judge_directory(self, path: bytes) -> bool:
        return bool(path) and (self.ignores_directory(path.rpartition(b"/")[0]) or self._matches(_text(path) + "/"))

    def _matches(self, text: str) -> bool:
        return self._always.match_file(text) or self._chosen.match_file(text)


def beside(template: str, path: bytes) -> bytes:
    """Return the path of the file that ``template`` ("{name}.ok"; {stem} and {suffix} too) puts beside ``path``."""
    parent, name = posixpath.split(os.fsdecode(path))
    stem, suffix = posixpath.splitext(name)
    return os.fsencode(posixpath.join(parent, template.format(name=name, stem=stem, suffix=suffix)))


def marked(template: str, marker: bytes) -> bytes | None:
    """Return the path whose marker by ``template`` is at ``marker``: the inverse of ``beside``.

    None where the template doesn't determine it ({stem} alone) or makes no such name.
    """
    parent, name = posixpath.split(os.fsdecode(marker))
    before, field, after = template.partition("{name}")
    whole = len(name) > len(before + after) and name.startswith(before) and name.endswith(after)
    if not field or "{" in before + after or not whole:
        return None
    return os.fsencode(posixpath.join(parent, name[len(before) : len(name) - len(after)]))


def _spec(patterns: Iterable[str], after: Iterable[GitIgnoreSpecPattern] = ()) -> GitIgnoreSpec:
    """Compile ``patterns``; they come after others that are compiled already."""
    # "simple": the faster backends don't accept names that are not UTF-8.
    return GitIgnoreSpec([*after, *map(GitIgnoreSpecPattern, patterns)], backend="simple")


@cache
def _defaults() -> tuple[GitIgnoreSpecPattern, ...]:
    """Compile ``DEFAULTS``, which match regardless of case; once for all watches, as it takes some milliseconds."""
    return tuple(map(_in_any_case, DEFAULTS))


def _in_any_case(text: str) -> GitIgnoreSpecPattern:
    regex, include = GitIgnoreSpecPattern.pattern_to_regex(text)
    assert regex is not None
    pattern = GitIgnoreSpecPattern(re.compile(regex, re.IGNORECASE | re.ASCII), include)
    pattern.pattern = text
    return pattern


def _pattern(spec: GitIgnoreSpec, found: CheckResult[str]) -> str:
    """Return the deciding pattern as the user wrote it."""
    return str(getattr(spec.patterns[found.index or 0], "pattern", ""))


def _ordinary(patterns: Iterable[Pattern]) -> Callable[[bytes], bool]:
    """Return a function that is true for names that no pattern matches.

    It uses methods of bytes. Where these can't decide, it is false for every name. A negation only cancels another
    pattern, and a pattern for directories ignores a file with its directory, so both are left out. Case is ignored:
    this matches more names, so one that passes is matched by no pattern.
    """
    plain: dict[str | None, list[bytes]] = {"name": [], "end": [], "start": []}
    for pattern in patterns:
        text = getattr(pattern, "pattern", "")
        if not pattern.include or text.endswith("/"):
            continue
        if (found := _PLAIN.fullmatch(text)) is None:
            return _none_is
        # "replace": what the filesystem's encoding doesn't have is in no name.
        encoded = found[found.lastgroup or 0].encode(sys.getfilesystemencoding(), "replace")
        plain[found.lastgroup].append(encoded.lower())
    names, ends, starts = frozenset(plain["name"]), tuple(plain["end"]), tuple(plain["start"])

    def ordinary(name: bytes) -> bool:
        name = name.lower()
        return not (name.endswith(ends) or name.startswith(starts) or name in names)

    return ordinary


def _none_is(_: bytes) -> bool:
    return False


def _text(path: bytes) -> str:
    # The patterns' "." and "$" stop at a line feed, so another character replaces it.
    return os.fsdecode(path).replace("\n", "\ufdd0")


_escape = GitIgnoreSpecPattern.escape


def _glob(template: str) -> list[str]:
    """Return the pattern of all names that a template makes: its placeholders match anything."""
    if not template:
        return []
    parts = string.Formatter().parse(template)
    return ["".join(_escape(text) + ("*" if field is not None else "") for text, field, _, _ in parts)]


# --- unfinished downloads -----------------------------------------------------------------------


def files_waiting_for(path: bytes) -> list[bytes]:
    """Return the paths of the files that may wait for the unfinished download at ``path``."""
    folder, slash, name = path.rpartition(b"/")
    names = [name[: -len(suffix)] for suffix in _ALL if name.lower().endswith(suffix)]
    if salted := _SALTED.fullmatch(name):
        names.append(salted["stem"] + salted["suffix"])
    return [folder + slash + each for each in names if each]


def makes_wait(download: bytes, *, size: int, age: float) -> bool:
    """Return whether a file of ``size`` waits for ``download``, which changed ``age`` seconds ago.

    An empty file waits without limit, and so does one that is itself being filled.
    """
    return size == 0 or download.lower().endswith(_CONTROL) or abs(age) < FRESH_SECONDS


class Unfinished:
    """The unfinished downloads that were seen in one watch, ``by_file``: those that each file may wait for.

    Events and scans add them, so that a look at a file costs nothing more where there are none.
    """

    def __init__(self) -> None:
        self.by_file: dict[bytes, tuple[bytes, ...]] = {}

    def note(self, download: bytes) -> list[bytes]:
        """Note an ignored path if it is an unfinished download; return the files that may wait for it."""
        files = files_waiting_for(download)
        for file in files:
            self.by_file[file] = (*self._without(file, download)[1 - MAX_PER_FILE :], download)
        return files

    def forget(self, download: bytes) -> None:
        """Forget an unfinished download that is gone."""
        for file in files_waiting_for(download):
            if left := self._without(file, download):
                self.by_file[file] = left
            else:
                self.by_file.pop(file, None)

    def _without(self, file: bytes, download: bytes) -> tuple[bytes, ...]:
        return tuple(each for each in self.by_file.get(file, ()) if each != download)
