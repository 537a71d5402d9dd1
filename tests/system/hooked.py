"""A daemon in a process of its own that tries webhooks again at once: ``python -m tests.system.hooked CONFIG``."""

from __future__ import annotations

import sys
from pathlib import Path

from presignd.app.daemon import run
from presignd.cli import loop
from presignd.config import load
from presignd.telemetry import log
from presignd.webhooks.schedule import Schedule

PATIENT = Schedule(pauses=[0.05] * 10_000, probes=[0.05], jitter=1)


def main() -> None:
    config = load(Path(sys.argv[1])).config
    log.setup(config.log)
    loop.run_daemon(run(config, schedule=PATIENT), threads=8)


if __name__ == "__main__":
    main()
