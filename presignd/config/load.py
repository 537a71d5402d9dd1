"""Find the configuration, read every source of it, and merge them; all problems are reported together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from presignd.config import signing
from presignd.config.models import Config
from presignd.config.options import MANY, SECTIONS, Option, keys
from presignd.config.paths import STATE, PathBase, base_folder, current_folder
from presignd.config.problems import describe
from presignd.config.sources import (
    Given,
    Layer,
    aws_layer,
    environment_layer,
    file_layer,
    flag_layer,
    tables_of,
)
from presignd.config.toml import read_document
from presignd.config.webhooks import SECRETS as HOOK_SECRETS
from presignd.config.webhooks import with_webhooks
from presignd.errors import NotConfigured, UsageError
from presignd.redaction.text import one_line

_NONE: Mapping[str, Any] = MappingProxyType({})
_SYSTEM_FILE = Path("/etc/presignd/config.toml")
_FIX = "give -c FILE, or run `presignd init`"
_SECRET_KEYS = ("secret_key", "secret_access_key", "session_token", "token")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, the source of each value (by dotted key), its file, and warnings."""

    config: Config
    sources: Mapping[str, str]
    file: Path | None
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Findings:
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def load(
    path: Path | None = None, *, flags: Mapping[str, Any] = _NONE, environ: Mapping[str, str] = os.environ
) -> Loaded:
    """Return the effective configuration.

    ``flags`` (dotted keys) win over ``PRESIGND_…`` variables, these over the file, the file over ``AWS_*``
    variables, these over defaults. The file is ``path``, else the first of ``places`` that exists. No file is
    needed if the others define a watch. Raises ``UsageError`` with all problems, each with its key.
    """
    findings = _Findings()
    here = PathBase(current_folder(), environ)
    file = _find(path, environ, here)
    merged: Layer = {}
    for layer in _layers(file, flags, environ, here, findings):
        findings.problems += signing.clashes(layer)
        merged = signing.overlay(merged, layer)
    if file is None and not _watches(merged):
        raise _nothing_found(environ)
    merged = signing.resolve(merged, environ, findings.problems, findings.warnings)
    findings.problems += signing.incomplete(merged) + signing.signing_problems(merged, _watches(merged))
    findings.warnings += signing.signing_warnings(merged)
    merged = signing.with_broker_keys(merged, _watches(merged))
    merged = with_webhooks(merged, findings.problems, findings.warnings)
    merged = _with_state(merged, environ, findings.problems)
    config = _validated(merged, file, findings)
    return Loaded(config, _sources(config, merged), file, tuple(findings.warnings))


def places(environ: Mapping[str, str]) -> list[Path]:
    """Return the places of the configuration file, in order; never the current folder."""
    if environ.get("PRESIGND_CONFIG"):
        return [Path(environ["PRESIGND_CONFIG"])]
    own = base_folder(environ, "XDG_CONFIG_HOME", ".config")
    return [*([own / "presignd/config.toml"] if own else []), _SYSTEM_FILE]


def _find(path: Path | None, environ: Mapping[str, str], here: PathBase) -> Path | None:
    given = path or environ.get("PRESIGND_CONFIG")
    if given:
        return Path(here.resolve(given))
    return next((place for place in places(environ) if os.path.lexists(place)), None)


def _nothing_found(environ: Mapping[str, str]) -> NotConfigured:
    looked = ", ".join(str(place) for place in places(environ))
    return NotConfigured(
        f"no configuration found: there is no {looked}, and no PRESIGND_WATCH__<NAME>__PATH is set",
        fix="run `presignd init` to write one, `presignd demo` to try it without one, or give -c FILE",
    )


def _layers(
    file: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str], here: PathBase, findings: _Findings
) -> list[Layer]:
    """Return each source's layer, the weakest first."""
    from_file = _file_layer(file, environ, findings) if file is not None else {}
    from_environment = environment_layer(environ, here, _tables(from_file), findings.problems)
    from_flags = flag_layer(flags, here, _tables({**from_file, **from_environment}), findings.problems)
    return [aws_layer(environ, here), from_file, from_environment, from_flags]


