"""The desktop's "Copy link": the scripts with a clipboard and a notifier that record their calls, and hostile names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.recipes import ROOT, block
from tests.stores import Store
from tests.system.harness import COMMAND, Presignd, config_for, fetch

DESKTOP = ROOT / "desktop"
SCRIPT = DESKTOP / "presignd-copy-link"
NAUTILUS = DESKTOP / "nautilus" / "Copy presignd link"
DOLPHIN = DESKTOP / "dolphin" / "presignd-copy-link.desktop"
NAMES = [
    *("plain.txt", "two words.txt", "tab\there", "new\nline", "back\\n\\slash", "'single' \"double\""),
    *("$(touch pwned)", "`touch pwned`", "-s", "--", "a;touch pwned", "\x1b[31m", "<b>bold</b>&amp;", "%s%n", "é日本"),
    *("\udcff", "*", "~"),
]
RECORD = """\
import json, os, sys
called = {"name": os.path.basename(sys.argv[0]), "argv": sys.argv[1:], "stdin": ""}
if called["name"] in ("wl-copy", "xclip"):
    called["stdin"] = sys.stdin.read()
with open(os.environ["RECORD"], "a") as record:
    record.write(json.dumps(called) + "\\n")
if called["name"] == "presignd":
    if "no link" in sys.argv[-1]:
        sys.exit("presignd: link: <i>not uploaded</i>")
    print("https://links.example.org/l/" + os.fsencode(sys.argv[-1]).hex())
"""


class Session:
    """A desktop session: its programs record how they are called."""

    def __init__(
        self, folder: Path, *, programs: tuple[str, ...] = ("presignd", "notify-send", "wl-copy", "xclip")
    ) -> None:
        self.folder, self._record = folder, folder / "record"
        self.bin = folder / ".local" / "bin"
        self.bin.mkdir(parents=True)
        for name in programs:
            (self.bin / name).write_text(f"#!{sys.executable}\n{RECORD}")
            (self.bin / name).chmod(0o755)
        for name in ("sh", "cat", "tr", "sed", "touch"):
            (self.bin / name).symlink_to(shutil.which(name) or "none")
        (self.bin / SCRIPT.name).symlink_to(SCRIPT)

    def run(self, *command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder of the files, on Wayland unless ``environ`` says otherwise."""
        given = {"PATH": str(self.bin), "HOME": str(self.folder), "RECORD": str(self._record), "LANG": "C.UTF-8"}
        return subprocess.run(
            [*command],
            cwd=self.folder,
            env={**given, "WAYLAND_DISPLAY": "wayland-0", **environ},
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self, name: str) -> list[dict[str, Any]]:
        lines = self._record.read_text().splitlines() if self._record.exists() else []
        return [call for call in map(json.loads, lines) if call["name"] == name]

    def link(self, name: str) -> str:
        return "https://links.example.org/l/" + os.fsencode(f"{self.folder}/{name}").hex()


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)


