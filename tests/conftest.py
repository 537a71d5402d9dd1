"""Fixtures for every test: real stores, a store that fails on demand, and the canary."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import warnings
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import settings

from presignd.telemetry import log
from tests.canary import assert_no_secrets, canary
from tests.ceph import ceph
from tests.faulty_s3 import faulty_s3
from tests.needs import pytest_runtest_makereport, pytest_runtest_setup, pytest_runtestloop
from tests.postgres import own_postgres, postgres
from tests.spread import own_ports, pytest_xdist_make_scheduler
from tests.states import connect
from tests.stores import (
    juicefs,
    juicefs_plain,
    own_juicefs,
    own_seaweedfs,
    own_store,
    rclone,
    rclone_plain,
    seaweedfs,
    store,
)
from tests.system.image import image

if TYPE_CHECKING:
    from collections.abc import Iterator

# A shell without job control has what it starts in the background ignore SIGINT, and that is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)

own_ports()

# The machine's pace decides nothing, and every run tries the same examples.
settings.register_profile("presignd", deadline=None, derandomize=True)
settings.load_profile("presignd")

__all__ = [
    "assert_no_secrets",
    "canary",
    "ceph",
    "connect",
    "faulty_s3",
    "image",
    "juicefs",
    "juicefs_plain",
    "own_juicefs",
    "own_postgres",
    "own_seaweedfs",
    "own_store",
    "postgres",
    "pytest_runtest_makereport",
    "pytest_runtest_setup",
    "pytest_runtestloop",
    "pytest_xdist_make_scheduler",
    "rclone",
    "rclone_plain",
    "seaweedfs",
    "store",
]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what ``log.setup`` did to the whole process."""
    hooks = [(sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")]
    before = [(place, name, getattr(place, name)) for place, name in hooks]
    root, config = logging.getLogger(), structlog.get_config()
    handlers, level, raise_exceptions = root.handlers[:], root.level, logging.raiseExceptions
    show = warnings.showwarning
    yield
    log.flush()  # lines logged by a test belong to its own output, not to the next test's
    logging.captureWarnings(capture=False)
    warnings.showwarning = show
    for place, name, hook in before:
        setattr(place, name, hook)
    root.handlers[:], logging.raiseExceptions = handlers, raise_exceptions
    root.setLevel(level)
    structlog.configure(**config)
