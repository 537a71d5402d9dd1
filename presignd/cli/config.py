"""``presignd config``: the effective configuration and where each value came from, secrets masked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from presignd.cli import show
from presignd.cli.options import AsJson, ConfigFile

if TYPE_CHECKING:
    from presignd.config import Loaded

_ALIASES = {"access_key_id", "secret_access_key"}


def config_command(
    config: ConfigFile = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of the configuration file instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the effective configuration and where each value came from; secrets are masked.

    Example: presignd config -c /etc/presignd/config.toml
    """
    from presignd.config import load  # noqa: PLC0415 - help must be fast
    from presignd.config.options import json_schema  # noqa: PLC0415 - as above

    if schema:
        show.document(json_schema(), as_is=True)  # redaction would change its examples
        return
    loaded = load(config)
    for warning in loaded.warnings:
        show.say(f"warning: {warning}")
    if as_json:
        show.document(_document(loaded))
        return
    for line in _lines(loaded):
        show.result(line)


def _document(loaded: Loaded) -> dict[str, Any]:
    return {
        "file": None if loaded.file is None else str(loaded.file),
        "config": loaded.config.model_dump(mode="json", by_alias=True),
        "sources": dict(loaded.sources),
        "warnings": list(loaded.warnings),
    }


def _lines(loaded: Loaded) -> Iterator[str]:
    """Yield the configuration as TOML that can be loaded again (except secrets), each line with its source."""
    from presignd.config.toml import toml_text  # noqa: PLC0415 - as above

    yield f"# file: {toml_text(str(loaded.file)) if loaded.file else 'none'}"
    for name, section in loaded.config.model_dump(mode="json", by_alias=True).items():
        for table in section if isinstance(section, list) else [section]:
            yield ""
            yield f"[[{name}]]" if isinstance(section, list) else f"[{name}]"
            prefix = f"{name}.{table['name']}" if isinstance(section, list) else name
            yield from _table(table, prefix, loaded.sources)


def _table(table: Mapping[str, Any], prefix: str, sources: Mapping[str, str]) -> Iterator[str]:
    from presignd.config.toml import toml_value  # noqa: PLC0415 - as above

    assigned = {key: f"{key} = {toml_value(value)}" for key, value in table.items() if key not in _ALIASES}
    width = min(48, max(map(len, assigned.values())))
    for key, text in assigned.items():
        source = sources[f"{prefix}.{key}"]
        yield f"{text:<{width}}  # {source if source == 'default' else f'from {source}'}"
