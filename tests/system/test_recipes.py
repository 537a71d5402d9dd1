"""The recipes for links, exactly as on their page and in the unit, in each shell and with hostile names."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from presignd.links import encode
from tests.recipes import block as block_of
from tests.served import Served, link_for, served

__all__ = ["served"]

Call = dict[str, Any]
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recipes.md").read_text("utf-8")
NAMES = [
    *(
        "plain.txt",
        "two words.txt",
        "tab\there",
        "new\nline",
        "back\\n\\tslash\\",
        "'single' \"double\"",
        "$(touch pwned)",
    ),
    *(
        "`touch pwned`",
        "-s owned",
        "--",
        "~!touch pwned",
        "a;touch pwned",
        "\x1b[31m\x9b\x7f\x85",
        "\u202egnp.exe\u2028x",
    ),
    *("<a href='http://h/'>b</a>", "%s%n", "é日本", "\udcff", "*", "\r\nBcc: you@example.org"),
]
RECORD = """\
import json, os, sys
said = {"name": os.path.basename(sys.argv[0]), "argv": sys.argv[1:], "stdin": sys.stdin.read()}
with open(os.environ["RECORD"], "a") as record:
    record.write(json.dumps(said) + "\\n")
sys.exit(int(os.environ.get("FAILING", "0")))
"""


def block(marker: str) -> str:
    """Return the page's fenced block behind a marker."""
    [found] = re.findall(rf"^<!-- {marker} -->\n```\w*\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def of_unit(file: str) -> str:
    """Return the ExecStart of a unit as a shell's command: systemd's words are a shell's but for ``%`` and ``$``."""
    text = (ROOT / "systemd" / file).read_text("utf-8")
    [command] = re.findall(r"^ExecStart=(.*?[^\\])$", text, re.MULTILINE | re.DOTALL)
    return unescaped(command.replace("\\\n", " ")).replace("%S", "$HOME").replace("%%", "%").replace("$$", "$")


def unescaped(command: str) -> str:
    r"""Undo systemd's escapes (systemd.syntax(7)), of which recipes have ``\\`` and ``\"``, within their quotes."""
    return re.sub(r"\\(.)", r"\1", command)


RECIPES = {
    "mail": block_of("mail", "mail-links"),
    "webhook": block("links-webhook"),
    "notify": of_unit("presignd-notify.service"),
}
DONE_BY = {"mail": "mail", "webhook": "curl", "notify": "notify-send"}


@pytest.fixture(params=["dash", pytest.param("bash", marks=pytest.mark.long)])
def machine(request: pytest.FixtureRequest, served: Served, tmp_path: Path) -> Path:
    """Return a folder that is HOME, whose ``bin`` has this shell as ``sh`` and programs that record their calls."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sh").symlink_to(shutil.which(request.param) or "none")
    for name in ("mail", "curl", "wl-copy", "notify-send"):
        (programs / name).write_text(f"#!{sys.executable}\n{RECORD}")
        (programs / name).chmod(0o755)
    for name in ("cat", "jq", "touch"):
        (programs / name).symlink_to(shutil.which(name) or "none")
    (programs / "presignd").write_text(f'#!/bin/sh\nexec {sys.executable} -m presignd "$@"\n')
    (programs / "presignd").chmod(0o755)
    (tmp_path / ".local/state").mkdir(parents=True)
    (tmp_path / "presignd").mkdir()
    served.view.config.links.file.write_bytes(b"".join(encode(link_for(name, 5)) for name in NAMES))
    return tmp_path


def recipe(name: str, machine: Path) -> str:
    """Return the recipe as it ends by itself, with its files in ``machine``."""
    text = RECIPES[name].replace(" --follow", "").replace("/var/lib", str(machine))
    return text.replace("/opt/presignd/bin/presignd", "presignd")


def run(served: Served, machine: Path, command: str, **environ: str) -> tuple[int, list[Call], str]:
    """Run a shell's command; return its code, the calls that were recorded, and its stderr."""
    record = machine / "record"
    record.unlink(missing_ok=True)
    done = subprocess.run(
        [machine / "bin/sh", "-c", command],
        env={
            "PATH": str(machine / "bin"),
            "HOME": str(machine),
            "PRESIGND_SOCKET": str(served.path),
            "PYTHONPATH": str(ROOT),
            "RECORD": str(record),
            "LANG": "C.UTF-8",
            **environ,
        },
        cwd=machine,
        capture_output=True,
        text=True,
        check=False,
    )
    calls = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    return done.returncode, calls, done.stderr


def argv(call: Call) -> list[str]:
    return [str(word) for word in call["argv"]]


def shown(text: str) -> str:
    """Return a name's text as jq writes it: what is no UTF-8 is U+FFFD."""
    return text.replace("\udcff", "\ufffd")


@pytest.mark.needs("dash", "bash", "jq")
@pytest.mark.parametrize("name", RECIPES)
async def test_a_recipe_does_its_work_for_every_name_and_only_that(served: Served, machine: Path, name: str) -> None:
    code, calls, told = await asyncio.to_thread(run, served, machine, recipe(name, machine))
    assert (code, told) == (0, "")
    assert not (machine / "pwned").exists()
    urls = [link_for(each, 5).url for each in NAMES]
    links = [json.loads(encode(link_for(each, 5))) for each in NAMES]
    if name == "webhook":
        assert [json.loads(str(call["stdin"])) for call in calls] == links
        return
    by = {which: [call for call in calls if call["name"] == which] for which in ("mail", "wl-copy", "notify-send")}
    if name == "mail":
        assert [call["stdin"] for call in by["mail"]] == [shown(url) + "\n" for url in urls]
        assert all(flag == "-s" and to == "you@example.org" for flag, _, to in map(argv, by["mail"]))
        told_names = [argv(call)[1] for call in by["mail"]]
    else:
        assert [call["stdin"] for call in by["wl-copy"]] == [shown(url) for url in urls]
        assert all(argv(call)[:2] == ["--", "Link on the clipboard"] for call in by["notify-send"])
        told_names = [argv(call)[2] for call in by["notify-send"]]
        assert not [told for told in told_names if "<" in told]
    assert all(told.isprintable() for told in told_names)
    assert len(told_names) == len(NAMES)
    assert told_names[0] == "plain.txt"


@pytest.mark.needs("dash", "bash", "jq")
@pytest.mark.parametrize("name", RECIPES)
async def test_what_fails_in_a_recipe_leaves_its_link_for_the_next_time(
    served: Served, machine: Path, name: str
) -> None:
    code, calls, _ = await asyncio.to_thread(run, served, machine, recipe(name, machine), FAILING="1")
    assert code == 4
    assert len(calls) == 1
    if name != "webhook":
        (machine / "bin/jq").unlink()
        code, calls, _ = await asyncio.to_thread(run, served, machine, recipe(name, machine))
        assert (code, calls) == (4, []), "nothing is sent that isn't a link"
        (machine / "bin/jq").symlink_to(shutil.which("jq") or "none")
    code, calls, _ = await asyncio.to_thread(run, served, machine, recipe(name, machine))
    assert code == 0
    assert len([call for call in calls if call["name"] == DONE_BY[name]]) == len(NAMES)
