"""The JSON Schema of a configuration file, for editors and for programs that write one."""

from __future__ import annotations

from typing import Any

from presignd.config.models import Config
from presignd.config.options import SECTIONS, defaults


def json_schema() -> dict[str, Any]:
    """Return the schema by the names and defaults of the TOML file; what is found out at start is optional."""
    schema = Config.model_json_schema()
    for model in SECTIONS.values():
        _describe(schema["$defs"][model.__name__], defaults(model))
    schema["required"] = []  # each section has its defaults, and a watch can come from the environment
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": "presignd's configuration"}


def _describe(section: dict[str, Any], known: dict[str, Any]) -> None:
    for name, default in known.items():
        section["properties"][name]["default"] = default
    section["required"] = [name for name in section.get("required", []) if name not in known]
