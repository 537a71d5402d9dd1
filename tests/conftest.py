"""Fixtures for every test: real stores, a store that misbehaves on order, and the canary."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import settings

from presignd import embedded
from tests.canary import assert_no_secrets, canary
from tests.faulty_s3 import faulty_s3
from tests.stores import juicefs, own_juicefs, own_seaweedfs, own_store, rclone, seaweedfs, store

if TYPE_CHECKING:
    from collections.abc import Iterator

# A shell without job control has what it starts in the background ignore SIGINT, and that is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Of several processes (``-n 3``) each takes free ports of its own: between the look and the bind no other gets them.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    first, step = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    embedded._PORTS = embedded._PORTS[first::step]

# The machine's pace decides nothing, and every run tries the same examples.
settings.register_profile("presignd", deadline=None, derandomize=True)
settings.load_profile("presignd")

__all__ = [
    "assert_no_secrets",
    "canary",
    "faulty_s3",
    "juicefs",
    "own_juicefs",
    "own_seaweedfs",
    "own_store",
    "rclone",
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
    logging.captureWarnings(capture=False)
    warnings.showwarning = show
    for place, name, hook in before:
        setattr(place, name, hook)
    root.handlers[:], logging.raiseExceptions = handlers, raise_exceptions
    root.setLevel(level)
    structlog.configure(**config)
