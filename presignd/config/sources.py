"""The sources of values: file, flags, environment, AWS variables. Each gives one layer of options."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from presignd.config.options import DAEMON, MANY, SECTIONS, UNSET, Option, Schema, keys, nearest
from presignd.config.paths import PathBase

_PREFIX = "PRESIGND_"

_ONCE_FOR = {"watch": "folder", "webhook": "receiver", "inbox": "folder"}
_PLURAL = {"watch": "es", "webhook": "s", "inbox": "es", "token": "s"}
_NEEDED = {
    "watch": "name, path and bucket",
    "webhook": "url (or url_file) and secret_file",
    "inbox": "name, path and invitation",
}
"""Words for messages about sections that may have many tables."""

Known = Mapping[str, Sequence[str]]
"""The names of the tables that are known so far, by section."""

_AWS = {
    ("presign", "endpoint"): ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    ("presign", "region"): ("AWS_REGION", "AWS_DEFAULT_REGION"),
    ("presign", "ca_file"): ("AWS_CA_BUNDLE", "SSL_CERT_FILE"),
}
"""Options that the variables of other tools set; the first variable wins."""


@dataclass(frozen=True, slots=True)
class Given:
    """A value and a description of its source; the value may be secret. ``rooted``: it begins with "/" or "~"."""

    value: Any
    source: str
    rooted: bool = False

    def __repr__(self) -> str:
        """Hide the value."""
        return f"Given(source={self.source!r})"


Layer = Mapping[Option, Given]
"""What one source gives, by option."""


def file_layer(document: Mapping[str, Any], source: str, base: PathBase, problems: list[str]) -> Layer:
    """Return the options in a parsed TOML document; add anything else in it to ``problems``."""
    layer: dict[Option, Given] = {}
    for name, value in document.items():
        if name not in SECTIONS:
            problems.append(f"{name}: is no section{nearest(name, SECTIONS)}")
        elif name in MANY:
            for slot, table in _tables(name, value, problems):
                layer |= _table(Option(name, slot, ""), table, source, base, problems)
        elif isinstance(value, dict):
            layer |= _table(Option(name, "", ""), value, source, base, problems)
        else:
            problems.append(f"{name}: is a section; write [{name}] on a line of its own, its keys below")
    return layer


def _tables(section: str, value: Any, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each table of a section under its name, or under its position when the name can't be used."""
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        once = _ONCE_FOR[section]
        problems.append(f"{section}: write [[{section}]], with two brackets on each side, once for each {once}")
        return
    seen: set[str] = set()
    for place, table in enumerate(value, 1):
        name = table.get("name")
        slot = name if isinstance(name, str) and name else f"[{place}]"
        if slot in seen:
            problems.append(f"{section}.{slot}.name: two {section}{_PLURAL[section]} have this name; give each its own")
            slot = f"{slot}[{place}]"
        seen.add(slot)
        if not table:
            problems.append(f"{section}{slot}: is empty; give it {_NEEDED[section]}")
        yield slot, table


def _table(section: Option, table: Mapping[str, Any], source: str, base: PathBase, problems: list[str]) -> Layer:
    layer: dict[Option, Given] = {}
    known = keys(section.section)
    for key, value in table.items():
        option = section._replace(key=key)
        if key not in known:
            problems.append(f"{option.dotted}: is no option{nearest(key, known)}")
        elif value != "" or option.in_section not in UNSET:
            layer[option] = _given(option, value, base, source)
    return layer


def flag_layer(flags: Mapping[str, Any], base: PathBase, known: Known, problems: list[str]) -> Layer:
    """Return the options that command-line flags give, by dotted keys; None and "" mean not given."""
    layer: dict[Option, Given] = {}
    for dotted, value in flags.items():
        if value is None or value == "":
            continue
        section, _, rest = dotted.partition(".")
        table, _, key = rest.rpartition(".")
        slot = _slot(section, table, known.get(section, ()), dotted, problems) if section in MANY else ""
        option = Option(section, slot, key)
        if section not in SECTIONS or key not in keys(section):
            problems.append(f"{dotted}: is no option")
        else:
            layer[option] = _given(option, value, base, "flag")
    return layer


