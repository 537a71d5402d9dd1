"""``link_file``: the link is also left beside the file, for whoever dropped it over SMB or SFTP."""

from __future__ import annotations

import os
import posixpath
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from presignd.errors import PresigndError, fault, passing, reason_of
from presignd.pipeline.files.folder import Gone, NotRegular
from presignd.pipeline.files.ignore import beside
from presignd.runtime.crash_points import passed
from presignd.system.durable import rename_noreplace, sync, write_new

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from presignd.config import WatchConfig
    from presignd.model import FileVersion

MODE = 0o640
LARGEST = 64 << 10
"""Bytes; a file larger than this is nobody's link."""


class Folder(Protocol):
    """What is needed of ``presignd.pipeline.files.folder.Folder``."""

    def dir_fd(self, path: bytes) -> AbstractContextManager[int]:
        """Lend the directory that holds ``path``."""
        ...


def write_link_file(folder: Folder, watch: WatchConfig, version: FileVersion, url: str) -> None:
    """Leave ``url`` (secret) and a newline in ``watch.link_file`` beside the file, 0640, durably. Blocking.

    An earlier link file of ours is replaced, as a whole and at once; anything else of that name stays, and
    raises ``fault("finish_failed")``, as does any failure but those that pass (``passing``).
    A folder that is gone needs no link file.
    """
    path = beside(watch.link_file, version.path)
    temporary = b".presignd-" + version.file_id.encode() + b".link"
    try:
        with folder.dir_fd(path) as directory:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)  # what a crash left
            write_new(directory, temporary, url.encode() + b"\n", MODE)
            passed("link_file.written")
            _publish(directory, temporary, posixpath.basename(path))
            passed("link_file.published")
            sync(directory)
    except (Gone, NotRegular):
        return
    except FileExistsError:
        raise fault("finish_failed", f"{os.fsdecode(path)} is there and is no link file of ours") from None
    except (OSError, PresigndError) as error:
        known = passing(error)
        why = error.message if isinstance(error, PresigndError) else reason_of(error)
        raise fault(known.code if known else "finish_failed", f"{os.fsdecode(path)}: {why}") from None


def _publish(directory: int, temporary: bytes, name: bytes) -> None:
    """Give the link file its name; raise ``FileExistsError`` where that is something else's."""
    try:
        if _is_ours(directory, name):
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        else:
            rename_noreplace(directory, temporary, directory, name)
    except OSError:
        os.unlink(temporary, dir_fd=directory)
        raise


def _is_ours(directory: int, name: bytes) -> bool:
    """Tell whether a link file that this daemon wrote has the name: its user's, one signed URL and no more."""
    try:
        st = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(st.st_mode) or st.st_uid != os.geteuid() or st.st_size > LARGEST:
        return False
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        content = os.pread(fd, LARGEST, 0)
    finally:
        os.close(fd)
    one_line = content.endswith(b"\n") and len(content.split()) == 1
    return one_line and content.startswith((b"http://", b"https://")) and b"X-Amz-Signature=" in content
