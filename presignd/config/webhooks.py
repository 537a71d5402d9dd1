"""Read [[webhook]]: addresses and secrets from their files, and names for those that have none."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from presignd.config.addresses import parse_webhook_url
from presignd.config.models import WebhookConfig
from presignd.config.options import Option, nearest
from presignd.config.paths import PathBase
from presignd.config.problems import words
from presignd.config.signing import read_secret, readable_by_others
from presignd.config.sources import Given, Layer, tables_of

SECRETS = ("url", "secret")
"""The options that may also be given as ``*_file``."""

_FILES = ("url_file", "secret_file", "ca_file")

_UNKNOWN = {"url": "https://unknown.invalid/", "secret": "A" * 64}
"""Placeholders for values that could not be read: only that is reported, and the configuration is refused."""


def with_webhooks(layer: Layer, problems: list[str], warnings: list[str]) -> Layer:
    """Return ``layer`` with each webhook's name, address and secret; add what is wrong to ``problems``."""
    found = dict(layer)
    slots = tables_of(layer, "webhook")
    taken = {slot for slot in slots if not slot.startswith("[")}
    for slot in slots:
        given = {option.key: each.value for option, each in layer.items() if option[:2] == ("webhook", slot)}
        where = Option("webhook", slot, "").dotted
        values = read_table(given, where, taken, problems, warnings, named=not slot.startswith("["))
        for key in values.keys() - given.keys():
            file = given.get(f"{key}_file")
            found[Option("webhook", slot, key)] = Given(values[key], f"{key}_file {file}" if file else "default")
    return found


def read_table(
    table: Mapping[str, Any],
    where: str,
    taken: set[str],
    problems: list[str],
    warnings: list[str],
    *,
    named: bool,
) -> dict[str, Any]:
    """Return a webhook's options with those from its files, and a name that is not ``taken`` if it has none.

    ``where`` is its key in messages; paths are absolute.
    """
    values = dict(table)
    for key in SECRETS:
        try:
            if (secret := _read(table, key, where, warnings)) is not None:
                values[key] = secret
        except ValueError as error:
            problems.append(str(error))
            values[key] = _UNKNOWN[key]
    if not named and "name" not in values:
        values["name"] = free_name(str(values.get("url", "")), taken)
        taken.add(values["name"])
    return values


def read_tables(value: Any, base: PathBase, problems: list[str], warnings: list[str]) -> tuple[WebhookConfig, ...]:
    """Return the webhooks of a document without layers (a broker's); add their mistakes to ``problems``."""
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        problems.append("webhook: write [[webhook]], with two brackets on each side, once for each receiver")
        return ()
    names = [table["name"] for table in value if isinstance(table.get("name"), str)]
    problems += [f"webhook.{name}.name: two webhooks have this name" for name in set(names) if names.count(name) > 1]
    taken, found = set(names), []
    for place, table in enumerate(value, 1):
        where = f"webhook.{table['name']}" if isinstance(table.get("name"), str) else f"webhook[{place}]"
        unknown = [key for key in table if key not in WebhookConfig.model_fields]
        problems += [f"{where}.{key}: is no option{nearest(key, WebhookConfig.model_fields)}" for key in unknown]
        given = {
            key: base.resolve(each) if key in _FILES else each for key, each in table.items() if key not in unknown
        }
        given = {key: each for key, each in given.items() if each != "" or key not in _FILES}
        files = {key: Path(each) for key, each in given.items() if key in _FILES and isinstance(each, (str, Path))}
        values = read_table(given | files, where, taken, problems, warnings, named="name" in table)
        try:
            found.append(WebhookConfig.model_validate(values))
        except ValidationError as error:
            problems += [_described(each, where) for each in error.errors(include_url=False)]
    return tuple(found)


def _described(error: Any, where: str) -> str:
    return f"{where}.{'.'.join(map(str, error['loc']))}: {words(error, str(error['loc'][0]))}"


def _read(table: Mapping[str, Any], key: str, where: str, warnings: list[str]) -> str | None:
    """Return the content of an option's file, None if the option has no file; raise ``ValueError``."""
    option, file = f"{where}.{key}_file", table.get(f"{key}_file")
    if not isinstance(file, Path):
        if key in table:
            return None
        raise ValueError(f"{where}.{key}: is missing; give it, or the file that holds it as {key}_file")
    if key in table:
        raise ValueError(f"{where}.{key}: is given as {key} and as {key}_file; keep one of them")
    if not file.exists():  # its name may be the secret
        raise ValueError(f"{option}: names no file that is there; a secret itself goes into {key}")
    if readable_by_others(file):
        warnings.append(f"{option}: {file} can be read by others; chmod 600 {file}")
    return read_secret(option, file)


def free_name(url: str, taken: Collection[str]) -> str:
    """Return a name for a webhook: its host and port, numbered if that is taken."""
    host = ""
    with suppress(ValueError):  # validation refuses it
        host = urlsplit(parse_webhook_url(url)).netloc
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", host).strip("-.")[:60] or "webhook"
    number = 1
    while (numbered := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return numbered
