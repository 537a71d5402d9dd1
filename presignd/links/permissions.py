"""Permissions of ``links.jsonl``: group and mode of its folder and files, whatever the umask."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from presignd.errors import UsageError
from presignd.system import durable
from presignd.system.trust import group_number, open_folder

if TYPE_CHECKING:
    from pathlib import Path


def group_id(group: str) -> int | None:
    """Return the number of ``links.group`` (name or number), None for ""; raise ``UsageError`` for an unknown one."""
    number = group_number(group)
    if group and number is None:
        raise UsageError(
            f'links.group: there is no group "{group}"', fix=f"make it (groupadd {group}), or correct the name"
        )
    return number


def set_permissions(fd: int, group: int | None, mode: int) -> None:
    """Set the mode of the file or folder behind ``fd``, and its group if one is given.

    The group first: a change of group clears the setgid bit. Raises ``UsageError`` where that is refused.
    """
    if group is not None and os.fstat(fd).st_gid != group:
        try:
            os.fchown(fd, -1, group)
        except PermissionError:
            raise UsageError(
                f"links.group: the daemon's user may not give files to group {group}",
                fix="add the daemon's user to that group (usermod -aG), then restart",
            ) from None
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        try:
            os.fchmod(fd, mode)
        except PermissionError:  # systemd's RestrictSUIDSGID= forbids the setgid bit
            raise UsageError(
                f"links.file: the daemon may not give its folder the mode {mode:o}",
                fix=f"make that folder before: install -d -o presignd -g {group} -m {mode:o} FOLDER",
            ) from None


def make_links_folder(folder: Path, links_name: str, group: int | None) -> None:
    """Make ``folder``, 0700, or 2750 for ``group``.

    An existing one is opened to the group only when it is ours and holds nothing but ``links.jsonl`` and its rotated
    files: a home folder or /var/log named in links.file keeps its mode. Raises ``OSError`` and ``UsageError``.
    """
    made = durable.make_folder(folder, 0o700)  # without r and x it could not even be opened
    if not made and group is None:
        return
    with open_folder(folder) as fd:
        if made or _holds_only_links(fd, links_name):
            set_permissions(fd, group, 0o700 if group is None else 0o2750)


def _holds_only_links(folder: int, links_name: str) -> bool:
    return os.fstat(folder).st_uid == os.geteuid() and all(
        name == links_name or name.startswith(links_name + ".") for name in os.listdir(folder)
    )
