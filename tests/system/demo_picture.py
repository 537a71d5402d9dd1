"""Makes docs/demo.svg of a real ``presignd demo``: ``python -m tests.system.demo_picture [FILE]``."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.system.harness import COMMAND, until_true

TARGET = Path(__file__).parents[2] / "docs" / "demo.svg"
WIDTH = 112
ASK = "PRESIGND_SOCKET=presignd-demo/state/control.sock presignd"
FILE = "presignd-demo/drop/hi.txt"
HOME = "/home/ann"
"""Stands in the picture for the folder where the demo ran."""


class Terminal:
    """What the picture shows: commands that were run, and what they printed, word for word."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._console = Console(
            record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="standard"
        )

    def command(self, text: str) -> None:
        self._console.print(Text.assemble(("$ ", "bold green"), (text, "bold")), soft_wrap=False)

    def note(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))

    def output(self, text: str, style: str = "") -> None:
        self._console.print(Text(text.replace(str(self._folder), HOME).rstrip("\n"), style=style), soft_wrap=False)

    def run(self, text: str, environ: dict[str, str]) -> None:
        """Run a command line in the folder, and show it with its output."""
        self.command(text)
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, WIDTH))
        subprocess.run(["bash", "-c", text], cwd=self._folder, env=environ, stdout=theirs, stderr=theirs, check=False)
        os.close(theirs)
        printed = b"".join(iter(lambda: _read(ours), b"")).decode().replace("\r\n", "\n")
        os.close(ours)
        if printed:
            self._console.print(Text.from_ansi(printed.replace(str(self._folder), HOME).rstrip("\n")))

    def save(self, target: Path) -> None:
        svg = self._console.export_svg(title="presignd", unique_id="demo")
        target.write_text(re.sub(r" *@font-face \{.*?\}\n", "", svg, flags=re.DOTALL), "utf-8")


def _read(terminal: int) -> bytes:
    """Read what a terminal shows; nothing once no program has it open (EIO)."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def take(target: Path) -> None:
    """Run the demo in a new folder, drop a file, fetch and revoke its link; draw it all into ``target``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environ = {
            "PATH": f"{COMMAND.parent}:{os.environ['PATH']}",
            "HOME": name,
            "LANG": "C.UTF-8",
            "COLUMNS": str(WIDTH),
        }
        shown, log = Terminal(folder), folder / "log"
        with log.open("wb") as out:
            demo = subprocess.Popen(["presignd", "demo"], cwd=folder, env=environ, stdout=out, stderr=out)
        try:
            until_true(lambda: "Ask:" in log.read_text(), "the demo's greeting", 60, process=demo, log=log)
            greeting = log.read_text()
            shown.command("presignd demo")
            shown.output(greeting)
            (folder / FILE).write_text("hi\n")
            until_true(lambda: "http" in log.read_text()[len(greeting) :], "a link", 60, process=demo, log=log)
            dropped = log.read_text()[len(greeting) :]
            [link] = re.findall(r"http\S+", dropped)
            shown.output(dropped.replace(link, "").strip(), "cyan")
            shown.output(link)
            shown.note("\n# in another terminal")
            shown.command(f"echo hi > {FILE}")
            shown.run(f"curl -sL {link}", environ)
            shown.run(f"{ASK} status {FILE}", environ)
            shown.run(f"{ASK} unlink {FILE}", environ)
            shown.run(f"curl -s -o /dev/null -w '%{{http_code}}\\n' {link}", environ)
        finally:
            demo.send_signal(signal.SIGINT)
            demo.wait(60)
        shown.save(target)


if __name__ == "__main__":
    take(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
