"""broker.toml and the files of tokens as frozen models. Durations are seconds, sizes bytes, times UTC."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from presignd.config import LogConfig, PresignConfig, WebhookConfig, kinds, rules
from presignd.config.addresses import check_listen, parse_broker_url, parse_listen, parse_site
from presignd.config.models import Section
from presignd.config.options import Schema
from presignd.s3.limits import MAX_EXPIRES, key_problem
from presignd.units import format_rate, parse_rate, rfc3339

SYSTEM_FILE = Path("/etc/presignd-broker/broker.toml")
SYSTEM_STATE = Path("/var/lib/presignd-broker")
"""The StateDirectory= of presignd-broker.service, whose configuration is ``SYSTEM_FILE``."""
SYSTEM_RUNTIME = Path("/run/presignd-broker")
"""Its RuntimeDirectory=."""

_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_WHEN = "must be a day such as 2027-06-30, or a time such as 2027-06-30T12:00:00Z"
_DAY_LETTERS = len("2027-06-30")
_LEAST_TARGET = 300
_CERTIFICATE_NAME = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")


def _of_a_target(seconds: int) -> int:
    if not _LEAST_TARGET <= seconds <= MAX_EXPIRES:
        raise ValueError("must be between 5m and 7d: players and resumed downloads come back to the target")
    return seconds


def _not_zero(seconds: int | None) -> int | None:
    if seconds == 0:
        raise ValueError('must be at least 1s; "" = no limit')
    return seconds


class BrokerSection(Section):
    """[broker]: listening, TLS, and where tokens are."""

    tls_cert: kinds.UnsetPath = None
    """PEM file of the certificate, with its intermediate CAs; read again when it changes."""
    tls_key: kinds.UnsetPath = None
    """PEM file of the certificate's key, if it is not in the same file."""
    client_ca: kinds.UnsetPath = None
    """PEM file of the CAs that sign client certificates (see "certificate" of a token)."""
    behind_proxy: bool = False
    """Whether a TLS proxy is in front: then plain HTTP is allowed, and X-Forwarded-For names the client."""
    listen: Annotated[str, AfterValidator(check_listen), Field(validate_default=True)] = "127.0.0.1:8420"
    """Address to listen at: host:port or unix:/path."""
    url: Annotated[str, AfterValidator(lambda url: parse_broker_url(url) if url else url)] = ""
    """Address at which daemons reach it, e.g. https://broker:8420; "" = listen. The name in [links] url, where it is
    another one, serves nothing but links."""
    metrics_listen: str = ""
    """Address of /metrics; "" = the main address, if that is loopback without a proxy."""
    token_files: tuple[str, ...] = ()
    """Globs of files with more [[token]]; checked again at each request."""
    drain_timeout: Annotated[kinds.Seconds, AfterValidator(lambda value: _at_most(value, 86400.0, "1d"))] = 10.0
    """Time on SIGTERM for requests in flight."""

    @field_validator("tls_key")
    @classmethod
    def _key_of_a_certificate(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and info.data.get("tls_cert", path) is None:
            raise ValueError("is given without tls_cert")
        return path

    @field_validator("client_ca")
    @classmethod
    def _certificates_need_tls(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and info.data.get("tls_cert", path) is None:
            raise ValueError("is given without tls_cert: client certificates come with TLS")
        return path

    @field_validator("listen")
    @classmethod
    def _no_token_in_the_clear(cls, listen: str, info: ValidationInfo) -> str:
        """Refuse plain HTTP on any but a loopback address: tokens and URLs would be readable."""
        if is_in_the_clear(info.data.get("tls_cert", True), listen, behind_proxy=info.data.get("behind_proxy", True)):
            raise ValueError(
                "is no loopback address, and tokens would travel unencrypted: set tls_cert and tls_key, "
                "or behind_proxy = true where a proxy with TLS is all that can reach it"
            )
        return listen

    @field_validator("metrics_listen")
    @classmethod
    def _is_an_address(cls, listen: str) -> str:
        return check_listen(listen) if listen else listen

    @field_validator("token_files")
    @classmethod
    def _name_files(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [pattern for pattern in patterns if not pattern or "\0" in pattern or "**" in pattern]:
            raise ValueError(f'has "{wrong[0]}", which names no files; write e.g. "tokens.d/*.toml"')
        return patterns


class FleetSection(Section):
    """[fleet]: the fleet page, for administrators."""

    listen: str = ""
    """Where it listens, e.g. "127.0.0.1:8422" or unix:/path; "" = no fleet page."""
    token_file: kinds.UnsetPath = None
    """The file with its token, made if missing; "" = fleet.token in the broker's state folder."""

    @field_validator("listen")
    @classmethod
    def _is_an_address(cls, text: str) -> str:
        if not text:
            return text
        listen = parse_listen(text)
        if listen.path is None and listen.port == 0:
            raise ValueError("has port 0: name one, because `presignd broker fleet` prints the address")
        return text


class ControlSection(Section):
    """[control]: the socket at which commands ask the running broker."""

    socket: kinds.UnsetPath = None
    """The control socket; "" = /run/presignd-broker/control.sock as a service (in a container, in its state folder),
    else beside this file."""
    group: str = ""
    """A group that may use it: for invitations and webhooks."""


NO_CONTROL = ControlSection()


class LinksSection(Section):
    """[links]: links that last and can be revoked, and invitations."""

    url: Annotated[str, AfterValidator(lambda url: parse_site(url) if url else url)] = ""
    """Address at which browsers open links and invitations, e.g. https://files.example.org; "" = neither."""
    target_expires: Annotated[kinds.WholeSeconds, AfterValidator(_of_a_target)] = 3600
    """How long the presigned target of a redirect lives. A download that broke off is resumed there."""


NO_LINKS = LinksSection()


class StateSection(Section):
    """[state]: where links are kept: a SQLite file, or PostgreSQL for several brokers."""

    path: kinds.UnsetPath = None
    """The SQLite file; "" = state.db in the broker's state folder."""
    url: kinds.Secret = None
    """PostgreSQL's address with libpq's options, e.g. postgresql://presignd@db/presignd?sslmode=verify-full."""
    url_file: Annotated[kinds.UnsetPath, Field(validate_default=True)] = None
    """The file that holds this address."""

    @field_validator("url")
    @classmethod
    def _is_postgres(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            check_state_url(url.get_secret_value())
        return url

    @field_validator("url_file")
    @classmethod
    def _one_place(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        given = [*(name for name in ("path", "url") if info.data.get(name)), *(["url_file"] if file else [])]
        if len(given) > 1:
            raise ValueError(f"the state is given as {' and as '.join(given)}; keep one of them")
        return file


class TokenConfig(Section):
    """[[token]]: its secret, its place in a bucket, and its limits. None means no limit."""

    name: Annotated[str, AfterValidator(rules.check_watch_name)]
    """Name in the audit log, the metrics and commands."""
    hash: str = Field("", repr=False)
    """SHA-256 of the token, as `presignd broker token create` prints it."""
    certificate: str = ""
    """Name in a client certificate that counts as this token: a SAN, or the CN if there is no SAN."""
    bucket: Annotated[str, AfterValidator(rules.check_bucket)]
    """The bucket it may use."""
    prefix: str = Field("{name}/", validate_default=True)
    """Prefix of its keys: a folder with its "/"; {name} is the token's name. "" = the whole bucket."""
    operations: tuple[Literal["put", "multipart", "head", "get", "delete", "link", "receive"], ...] = (
        "put",
        "multipart",
        "head",
        "get",
    )
    """Allowed operations. "delete" covers the check object alone, and "put" includes it. "link" is for [links], and
    "receive" for what came in by an invitation; both need "get"."""
    headers: tuple[str, ...] = ()
    """Headers it may send beside Content-*, e.g. "x-amz-meta-*"; never ACLs."""
    require_content_type: bool = False
    """Whether an upload must sign its Content-Type. Without, the holder of the grant chooses one."""
    max_size: kinds.UnsetSize = None
    """Largest object; "" = S3's own limit."""
    max_put_expires: Annotated[kinds.WholeSeconds, AfterValidator(rules.check_expiry)] = 3600
    """Longest lifetime of its grants but links."""
    max_link_expires: Annotated[kinds.WholeSeconds, AfterValidator(rules.check_expiry)] = MAX_EXPIRES
    """Longest lifetime of its presigned links."""
    max_stable_link: Annotated[kinds.UnsetSeconds, AfterValidator(_not_zero)] = None
    """Longest lifetime of its stable links; "" = no limit."""
    rate: Annotated[
        float | None,
        BeforeValidator(lambda value: None if value in (None, "") else parse_rate(value), json_schema_input_type=str),
        PlainSerializer(lambda value: "" if value is None else format_rate(value), when_used="json"),
    ] = None
    """Grants a second, e.g. "200/s"; "" = no limit. Each broker counts for itself."""
    valid_until: Annotated[
        datetime | None,
        BeforeValidator(lambda value: None if value in (None, "") else _end_of(value)),
        PlainSerializer(lambda value: "" if value is None else rfc3339(value), when_used="json"),
    ] = None
    """Expiry: a day (its end, in UTC) or a time with its zone; "" = never."""

    @field_validator("hash")
    @classmethod
    def _is_a_hash(cls, text: str) -> str:
        if text and not _HASH.fullmatch(text):
            raise ValueError('must be "sha256:" and 64 hexadecimal digits, as `presignd broker token create` prints it')
        return text

    @field_validator("certificate")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if name and not _CERTIFICATE_NAME.fullmatch(name):
            raise ValueError("must be a name of printable ASCII")
        return name

    @field_validator("bucket")
    @classmethod
    def _of_someone(cls, bucket: str, info: ValidationInfo) -> str:
        """Require a hash or a certificate. ``bucket`` comes after both, so both are known here."""
        if not info.data.get("hash", True) and not info.data.get("certificate", True):
            raise ValueError('is there, but neither hash nor certificate: make one by "presignd broker token create"')
        return bucket

    @field_validator("prefix")
    @classmethod
    def _is_a_folder(cls, template: str, info: ValidationInfo) -> str:
        prefix = template.replace("{name}", info.data.get("name", "name"))
        if prefix and not prefix.endswith("/"):
            raise ValueError(f'must end with "/": "{prefix}" would cover "{prefix}0/" too')
        if prefix and (problem := key_problem(f"{prefix}x")):
            raise ValueError(f"can't begin a key: {problem}")
        return prefix

    @field_validator("headers")
    @classmethod
    def _may_be_bound(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            rules.check_header_name(f"{pattern[:-1]}x" if pattern.endswith("*") else pattern)
        return tuple(pattern.lower() for pattern in patterns)


SCHEMA = Schema(
    {
        "broker": BrokerSection,
        "store": PresignConfig,
        "links": LinksSection,
        "control": ControlSection,
        "state": StateSection,
        "log": LogConfig,
        "fleet": FleetSection,
        "token": TokenConfig,
        "webhook": WebhookConfig,
    },
    frozenset({"token", "webhook"}),
)
"""A broker's options."""


@dataclass(frozen=True, slots=True)
class StatePlace:
    """Where the state is: in PostgreSQL at ``url``, or else in the SQLite file ``path``; nowhere without either."""

    path: Path | None = None
    url: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """A broker's configuration without the tokens in files, which ``tokens.Tokens`` reads as they change.

    ``file`` is its path, None if all is in the environment; ``tokens`` are those that the environment gives. ``fleet``
    has its ``token_file``; ``warnings`` are for the person who starts the broker.
    """

    file: Path | None
    broker: BrokerSection
    store: PresignConfig
    log: LogConfig
    fleet: FleetSection
    links: LinksSection = NO_LINKS
    state: StatePlace = StatePlace()
    warnings: tuple[str, ...] = ()
    webhooks: tuple[WebhookConfig, ...] = ()
    control: ControlSection = NO_CONTROL
    tokens: tuple[TokenConfig, ...] = ()


def is_in_the_clear(tls_cert: object, listen: str, *, behind_proxy: bool) -> bool:
    """Return whether tokens would travel unencrypted to a broker that listens at ``listen``."""
    return tls_cert is None and not behind_proxy and not parse_listen(listen).is_local


def api_origins(config: BrokerSection) -> frozenset[str]:
    """Return the known origins (``scheme://host[:port]``) of the API."""
    if config.url:
        return frozenset({config.url})
    try:
        return frozenset(parse_broker_url(f"{scheme}://{config.listen}") for scheme in ("http", "https"))
    except ValueError:  # a Unix socket
        return frozenset()


def _at_most(value: float, most: float, words: str) -> float:
    if value > most:
        raise ValueError(f"must be at most {words}")
    return value


def check_state_url(url: str) -> None:
    """Raise ``ValueError``, which does not repeat the address, unless it is one of PostgreSQL."""
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError('must be an address of PostgreSQL, e.g. "postgresql://host/database"')


def _end_of(value: Any) -> datetime:
    """Return a time in UTC, for a day its end. Refuse a time without a zone: each machine would read another."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value) if len(value) > _DAY_LETTERS else date.fromisoformat(value)
        except ValueError:
            raise ValueError(_WHEN) from None
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("is a time without its zone; write e.g. 2027-06-30T12:00:00Z")
        return value.astimezone(UTC)
    if not isinstance(value, date):
        raise ValueError(_WHEN)  # noqa: TRY004 - pydantic turns only ValueError into a problem
    return datetime.combine(value, time(), UTC) + timedelta(days=1)
