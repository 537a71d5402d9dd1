"""One try: a verified file that ``finish`` deletes or moves, and a writer that comes back meanwhile.

Two kinds. ``stepwise``: the writer acts in the very gap before a chosen system call of finish, each gap and
each way in turn, so no window is left to chance. ``racing``: it is a process of its own that acts whenever the
kernel lets it.
"""

from __future__ import annotations

import fcntl
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from presignd.config import WatchConfig
from presignd.model import FileVersion
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.lease import has_writer, ignore_sigio
from presignd.pipeline.finish import remove
from presignd.pipeline.finish.remove import Finished, FinishOutcome, keep_move_or_delete
from presignd.system import syscalls
from tests.finishing import verified
from tests.system.comeback.writer import WAYS, Session, Writer, clear, found_again

BLIND_EVERY = 10
"""Every so many tries the kernel can't tell of writers (another user's file): the fingerprint alone decides."""

SECOND_WRITER = 1 / 3
"""How often there are two."""

_LOOKS = 50

HasWriter = Callable[[int], bool | None]


@dataclass
class Scene:
    """A watched folder, and where its files go."""

    base: Path
    after: str
    done: Path
    drop: Path = field(init=False)
    elsewhere: Path = field(init=False)
    folder: Folder = field(init=False)
    watch: WatchConfig = field(init=False)

    def __post_init__(self) -> None:
        ignore_sigio()
        self.drop, self.elsewhere = self.base / "drop", self.base / "elsewhere"
        for folder in (self.drop, self.elsewhere, self.done):
            folder.mkdir(parents=True, exist_ok=True)
        move_to = self.done if self.after == "move" else None
        self.watch = WatchConfig(name="drop", path=self.drop, bucket="bucket", after=self.after, move_to=move_to)
        self.folder = Folder(self.watch)

    def clear(self) -> None:
        """Empty all of it."""
        clear(self.drop, self.elsewhere, self.done)

    def fresh(self, number: int) -> tuple[FileVersion, Writer]:
        """Recreate the file as it is when its link is made, and the writer who comes back to it."""
        self.clear()
        version = verified(self.drop, "sub/a.txt")
        return version, Writer(self.drop / "sub/a.txt", number, self.elsewhere)

    def finish(self, version: FileVersion, check: HasWriter) -> Finished:
        """Finish once."""
        with patch.object(remove, "has_writer", check):
            return keep_move_or_delete(self.folder, self.watch, version)

    def found(self) -> set[bytes]:
        """Return every token that stands in a file."""
        return found_again(self.drop, self.done, self.elsewhere)

    def left_aside(self) -> list[Path]:
        """Return what still lies under a name of presignd's own."""
        return [*self.drop.rglob(".presignd-*"), *self.done.rglob(".presignd-*")]


@dataclass
class Tally:
    """What came of many tries; ``windows``: how often somebody came back in each."""

    tries: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    windows: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def judge(self, scene: Scene, owed: set[bytes], outcome: FinishOutcome, story: str) -> None:
        """Count a try, and what it lost."""
        self.tries += 1
        self.outcomes[outcome.value] += 1
        if lost := owed - scene.found():
            self.violations.append(f"lost {sorted(lost)}: {outcome} after {story}")
        if left := scene.left_aside():
            self.violations.append(f"left aside {[path.name for path in left]}: {outcome} after {story}")

    def text(self) -> str:
        """Return the report."""
        few = ", ".join(f"{name}: {count}" for name, count in sorted(self.windows.items(), key=lambda each: each[1]))
        lines = [
            f"{self.tries} tries, {sum(self.ways.values())} comebacks, {len(self.violations)} violations",
            f"outcomes: {dict(sorted(self.outcomes.items()))}",
            f"ways: {dict(sorted(self.ways.items()))}",
            f"{len(self.windows)} windows, by hits: {few}" if few else "",
        ]
        return "\n".join([*filter(None, lines), *self.violations[:20]])


# --- step by step ---------------------------------------------------------------------------------

