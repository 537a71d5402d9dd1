"""Signing credentials: find them, and renew them before they expire.

The sources, in order: config, AWS_* and MINIO_* variables, the shared credentials file, web identity, container
metadata, instance metadata. The first source that has anything is used; if it fails, no other is tried, as the user
would not expect its keys. minio-py's provider queries the sources on the network; its errors may quote a token or a
URL, so they are translated here. Every secret found is registered for redaction.
"""

from __future__ import annotations

import asyncio
import configparser
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from presignd.config import PresignConfig
from presignd.config.paths import expanded, home
from presignd.errors import Fault, PresignerFault, UsageError, fault
from presignd.redaction import redact
from presignd.runtime.heartbeat import beat, holding
from presignd.s3.sigv4 import Keys
from presignd.telemetry import metrics

if TYPE_CHECKING:
    from minio.credentials.credentials import Credentials as MinioCredentials

REFRESH_BEFORE = timedelta(minutes=5)
"""Time left at which expiring credentials are renewed."""

REREAD_AFTER = timedelta(minutes=1)
"""Age at which the shared credentials file is read again: login tools rewrite it."""

RETRY_AFTER = timedelta(seconds=5)
"""Pause after a failed lookup: without it each upload would wait for the same failure."""

WAIT = 20.0
"""Seconds for one lookup; its network calls give up sooner."""

