"""Which tests share a process where ``pytest -n 2`` spreads them over several; each has its own stores and ports.

A file stays together for a fixture that takes long to build; files do that have a thing of the machine to themselves.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from presignd.demo import seaweedfs as embedded

TOGETHER = {
    "tests/system/test_systemd.py": "the machine",
    "tests/system/test_systemd_later.py": "the machine",
    "tests/system/test_systemd_broker.py": "the machine",
    "tests/system/test_debian_package.py": "the machine",
    "tests/system/test_image.py": "an image",
    "tests/system/test_compose_services.py": "an image",
    "tests/system/test_crashes.py": "long runs",
    "tests/system/test_power_loss.py": "long runs",
    "tests/contract/test_event_source.py": "the length of inotify's queue",
    "tests/integration/test_watch.py": "the length of inotify's queue",
    "tests/integration/test_broker.py": "a broker",
    "tests/system/test_completion.py": "a shell",
    "tests/system/test_page.py": "a browser",
}
"""Which file's tests share a process with what; all others go where there is room."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give out the largest groups first. ``xdist_group`` would say it too, but pytest 9.2 and xdist 3.8 lose it."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - only where it is asked for

    scheduling = LoadScopeScheduling(config, log)
    scheduling._split_scope = lambda nodeid: TOGETHER.get(nodeid.partition("::")[0], nodeid)
    return scheduling


def own_ports() -> None:
    """Give each process its own range of ports, so that no other process binds a port that it found free."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        first, step = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        embedded._PORTS = embedded._PORTS[first::step]