def environment_layer(
    environ: Mapping[str, str], base: PathBase, known: Known, problems: list[str], schema: Schema = DAEMON
) -> Layer:
    """Return the options that ``PRESIGND_<SECTION>__<KEY>`` and ``PRESIGND_WATCH__<NAME>__<KEY>`` give.

    ``known`` are the file's tables: NAME means the one that differs at most in case and ``- _ .``. Otherwise NAME
    defines a watch (or another table of the section) of that name in lower case. An empty variable counts as not set.
    """
    layer: dict[Option, Given] = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(_PREFIX) or not text:
            continue
        tables = {name: tables_of(layer, name, known) for name in schema.many}
        option = _variable_option(variable, tables, problems, schema)
        if option is not None:
            value = _parsed(text) if option.in_section in schema.collections else text
            layer[option] = _given(option, value, base, f"environment {variable}", schema)
    return layer


def tables_of(layer: Layer, section: str, known: Known | None = None) -> list[str]:
    """Return the names of the tables of ``section``: those that are ``known``, then the others in a layer, in order."""
    found = (option.table for option in layer if option.section == section)
    return list(dict.fromkeys([*(known or {}).get(section, ()), *found]))


def aws_layer(environ: Mapping[str, str], base: PathBase) -> Layer:
    """Return the options that variables of AWS's and OpenSSL's tools give; credentials come from the usual chain."""
    layer: dict[Option, Given] = {}
    for (section, key), variables in _AWS.items():
        for variable in variables:
            option = Option(section, "", key)
            if environ.get(variable) and option not in layer:
                layer[option] = _given(option, environ[variable], base, variable)
    return layer


def _given(option: Option, value: Any, base: PathBase, source: str, schema: Schema = DAEMON) -> Given:
    if option.in_section not in schema.paths:
        return Given(value, source)
    return Given(base.resolve(value), source, rooted=str(value).startswith(("/", "~")))


def _variable_option(variable: str, known: Known, problems: list[str], schema: Schema) -> Option | None:
    section, separator, rest = variable.removeprefix(_PREFIX).partition("__")
    section = section.lower()
    if not separator:
        problems.extend(_single_underscore(variable, schema))
        return None
    if section not in schema.sections:
        problems.append(f"{variable}: {section} is no section{nearest(section, schema.sections)}")
        return None
    name, _, key = rest.rpartition("__")
    key = key.lower()
    if (section in schema.many) != bool(name):
        form = f"{_PREFIX}{section.upper()}__" + ("<NAME>__<KEY>" if section in schema.many else "<KEY>")
        problems.append(f"{variable}: write {form}")
        return None
    if key not in schema.keys(section):
        problems.append(f"{variable}: {key} is no option of {section}{nearest(key, schema.keys(section))}")
        return None
    return Option(section, _slot(section, name, known[section], variable, problems) if name else "", key)


def _single_underscore(variable: str, schema: Schema) -> list[str]:
    """Return a problem for a name that lacks only the second underscore after its section.

    Other names are ignored: Kubernetes sets PRESIGND_SERVICE_HOST and the like for a service named presignd.
    """
    section, _, key = variable.removeprefix(_PREFIX).lower().partition("_")
    if section in schema.many and any(key.endswith(f"_{known}") for known in schema.keys(section)):
        return [f"{variable}: write {_PREFIX}{section.upper()}__<NAME>__<KEY>, with two underscores each"]
    if section in schema.sections and key in schema.keys(section):
        return [f"{variable}: write {_PREFIX}{section.upper()}__{key.upper()}, with two underscores"]
    return []


def _plain(name: str) -> str:
    return re.sub(r"[._-]", "_", name).lower()


def _slot(section: str, name: str, known: Sequence[str], variable: str, problems: list[str]) -> str:
    """Return the table that the NAME in a variable or flag means."""
    alike = [name] if name in known else [table for table in known if _plain(table) == _plain(name)]
    if len(alike) > 1:
        plural = f"{section}{_PLURAL[section]}"
        problems.append(f"{variable}: could mean any of the {plural} {', '.join(alike)}; rename them")
    return alike[0] if alike else name.lower()


def _parsed(text: str) -> Any:
    """Return a list or table written in JSON or TOML; any other text as it is, for validation to refuse."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text
