"""Write the man pages and the completions of the package, made from the commands and the models.

``python package/manual.py FOLDER`` writes presignd.1, presignd-copy-link.1, presignd.toml.5, presignd-broker.toml.5,
and the completions presignd.bash, presignd.zsh and presignd.fish, as ``presignd --install-completion`` would install
them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from typer._completion_shared import get_completion_script

import presignd
from presignd.broker import config as broker
from presignd.cli import COMMANDS, app, load
from presignd.config.models import Section
from presignd.config.options import SECTIONS, defaults, docstrings
from presignd.errors import ExitCode

TABLES = ("watch", "inbox", "token", "webhook")
"""Sections that a file may have more than once: ``[[watch]]``."""
ONLY_A_DAEMONS = ("kind", "url", "token", "token_file", "client_cert", "client_key", "put_expires", "get_expires")
"""Options of [presign] that a broker's [store] has no use for."""
SHELLS = ("bash", "zsh", "fish")
MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.BUG: "a bug",
    ExitCode.USAGE: "wrong usage or configuration",
    ExitCode.UNAVAILABLE: "the store or the daemon can't be reached",
    ExitCode.REFUSED: "a file is quarantined, missing or refused, or differs from its object",
    ExitCode.PENDING: "still pending when the timeout ran out",
    ExitCode.INTERRUPTED: "interrupted",
}


COPY_LINK = (
    "Ask the daemon for the link of each FILE and copy the links to the clipboard, one a line. A notification tells "
    "what was copied, or why a file has no link. It needs notify-send, and wl-copy (Wayland) or xclip (X11). The menus "
    "of GNOME Files and Dolphin run it."
)


# --- roff (man(7)) ------------------------------------------------------------------------------------
def roff(text: str) -> str:
    """Return ``text`` for a man page: nothing in it is a request or an escape, and a "-" can be copied."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in escaped.split("\n"))


def head(name: str, section: int, does: str) -> list[str]:
    """Return the start of a man page."""
    title = f'.TH {roff(name.upper())} {section} "" "presignd {presignd.__version__}"'
    return [title, ".SH NAME", f"{roff(name)} \\- {roff(does)}"]


def tagged(tag: str, *paragraphs: str) -> Iterator[str]:
    """Yield a paragraph with a bold tag."""
    yield from (".TP", f".B {roff(tag)}", roff(paragraphs[0]))
    for paragraph in paragraphs[1:]:
        yield from (".IP", roff(paragraph))


# --- the commands -------------------------------------------------------------------------------------
def commands() -> Iterator[tuple[str, Any]]:
    """Yield each command by its words: ``("broker token create", command)``."""
    for name in COMMANDS:
        yield from _below(name, load(name))


def _below(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield words, command
        return
    for name, each in below.items():
        yield from _below(f"{words} {name}", each)


def command_page() -> str:
    """Return presignd(1)."""
    top = typer.main.get_command(app)
    lines = head("presignd", 1, "drop a file in a folder, get a link")
    lines += [".SH SYNOPSIS", ".B presignd", "COMMAND [OPTIONS] [ARGUMENTS]"]
    lines += [".SH DESCRIPTION", *_described(top.help or ""), ".SH OPTIONS", *_parameters(top.params)]
    lines += [".SH COMMANDS"]
    for words, command in commands():
        lines += [f".SS presignd {roff(words)}", *_described(command.help or ""), *_parameters(command.params)]
    lines += [".SH EXIT STATUS"]
    for code, meaning in MEANINGS.items():
        lines += tagged(str(int(code)), meaning)
    lines += [".SH FILES", *tagged("/etc/presignd/config.toml", "The configuration, see presignd.toml(5).")]
    lines += tagged("/etc/presignd-broker/broker.toml", "The broker's configuration, see presignd-broker.toml(5).")
    lines += tagged("/var/lib/presignd", "The service's ledger and links.")
    lines += [".SH SEE ALSO", ".BR presignd.toml (5),", ".BR presignd\\-broker.toml (5)"]
    return "\n".join(lines) + "\n"


def copy_link_page() -> str:
    """Return presignd-copy-link(1), the script behind the desktop's menus."""
    lines = head("presignd-copy-link", 1, "copy the links of files to the clipboard")
    lines += [".SH SYNOPSIS", ".B presignd\\-copy\\-link", "FILE..."]
    lines += [".SH DESCRIPTION", roff(COPY_LINK), ".SH EXIT STATUS"]
    lines += tagged("0", "each file's link was copied")
    lines += tagged("1", "a file has no link, or there is no clipboard")
    lines += [".SH SEE ALSO", ".BR presignd (1)"]
    return "\n".join(lines) + "\n"


