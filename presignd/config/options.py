"""Which options there are, told from the models: every other module asks here. Pure."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel

from presignd.config.models import Config, Section, WatchConfig


class Address(NamedTuple):
    """Where an option stands: its section, its watch ("" elsewhere) and its key."""

    section: str
    watch: str
    key: str

    @property
    def dotted(self) -> str:
        """``presign.endpoint``, ``watch.drop.key``; ``watch[1].key`` for a watch without a usable name."""
        return ".".join(part for part in (self.section, self.watch, self.key) if part).replace(".[", "[")

    @property
    def option(self) -> tuple[str, str]:
        """Section and key, whatever the watch."""
        return self.section, self.key


def _section_model(annotation: Any) -> type[Section]:
    return WatchConfig if get_origin(annotation) is tuple else annotation


SECTIONS: dict[str, type[Section]] = {
    field.alias or name: _section_model(field.annotation) for name, field in Config.model_fields.items()
}
"""Every section by its name in TOML."""


def keys(section: str) -> list[str]:
    """Return the keys of a section."""
    return list(SECTIONS[section].model_fields)


def defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Return a section's defaults as the contract writes them; "" for what is found out at start."""
    document = model.model_construct().model_dump(mode="json")
    found_out = {"path", "file"} if model is not WatchConfig else set()
    return {
        name: document.get(name, "")
        for name, field in model.model_fields.items()
        if not field.is_required() or name in found_out
    }


def _kinds(annotation: Any) -> set[Any]:
    origin = get_origin(annotation)
    return set(get_args(annotation)) if origin is types.UnionType else {origin or annotation}


def _options(kind: Iterable[Any]) -> frozenset[tuple[str, str]]:
    wanted = set(kind)
    return frozenset(
        (section, name)
        for section, model in SECTIONS.items()
        for name, field in model.model_fields.items()
        if wanted & _kinds(field.annotation)
    )


PATHS = _options([Path])
"""Options that are paths."""

COLLECTIONS = _options([tuple, dict])
"""Options that are lists or tables: from the environment they come as TOML or JSON."""

UNSET = frozenset(
    (section, key) for section, model in SECTIONS.items() for key, value in defaults(model).items() if value == ""
)
"""Options for which "" means not given."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?", or what there is when nothing is near."""
    names = list(known)
    near = difflib.get_close_matches(word.lower(), names, 1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else "; known: " + ", ".join(names)
