"""[[token]] blocks as text: written for a new token, taken out of a file for one that is revoked."""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from presignd.errors import UsageError

NEW_MODE = 0o640
"""Of a new file: hashes are no secret, but who may have what is nobody's business."""


def render(options: Mapping[str, Any]) -> str:
    """Return a ``[[token]]`` block of ``options``: texts, and lists of texts."""
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in options.items()]
    return "\n".join(["[[token]]", *lines, ""])


def create(path: Path, text: str) -> None:
    """Write a new file: whole or not at all, of its folder's group; raise ``UsageError`` where one is there."""
    _write(path, text, NEW_MODE, group=path.parent.stat().st_gid, new=True)


def without(text: str, name: str) -> str:
    """Return a file's text without the block of the token ``name``; raise ``UsageError`` where it can't be cut out.

    What is left must read as the same file without that token: else a person has to look.
    """
    after = "".join(block for block in _blocks(text) if not _is_of(block, name))
    wanted = tomllib.loads(text)
    wanted["token"] = [token for token in wanted["token"] if token.get("name") != name]
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


def revoke(path: Path, name: str) -> None:
    """Take the token ``name`` out of a file, which is gone when nothing is left in it.

    Behind a symlink it is the file itself that changes, for whoever reads it by another name.
    """
    linked, path = path.is_symlink(), path.resolve()
    after = without(path.read_text("utf-8-sig"), name)
    if not after.strip() and not linked:
        path.unlink()
        return
    found = path.stat()
    _write(path, after, stat.S_IMODE(found.st_mode), group=found.st_gid, owner=found.st_uid)


def _write(path: Path, text: str, mode: int, *, group: int, owner: int = -1, new: bool = False) -> None:
    """Write by a rename, so that a broker sees the old file or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(text.encode())
            with suppress(PermissionError):
                os.fchown(file.fileno(), owner, group)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        if new:
            os.link(draft, path)
        else:
            draft.replace(path)
    except FileExistsError:
        raise UsageError(f"{path} is there already", fix="give another name, or remove it") from None
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error.strerror}") from None
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()