def _described(text: str) -> Iterator[str]:
    """Yield a command's help; click's mark for a paragraph that keeps its lines is a backspace."""
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            yield ".PP"
        if paragraph.startswith("\b\n"):
            yield from (".nf", roff(paragraph.removeprefix("\b\n")), ".fi")
        else:
            yield roff(paragraph)


def _parameters(parameters: Iterable[Any]) -> Iterator[str]:
    for each in parameters:
        if each.param_type_name == "argument":
            yield from tagged(each.metavar or each.name.upper(), each.help or "")
        else:
            value = "" if each.is_flag else f" {each.metavar or each.name.upper()}"
            yield from tagged(", ".join(f"{name}{value}" for name in each.opts), each.help or "")


# --- the options --------------------------------------------------------------------------------------
def options(sections: Mapping[str, type[Section]]) -> Iterator[tuple[str, str, str, Any]]:
    """Yield each option: its section, its key, what it is for, its default (None if it must be given)."""
    for section, model in sections.items():
        known = defaults(model)
        for key, words in docstrings(model).items():
            if section != "store" or key not in ONLY_A_DAEMONS:
                yield section, key, words, known.get(key)


def config_page(name: str, does: str, sections: Mapping[str, type[Section]], about: Iterable[str]) -> str:
    """Return a page of section 5 on the options of ``sections``; ``about`` are paragraphs on the file."""
    lines = [*head(name, 5, does), ".SH DESCRIPTION"]
    for paragraph in about:
        lines += [".PP", roff(paragraph)]
    last = ""
    for section, key, words, default in options(sections):
        if section != last:
            lines += [f".SH [[{section}]]" if section in TABLES else f".SH [{section}]"]
            last = section
        lines += tagged(key, words.replace("\n", " "), *([] if default is None else [f"Default: {_toml(default)}"]))
    lines += [".SH SEE ALSO", ".BR presignd (1)"]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Return a default as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else "{}" if value == {} else str(value)


UNITS = (
    'Durations are written as "500ms", "90s", "15m", "1h" or "7d", sizes as "64MiB" (powers of 1024) or "5GB" (powers '
    'of 1000). "" means not set. "~" is the home folder; relative paths start at the file\'s folder.'
)
FILES = (
    "presignd reads the first of: the file after -c, $PRESIGND_CONFIG, presignd/config.toml in $XDG_CONFIG_HOME (or "
    "~/.config), /etc/presignd/config.toml. Only [[watch]] with name, path and bucket is required."
)
VARIABLES = (
    "Options can also come from the environment: PRESIGND_<SECTION>__<KEY> and PRESIGND_WATCH__<NAME>__<KEY>. Flags "
    "win over these, these over the file, and the file over AWS_*. `presignd config` shows the values in effect."
)
DAEMON = (FILES, VARIABLES, UNITS)
BROKER_VARIABLES = (
    "Options can also come from the environment, which wins: PRESIGND_<SECTION>__<KEY>, PRESIGND_TOKEN__<NAME>__<KEY> "
    "and PRESIGND_WEBHOOK__<NAME>__<KEY>. Then /etc/presignd-broker/broker.toml need not be there."
)
BROKER = (
    "The configuration of `presignd broker run`; as a service, /etc/presignd-broker/broker.toml.",
    BROKER_VARIABLES,
    UNITS,
)


def pages() -> dict[str, str]:
    """Return every file by its name."""
    return {
        "presignd.1": command_page(),
        "presignd-copy-link.1": copy_link_page(),
        "presignd.toml.5": config_page("presignd.toml", "configuration of presignd", SECTIONS, DAEMON),
        "presignd-broker.toml.5": config_page(
            "presignd-broker.toml", "configuration of a presignd broker", broker.SCHEMA.sections, BROKER
        ),
    } | {
        f"presignd.{shell}": get_completion_script(prog_name="presignd", complete_var="_PRESIGND_COMPLETE", shell=shell)
        for shell in SHELLS
    }


def main(folder: Path) -> None:
    """Write them into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
