"""Read what [presign] needs to sign: keys, or a broker's address and token, each from a value, a file or a credential.

With a broker no storage key may be given, and none is read; without one, no broker's option may be given.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from presignd.config.options import Option
from presignd.config.sources import Given, Layer
from presignd.config.templates import uses_prefix
from presignd.redaction.redact import MIN_LITERAL
from presignd.s3.limits import MAX_EXPIRES
from presignd.system import trust
from presignd.units import parse_whole_seconds

GROUPS: dict[str, tuple[str, ...]] = {
    "access_key": ("access_key", "access_key_id", "access_key_file"),
    "secret_key": ("secret_key", "secret_access_key", "secret_key_file"),
    "token": ("token", "token_file"),
}
"""The options that can give each secret; the value is stored in the first one."""

_LONGEST = 64 * 1024
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
STORAGE_KEYS = (
    "access_key",
    "access_key_id",
    "access_key_file",
    "secret_key",
    "secret_access_key",
    "secret_key_file",
    "session_token",
)
BROKER_KEY = "{prefix}{path}"


# --- secrets: values, files, credentials ----------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Secret:
    """One secret and a description of its source; the value is never shown."""

    value: str
    source: str

    def __repr__(self) -> str:
        """Hide the value."""
        return f"Secret(source={self.source!r})"


def overlay(lower: Layer, upper: Layer) -> Layer:
    """Return ``upper`` over ``lower``: a secret in ``upper``, under any of its names, replaces the one in ``lower``."""
    hidden = {_at(name) for names in GROUPS.values() if any(_at(name) in upper for name in names) for name in names}
    return {option: given for option, given in lower.items() if option not in hidden} | dict(upper)


def clashes(layer: Layer) -> list[str]:
    """Return a problem for each secret that a layer gives twice."""
    found = ([name for name in names if _at(name) in layer] for names in GROUPS.values())
    return [
        f"presign.{names[0]}: is given as {' and as '.join(names)}; keep one of them"
        for names in found
        if len(names) > 1
    ]


def resolve(layer: Layer, environ: Mapping[str, str], problems: list[str], warnings: list[str]) -> Layer:
    """Return ``layer`` with the value of every secret, from an option, a file or a credential.

    With a broker, no file or credential of a storage key is opened. Files that can't be used are added to
    ``problems``, files that others can read to ``warnings``.
    """
    resolved = dict(layer)
    wanted = {"token": GROUPS["token"]} if by_broker(layer) else GROUPS
    for target, names in wanted.items():
        try:
            secret = _find(names, layer, environ, warnings)
        except ValueError as error:
            problems.append(str(error))
            continue
        for name in names[1:]:
            if not name.endswith("_file"):
                resolved.pop(_at(name), None)
        if secret is not None:
            resolved[_at(target)] = Given(secret.value, secret.source)
    return resolved


def incomplete(layer: Layer) -> list[str]:
    """Return a problem for an access key without its secret key, and the other way round."""
    if by_broker(layer):
        return []
    access, secret = (_at(name) in layer for name in ("access_key", "secret_key"))
    if access and not secret:
        return ["presign.secret_key: is missing; access_key is given without it (secret_key_file will do too)"]
    if access or not (secret or _at("session_token") in layer):
        return []
    return ["presign.access_key: is missing; its secret key or session token is given without it"]


def readable_by_others(file: Path) -> bool:
    """Return whether ``file`` is a regular file with any permission for others or its group.

    A private group (the daemon's, or a user's own) may read it: a service has it as 0640 root:presignd.
    """
    try:
        found = file.stat()
    except OSError:
        return False
    allowed = stat.S_IRGRP if trust.is_private(found.st_gid) else 0
    return stat.S_ISREG(found.st_mode) and bool(found.st_mode & _OTHERS & ~allowed)


def _find(names: tuple[str, ...], layer: Layer, environ: Mapping[str, str], warnings: list[str]) -> Secret | None:
    for name in names:
        given = layer.get(_at(name))
        if given is None:
            continue
        if not name.endswith("_file"):
            return Secret(given.value, given.source)
        file = given.value
        if not isinstance(file, Path):  # validation refuses it
            return None
        if name != "access_key_file" and readable_by_others(file):
            warnings.append(f"presign.{name}: {file} can be read by others; chmod 600 {file}")
        if not file.exists() and _may_be_secret(given):
            raise ValueError(f"presign.{name}: names no file that is there; a secret itself goes into {names[0]}")
        return Secret(read_secret(f"presign.{name}", file), f"{name} {file}")
    return _credential(names[0], environ)


def _may_be_secret(given: Given) -> bool:
    """Return whether a file name may be the secret itself: long enough, and not in an existing folder."""
    file: Path = given.value
    is_path = given.rooted and len(file.parts) > 2 and file.parent.is_dir()  # noqa: PLR2004 - "/" and a name
    return not is_path and len(file.name) >= MIN_LITERAL


def _credential(target: str, environ: Mapping[str, str]) -> Secret | None:
    """Return systemd's credential ``presignd.<target>`` (LoadCredential=, see systemd.exec(5)), None without one."""
    folder = environ.get("CREDENTIALS_DIRECTORY", "")
    file = Path(folder, f"presignd.{target}")
    if not folder or not os.path.lexists(file):
        return None
    return Secret(read_secret(f"credential presignd.{target}", file), f"credential presignd.{target}")


