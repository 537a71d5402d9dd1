"""What a configuration that is read again changes, and what of it has to wait for a restart. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from presignd.config.models import Config, Section

FIXED = ("links", "control", "web")
"""Sections that hold from a start to its end, beside ``ledger.path``: files and sockets that are open."""


@dataclass(frozen=True, slots=True)
class Change:
    """The configuration from now on; watches by name; ``restart`` are the options left as they were."""

    config: Config
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    restart: tuple[str, ...]


def change(old: Config, new: Config) -> Change:
    """Return what ``new`` makes of a daemon that runs with ``old``."""
    before, after = ({watch.name: watch for watch in config.watches} for config in (old, new))
    return Change(
        config=_with_fixed(old, new),
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(name for name in after if name in before and after[name] != before[name]),
        restart=tuple(_left(old, new)),
    )


def _with_fixed(old: Config, new: Config) -> Config:
    ledger = new.ledger.model_copy(update={"path": old.ledger.path})
    return new.model_copy(update={"ledger": ledger, **{name: getattr(old, name) for name in FIXED}})


def _left(old: Config, new: Config) -> Iterator[str]:
    if old.ledger.path != new.ledger.path:
        yield "ledger.path"
    for name in FIXED:
        was: Section = getattr(old, name)
        now: Section = getattr(new, name)
        yield from (f"{name}.{key}" for key in type(was).model_fields if getattr(was, key) != getattr(now, key))
