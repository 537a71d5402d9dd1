"""Fixtures for every test: real stores, a store that misbehaves on order, and the canary."""

from __future__ import annotations

from tests.canary import assert_no_secrets, canary
from tests.stores import juicefs, own_juicefs, own_seaweedfs, own_store, seaweedfs, store

__all__ = [
    "assert_no_secrets",
    "canary",
    "juicefs",
    "own_juicefs",
    "own_seaweedfs",
    "own_store",
    "seaweedfs",
    "store",
]
