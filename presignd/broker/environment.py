"""A broker's options in the environment: PRESIGND_<SECTION>__<KEY>, and PRESIGND_TOKEN__<NAME>__<KEY>. They win.

A broker and a daemon may share one environment: options that only the daemon has are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from presignd.broker.config import SCHEMA
from presignd.config.options import DAEMON, Option, Schema
from presignd.config.paths import PathBase
from presignd.config.sources import Given, Layer, environment_layer

PREFIX = "PRESIGND_"
STATE_URL = "PRESIGND_STATE_URL"
"""Holds PostgreSQL's address; [state] url in any other form wins."""

_GLOBS = Option("broker", "", "token_files")

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Environment:
    """A broker's options in the environment. Their paths are absolute."""

    layer: Layer

    def table(self, section: str, name: str = "") -> dict[str, Any]:
        """Return the options of a section or, if it has many tables, of the table with this name."""
        return {option.key: given.value for option, given in self.layer.items() if option[:2] == (section, name)}

    def over(self, section: str, table: Any) -> Any:
        """Return a file's table of a section, with the environment's options in it."""
        return {**table, **self.table(section)} if isinstance(table, dict) else table

    def of_store(self) -> Layer:
        """Return the options of [store] as options of [presign], as which they are read."""
        return {
            Option("presign", "", option.key): given
            for option, given in self.layer.items()
            if option.section == "store"
        }

    def tables(self, section: str, given: Any) -> Any:
        """Return a file's tables of a section that may have many, with the environment's options and tables in them."""
        if not isinstance(given, list) or not all(isinstance(table, dict) for table in given):
            return given
        names = [table.get("name") for table in given]
        known = [{**table, **self.table(section, name)} for table, name in zip(given, names, strict=True)]
        fresh = dict.fromkeys(option.table for option in self.layer if option.section == section)
        return known + [{"name": name, **self.table(section, name)} for name in fresh if name not in names]


def read_environment(
    environ: Mapping[str, str], base: PathBase, document: Document, problems: list[str]
) -> Environment:
    """Return the options in the environment; add their mistakes to ``problems``.

    PRESIGND_WEBHOOK__<NAME>__… means the webhook of that name in ``document``, if there is one.
    """
    known = {"webhook": list(_names(document.get("webhook")))}
    layer = environment_layer(_of_a_broker(environ), base, known, problems, SCHEMA)
    if (globs := layer.get(_GLOBS)) is not None and isinstance(globs.value, list):
        files = [str(base.resolve(each)) if isinstance(each, str) else each for each in globs.value]
        layer = {**layer, _GLOBS: Given(files, globs.source)}
    return Environment(layer)


def gives_options(environ: Mapping[str, str]) -> bool:
    """Return whether the environment has any option of a broker."""
    return any(name.startswith(PREFIX) and "__" in name and text for name, text in _of_a_broker(environ).items())


def _names(tables: Any) -> Iterator[str]:
    for table in tables if isinstance(tables, list) else ():
        if isinstance(table, dict) and isinstance(name := table.get("name"), str):
            yield name


def _of_a_broker(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``environ`` without the options that only a daemon has, and without ``STATE_URL``, which is no option."""
    return {name: text for name, text in environ.items() if name != STATE_URL and not _is_a_daemons(name)}


def _is_a_daemons(variable: str) -> bool:
    section, _, rest = variable.removeprefix(PREFIX).lower().partition("__")
    option = (section, rest.rpartition("__")[2])
    return _has(DAEMON, option) and not _has(SCHEMA, option)


def _has(schema: Schema, option: tuple[str, str]) -> bool:
    section, key = option
    return section in schema.sections and key in schema.keys(section)
