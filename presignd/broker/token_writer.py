"""[[token]] blocks as text: written for a new token, taken out of a file for one that is revoked."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from presignd.errors import UsageError

NEW_MODE = 0o640
"""Of a new file: hashes are no secret, but who may have what is nobody's business."""


def render(options: Mapping[str, Any]) -> str:
    """Return a ``[[token]]`` block of ``options``: texts, and lists of texts."""
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in options.items()]
    return "\n".join(["[[token]]", *lines, ""])


def without(text: str, name: str) -> str:
    """Return a file's text without the block of the token ``name``; raise ``UsageError`` where it can't be cut out.

    What is left must read as the same file without that token: else a person has to look.
    """
    after = "".join(block for block in _blocks(text) if not _is_of(block, name))
    wanted = tomllib.loads(text)
    wanted["token"] = [token for token in wanted.get("token", []) if token.get("name") != name]
    try:
        same = {"token": [], **tomllib.loads(after)} == wanted
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        raise UsageError(f"token.{name}: its block can't be told from the rest", fix="take it out by hand")
    return after


def _blocks(text: str) -> list[str]:
    """Return the text cut before each line that begins a section."""
    return re.split(r"(?m)^(?=[ \t]*\[)", text)


def _is_of(block: str, name: str) -> bool:
    if not re.match(r"[ \t]*\[\[\s*token\s*\]\]", block):
        return False
    with suppress(tomllib.TOMLDecodeError):
        return any(token.get("name") == name for token in tomllib.loads(block).get("token", []))
    return False


def create(path: Path, text: str) -> None:
    """Write a new file: whole or not at all, of its folder's group; raise ``UsageError`` where one is there."""
    with _drafted(path) as draft:
        _fill(draft, text, NEW_MODE, group=path.parent.stat().st_gid)
        os.link(_draft_of(path), path)


def revoke(path: Path, name: str) -> None:
    """Take the token ``name`` out of a file, which is gone when nothing is left in it.

    Behind a symlink it is the file itself that changes, for whoever reads it by another name. Raises
    ``UsageError`` where that can't be done; a token that is not there any more is as good as revoked.
    """
    linked, path = path.is_symlink(), path.resolve()
    with _drafted(path) as draft:
        try:
            text, found = path.read_text("utf-8-sig"), path.stat()
        except FileNotFoundError:
            return
        after = without(text, name)
        if not after.strip() and not linked:
            path.unlink()
            return
        _fill(draft, after, stat.S_IMODE(found.st_mode), group=found.st_gid, owner=found.st_uid)
        _draft_of(path).replace(path)


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


@contextmanager
def _drafted(path: Path) -> Iterator[IO[bytes]]:
    """Have the one draft that a file may have, to be filled and put in its place: who reads sees the old or the new.

    It is the lock, too: who comes second waits, and then reads what the first one wrote. Else both would change what
    they read before, and the later undo the earlier.
    """
    name = _draft_of(path)
    try:
        with _opened(name) as draft:
            try:
                yield draft
            finally:
                if _is(name, draft):  # not put in place: then the next one's may have this name already
                    name.unlink()
    except FileExistsError:
        raise UsageError(f"{path} is there already", fix="give another name, or remove it") from None
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error.strerror}") from None


@contextmanager
def _opened(name: Path) -> Iterator[IO[bytes]]:
    """Open and lock a draft. One that a crash left is taken over, but not one that is the file itself (``create``)."""
    while True:
        with os.fdopen(os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b") as draft:
            fcntl.flock(draft, fcntl.LOCK_EX)
            if not _is(name, draft):
                continue  # its holder put it in place, or removed it
            if os.fstat(draft.fileno()).st_nlink > 1:
                name.unlink()
                continue
            yield draft
            return


def _is(name: Path, draft: IO[bytes]) -> bool:
    try:
        return os.path.samestat(name.lstat(), os.fstat(draft.fileno()))
    except FileNotFoundError:
        return False


def _fill(draft: IO[bytes], text: str, mode: int, *, group: int, owner: int = -1) -> None:
    draft.truncate()
    draft.write(text.encode())
    with suppress(PermissionError):
        os.fchown(draft.fileno(), owner, group)
    os.fchmod(draft.fileno(), mode)
    draft.flush()
    os.fsync(draft.fileno())
