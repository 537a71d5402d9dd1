"""The broker's configuration as frozen models. Durations are seconds, sizes bytes, times UTC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationInfo, field_validator

from presignd.config import LogConfig, PresignConfig, kinds, rules
from presignd.config.listen import check_listen, parse_listen
from presignd.config.models import Section
from presignd.s3.keys import key_problem
from presignd.s3.limits import MAX_EXPIRES
from presignd.units import format_rate, parse_rate, rfc3339

_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_WHEN = "must be a day such as 2027-06-30, or a time such as 2027-06-30T12:00:00Z"
_DAY_LETTERS = len("2027-06-30")
_CERTIFICATE_NAME = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")


class BrokerSection(Section):
    """[broker]: where it listens, and whom it believes."""

    tls_cert: kinds.UnsetPath = None
    """PEM file of its certificate, the chain below it included; read again when it changes."""
    tls_key: kinds.UnsetPath = None
    """PEM file of the certificate's key, when it is not in the same file."""
    client_ca: kinds.UnsetPath = None
    """PEM file of the CAs whose client certificates may stand for a token's "certificate"."""
    behind_proxy: bool = False
    """Whether a proxy with TLS stands before it: then it may listen without, and believes X-Forwarded-For."""
    listen: Annotated[str, AfterValidator(check_listen), Field(validate_default=True)] = "127.0.0.1:8420"
    """Where it listens: host:port or unix:/path."""
    metrics_listen: str = ""
    """Where /metrics is served; "" = beside the rest where that is loopback with no proxy before it."""
    token_files: tuple[str, ...] = ()
    """Files with more [[token]], as globs; looked at again at each request."""
    drain_timeout: Annotated[kinds.Seconds, AfterValidator(lambda value: _at_most(value, 86400.0, "1d"))] = 10.0
    """On SIGTERM: how long requests that are being answered may go on."""

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
        """Tokens and URLs in plain text are for loopback alone."""
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


class TokenConfig(Section):
    """[[token]]: who, and what it may have. None means no limit of its own."""

    name: Annotated[str, AfterValidator(rules.check_watch_name)]
    """Names the token in the audit log, the metrics and commands."""
    hash: str = Field("", repr=False)
    """The token's SHA-256, as `presignd broker token create` prints it."""
    certificate: str = ""
    """A name in a client certificate that stands for this token: a SAN, or the CN where there is none."""
    bucket: Annotated[str, AfterValidator(rules.check_bucket)]
    """The bucket it may use."""
    prefix: str = Field("{name}/", validate_default=True)
    """What its keys begin with: a folder, with its "/"; {name} is the token's name. "" = the whole bucket."""
    operations: tuple[Literal["put", "multipart", "head", "get", "delete"], ...] = ("put", "multipart", "head", "get")
    """What it may do; "delete" reaches its own check object alone, and needs not be said where "put" is."""
    headers: tuple[str, ...] = ()
    """Headers it may bind beside Content-*, e.g. "x-amz-meta-*"; never ACLs."""
    require_content_type: bool = False
    """Whether an upload must bind its Content-Type: one that doesn't can be given another by whoever has the grant."""
    max_size: kinds.UnsetSize = None
    """The largest object; "" = what S3 takes."""
    max_put_expires: Annotated[kinds.WholeSeconds, AfterValidator(rules.check_expiry)] = 3600
    """How long its uploads and questions live at most."""
    max_link_expires: Annotated[kinds.WholeSeconds, AfterValidator(rules.check_expiry)] = MAX_EXPIRES
    """How long its links live at most."""
    rate: Annotated[
        float | None,
        BeforeValidator(lambda value: None if value in (None, "") else parse_rate(value), json_schema_input_type=str),
        PlainSerializer(lambda value: "" if value is None else format_rate(value), when_used="json"),
    ] = None
    """How many grants, e.g. "200/s"; "" = no limit. Each broker counts for itself."""
    valid_until: Annotated[
        datetime | None,
        BeforeValidator(lambda value: None if value in (None, "") else _end_of(value)),
        PlainSerializer(lambda value: "" if value is None else rfc3339(value), when_used="json"),
    ] = None
    """When it ends: a day (its end, in UTC) or a time with its zone; "" = never."""

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
        """Say it here, behind both: a token without either would be nobody's."""
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


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """The whole configuration of a broker but its tokens, which ``tokens`` reads as they change.

    ``file`` is where it stands; ``warnings`` are lines for whoever starts it.
    """

    file: Path
    broker: BrokerSection
    store: PresignConfig
    log: LogConfig
    warnings: tuple[str, ...] = ()


def is_in_the_clear(tls_cert: object, listen: str, *, behind_proxy: bool) -> bool:
    """Tell whether tokens would travel unencrypted to a broker that listens there."""
    return tls_cert is None and not behind_proxy and not parse_listen(listen).is_local


def _at_most(value: float, most: float, words: str) -> float:
    if value > most:
        raise ValueError(f"must be at most {words}")
    return value


def _end_of(value: Any) -> datetime:
    """Return when a day ends, or a time; one without a zone would mean another time on each machine."""
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
