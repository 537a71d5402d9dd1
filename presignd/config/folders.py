"""Check the configuration's folders on this machine: they must exist, be readable, and not overlap.

Whether a folder lies in another is decided by device and inode of every folder above it, and by the mount table if
there is a bind mount in between. So no spelling, symlink or mount hides an overlap.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath

from presignd.config.models import Config, WatchConfig
from presignd.system.filesystem import mounts
from presignd.system.trust import walked


@dataclass(frozen=True, slots=True)
class _Location:
    """A folder: its (device, inode), those of all folders above it too, and its path on its filesystem."""

    identity: tuple[int, int]
    chain: frozenset[tuple[int, int]]
    origin: tuple[str, PurePosixPath]

    def lies_in(self, other: _Location) -> bool:
        return other.identity in self.chain or (
            self.origin[0] == other.origin[0] != "" and self.origin[1].is_relative_to(other.origin[1])
        )


def folder_problems(config: Config) -> list[str]:
    """Return a line for each unusable folder or file of ``config``: its key, the reason, and what to do.

    Reads the filesystem and changes nothing. An empty list means: every watch can be read, no two overlap, and
    nothing that presignd writes lies in a watch and would be uploaded.
    """
    problems = [problem for watch in config.watches if (problem := _unusable(watch))]
    placed = [(watch, place) for watch in config.watches if (place := _place(watch.path)) is not None]
    problems += [line for one, other in combinations(placed, 2) for line in _overlap(one, other)]
    for watch, place in placed:
        problems += _written_inside(config, watch, place)
        problems += _moved_inside(config, watch, place)
    return problems + list(_inbox_problems(config)) + _tls_problems(config)


def _inbox_problems(config: Config) -> Iterator[str]:
    """Yield what is wrong with the inboxes' folders; one of them may be a watch's, too."""
    seen: dict[str, str] = {}
    for inbox in config.inboxes:
        key = f"inbox.{inbox.name}"
        if (other := seen.setdefault(inbox.invitation, key)) != key:
            yield f"{key}.invitation: is that of {other}, too; each file goes to one folder: remove one of them"
        try:
            with walked(inbox.path):
                pass
        except FileNotFoundError:
            yield f"{key}.path: {inbox.path} does not exist; create it (mkdir -p {inbox.path}) or correct the path"
            continue
        except OSError as error:
            yield f"{key}.path: {inbox.path} can't be used: {error.strerror}; name a folder that this user can enter"
            continue
        yield from _inbox_inside(config, key, inbox.path)


def _inbox_inside(config: Config, key: str, path: Path) -> Iterator[str]:
    """Yield a problem for an inbox in a folder of presignd's own files: a guest's file must not get among them."""
    place = _place(path)
    for own, folder in (("ledger.path", config.ledger.path), ("links.file", config.links.file.parent)):
        state = _place(folder)
        if place is not None and state is not None and place.lies_in(state):
            yield f"{key}.path: {path} lies in the folder of {own} ({folder}); name another"


def _key(watch: WatchConfig, key: str = "path") -> str:
    return f"watch.{watch.name}.{key}"


def _unusable(watch: WatchConfig) -> str | None:
    """Return why a watch's folder can't be watched, None if it can."""
    path = watch.path
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            return f"{_key(watch)}: {path} is a file; name the folder it is in"
        with walked(path):
            pass  # as the daemon opens it: through no symlink that another user could have made
        with os.scandir(path) as entries:
            next(entries, None)
    except FileNotFoundError:
        return f"{_key(watch)}: {path} does not exist; create it (mkdir -p {path}) or correct the path"
    except PermissionError:
        return f"{_key(watch)}: {path} can't be listed; give the daemon's user r and x on it, and x on all above it"
    except OSError as error:
        return f"{_key(watch)}: {path} can't be read: {error.strerror}"
    if not os.access(path, os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return f"{_key(watch)}: files in {path} can't be reached; give the daemon's user x on it"
    return None


def _overlap(one: tuple[WatchConfig, _Location], other: tuple[WatchConfig, _Location]) -> Iterator[str]:
    (first, first_place), (second, second_place) = one, other
    fix = "each file would be sent twice; watch one of them, or move one elsewhere"
    if first_place.identity == second_place.identity:
        yield f"{_key(second)}: {second.path} is the same folder as {_key(first)} ({first.path}); {fix}"
    elif _covers(first, first_place, second_place):
        yield f"{_key(second)}: {second.path} lies in {_key(first)} ({first.path}); {fix}"
    elif _covers(second, second_place, first_place):
        yield f"{_key(first)}: {first.path} lies in {_key(second)} ({second.path}); {fix}"


def _covers(watch: WatchConfig, place: _Location, inner: _Location) -> bool:
    """Return whether ``watch`` uploads files in ``inner``: itself, and with ``recursive`` any folder below."""
    return inner.identity == place.identity or (watch.recursive and inner.lies_in(place))


def _written_inside(config: Config, watch: WatchConfig, place: _Location) -> Iterator[str]:
    for key, folder in (("ledger.path", config.ledger.path), ("links.file", config.links.file.parent)):
        inner = _nearest(folder)
        if inner is not None and _inside(watch, place, folder, inner):
            yield f"{key}: {folder} lies in {_key(watch)} ({watch.path}), which would upload it; name another"


def _moved_inside(config: Config, watch: WatchConfig, place: _Location) -> Iterator[str]:
    """Yield a problem for each watch that moves files into ``watch``; a watch ignores files moved within itself."""
    for mover in config.watches:
        target = _nearest(mover.move_to) if mover.after == "move" and mover.move_to is not None else None
        if target is None or mover.move_to is None:
            continue
        if mover is not watch and _inside(watch, place, mover.move_to, target):
            yield (
                f"{_key(mover, 'move_to')}: {mover.move_to} lies in {_key(watch)} ({watch.path}), which would "
                "upload each file again; name a folder outside it"
            )
        elif mover is watch and mover.move_to.exists() and target.identity == place.identity:
            yield f"{_key(mover, 'move_to')}: {mover.move_to} is the watch's own folder; name another"
        elif mover is watch and not mover.moved_inside and _inside(watch, place, mover.move_to, target):
            yield (
                f"{_key(mover, 'move_to')}: {mover.move_to} leads into {_key(watch)} ({watch.path}) by another way, so "
                f"each file would be uploaded again; name it as a folder below {watch.path}"
            )


def _inside(watch: WatchConfig, place: _Location, folder: Path, nearest: _Location) -> bool:
    """Return whether ``watch`` uploads files in ``folder``; ``nearest`` is it, or its nearest existing parent."""
    if folder.exists() or watch.recursive:
        return _covers(watch, place, nearest)
    return False


def _nearest(folder: Path) -> _Location | None:
    """Return the location of ``folder``, or of its nearest existing parent."""
    return next((place for path in (folder, *folder.parents) if (place := _place(path)) is not None), None)


def _place(path: Path) -> _Location | None:
    try:
        real = path.resolve(strict=True)
        ids = [(found.st_dev, found.st_ino) for found in (step.stat() for step in (real, *real.parents))]
    except (OSError, RuntimeError):  # RuntimeError: a loop of symlinks
        return None
    return _Location(ids[0], frozenset(ids), _origin(real))


def _origin(real: Path) -> tuple[str, PurePosixPath]:
    """Return the device of ``real`` and its path on that device (proc_pid_mountinfo(5)); ("", …) if unknown.

    A bind mount of a folder in a watch has none of the watch's inodes above it; only this shows where it lies.
    """
    best: tuple[int, str, PurePosixPath] = (-1, "", PurePosixPath(real))
    for device, root, point in mounts():
        depth = len(point.parts)
        if depth >= best[0] and real.is_relative_to(point):  # the last of equals lies on top
            best = (depth, device, root / real.relative_to(point))
    return best[1], best[2]


def _tls_problems(config: Config) -> list[str]:
    return [
        f"presign.{key}: {file} can't be read: {error}; correct the path or its permissions"
        for key in ("ca_file", "client_cert", "client_key")
        if (file := getattr(config.presign, key)) is not None and (error := _unreadable(file))
    ]


def _unreadable(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            stream.read(1)
    except OSError as error:
        return error.strerror or "unknown reason"
    return ""