_LOOKED = "none in the config, AWS_*, MINIO_* and the shared credentials file"
_NEVER = datetime.min.replace(tzinfo=UTC)
_FOREVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The signing keys, their source in words for the user, and their expiry (UTC; None: never)."""

    keys: Keys = field(repr=False)
    source: str
    expires_at: datetime | None = None
    reread: bool = False


class CredentialSource:
    """Finds credentials when they are first needed, keeps them, and renews them before they expire.

    ``clock`` returns the time in UTC. ``find`` runs in a thread and raises ``PresignerFault``; by default it goes
    through the sources. Raises ``UsageError`` for half a credential in ``config``.
    """

    def __init__(
        self,
        config: PresignConfig,
        *,
        clock: Callable[[], datetime],
        find: Callable[[], Credentials] | None = None,
        wait: float = WAIT,
    ) -> None:
        given = from_config(config)
        self._find = find or ((lambda: given) if given else find_credentials)
        self._clock = clock
        self._wait = wait
        self._lock = asyncio.Lock()
        self._held: Credentials | None = None
        self._asked_at = _NEVER
        self._fresh_until = _NEVER
        self._problem: Fault | None = None

    async def get(self) -> Credentials:
        """Return credentials that are valid now; raise ``no_credentials`` if there are none."""
        if not self._is_fresh(now := self._clock()):
            async with holding(self._lock):
                if not self._is_fresh(self._clock()):
                    await self._renew()
            now = self._clock()
        held = self._held
        if held is None or (held.expires_at is not None and now >= held.expires_at):
            raise fault("no_credentials", self._problem.detail if self._problem else "those found have ended")
        return held

    def _is_fresh(self, now: datetime) -> bool:
        """Return whether the credentials need no lookup. After the clock was set back they do."""
        return self._asked_at <= now < self._fresh_until

    def renew_now(self) -> None:
        """Look for newer credentials next time: the store called these expired (``expired_credentials``)."""
        self._fresh_until = _NEVER

    async def _renew(self) -> None:
        """Look for new credentials. After a failure the old ones stay: they may be valid for minutes."""
        self._asked_at = self._clock()
        beat(within=self._wait)
        try:
            async with asyncio.timeout(self._wait):
                self._held = await asyncio.to_thread(self._find)
        except TimeoutError:
            self._failed(fault("no_credentials", f"the lookup took over {self._wait:g} s"))
        except PresignerFault as problem:
            self._failed(problem)
        else:
            self._problem = None
            metrics.CREDENTIAL_EXPIRY.set(self._held.expires_at.timestamp() if self._held.expires_at else math.inf)
            redact.register(self._held.keys.secret_key)
            redact.register(self._held.keys.session_token)
            self._fresh_until = fresh_until(self._held, self._clock())

    def _failed(self, problem: Fault) -> None:
        self._problem = problem
        self._fresh_until = self._clock() + RETRY_AFTER


def fresh_until(credentials: Credentials, now: datetime) -> datetime:
    """Return until when ``credentials`` are used without a lookup."""
    if credentials.expires_at is not None:
        return max(credentials.expires_at - REFRESH_BEFORE, now + RETRY_AFTER)
    return now + REREAD_AFTER if credentials.reread else _FOREVER


def from_config(config: PresignConfig) -> Credentials | None:
    """Return the credentials in ``config``, None if it has none; raise ``UsageError`` for half of them."""
    secret = config.secret_key.get_secret_value() if config.secret_key else ""
    token = config.session_token.get_secret_value() if config.session_token else ""
    if config.access_key and secret:
        return Credentials(Keys(config.access_key, secret, token), "config")
    if not (config.access_key or secret or token):
        return None
    missing = "secret_key" if config.access_key else "access_key"
    problem = f"presign.{missing}: missing, while another part of the credential is given"
    raise UsageError(problem, problems=(problem,), fix=f"set presign.{missing}, or leave all of them out")


def find_credentials() -> Credentials:
    """Return the credentials of the first source after the config; raise ``PresignerFault``. Blocking.

    Its text holds no secret.
    """
    for place in (_aws_variables, _minio_variables, _shared_file, _web_identity, _container, _instance):
        found = place()
        if found is not None:
            return found
    raise fault("no_credentials", f"{_LOOKED}; instance metadata is disabled")


def _aws_variables() -> Credentials | None:
    keys = _pair(
        ("AWS_ACCESS_KEY_ID", _variable("AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY")),
        ("AWS_SECRET_ACCESS_KEY", _variable("AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY")),
        _variable("AWS_SESSION_TOKEN"),
    )
    return Credentials(keys, "environment AWS_ACCESS_KEY_ID") if keys else None


def _minio_variables() -> Credentials | None:
    keys = _pair(
        ("MINIO_ACCESS_KEY", _variable("MINIO_ACCESS_KEY")),
        ("MINIO_SECRET_KEY", _variable("MINIO_SECRET_KEY")),
    )
    return Credentials(keys, "environment MINIO_ACCESS_KEY") if keys else None


def _shared_file() -> Credentials | None:
    """Read the profile without interpolation, as AWS's own tools do: a secret may contain ``%``."""
    path = Path(_variable("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials")
    if path.parts[0] == "~" and home(os.environ) is None:
        return None
    profile = _variable("AWS_PROFILE") or "default"
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(expanded(path, os.environ).read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, configparser.Error) as problem:
        # A parser's error quotes the line, which may hold the secret.
        raise fault("no_credentials", f"shared credentials file: {type(problem).__name__}") from None
    keys = _pair(
        ("aws_access_key_id", parser.get(profile, "aws_access_key_id", fallback="")),
        ("aws_secret_access_key", parser.get(profile, "aws_secret_access_key", fallback="")),
        parser.get(profile, "aws_session_token", fallback=""),
    )
    return Credentials(keys, f"shared credentials file, profile {profile}", reread=True) if keys else None


def _web_identity() -> Credentials | None:
    token_file = _variable("AWS_WEB_IDENTITY_TOKEN_FILE")
    if not token_file:
        return None
    # urllib3 logs the request line at debug, and its query holds the token.
    with suppress(OSError, UnicodeDecodeError):
        redact.register(Path(token_file).read_text("utf-8").strip())
    return _ask("web identity", _variable("AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"))


def _container() -> Credentials | None:
    if not _variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        return None
    return _ask("container metadata", "")


def _instance() -> Credentials | None:
    if _variable("AWS_EC2_METADATA_DISABLED").lower() == "true":
        return None
    endpoint = _variable("AWS_EC2_METADATA_SERVICE_ENDPOINT").rstrip("/")
    return _ask("instance metadata", endpoint, before=f"{_LOOKED}; ")


def _ask(source: str, endpoint: str, *, before: str = "") -> Credentials:
    """Query minio-py's provider, which picks the service by the same variables; ``before`` begins a fault's detail."""
    try:
        found = _retrieve(endpoint, _variable("AWS_DEFAULT_REGION"))
    except Exception as problem:  # noqa: BLE001 - urllib3's, json's, XML's errors, which may hold the token
        raise fault("no_credentials", f"{before}{source} gave none ({type(problem).__name__})") from None
    keys = Keys(found.access_key, found.secret_key, found.session_token or "")
    ends = found.expiration.replace(tzinfo=UTC) if found.expiration else None
    return Credentials(keys, source, ends)


def _retrieve(endpoint: str, region: str) -> MinioCredentials:
    """Query the service that the environment names; ``endpoint`` and ``region`` may be "". Blocking.

    The imports take a sixth of a daemon's start, and few hosts use a service. A new provider is made each time, because
    it would return its old answer until ten seconds before the end. Its HTTP client gives up within ``WAIT``: outside
    EC2 nothing answers at the metadata address.
    """
    from minio.credentials.providers import IamAwsProvider  # noqa: PLC0415 - as said above
    from urllib3 import PoolManager, Retry, Timeout  # noqa: PLC0415 - as said above

    client = PoolManager(
        timeout=Timeout(connect=2.0, read=5.0),
        retries=Retry(total=1, redirect=0, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504)),
    )
    return IamAwsProvider(custom_endpoint=endpoint or None, region=region or None, http_client=client).retrieve()


def _pair(access: tuple[str, str], secret: tuple[str, str], token: str = "") -> Keys | None:
    """Return both halves as keys, None if neither is given; raise ``no_credentials`` for one half."""
    if access[1] and secret[1]:
        return Keys(access[1], secret[1], token)
    if not access[1] and not secret[1]:
        return None
    given, missing = (access[0], secret[0]) if access[1] else (secret[0], access[0])
    raise fault("no_credentials", f"{given} is given without {missing}")


def _variable(*names: str) -> str:
    """Return the value of the first of ``names`` that the environment sets, else ""."""
    return next((value for name in names if (value := os.environ.get(name, ""))), "")
