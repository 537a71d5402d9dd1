"""The options that exist, their defaults and their JSON Schema, as the models define them. Pure."""

from __future__ import annotations

import ast
import difflib
import inspect
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel

from presignd.config.models import Config, Section


class Option(NamedTuple):
    """The name of an option: its section, the table's name in it ("" in sections that are one table) and its key."""

    section: str
    table: str
    key: str

    @property
    def dotted(self) -> str:
        """``presign.endpoint``, ``watch.drop.key``; ``watch[1].key`` for a table without a usable name."""
        return ".".join(part for part in (self.section, self.table, self.key) if part).replace(".[", "[")

    @property
    def in_section(self) -> tuple[str, str]:
        """Section and key, without the table's name."""
        return self.section, self.key


def _section_model(annotation: Any) -> type[Section]:
    model: type[Section] = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
    return model


def _kinds(annotation: Any) -> set[Any]:
    origin = get_origin(annotation)
    return set(get_args(annotation)) if origin is types.UnionType else {origin or annotation}


@dataclass(frozen=True)
class Schema:
    """The options of a program: its ``sections`` by their names in TOML.

    A section in ``many`` may have several tables, each with a name: [[watch]].
    """

    sections: Mapping[str, type[Section]]
    many: frozenset[str]

    def keys(self, section: str) -> list[str]:
        """Return the keys of a section."""
        return list(self.sections[section].model_fields)

    @cached_property
    def paths(self) -> frozenset[tuple[str, str]]:
        """Options that are paths."""
        return self._options(Path)

    @cached_property
    def collections(self) -> frozenset[tuple[str, str]]:
        """Options that are lists or tables: the environment gives them as TOML or JSON."""
        return self._options(tuple, dict)

    def _options(self, *wanted: Any) -> frozenset[tuple[str, str]]:
        return frozenset(
            (section, name)
            for section, model in self.sections.items()
            for name, field in model.model_fields.items()
            if {*wanted} & _kinds(field.annotation)
        )


DAEMON = Schema(
    {field.alias or name: _section_model(field.annotation) for name, field in Config.model_fields.items()},
    frozenset(
        field.alias or name for name, field in Config.model_fields.items() if get_origin(field.annotation) is tuple
    ),
)
"""The daemon's options."""

SECTIONS, MANY = DAEMON.sections, DAEMON.many


_ALONE = [model for name, model in SECTIONS.items() if name not in MANY]


def keys(section: str) -> list[str]:
    """Return the keys of one of the daemon's sections."""
    return DAEMON.keys(section)


def defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Return a section's defaults as TOML writes them; "" for those that are computed at start."""
    document = model.model_construct().model_dump(mode="json")
    computed = {"path", "file"} if model in _ALONE else set()
    return {
        name: document.get(name, "")
        for name, field in model.model_fields.items()
        if not field.is_required() or name in computed
    }


UNSET = frozenset(
    (section, key) for section, model in SECTIONS.items() for key, value in defaults(model).items() if value == ""
)
"""Options for which "" means not set."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?", or a list of all names when none is similar."""
    names = list(known)
    near = difflib.get_close_matches(word.lower(), names, 1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else "; known: " + ", ".join(names)


# --- JSON Schema ----------------------------------------------------------------------------------
def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a configuration file, for editors and programs; computed options are optional."""
    schema = Config.model_json_schema()
    for model in SECTIONS.values():
        _describe(schema["$defs"][model.__name__], defaults(model), docstrings(model))
    schema["required"] = []  # each section has its defaults, and a watch can come from the environment
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": "presignd's configuration"}


def _describe(section: dict[str, Any], known: dict[str, Any], docstrings: dict[str, str]) -> None:
    for name, text in docstrings.items():
        section["properties"][name]["description"] = text
    for name, default in known.items():
        section["properties"][name]["default"] = default
    section["required"] = [name for name in section.get("required", []) if name not in known]


def docstrings(model: type[Section]) -> dict[str, str]:
    """Return the docstring of each option of a section.

    pydantic reads them, too (``use_attribute_docstrings``), but at each start, which took 30 ms.
    """
    (section,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(section, ast.ClassDef)
    found = dict[str, str]()
    for option, text in pairwise(section.body):
        match option, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                found[name] = inspect.cleandoc(words)
    return found
