"""Reads broker.toml and the files of tokens; every problem of a file is told at once."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from presignd.broker.models import BrokerConfig, BrokerSection, TokenConfig
from presignd.config import LogConfig, PresignConfig, secrets
from presignd.config.models import Section
from presignd.config.options import nearest
from presignd.config.problems import words
from presignd.config.sources import Folders, aws_layer, file_layer
from presignd.errors import UsageError
from presignd.redaction.text import one_line

SYSTEM_FILE = Path("/etc/presignd-broker/broker.toml")
SECTIONS = ("broker", "store", "log", "token")

Document = Mapping[str, Any]
S = TypeVar("S", bound=Section)

_NEEDED = {
    "name": 'is missing; give each token one, e.g. name = "scanner-1"',
    "bucket": "is missing; name the bucket that the token may use",
}
_PATHS = ("tls_cert", "tls_key", "client_ca")


def load(file: Path, *, environ: Mapping[str, str] = os.environ) -> BrokerConfig:
    """Return the configuration in ``file``; raise ``UsageError`` with every problem found, tokens included."""
    file = Path(os.path.abspath(file))  # noqa: PTH100 - a symlink that is switched is to be followed at each look
    problems: list[str] = []
    document = read_document(file)
    problems += [f"{name}: is no section{nearest(name, SECTIONS)}" for name in document if name not in SECTIONS]
    folders = Folders(file.parent, environ)
    warnings: list[str] = []
    broker = _section(BrokerSection, "broker", _based(document.get("broker", {}), folders), problems)
    store = _store(document.get("store", {}), file, folders, environ, problems=problems, warnings=warnings)
    log = _section(LogConfig, "log", document.get("log", {}), problems)
    read_tokens(document, problems)
    if problems or broker is None or store is None or log is None:
        raise _refusal(file, problems)
    return BrokerConfig(file, broker, store, log, tuple(warnings))


def read_document(file: Path) -> dict[str, Any]:
    """Return the TOML in ``file``; raise ``UsageError`` where it can't be read."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: can't be read: {error.strerror}", fix="give -c FILE") from None
    return parse_document(file, data)


def parse_document(file: Path, data: bytes) -> dict[str, Any]:
    """Return the TOML that ``file`` held; raise ``UsageError`` where it is none."""
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except ValueError as error:  # no UTF-8, or no TOML
        raise UsageError(f"{file}: is no valid TOML: {error}", fix='texts stand in quotes: key = "value"') from None


def read_tokens(document: Document, problems: list[str]) -> list[TokenConfig]:
    """Return the tokens of a document; what is wrong with them is added to ``problems``."""
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
    """Return a section; with problems of its own, None."""
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


def _based(table: Any, folders: Folders) -> Any:
    """Return a table whose paths start from the file's folder, globs included."""
    if not isinstance(table, dict):
        return table
    based = {key: folders.resolve(value) if key in _PATHS else value for key, value in table.items()}
    if isinstance(patterns := based.get("token_files"), list):
        based["token_files"] = [str(folders.resolve(each)) if isinstance(each, str) else each for each in patterns]
    return based


def _store(
    table: Any, file: Path, folders: Folders, environ: Mapping[str, str], *, problems: list[str], warnings: list[str]
) -> PresignConfig | None:
    """Return [store]: the options, secrets and fallbacks of the daemon's [presign], under another name."""
    mine: list[str] = []
    given = file_layer({"presign": table}, f"file {file}", folders, mine)
    usual = {address: value for address, value in aws_layer(environ, folders).items() if address.section == "presign"}
    mine += secrets.clashes(given)
    told: list[str] = []
    layer = secrets.resolve(secrets.overlay(usual, given), environ, mine, told)
    mine += secrets.incomplete(layer)
    values = {address.key: value.value for address, value in layer.items()}
    if values.get("kind", "local") != "local":
        mine.append('presign.kind: must be "local": a broker signs with keys of its own')
    elif any(key in values for key in ("url", "token")):
        mine.append('presign.url: is for kind = "broker"')
    if any(key in given_keys(table) for key in ("secret_key", "secret_access_key", "session_token")) and (
        secrets.readable_by_others(file)
    ):
        told.append(f"{file}: holds secrets and can be read by others; chmod 600 {file}")
    store = None if mine else _section(PresignConfig, "presign", values, mine)
    problems += [_renamed(each) for each in mine]
    warnings += [_renamed(each) for each in told]
    return store


def given_keys(table: Any) -> set[str]:
    """Return the keys of what should be a table."""
    return set(table) if isinstance(table, dict) else set()


def _renamed(line: str) -> str:
    return line.replace("presign.", "store.", 1) if line.startswith("presign") else line


def of_store(fix: str) -> str:
    """Return what to do about a daemon's [presign], said of a broker's [store]."""
    return fix.replace("presign.", "store.")


def _refusal(file: Path, problems: list[str]) -> UsageError:
    unique = tuple(dict.fromkeys(map(one_line, problems)))
    count = "a problem" if len(unique) == 1 else f"{len(unique)} problems"
    return UsageError(f"{file} has {count}", problems=unique, fix="see broker.example.toml for every option")
