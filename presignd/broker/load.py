"""Reads broker.toml and the files of tokens; all problems of a file are reported at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from presignd.broker.config import (
    SCHEMA,
    SYSTEM_FILE,
    SYSTEM_STATE,
    BrokerConfig,
    BrokerSection,
    ControlSection,
    FleetSection,
    LinksSection,
    StatePlace,
    StateSection,
    TokenConfig,
    check_state_url,
)
from presignd.broker.environment import STATE_URL, Environment, gives_options, read_environment
from presignd.config import LogConfig, PresignConfig, signing
from presignd.config.models import Section
from presignd.config.options import nearest
from presignd.config.paths import PathBase, base_folder, current_folder
from presignd.config.problems import words
from presignd.config.sources import Layer, aws_layer, file_layer
from presignd.config.toml import read_document
from presignd.config.webhooks import read_tables
from presignd.errors import UsageError
from presignd.redaction.text import one_line

Document = Mapping[str, Any]
S = TypeVar("S", bound=Section)

_NEEDED = {
    "name": 'is missing; give each token one, e.g. name = "scanner-1"',
    "bucket": "is missing; name the bucket that the token may use",
}
_PATHS = ("socket", "tls_cert", "tls_key", "client_ca", "token_file", "path", "url_file")
_STATE_FILE = "state.db"


def load(file: Path, *, environ: Mapping[str, str] = os.environ, system: Path = SYSTEM_FILE) -> BrokerConfig:
    """Return the configuration in ``file`` and in the environment, which wins.

    Where the ``system``'s file is not there, the user's own is read, which ``presignd init`` writes. Neither need be
    there if the environment has options of a broker. Raises ``UsageError`` with every problem, also those of tokens.
    """
    file = Path(os.path.abspath(file))  # noqa: PTH100 - not resolved: a symlink may point elsewhere at the next reload
    if file == system and not os.path.lexists(file):
        file = _own_file(environ) or file
    alone = file == system and not os.path.lexists(file) and gives_options(environ)
    document = {} if alone else read_document(file)
    return _read(document, None if alone else file, PathBase(file.parent, environ))


def _own_file(environ: Mapping[str, str]) -> Path | None:
    """Return the broker's configuration of a user without root, None where there is none."""
    folder = base_folder(environ, "XDG_CONFIG_HOME", ".config")
    own = folder / "presignd" / "broker.toml" if folder else None
    return own if own and os.path.lexists(own) else None


def _read(document: Document, file: Path | None, base: PathBase) -> BrokerConfig:
    problems, warnings = list[str](), list[str]()
    unknown = [name for name in document if name not in SCHEMA.sections]
    problems += [f"{name}: is no section{nearest(name, SCHEMA.sections)}" for name in unknown]
    given = read_environment(base.environ, PathBase(current_folder(), base.environ), document, problems)

    def section(model: type[S], name: str) -> S | None:
        return _section(model, name, given.over(name, _based(document.get(name, {}), base)), problems)

    broker = section(BrokerSection, "broker")
    store = _store(document.get("store", {}), file, base, given, problems=problems, warnings=warnings)
    links = section(LinksSection, "links")
    state = _state(document.get("state", {}), file, base, given, problems=problems, warnings=warnings)
    log = section(LogConfig, "log")
    fleet = section(FleetSection, "fleet")
    control = section(ControlSection, "control")
    read_tokens(document, problems)  # only for its problems: ``Tokens`` reads the file again whenever it changes
    tokens = read_tokens({"token": given.tables("token", [])}, problems)
    webhooks = read_tables(given.tables("webhook", document.get("webhook", [])), base, problems, warnings)
    if webhooks and links is not None and not links.url:
        problems.append("webhook: needs [links] url: what waits for webhooks is kept in the state")
    if problems or broker is None or store is None or log is None or fleet is None or links is None or control is None:
        raise _refusal(file, problems)
    if fleet.listen and fleet.listen in (broker.listen, broker.metrics_listen):
        raise _refusal(file, ["fleet.listen: is the broker's own address; give the fleet page another port"])
    token_file = fleet.token_file or state_folder(file, base.environ) / "fleet.token"
    fleet = fleet.model_copy(update={"token_file": token_file})
    return BrokerConfig(
        file, broker, store, log, fleet, links, state, tuple(warnings), webhooks, control, tuple(tokens)
    )


