"""What the daemon said over all its runs: its log read on from where it was read last, and its links files."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tests.canary import assert_no_secrets
from tests.system.harness import Event, last_event


class Log:
    """The events of a growing log."""

    def __init__(self, path: Path, secrets: tuple[str, ...]) -> None:
        self._path, self._secrets = path, secrets
        self._offset = 0
        self.done: dict[str, list[Event]] = defaultdict(list)
        self.seen: set[str] = set()
        self.exceptions: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.leaks: list[str] = []

    def read(self) -> None:
        """Take in what was written since."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        try:
            assert_no_secrets(whole, *self._secrets)
        except AssertionError as leak:
            self.leaks.append(str(leak))
        for line in whole.splitlines():
            self._take(line)

    def tail(self, size: int = 3000) -> str:
        """Return the end of the log as text."""
        return self._path.read_text("utf-8", "replace")[-size:]

    def _take(self, line: bytes) -> None:
        event = last_event(line)
        if event is not None:
            self._note(event)

    def _note(self, event: Event) -> None:
        self.counts[event["event"]] += 1
        if "file_id" in event:
            self.seen.add(event["file_id"])
        if event["event"] == "file.done":
            self.done[event["file_id"]].append(event)
        if event["event"] == "file.quarantined" and "exception" in event:
            self.exceptions[event["file_id"]] = event["exception"]


def read_links(file: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return every line of the links files, rotated ones included, oldest first; and those that are no JSON."""
    rotated = sorted(file.parent.glob(f"{file.name}.*"), key=lambda path: -int(path.name.rpartition(".")[2]))
    links, torn = list[dict[str, Any]](), list[str]()
    for path in (*rotated, file):
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                links.append(json.loads(line))
            except ValueError:
                torn.append(f"{path.name}: {line[:80]!r}")
    return links, torn
