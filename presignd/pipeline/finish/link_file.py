"""The file's own link file: the link beside the file too, for users who drop files over SMB or SFTP. Blocking.

The option ``link_file`` asks for it and names it. ``links.jsonl``, which has every link, is another file.
"""

from __future__ import annotations

import os
import posixpath
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from presignd.errors import PresigndError, fault, passing, reason_of
from presignd.pipeline.files.folder import Gone, NotRegular
from presignd.pipeline.files.ignore import OWN_PREFIX, beside
from presignd.presign.stable import id_in
from presignd.runtime.crash_points import passed
from presignd.system.durable import rename_noreplace, sync, write_new
from presignd.system.filesystem import reading

if TYPE_CHECKING:
    from presignd.config import WatchConfig
    from presignd.model import FileVersion
    from presignd.pipeline.files.folder import Folder

MODE = 0o640
LARGEST = 64 << 10
"""Largest link file, in bytes: a larger file was not written here."""


def write_link_file(folder: Folder, watch: WatchConfig, version: FileVersion, url: str) -> bool:
    """Write the file's own link file: ``url`` (secret) and a newline, named by ``watch.link_file``, 0640, durably.

    An earlier link file is replaced atomically; any other file of that name stays. Raises ``fault("finish_failed")``
    for such a file, and for any failure that doesn't pass by itself (``passing``). Returns False, with nothing written,
    if the file's folder is gone or another file has its name.
    """
    path = beside(watch.link_file, version.path)
    temporary = OWN_PREFIX + version.file_id.encode() + b".link"
    try:
        with folder.dir_fd(path) as directory:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)  # what a crash left
            write_new(directory, temporary, url.encode() + b"\n", MODE)
            passed("link_file.written")
            if not version.is_made and _is_replaced(directory, version):
                os.unlink(temporary, dir_fd=directory)
                return False
            _publish(directory, temporary, posixpath.basename(path))
            passed("link_file.published")
            sync(directory)
    except (Gone, NotRegular):
        return False
    except FileExistsError:
        raise fault("finish_failed", f"{os.fsdecode(path)} is there and is no link file of ours") from None
    except (OSError, PresigndError) as error:
        known = passing(error)
        why = error.message if isinstance(error, PresigndError) else reason_of(error)
        raise fault(known.code if known else "finish_failed", f"{os.fsdecode(path)}: {why}") from None
    return True


def _is_replaced(directory: int, version: FileVersion) -> bool:
    """Return whether another file has the version's name: a new file, or one in a new folder of that name."""
    try:
        there = os.stat(posixpath.basename(version.path), dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False  # moved or deleted, by this program or another
    return there.st_ino != version.fingerprint.ino


def _publish(directory: int, temporary: bytes, name: bytes) -> None:
    """Rename the link file to its name; raise ``FileExistsError`` where another file has it."""
    try:
        if _is_ours(directory, name):
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        else:
            rename_noreplace(directory, temporary, directory, name)
    except OSError:
        os.unlink(temporary, dir_fd=directory)
        raise


def _is_ours(directory: int, name: bytes) -> bool:
    """Return whether the file of that name is a link file: the daemon's user owns it, and it holds one link."""
    try:
        st = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(st.st_mode) or st.st_uid != os.geteuid() or st.st_size > LARGEST:
        return False
    with reading(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)) as fd:
        content = os.pread(fd, LARGEST, 0)
    one_line = content.endswith(b"\n") and len(content.split()) == 1
    return one_line and _is_link(content.strip().decode("utf-8", "replace"))


def _is_link(text: str) -> bool:
    """Return whether this is the address of a stable link, or a signed URL."""
    return bool(id_in(text)) or (text.startswith(("http://", "https://")) and "X-Amz-Signature=" in text)
