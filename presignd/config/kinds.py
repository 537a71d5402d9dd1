"""The types of options: how each is read from TOML or text, and written back (``model_dump(mode="json")``).

Options are written in the form in which they are read, with secrets masked, so the effective configuration can be
loaded again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, SecretStr

from presignd.config.addresses import mask_path, mask_userinfo, parse_webhook_url
from presignd.config.rules import check_signing_secret, is_secret_header
from presignd.units import format_duration, format_size, parse_duration, parse_size, parse_whole_seconds

MASK = "********"
"""Shown in place of a secret."""


def _or_none(word: str, parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a reader for an option in which ``word`` ("" or "auto") means None."""

    def read(value: Any) -> Any:
        return None if value is None or value == word else parse(value)

    return read


def _auto_seconds(value: Any) -> float:
    try:
        return parse_duration(value)
    except ValueError:
        raise ValueError('must be "auto" or a duration such as "10s"') from None


def _count(value: Any) -> int:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number")  # noqa: TRY004 - pydantic reports only ValueError
    return value


def _path(value: Any) -> Any:
    if value == "" or (isinstance(value, str) and "\0" in value):
        raise ValueError("must be a path")
    return value


def _written(write: Callable[[Any], str], word: str = "") -> PlainSerializer:
    return PlainSerializer(lambda value: word if value is None else write(value), return_type=str, when_used="json")


def _masked(value: SecretStr | str | None) -> str:
    return MASK if value else ""


def _checked_secret(check: Callable[[str], str]) -> Callable[[Any], Any]:
    """Return a reader that checks a text that is never shown."""
    return lambda value: check(value) if isinstance(value, str) else value


def lower(value: Any) -> Any:
    """Return text in lower case: people also write ``DEBUG``."""
    return value.lower() if isinstance(value, str) else value


def masked_headers(headers: dict[str, str]) -> dict[str, str]:
    """Return ``headers`` with customer-provided keys masked."""
    return {name: MASK if is_secret_header(name) else value for name, value in headers.items()}


_DURATION = float | str
_BYTES = int | str

Seconds = Annotated[float, BeforeValidator(parse_duration, json_schema_input_type=_DURATION), _written(format_duration)]
WholeSeconds = Annotated[
    int, BeforeValidator(parse_whole_seconds, json_schema_input_type=_BYTES), _written(format_duration)
]
AutoSeconds = Annotated[
    float | None,
    BeforeValidator(_or_none("auto", _auto_seconds), json_schema_input_type=_DURATION),
    _written(format_duration, "auto"),
]
UnsetSeconds = Annotated[
    int | None,
    BeforeValidator(_or_none("", parse_whole_seconds), json_schema_input_type=_BYTES),
    _written(format_duration),
]
Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=_BYTES), _written(format_size)]
UnsetSize = Annotated[
    int | None, BeforeValidator(_or_none("", parse_size), json_schema_input_type=_BYTES), _written(format_size)
]
Count = Annotated[int, BeforeValidator(_count, json_schema_input_type=int)]
RequiredPath = Annotated[Path, BeforeValidator(_path, json_schema_input_type=str), _written(str)]
UnsetPath = Annotated[Path | None, BeforeValidator(_or_none("", _path), json_schema_input_type=str), _written(str)]
Secret = Annotated[SecretStr | None, BeforeValidator(_or_none("", lambda value: value)), _written(_masked)]
AccessKey = Annotated[str, _written(_masked)]
WebhookUrl = Annotated[
    SecretStr,
    BeforeValidator(_checked_secret(parse_webhook_url), json_schema_input_type=str),
    PlainSerializer(lambda url: mask_path(url.get_secret_value()), return_type=str, when_used="json"),
]
SigningSecret = Annotated[
    SecretStr, BeforeValidator(_checked_secret(check_signing_secret), json_schema_input_type=str), _written(_masked)
]
ProxyUrl = Annotated[str, _written(mask_userinfo)]
Headers = Annotated[dict[str, str], PlainSerializer(masked_headers, when_used="json")]
