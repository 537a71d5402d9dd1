"""Find out what is at the hinted paths. A hint only says that something at its path may have changed."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from presignd.errors import Fault, FileFault, lacks_descriptors
from presignd.pipeline.files.folder import Folder, Gone, NotRegular
from presignd.pipeline.files.ignore import marked

if TYPE_CHECKING:
    from presignd.config import WatchConfig
    from presignd.pipeline.files.ignore import Ignore
    from presignd.pipeline.files.unfinished import Unfinished
    from presignd.pipeline.watch.source import Hints


@dataclass(slots=True)
class Findings:
    """What is at hinted paths: files to settle, directories to scan (True: with all below), and nothing (``gone``).

    ``cut_short``: too many files were open to look at all of them.
    """

    files: set[bytes] = field(default_factory=set)
    directories: dict[bytes, bool] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)
    cut_short: bool = False


def look_at(watch: WatchConfig, folder: Folder, ignore: Ignore, unfinished: Unfinished, hints: Hints) -> Findings:
    """Return what is at each hinted path; note downloads in ``unfinished``. Blocking, unless all were just closed."""
    findings = Findings()
    for absolute in hints:
        path = folder.relative(absolute)
        if not path or (not watch.recursive and b"/" in path):
            continue
        if ignore.is_marker(path):
            _add_marked(watch, ignore, path, findings)
        elif path in hints.closed and not ignore.ignores_file(path):
            # Settling looks at the file next, and another event reports it when it goes.
            findings.files.add(path)
        else:
            _look_at_one(watch, folder, ignore, path, findings)
            if ignore.ignores_directory(path):
                # Perhaps an unfinished download that is gone: look at the files that wait for it.
                findings.files |= {waiting for waiting in unfinished.note(path) if not ignore.ignores_file(waiting)}
    return findings


def _look_at_one(watch: WatchConfig, folder: Folder, ignore: Ignore, path: bytes, findings: Findings) -> None:
    file_ignored, directory_ignored = ignore.ignores_file(path), ignore.ignores_directory(path)
    if file_ignored and directory_ignored:
        return
    is_file, is_directory = _kind_of(folder, path, findings)
    if is_file and not file_ignored:
        findings.files.add(path)
    if is_directory and watch.recursive and not directory_ignored:
        findings.directories[path] = True


def _kind_of(folder: Folder, path: bytes, findings: Findings) -> tuple[bool, bool]:
    """Return whether a regular file, and whether a directory, may be at a path; note in ``findings`` if it is gone."""
    try:
        mode = folder.stat(path).st_mode
    except Gone:
        findings.gone.add(path)
    except (NotRegular, FileFault):
        pass
    except Fault as error:
        if not lacks_descriptors(error):
            # Unknown: if it is a file, settling waits for it and logs why; if it is a directory, it is scanned soon.
            return True, True
        findings.cut_short = True
    else:
        return stat.S_ISREG(mode), stat.S_ISDIR(mode)
    return False, False


def _add_marked(watch: WatchConfig, ignore: Ignore, marker: bytes, findings: Findings) -> None:
    """Add the file or folder that this ready marker is for; if its name doesn't determine that, scan."""
    path = marked(watch.ready_marker, marker)
    if watch.links_folders and path and b"/" not in path and not ignore.ignores_directory(path):
        findings.directories[path] = True
    elif path is None:
        findings.directories.setdefault(marker.rpartition(b"/")[0], False)
    elif not ignore.ignores_file(path):
        findings.files.add(path)
