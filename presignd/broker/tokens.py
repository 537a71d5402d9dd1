"""Tokens: made once, stored as their hash, and looked up as the files that hold them stand now.

A token is 256 random bits, so its plain SHA-256 can't be turned back by trying: a slow hash is for
passwords, which can. It is looked up by its digest, which nobody can steer without knowing the token, and
then compared in constant time.
"""

from __future__ import annotations

import hmac
import os
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from presignd.broker.config import parse_document, read_tokens
from presignd.broker.models import TokenConfig
from presignd.broker.patterns import named_by
from presignd.config.options import nearest
from presignd.errors import UsageError, reason_of
from presignd.system import trust
from presignd.telemetry.log import get_logger

PREFIX = "psd_"
"""What tokens begin with, so that redaction and scanners of leaked secrets know one."""

SETTLED_NS = 2_000_000_000
"""A file read so soon after its last change could change once more within one tick of its clock (a network
filesystem's is the coarsest): until then it is read at each request."""

LOOK_SHARE, LOOK_AHEAD = 10, 1.0
"""Looking at all files for a token that nobody knows is paid for with so many times what it took, and that many
seconds may be owed: a new token is known at once, and nobody can keep a broker of thousands of files busy by
guessing."""

log = get_logger()

Stamp = tuple[int, ...]


def new_token() -> str:
    """Return a new token: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """Return what is stored of a token."""
    return "sha256:" + sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A file as it was read; with a problem it has no tokens: what can't be read may have revoked them.

    ``settled`` tells that an equal stamp means the same content. What could not be read isn't: it may be read the
    next time, without any change to it.
    """

    path: Path
    stamp: Stamp | None
    settled: bool
    tokens: tuple[TokenConfig, ...] = ()
    problems: tuple[str, ...] = ()

    def changed(self) -> bool:
        """Look whether it is another now."""
        return not self.settled or _stamp(self.path) != self.stamp


def read_file(path: Path, *, only_tokens: bool = True) -> TokenFile:
    """Read a file's tokens; ``only_tokens`` says that it may hold nothing else. Never raises."""
    before = time.time_ns()
    stamp = _stamp(path)
    settled = stamp is not None and before - max(stamp[3], stamp[4]) > SETTLED_NS
    try:
        tokens, problems = _tokens(path, only_tokens=only_tokens)
    except UsageError as error:
        tokens, problems, settled = [], [error.message.removeprefix(f"{path}: ")], False
    return TokenFile(path, stamp, settled, () if problems else tuple(tokens), tuple(problems))


def _tokens(path: Path, *, only_tokens: bool) -> tuple[list[TokenConfig], list[str]]:
    problems: list[str] = []
    document = parse_document(path, _believed(path, with_folder=only_tokens))
    if only_tokens:
        problems += [f"{name}: is no section{nearest(name, ['token'])}" for name in document if name != "token"]
    return read_tokens(document, problems), problems


def _believed(path: Path, *, with_folder: bool) -> bytes:
    """Return what a file holds; raise ``UsageError`` where anybody could give themselves tokens in it, or beside it.

    A folder on a filesystem that is mounted read-only, as Kubernetes has its secrets, may have any mode.
    """
    try:
        if with_folder:
            with trust.walked(path.parent) as place:
                if not os.fstatvfs(place.fd).f_flag & os.ST_RDONLY:
                    trust.require_ours(place.st, path.parent)
        return trust.read_file(path)
    except OSError as error:
        raise UsageError(f"{path}: {reason_of(error)}") from None


def _stamp(path: Path) -> Stamp | None:
    """Return what differs once a file, its owner or mode, or the rights on its folder are other ones."""
    try:
        found, folder = path.stat(), path.parent.stat()
    except OSError:
        return None
    file = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return *file, folder.st_mode, folder.st_uid


