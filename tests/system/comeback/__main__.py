"""``python -m tests.system.comeback --after delete --tries 10000 --seed 1``: every kind of try, and their report."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.system.comeback.racing import racing
from tests.system.comeback.served import served
from tests.system.comeback.tries import Scene, stepwise

KINDS = {"stepwise": stepwise, "racing": racing, "served": served}


def main() -> int:
    """Run, print the report, and return 1 when a byte was lost."""
    given = _arguments()
    with (
        tempfile.TemporaryDirectory(prefix="presignd-near.", dir=given.near) as near,
        tempfile.TemporaryDirectory(prefix="presignd-far.", dir=given.far) as far,
    ):
        across = given.after == "across"
        done = Path(far if across else near) / "done"
        scene = Scene(Path(near), "delete" if given.after == "delete" else "move", done)
        assert across == (scene.drop.stat().st_dev != done.stat().st_dev), "give --near and --far two filesystems"
        broken = sum([_run(kind, scene, given) for kind in given.kind])
    return 1 if broken else 0


def _run(kind: str, scene: Scene, given: argparse.Namespace) -> int:
    began = time.monotonic()
    tally = KINDS[kind](scene, given.tries, given.seed)
    took = time.monotonic() - began
    print(f"{given.after}, {kind}, seed {given.seed}, {took:.0f} s: {tally.text()}", flush=True)  # noqa: T201 - the command's output
    return len(tally.violations)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.system.comeback", description=__doc__)
    parser.add_argument("--after", choices=("delete", "move", "across"), default="delete")
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--tries", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--near", default="/dev/shm", help="where the watched folder is made")
    parser.add_argument("--far", default=tempfile.gettempdir(), help="where files move to across filesystems")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
