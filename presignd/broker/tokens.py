"""Tokens: make one, store its hash, find it in the current files.

A token is 256 random bits, so guessing it from its SHA-256 is hopeless; slow hashes are for passwords. The lookup is by
the digest, which a caller cannot choose without knowing the token, and a constant-time comparison follows.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path

from presignd.broker.config import TokenConfig
from presignd.broker.load import read_tokens
from presignd.config.options import nearest
from presignd.config.toml import parse_document
from presignd.errors import UsageError, reason_of
from presignd.system import trust
from presignd.telemetry.log import get_logger

PREFIX = "psd_"
"""Start of every token, by which redaction and scanners of leaked secrets recognise one."""

SETTLED_NS = 2_000_000_000
"""A file read sooner after its last change could change again within one tick of its clock (a network filesystem's is
the coarsest), so it is read at each request."""

LOOK_SHARE, LOOK_AHEAD = 10, 1.0
"""Limits on searching all files for an unknown token. A search is followed by a pause of ``LOOK_SHARE`` times its
duration, and up to ``LOOK_AHEAD`` seconds of pauses may be postponed. So a new token works at once, and guesses cannot
keep a broker with thousands of files busy."""

NAMED_SECONDS = 0.25
"""How long a lookup by name does not check the file again: the stats would take a third of an opening."""

log = get_logger()

Stamp = tuple[int, ...]


def new_token() -> str:
    """Return a new token: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """Return the hash that is stored for a token."""
    return "sha256:" + sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A file of tokens as it was read. A file with a problem has no tokens: it may have revoked some.

    ``path`` is None for the tokens that the environment gives. ``settled`` means that an equal stamp proves equal
    content. An unreadable file is never settled: it may become readable without a change to its stamp.
    """

    path: Path | None
    stamp: Stamp | None
    settled: bool
    tokens: tuple[TokenConfig, ...] = ()
    problems: tuple[str, ...] = ()

    def changed(self) -> bool:
        """Return whether the file may have changed since it was read."""
        return self.path is not None and (not self.settled or _stamp(self.path) != self.stamp)

    @property
    def place(self) -> str:
        """Where its tokens are, for people."""
        return str(self.path or "the environment")


Table = dict[str, tuple[TokenConfig, TokenFile]]
"""Tokens with their files, by what they are looked up by."""


def read_file(path: Path, *, only_tokens: bool = True, settled_ns: int = SETTLED_NS) -> TokenFile:
    """Read a file's tokens; with ``only_tokens`` other sections are a problem. Never raises."""
    before = time.time_ns()
    stamp = _stamp(path)
    settled = stamp is not None and before - max(stamp[3], stamp[4]) > settled_ns
    try:
        tokens, problems = _tokens(path, only_tokens=only_tokens)
    except UsageError as error:
        tokens, problems, settled = [], [error.message.removeprefix(f"{path}: ")], False
    return TokenFile(path, stamp, settled, () if problems else tuple(tokens), tuple(problems))


def _tokens(path: Path, *, only_tokens: bool) -> tuple[list[TokenConfig], list[str]]:
    problems: list[str] = []
    document = parse_document(path, _read_trusted(path, with_folder=only_tokens))
    if only_tokens:
        problems += [f"{name}: is no section{nearest(name, ['token'])}" for name in document if name != "token"]
    return read_tokens(document, problems), problems


def _read_trusted(path: Path, *, with_folder: bool) -> bytes:
    """Return a file's content; raise ``UsageError`` if others may write to it or add files beside it.

    A folder on a read-only mount, as Kubernetes mounts secrets, may have any mode.
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
    """Return a value that changes with the file, its owner or mode, or its folder's owner or mode."""
    try:
        found, folder = path.stat(), path.parent.stat()
    except OSError:
        return None
    file = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return *file, folder.st_mode, folder.st_uid


# --- globs ------------------------------------------------------------------------------------------

_MAGIC = re.compile(r"[*?\[]")


