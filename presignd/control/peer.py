"""The process at the other end of the control socket, and its rights."""

from __future__ import annotations

import os
import socket
import struct
import sys
from dataclasses import dataclass

from presignd.system.trust import group_number

SO_PEERGROUPS = 59
"""socket(7), Linux 4.13; Python 3.11 has no name for it."""
LOCAL_PEERCRED = 1
"""unix(4) on macOS: struct xucred (version, uid, ngroups, gid[16])."""
GROUPS_BYTES = 1024
"""The most that Python's getsockopt returns: 256 groups."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, with its ids at that time, as the kernel has them."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]

    @classmethod
    def of(cls, sock: socket.socket) -> Peer:
        """Return the process that connected to ``sock``, by SO_PEERCRED and SO_PEERGROUPS; raise ``OSError``."""
        if sys.platform != "linux":
            return _from_xucred(sock.getsockopt(0, LOCAL_PEERCRED, 4 + 4 + 4 + 16 * 4))
        pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return cls(pid, uid, gid, _groups(sock))

    @classmethod
    def me(cls) -> Peer:
        """Return this process, for a command that answers its own requests."""
        return cls(os.getpid(), os.geteuid(), os.getegid(), frozenset(os.getgroups()))

    def may_have_links(self, links_group: str) -> bool:
        """Return whether links may go to this peer: root, the daemon's own user, the links group."""
        return self.is_privileged or self._in_group(links_group)

    @property
    def is_privileged(self) -> bool:
        """Whether this is root or the daemon's own user."""
        return self.uid in {0, os.geteuid()}

    def _in_group(self, name: str) -> bool:
        gid = group_number(name)
        return gid is not None and (gid == self.gid or gid in self.groups)


def _groups(sock: socket.socket) -> frozenset[int]:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_BYTES)
    except OSError:
        return frozenset()  # more than fit: then only the user and the first group count
    return frozenset(struct.unpack(f"{len(raw) // 4}I", raw))


def _from_xucred(raw: bytes) -> Peer:
    _version, uid, count = struct.unpack_from("=IIhxx", raw)
    groups = struct.unpack_from(f"={count}I", raw, 12)
    return Peer(0, uid, groups[0], frozenset(groups))