def _file_layer(file: Path, environ: Mapping[str, str], findings: _Findings) -> Layer:
    layer = file_layer(read_document(file, fix=_FIX), f"file {file}", PathBase(file.parent, environ), findings.problems)
    if _holds_secret(layer) and signing.readable_by_others(file):
        findings.warnings.append(f"{file}: holds secrets and can be read by others; chmod 600 {file}")
    return layer


def _watches(layer: Layer) -> list[str]:
    """Return the watches that a layer names, in order."""
    return tables_of(layer, "watch")


def _tables(layer: Layer) -> dict[str, list[str]]:
    """Return the tables that a layer names in each section that may have many, in order."""
    return {section: tables_of(layer, section) for section in MANY}


def _holds_secret(layer: Layer) -> bool:
    proxy = layer.get(Option("presign", "", "proxy"))
    userinfo = proxy is not None and "@" in str(proxy.value)
    hooks = any(option.section == "webhook" and option.key in HOOK_SECRETS for option in layer)
    return userinfo or hooks or any(Option("presign", "", key) in layer for key in _SECRET_KEYS)


def _with_state(layer: Layer, environ: Mapping[str, str], problems: list[str]) -> Layer:
    """Return ``layer`` with the default paths of the ledger and the links filled in."""
    ledger, links = Option("ledger", "", "path"), Option("links", "", "file")
    filled = dict(layer)
    if ledger not in filled:
        if (state := _state_folder(environ)) is None:
            problems.append("ledger.path: is missing, and this user has no home folder for it; name a folder")
            return filled
        filled[ledger] = state
    filled.setdefault(links, Given(Path(str(filled[ledger].value)) / "links" / "links.jsonl", "default"))
    return filled


def _state_folder(environ: Mapping[str, str]) -> Given | None:
    """Return systemd's state folder (the first of several, see systemd.exec(5)), else the user's, if there is one."""
    first = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if first:
        return Given(Path(first), "STATE_DIRECTORY")
    own = base_folder(environ, *STATE)
    return Given(own / "presignd", "default") if own else None


def _validated(layer: Layer, file: Path | None, findings: _Findings) -> Config:
    slots = _tables(layer)
    sources = {option.dotted: given.source for option, given in layer.items()}
    config = None
    try:
        config = Config.model_validate(_nested(layer, slots))
    except ValidationError as error:
        findings.problems += describe(error, slots, sources)
    if not slots["watch"] and not slots["inbox"]:
        findings.problems.append("watch: there is none; add a [[watch]] with name, path and bucket, or an [[inbox]]")
    if findings.problems or config is None:
        raise _refusal(findings.problems, file)
    return config


def _refusal(problems: Sequence[str], file: Path | None) -> UsageError:
    unique = tuple(dict.fromkeys(map(one_line, problems)))
    count = "a problem" if len(unique) == 1 else f"{len(unique)} problems"
    return UsageError(
        f"{file or 'the configuration'} has {count}", problems=unique, fix="see config.example.toml for every option"
    )


def _nested(layer: Layer, slots: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    document: dict[str, Any] = {name: {slot: {} for slot in slots.get(name, ())} for name in SECTIONS}
    for option, given in layer.items():
        section = document[option.section]
        table = section[option.table] if option.section in MANY else section
        table[option.key] = given.value
    for section in MANY:
        for slot, table in document[section].items():
            if not slot.startswith("["):
                table.setdefault("name", slot)
        document[section] = list(document[section].values())
    return document


def _sources(config: Config, layer: Layer) -> dict[str, str]:
    """Return the source of every option of ``config`` by dotted key, each under its final name."""
    names = {
        "watch": [watch.name for watch in config.watches],
        "inbox": [inbox.name for inbox in config.inboxes],
        "webhook": [webhook.name for webhook in config.webhooks],
    }
    named = {section: [*zip(found, tables_of(layer, section), strict=True)] for section, found in names.items()}
    where = {option: given.source for option, given in layer.items()}
    return {
        Option(section, name, key).dotted: where.get(Option(section, slot, key), "default")
        for section in SECTIONS
        for name, slot in (named[section] if section in MANY else [("", "")])
        for key in keys(section)
    }