def named_by(pattern: Path) -> list[Path]:
    """Return the files that match an absolute pattern, as ``glob.glob`` does.

    Raises ``OSError`` for a folder that cannot be opened, where ``glob`` returns nothing.
    """
    if not _MAGIC.search(str(pattern)):
        return [pattern] if _is_there(pattern) else []
    folder, name = pattern.parent, pattern.name
    folders = named_by(folder) if _MAGIC.search(str(folder)) else [folder]
    if not _MAGIC.search(name):
        return [each / name for each in folders if _is_there(each / name)]
    return [found for each in folders for found in _matching(each, name)]


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _matching(folder: Path, name: str) -> list[Path]:
    """Return the matches in a folder. As in a shell, ``*`` matches no leading dot: drafts have one."""
    try:
        found = [each for each in folder.iterdir() if fnmatch(each.name, name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [each for each in found if name.startswith(".") or not each.name.startswith(".")]


# --- the tokens -------------------------------------------------------------------------------------


class Tokens:
    """The tokens in ``main`` (broker.toml) and in the files that match ``patterns``, current at each call.

    ``given`` are those of the environment: these stay until ``configure``.

    Looking up a known token costs one stat of its file. A file that cannot be read, or whose tokens clash with those of
    an earlier file, has no valid tokens until it is fixed, and is logged once.

    A folder that cannot be opened hides its new files. The files known before stay valid while each is still there and
    unchanged, so removing one still revokes its tokens. ``unlisted`` holds such folders: while there is one, an unknown
    token is not refused as wrong.
    """

    def __init__(
        self,
        main: Path | None,
        patterns: Sequence[str],
        given: Sequence[TokenConfig] = (),
        *,
        settled_ns: int = SETTLED_NS,
        look_share: float = LOOK_SHARE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._main, self._patterns, self._given = main, tuple(patterns), tuple(given)
        self._settled_ns, self._look_share, self._monotonic = settled_ns, look_share, monotonic
        self._named: dict[str, list[Path]] = {}
        self.unlisted: dict[str, str] = {}
        """Why a pattern's folder cannot be opened, by pattern."""
        self._read: dict[Path, TokenFile] = {}
        self._indexed: tuple[TokenConfig, ...] = ()
        self._files: list[TokenFile] = []
        self._by_hash: Table = {}
        self._by_certificate: Table = {}
        self._by_name: Table = {}
        self._named_until: dict[str, float] = {}
        self._paid_at = 0.0
        self.refresh()

    @property
    def count(self) -> int:
        """The number of tokens."""
        return sum(len(file.tokens) for file in self._files)

    @property
    def broken(self) -> list[TokenFile]:
        """The files that grant nothing because of a problem."""
        return [file for file in self._files if file.problems]

    def unreadable(self) -> list[str]:
        """Return a line for each problem of a file or a folder of tokens."""
        lines = [f"{file.place}: {problem}" for file in self.broken for problem in file.problems]
        return lines + [f"{pattern}: its folder can't be opened: {why}" for pattern, why in self.unlisted.items()]

    def all(self) -> list[tuple[TokenConfig, Path | None]]:
        """Return each token with its file, None for one of the environment."""
        return [(token, file.path) for file in self._files for token in file.tokens]

    def configure(self, main: Path | None, patterns: Sequence[str], given: Sequence[TokenConfig] = ()) -> None:
        """Use other files from now on, and the tokens of the environment."""
        self._main, self._patterns, self._given = main, tuple(patterns), tuple(given)
        self.refresh()

    def of_secret(self, secret: str) -> TokenConfig | None:
        """Return the token with this secret."""
        wanted = hash_of(secret)
        found = self._find(lambda: self._by_hash, wanted)
        return found if found is not None and hmac.compare_digest(found.hash, wanted) else None

    def of_certificate(self, names: Iterable[str]) -> TokenConfig | None:
        """Return the token for the first matching name of a verified client certificate."""
        return next((found for name in names if (found := self._find(lambda: self._by_certificate, name))), None)

    def named(self, name: str) -> TokenConfig | None:
        """Return the token with this name, at most ``NAMED_SECONDS`` old: each opening of a link calls this."""
        now = self._monotonic()
        if now < self._named_until.get(name, 0.0) and name in self._by_name:
            return self._by_name[name][0]
        found = self._find(lambda: self._by_name, name)
        if found is not None:
            self._named_until[name] = now + NAMED_SECONDS
        return found

    def _find(self, table: Callable[[], Table], key: str) -> TokenConfig | None:
        """Return a token by a table, which ``refresh`` replaces."""
        found = table().get(key)
        if found is not None and not found[1].changed():
            return found[0]
        if found is not None:
            self.refresh()
        else:
            self._search_for_unknown()
        found = table().get(key)
        return found[0] if found else None

    def _search_for_unknown(self) -> None:
        began = self._monotonic()
        if self._paid_at <= began + LOOK_AHEAD:
            self.refresh()
            self._paid_at = max(self._paid_at, began) + self._look_share * (self._monotonic() - began)

    def refresh(self) -> None:
        """Read changed files. The cost is a listing of each folder and a stat of each file."""
        main = [self._main] if self._main else []
        read = {path: self._current(path) for path in dict.fromkeys([*main, *self._listed()])}
        if read != self._read or self._indexed != self._given:
            self._read, self._indexed = read, self._given
            given = [TokenFile(None, None, settled=True, tokens=self._given)] if self._given else []
            self._index([*given, *read.values()])

    def _listed(self) -> list[Path]:
        """Return the files that match the patterns. A folder that cannot be opened keeps its earlier files."""
        before, self.unlisted = self.unlisted, {}
        named = {pattern: self._named_by(pattern) for pattern in self._patterns}
        self._named = named
        for pattern, reason in self.unlisted.items():
            if before.get(pattern) != reason:
                fix = "known tokens in it stay valid; new ones work once it can be opened"
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

    def _current(self, path: Path) -> TokenFile:
        known = self._read.get(path)
        if known is not None and not known.changed():
            return known
        return read_file(path, only_tokens=path != self._main, settled_ns=self._settled_ns)

    def _index(self, files: Iterable[TokenFile]) -> None:
        before, self._files = self._files, []
        self._by_hash, self._by_certificate, self._by_name = {}, {}, {}
        names: set[str] = set()
        for file in files:
            valid = self._without_clash(file, names)
            self._files.append(valid)
            names |= {token.name for token in valid.tokens}
            self._by_name |= {token.name: (token, valid) for token in valid.tokens}
            self._by_hash |= {token.hash: (token, valid) for token in valid.tokens if token.hash}
            self._by_certificate |= {token.certificate: (token, valid) for token in valid.tokens if token.certificate}
        self._log_changes(before)

    def _without_clash(self, file: TokenFile, names: set[str]) -> TokenFile:
        """Return the file; without its tokens and with problems if a name, hash or certificate is taken."""
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

    def _log_changes(self, before: Sequence[TokenFile]) -> None:
        logged = {file.path: file.problems for file in before}
        for file in self.broken:
            if logged.get(file.path) != file.problems:
                fix = "none of its tokens is valid until it is fixed"
                log.error("tokens.refused", path=file.place, problems=list(file.problems), fix=fix)
        if [(file.path, file.tokens) for file in before] != [(file.path, file.tokens) for file in self._files]:
            log.info("tokens.loaded", count=self.count, files=len(self._files))
