"""Decide what a reload of the configuration changes, and what needs a restart. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from presignd.config.models import Config, Section

FIXED = ("links", "control", "web")
"""Sections that only a restart changes, besides ``ledger.path``: their files and sockets stay open."""


@dataclass(frozen=True, slots=True)
class Change:
    """The configuration from now on, watches by name; ``restart`` names the options that keep their old value."""

    config: Config
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    restart: tuple[str, ...]


def change(old: Config, new: Config) -> Change:
    """Return what changes when a daemon that runs with ``old`` reads ``new``."""
    before, after = ({watch.name: watch for watch in config.watches} for config in (old, new))
    return Change(
        config=_with_fixed(old, new),
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(name for name in after if name in before and after[name] != before[name]),
        restart=tuple(_unchanged_options(old, new)),
    )


def _with_fixed(old: Config, new: Config) -> Config:
    ledger = new.ledger.model_copy(update={"path": old.ledger.path})
    return new.model_copy(update={"ledger": ledger, **{name: getattr(old, name) for name in FIXED}})


def _unchanged_options(old: Config, new: Config) -> Iterator[str]:
    if old.ledger.path != new.ledger.path:
        yield "ledger.path"
    for name in FIXED:
        was: Section = getattr(old, name)
        now: Section = getattr(new, name)
        yield from (f"{name}.{key}" for key in type(was).model_fields if getattr(was, key) != getattr(now, key))