_OS = (
    "open",
    "close",
    "stat",
    "fstat",
    "rename",
    "unlink",
    "link",
    "pread",
    "preadv",
    "pwrite",
    "fsync",
    "utime",
    "mkdir",
)
_CALLS = (
    *((os, name, name) for name in _OS),
    (fcntl, "fcntl", "lease"),
    (syscalls, "renameat2_noreplace", "renameat2"),
)


class Gaps:
    """Calls ``act(gap)`` in the gap before each system call of finish, but not of what ``act`` does itself."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self._act, self._inside = act, False
        self.names: list[str] = []

    def reached(self, name: str) -> None:
        """Come to a gap."""
        if not self._inside:
            self._inside = True
            try:
                self._act(len(self.names))
            finally:
                self._inside = False
            self.names.append(name)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Reach a gap before each system call."""
        with ExitStack() as patched:
            for module, function, name in _CALLS:
                counted = self._counted(name, getattr(module, function))
                patched.enter_context(patch.object(module, function, counted))
            yield

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.reached(name)
            return real(*args, **kwargs)

        return call


class Script:
    """Sessions of a writer, each advanced at gaps of its own, in order."""

    def __init__(self, sessions: list[tuple[Session, list[int]]]) -> None:
        self._sessions = sessions

    def act(self, gap: int) -> None:
        """Do what is due."""
        for session, moments in self._sessions:
            while moments and moments[0] <= gap:
                moments.pop(0)
                next(session, None)

    def end(self) -> None:
        """Do all that is left."""
        for session, _ in self._sessions:
            for _step in range(_LOOKS):
                if next(session, self) is self:
                    break


def gaps_of(scene: Scene) -> list[str]:
    """Return the system calls of finish when nobody comes back, and what is before and after them."""
    version, _ = scene.fresh(0)
    gaps = Gaps(lambda _: None)
    with gaps.watching():
        scene.finish(version, has_writer)
    return [f"{number} before {name}" for number, name in enumerate(gaps.names)] + ["after all"]


def stepwise(scene: Scene, tries: int, seed: int) -> Tally:
    """Try every way to write, beginning in every gap; what follows at random."""
    tally, gaps = Tally(), gaps_of(scene)
    for number in range(tries):
        rng = random.Random(f"{seed}/{number}")
        blind = number % BLIND_EVERY == BLIND_EVERY - 1
        plans = [(WAYS[number % len(WAYS)], number // len(WAYS) % len(gaps))]
        if rng.random() < SECOND_WRITER:
            plans.append((rng.choice(WAYS), rng.randrange(len(gaps))))
        version, writer = scene.fresh(number)
        # Where the kernel tells of no writer, he is only known by what he has changed: there he is quick.
        script = Script([(way(writer), _moments(rng, at, len(gaps), quick=blind)) for way, at in plans])
        outcome = _finish_stepwise(scene, version, script, blind=blind)
        tally.ways.update(way.__name__ for way, _ in plans)
        tally.windows.update(gaps[at] for _, at in plans)
        tally.judge(scene, writer.owed, outcome, f"try {number}: {[(way.__name__, at) for way, at in plans]}")
    return tally


def _moments(rng: random.Random, start: int, gaps: int, *, quick: bool) -> list[int]:
    """Choose when each step is due; those that are left come once finish is through, or was kept waiting."""
    if quick:
        return [start] * _LOOKS
    held = sorted(rng.randint(start, gaps) for _ in range(rng.randrange(3)))
    return rng.choice(([start], [start, *held], [start] * 3, [start, *range(start + 1, start + 7)]))


def _finish_stepwise(scene: Scene, version: FileVersion, script: Script, *, blind: bool) -> FinishOutcome:
    gaps, check = Gaps(script.act), (_blind if blind else has_writer)
    for look in range(_LOOKS):
        with gaps.watching():
            done = scene.finish(version, check)
        if not done.busy:
            break
        if look > 1:
            script.end()
    else:
        raise AssertionError("it never ended")
    script.end()
    return done.outcome


def _blind(_fd: int) -> None:
    return None