def read_secret(what: str, file: Path) -> str:
    """Return the text of a secret's file without its trailing newline; raise ``ValueError`` with the reason."""
    try:
        data = trust.read_file(file, _LONGEST + 1)
        text = data.decode().rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"{what}: {file} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{what}: {file} is no text") from None
    if not text:
        raise ValueError(f"{what}: {file} is empty")
    if len(data) > _LONGEST or not text.isprintable() or text != text.strip():
        raise ValueError(f"{what}: {file} must hold one line, with no space at either end")
    return text


# --- who signs --------------------------------------------------------------------------------------
def by_broker(layer: Layer) -> bool:
    """Return whether a broker signs."""
    kind = layer.get(_at("kind"))
    return kind is not None and kind.value == "broker"


def signing_problems(layer: Layer, watches: Sequence[str]) -> list[str]:
    """Return a problem for each option that does not fit presign.kind; ``watches`` are those of ``layer``."""
    if by_broker(layer):
        return list(_broker_problems(layer))
    inboxes = dict.fromkeys(option.table for option in layer if option.section == "inbox")
    return [
        *_local_problems(layer, watches),
        *(f'inbox.{name}: needs presign.kind = "broker": invitations are a broker\'s' for name in inboxes),
    ]


def _broker_problems(layer: Layer) -> Iterator[str]:
    if _at("url") not in layer:
        yield 'presign.url: is missing; kind = "broker" needs its address, e.g. "https://broker:8420"'
    if _at("token") not in layer and _at("token_file") not in layer and _at("client_cert") not in layer:
        yield 'presign.token_file: is missing; kind = "broker" needs the token that the broker gave this daemon'
    for name in STORAGE_KEYS:
        if _at(name) in layer:
            yield f'presign.{name}: is for kind = "local"; a daemon that asks a broker holds no storage key'


def _local_problems(layer: Layer, watches: Sequence[str]) -> Iterator[str]:
    if _at("url") in layer:
        yield 'presign.url: is for kind = "broker"'
    for watch in watches:
        yield from _stable_link_problems(layer, watch)
        key = layer.get(Option("watch", watch, "key"))
        with suppress(ValueError):  # validation refuses it
            if key is not None and isinstance(key.value, str) and uses_prefix(key.value):
                yield f'watch.{watch}.key: has {{prefix}}, which is only there with presign.kind = "broker"'


def _stable_link_problems(layer: Layer, watch: str) -> Iterator[str]:
    links = layer.get(Option("watch", watch, "links"))
    if links is not None and links.value == "stable":
        yield f'watch.{watch}.links: "stable" needs presign.kind = "broker": stable links are a broker\'s'
    expires = layer.get(Option("watch", watch, "link_expires"))
    with suppress(ValueError):  # validation refuses it
        if expires is not None and expires.value != "" and parse_whole_seconds(expires.value) > MAX_EXPIRES:
            yield f"watch.{watch}.link_expires: must be at most 7d: S3 signatures live no longer"


def with_broker_keys(layer: Layer, watches: Sequence[str]) -> Layer:
    """Return ``layer``, with the default key of watches that use a broker."""
    if not by_broker(layer):
        return layer
    default = Given(BROKER_KEY, "default")
    return {Option("watch", watch, "key"): default for watch in watches} | dict(layer)


def signing_warnings(layer: Layer) -> list[str]:
    """Return a warning if the token would cross the network unencrypted."""
    url = layer.get(_at("url"))
    if not by_broker(layer) or url is None or not is_in_clear(str(url.value)):
        return []
    return ["presign.url: with http:// everyone on the way can read the token and each grant; use https://"]


def is_in_clear(url: str) -> bool:
    """Return whether requests to ``url`` cross a network unencrypted."""
    try:
        parts = urlsplit(url)
        return parts.scheme == "http" and not ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:  # a host name
        return url.startswith("http:") and urlsplit(url).hostname != "localhost"


def _at(name: str) -> Option:
    return Option("presign", "", name)
