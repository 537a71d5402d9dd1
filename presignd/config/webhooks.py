"""[[webhook]] as it is read: addresses and secrets from their files, and names for those that have none."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from presignd.config.addresses import parse_webhook_url
from presignd.config.options import Option
from presignd.config.signing import read_secret, readable_by_others
from presignd.config.sources import Given, Layer, tables_of

SECRETS = ("url", "secret")
"""The options that may also be given as ``*_file``."""

_UNKNOWN = {"url": "https://unknown.invalid/", "secret": "A" * 64}
"""Stand for what could not be read: that is the only problem then, and the configuration is refused."""


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
    """Return a webhook's options with those that its files hold, and a name that is not ``taken`` if it has none.

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


def _read(table: Mapping[str, Any], key: str, where: str, warnings: list[str]) -> str | None:
    """Return what the file of an option holds, None if it is not given so; raise ``ValueError``."""
    option, file = f"{where}.{key}_file", table.get(f"{key}_file")
    if not isinstance(file, Path):
        if key in table:
            return None
        raise ValueError(f"{where}.{key}: is missing; give it, or the file that holds it as {key}_file")
    if key in table:
        raise ValueError(f"{where}.{key}: is given as {key} and as {key}_file; keep one of them")
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
