"""``python -m tests.system.crash --kills 500 --store seaweedfs --seed 1``: one long run, and its report.

With ``--power ledger links folder`` (or some of them) these lie on disks that lose, with each kill, what was not
synced (``tests/power``). With ``--links postgresql`` (or ``sqlite``) links are stable ones of a broker whose state is
there: all of these are killed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.ceph import Ceph
from tests.stores import JuiceFS, PlainJuiceFS, SeaweedFS, Store
from tests.system.crash.run import ON_POWER, Options, crash

STORES: dict[str, type[Store]] = {kind.name: kind for kind in (SeaweedFS, JuiceFS, PlainJuiceFS, Ceph)}


def main() -> int:
    """Run, print the report, and return 1 when a promise was broken."""
    given = _arguments()
    if given.links:
        given.presigner = "broker"
    limits = (given.seed, given.kills, given.audit_every, given.seconds)
    wanted = Options(*limits, given.broken, given.power, given.presigner, given.links, given.keep_log, _tell)
    _tell(f"{given.store}, seed {given.seed}, {given.presigner}{given.links and ', links in '}{given.links}")
    with tempfile.TemporaryDirectory(prefix="presignd-store.") as folder:
        store: Store = STORES[given.store](Path(folder) / "store")
        store.start()
        try:
            report = crash(store, wanted)
        finally:
            store.kill()
    _tell(report.text())
    return 1 if report.violations else 0


def _tell(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the command's output


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.system.crash", description=__doc__)
    parser.add_argument("--store", choices=tuple(STORES), default="seaweedfs")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--audit-every", type=int, default=50, help="kills between two audits")
    parser.add_argument("--seconds", type=float, default=None, help="end after so long, whatever was killed")
    parser.add_argument("--broken", default="", help="a broken build, of broken/sitecustomize.py")
    parser.add_argument("--power", nargs="*", choices=ON_POWER, default=(), help="what loses power with each kill")
    parser.add_argument("--presigner", choices=("local", "broker"), default="local", help="a broker is killed too")
    parser.add_argument("--links", choices=("sqlite", "postgresql"), default="", help="a broker's, in this state")
    parser.add_argument("--keep-log", type=Path, help="where the daemon's log goes when a promise was broken")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