@pytest.mark.parametrize("script", [SCRIPT, NAUTILUS], ids=["the script", "in Nautilus"])
@pytest.mark.parametrize("name", NAMES)
def test_the_link_of_any_file_is_on_the_clipboard_and_nowhere_else(session: Session, name: str, script: Path) -> None:
    done = session.run(script, name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    [asked], [copied], [told] = (session.calls(each) for each in ("presignd", "wl-copy", "notify-send"))
    assert asked["argv"] == ["link", "--", f"{session.folder}/{name}"]
    assert (copied["argv"], copied["stdin"]) == ([], session.link(name))
    assert told["argv"][:4] == ["-a", "presignd", "--", "Link on the clipboard"]
    assert session.link(name) not in str(told)
    assert "<" not in told["argv"][4]
    assert not set(told["argv"][4]) & {*map(chr, range(32)), "\x7f"}
    assert not (session.folder / "pwned").exists()


def test_several_links_are_copied_and_what_has_none_is_told(session: Session) -> None:
    done = session.run(SCRIPT, "a", "no link <b>", "b")
    assert done.returncode == 1
    [copied] = session.calls("wl-copy")
    assert copied["stdin"] == f"{session.link('a')}\n{session.link('b')}"
    failed, worked = session.calls("notify-send")
    assert failed["argv"][4] == "presignd: link: &lt;i&gt;not uploaded&lt;/i&gt; "[: len(failed["argv"][4])]
    assert worked["argv"][3:] == ["2 links on the clipboard", "a, b"]


def test_nothing_is_copied_where_no_file_has_a_link(session: Session) -> None:
    assert session.run(SCRIPT, "no link").returncode == 1
    assert session.calls("wl-copy") == []
    assert len(session.calls("notify-send")) == 1


def test_on_x11_it_is_xclip(session: Session) -> None:
    assert session.run(SCRIPT, "a", WAYLAND_DISPLAY="").returncode == 0
    [copied] = session.calls("xclip")
    assert (copied["argv"], copied["stdin"]) == (["-selection", "clipboard"], session.link("a"))


def test_without_a_clipboard_it_says_what_to_install(tmp_path: Path) -> None:
    session = Session(tmp_path, programs=("presignd", "notify-send"))
    assert session.run(SCRIPT, "a").returncode == 1
    [told] = session.calls("notify-send")
    assert "wl-clipboard" in told["argv"][4]


def test_nautilus_names_no_files_of_a_remote_folder(session: Session) -> None:
    assert session.run(NAUTILUS).returncode == 0
    [told] = session.calls("notify-send")
    assert "local" in told["argv"][4]
    assert session.calls("presignd") == []


@pytest.mark.needs("desktop-file-validate")
def test_dolphin_s_menu_is_valid() -> None:
    """Service menus are KDE's own: of their type and its keys, the standard that is checked here knows nothing."""
    done = subprocess.run(["desktop-file-validate", DOLPHIN], capture_output=True, text=True, check=False)
    told = [line for line in done.stdout.splitlines() if 'the type is "Service" while this key is only' not in line]
    assert told == []
    text = DOLPHIN.read_text("utf-8")
    assert "Exec=presignd-copy-link %F\n" in text
    assert "Actions=copyPresigndLink;\n" in text
    assert "\n[Desktop Action copyPresigndLink]\n" in text


def test_the_page_puts_them_where_the_desktops_look(tmp_path: Path) -> None:
    for marker in ("desktop-script", "desktop-nautilus", "desktop-dolphin"):
        subprocess.run(
            ["sh", "-ec", block("desktop", marker)], cwd=ROOT, env={**os.environ, "HOME": str(tmp_path)}, check=True
        )
    for copy, of in {
        ".local/bin/presignd-copy-link": SCRIPT,
        ".local/share/nautilus/scripts/Copy presignd link": NAUTILUS,
        ".local/share/kio/servicemenus/presignd-copy-link.desktop": DOLPHIN,
    }.items():
        assert (tmp_path / copy).read_bytes() == of.read_bytes()
        assert (tmp_path / copy).stat().st_mode & 0o777 == 0o755


def test_with_a_real_daemon_the_copied_link_opens(tmp_path: Path, seaweedfs: Store) -> None:
    session = Session(tmp_path, programs=("notify-send", "wl-copy"))
    (session.bin / "presignd").symlink_to(COMMAND)
    daemon = Presignd(
        tmp_path, config_for(seaweedfs, tmp_path, seaweedfs.new_bucket()), secrets=(seaweedfs.secret_key,)
    )
    daemon.start()
    try:
        (tmp_path / "drop" / "-rf $(x)").write_bytes(b"content")
        daemon.until(daemon.links, "a link")
        done = session.run(SCRIPT, "drop/-rf $(x)", PRESIGND_SOCKET=daemon.environ["PRESIGND_SOCKET"])
        assert (done.returncode, done.stderr) == (0, "")
        [copied] = session.calls("wl-copy")
        assert fetch(copied["stdin"]) == b"content"
    finally:
        daemon.end()