class Tokens:
    """The tokens in ``main`` (broker.toml) and in the files that ``patterns`` name, as they stand at each call.

    A known token costs a stat of its file. A file that can't be read, or whose tokens clash with those of a
    file before it, grants nothing until it is put right, and the log says so once.

    A folder that can't be opened hides which files it has. Those known before go on while each by itself can be
    seen to be there and unchanged, so one that is removed is revoked all the same; new ones wait, and ``unlisted``
    tells, so that a token that nobody knows isn't called wrong.
    """

    def __init__(self, main: Path, patterns: Sequence[str]) -> None:
        self._main, self._patterns = main, tuple(patterns)
        self._named: dict[str, list[Path]] = {}
        self.unlisted: dict[str, str] = {}
        """Why a pattern's folder can't be looked into, by pattern."""
        self._read: dict[Path, TokenFile] = {}
        self._files: list[TokenFile] = []
        self._by_hash: dict[str, tuple[TokenConfig, TokenFile]] = {}
        self._by_certificate: dict[str, tuple[TokenConfig, TokenFile]] = {}
        self._paid_at = 0.0
        self.refresh()

    @property
    def count(self) -> int:
        """How many tokens there are."""
        return sum(len(file.tokens) for file in self._files)

    @property
    def broken(self) -> list[TokenFile]:
        """Files that grant nothing because of a problem."""
        return [file for file in self._files if file.problems]

    def unreadable(self) -> list[str]:
        """Return a line for each thing that keeps tokens from being known."""
        lines = [f"{file.path}: {problem}" for file in self.broken for problem in file.problems]
        return lines + [f"{pattern}: its folder can't be looked into: {why}" for pattern, why in self.unlisted.items()]

    def all(self) -> list[tuple[TokenConfig, Path]]:
        """Return each token with its file."""
        return [(token, file.path) for file in self._files for token in file.tokens]

    def configure(self, main: Path, patterns: Sequence[str]) -> None:
        """Look in other files from now on."""
        self._main, self._patterns = main, tuple(patterns)
        self.refresh()

    def of_secret(self, secret: str) -> TokenConfig | None:
        """Return the token whose secret this is."""
        wanted = hash_of(secret)
        found = self._find(wanted, certificate=False)
        return found if found is not None and hmac.compare_digest(found.hash, wanted) else None

    def of_certificate(self, names: Iterable[str]) -> TokenConfig | None:
        """Return the token of the first of a verified client certificate's names that has one."""
        return next((found for name in names if (found := self._find(name, certificate=True))), None)

    def _find(self, key: str, *, certificate: bool) -> TokenConfig | None:
        found = (self._by_certificate if certificate else self._by_hash).get(key)
        if found is not None and not found[1].changed():
            return found[0]
        if found is not None:
            self.refresh()
        else:
            self._look_for_unknown()
        # refresh() makes new tables
        found = (self._by_certificate if certificate else self._by_hash).get(key)
        return found[0] if found else None

    def _look_for_unknown(self) -> None:
        began = time.monotonic()
        if self._paid_at <= began + LOOK_AHEAD:
            self.refresh()
            self._paid_at = max(self._paid_at, began) + LOOK_SHARE * (time.monotonic() - began)

    def refresh(self) -> None:
        """Read what changed; costs a look into each folder and a stat for each file."""
        read = {path: self._as_it_is(path) for path in dict.fromkeys([self._main, *self._listed()])}
        if read != self._read:
            self._read = read
            self._take(read.values())

    def _listed(self) -> list[Path]:
        """Return the files that the patterns name, of a folder that can't be opened those it had before."""
        before, self.unlisted = self.unlisted, {}
        named = {pattern: self._named_by(pattern) for pattern in self._patterns}
        self._named = named
        for pattern, reason in self.unlisted.items():
            if before.get(pattern) != reason:
                fix = "tokens in it that are known go on, new ones wait until it can be opened"
                log.error("tokens.unlisted", pattern=pattern, error=reason, fix=fix)
        if before and not self.unlisted:
            log.info("tokens.listed")
        return sorted({path for paths in named.values() for path in paths})

    def _named_by(self, pattern: str) -> list[Path]:
        try:
            return named_by(Path(pattern))
        except OSError as error:
            self.unlisted[pattern] = reason_of(error)
            return self._named.get(pattern, [])

    def _as_it_is(self, path: Path) -> TokenFile:
        known = self._read.get(path)
        if known is not None and not known.changed():
            return known
        return read_file(path, only_tokens=path != self._main)

    def _take(self, files: Iterable[TokenFile]) -> None:
        before, self._files = self._files, []
        self._by_hash, self._by_certificate = {}, {}
        names: set[str] = set()
        for file in files:
            valid = self._without_clash(file, names)
            self._files.append(valid)
            names |= {token.name for token in valid.tokens}
            self._by_hash |= {token.hash: (token, valid) for token in valid.tokens if token.hash}
            self._by_certificate |= {token.certificate: (token, valid) for token in valid.tokens if token.certificate}
        self._tell(before)

    def _without_clash(self, file: TokenFile, names: set[str]) -> TokenFile:
        """Return the file, without its tokens where one of them is another's too."""
        problems = []
        for number, token in enumerate(file.tokens):
            before = file.tokens[:number]
            if token.name in names or any(token.name == each.name for each in before):
                problems.append(f"token.{token.name}: another token has this name")
            if token.hash and (token.hash in self._by_hash or any(token.hash == each.hash for each in before)):
                problems.append(f"token.{token.name}.hash: another token has it")
            if token.certificate and (
                token.certificate in self._by_certificate
                or any(token.certificate == each.certificate for each in before)
            ):
                problems.append(f"token.{token.name}.certificate: another token has it")
        if not problems:
            return file
        return TokenFile(file.path, file.stamp, file.settled, (), tuple(problems))

    def _tell(self, before: Sequence[TokenFile]) -> None:
        told = {file.path: file.problems for file in before}
        for file in self.broken:
            if told.get(file.path) != file.problems:
                fix = "none of its tokens is valid until it is put right"
                log.error("tokens.refused", path=str(file.path), problems=list(file.problems), fix=fix)
        if [(file.path, file.tokens) for file in before] != [(file.path, file.tokens) for file in self._files]:
            log.info("tokens.loaded", count=self.count, files=len(self._files))