def state_folder(file: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the folder where a broker keeps its files: the service's, also for commands beside it; else its file's."""
    first = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if first:
        return Path(first)
    return SYSTEM_STATE if file in (None, SYSTEM_FILE) else file.parent


def read_tokens(document: Document, problems: list[str]) -> list[TokenConfig]:
    """Return the tokens of a document; add what is wrong with them to ``problems``."""
    tables = document.get("token", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        problems.append("token: write [[token]], two brackets each side, once for each")
        return []
    found = [_section(TokenConfig, _place(number, table), table, problems) for number, table in enumerate(tables, 1)]
    return [token for token in found if token is not None]


def _place(number: int, table: Document) -> str:
    name = table.get("name")
    return f"token.{name}" if isinstance(name, str) and name else f"token[{number}]"


def _section(model: type[S], where: str, table: Any, problems: list[str]) -> S | None:
    """Return a section, or None after adding its problems."""
    if not isinstance(table, dict):
        problems.append(f"{where}: is a section; write [{where}] on a line of its own, its keys below")
        return None
    unknown = [key for key in table if key not in model.model_fields]
    problems += [f"{where}.{key}: is no option{nearest(key, model.model_fields)}" for key in unknown]
    try:
        return model.model_validate({key: value for key, value in table.items() if key not in unknown})
    except ValidationError as error:
        problems += _described(error, where)
        return None


def _described(error: ValidationError, where: str) -> list[str]:
    found = error.errors(include_url=False)
    return [f"{where}.{'.'.join(map(str, each['loc']))}: {words(each, str(each['loc'][0]), _NEEDED)}" for each in found]


def _based(table: Any, base: PathBase) -> Any:
    """Return a table with its paths and globs made absolute, relative to the file's folder."""
    if not isinstance(table, dict):
        return table
    based = {key: base.resolve(value) if key in _PATHS else value for key, value in table.items()}
    if isinstance(patterns := based.get("token_files"), list):
        based["token_files"] = [str(base.resolve(each)) if isinstance(each, str) else each for each in patterns]
    return based


def _store(
    table: Any, file: Path | None, base: PathBase, given: Environment, *, problems: list[str], warnings: list[str]
) -> PresignConfig | None:
    """Return [store], which has the options, secrets and fallbacks of the daemon's [presign]."""
    own_problems, own_warnings = list[str](), list[str]()
    usual = {option: value for option, value in aws_layer(base.environ, base).items() if option.section == "presign"}
    merged: Layer = usual
    for layer in (file_layer({"presign": table}, f"file {file}", base, own_problems), given.of_store()):
        own_problems += signing.clashes(layer)
        merged = signing.overlay(merged, layer)
    layer = signing.resolve(merged, base.environ, own_problems, own_warnings)
    own_problems += signing.incomplete(layer)
    values = {option.key: value.value for option, value in layer.items()}
    if values.get("kind", "local") != "local":
        own_problems.append('presign.kind: must be "local": a broker signs with keys of its own')
    elif any(key in values for key in ("url", "token")):
        own_problems.append('presign.url: is for kind = "broker"')
    holds_secret = given_keys(table) & {"secret_key", "secret_access_key", "session_token"}
    if file is not None and holds_secret and signing.readable_by_others(file):
        own_warnings.append(f"{file}: holds secrets and can be read by others; chmod 600 {file}")
    store = None if own_problems else _section(PresignConfig, "presign", values, own_problems)
    problems += [_renamed(each) for each in own_problems]
    warnings += [_renamed(each) for each in own_warnings]
    return store


def _state(
    table: Any, file: Path | None, base: PathBase, given: Environment, *, problems: list[str], warnings: list[str]
) -> StatePlace:
    """Return where [state] is: as the environment says, else the file, else ``STATE_URL``, else the usual file."""
    section = _section(StateSection, "state", given.table("state") or _based(table, base), problems)
    if section is None:
        return StatePlace()
    if file is not None and isinstance(table, dict) and table.get("url") and signing.readable_by_others(file):
        warnings.append(f"state.url: {file} holds it and can be read by others; chmod 600 {file}, or use url_file")
    if section.path is not None:
        return StatePlace(section.path)
    try:
        if url := _state_url(section, base.environ):
            return StatePlace(url=url)
    except ValueError as error:
        problems.append(str(error))
    return StatePlace(state_folder(file, base.environ) / _STATE_FILE)


def _state_url(section: StateSection, environ: Mapping[str, str]) -> str:
    """Return PostgreSQL's address from an option, a file or the environment; raise ``ValueError``."""
    if section.url is not None:
        return section.url.get_secret_value()
    what, url = f"${STATE_URL}", environ.get(STATE_URL, "")
    if section.url_file is not None:
        what, url = "state.url_file", signing.read_secret("state.url_file", section.url_file)
    if url:
        try:
            check_state_url(url)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
    return url


def given_keys(table: Any) -> set[str]:
    """Return the keys of ``table``; none if it is not a table."""
    return set(table) if isinstance(table, dict) else set()


def _renamed(line: str) -> str:
    return line.replace("presign.", "store.", 1) if line.startswith("presign") else line


def of_store(fix: str) -> str:
    """Return a fix that names [presign] options, with the names of [store] instead."""
    return fix.replace("presign.", "store.")


def _refusal(file: Path | None, problems: list[str]) -> UsageError:
    unique = tuple(dict.fromkeys(map(one_line, problems)))
    count = "a problem" if len(unique) == 1 else f"{len(unique)} problems"
    return UsageError(
        f"{file or 'the environment'} has {count}", problems=unique, fix="see broker.example.toml for every option"
    )
