"""Write token files: render a [[token]] block, create a file, remove a revoked token's block."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from presignd.config.toml import toml_value
from presignd.errors import UsageError
from presignd.system.durable import sync_name

NEW_MODE = 0o640
"""Mode of a new file: hashes are not secrets, but others need not see what each token may do."""


def render(options: Mapping[str, Any]) -> str:
    """Return a ``[[token]]`` block with ``options``: strings, and lists of strings."""
    lines = [f"{name} = {toml_value(value)}" for name, value in options.items()]
    return "\n".join(["[[token]]", *lines, ""])


def without(text: str, name: str) -> str:
    """Return a file's text without the block of the token ``name``.

    The rest must parse as the same file without that token; otherwise raise ``UsageError``, and a person edits it.
    """
    after = "".join(block for block in _blocks(text) if not _is_of(block, name))
    wanted = tomllib.loads(text)
    wanted["token"] = [token for token in wanted.get("token", []) if token.get("name") != name]
    try:
        same = {"token": [], **tomllib.loads(after)} == wanted
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        raise UsageError(f"token.{name}: its block can't be separated from the rest", fix="take it out by hand")
    return after


def _blocks(text: str) -> list[str]:
    """Split the text before each line that begins a section."""
    return re.split(r"(?m)^(?=[ \t]*\[)", text)


def _is_of(block: str, name: str) -> bool:
    if not re.match(r"[ \t]*\[\[\s*token\s*\]\]", block):
        return False
    with suppress(tomllib.TOMLDecodeError):
        return any(token.get("name") == name for token in tomllib.loads(block).get("token", []))
    return False


def create(path: Path, text: str) -> None:
    """Write a new file atomically, with its folder's group; raise ``UsageError`` if it exists."""
    with _drafted(path) as draft:
        _fill(draft, text, NEW_MODE, group=path.parent.stat().st_gid)
        os.link(_draft_of(path), path)


def revoke(path: Path, name: str) -> None:
    """Remove the token ``name`` from a file, and the file if nothing is left in it.

    A symlink is followed, so that every name of the file sees the change. Raises ``UsageError`` if the block cannot
    be removed; a token that is gone already counts as revoked.
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
    """Yield the file's only draft, to be filled and renamed into place, so that readers see the old or the new file.

    The draft is also the lock: a second writer waits, and then reads what the first one wrote. Otherwise both would
    edit the same old text, and the second would undo the first.
    """
    name = _draft_of(path)
    try:
        with _opened(name) as draft:
            try:
                yield draft
                sync_name(path)  # so that power loss does not restore a revoked token
            finally:
                if _is(name, draft):  # after a rename the next writer's draft may have this name
                    name.unlink()
    except FileExistsError:
        raise UsageError(f"{path} is there already", fix="give another name, or remove it") from None
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error.strerror}") from None


@contextmanager
def _opened(name: Path) -> Iterator[IO[bytes]]:
    """Open and lock a draft. Reuse one that a crash left, unless it is a link to the file itself (``create``)."""
    while True:
        with os.fdopen(os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b") as draft:
            fcntl.flock(draft, fcntl.LOCK_EX)
            if not _is(name, draft):
                continue  # its holder renamed or removed it
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
