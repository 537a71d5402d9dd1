"""Import libraries without their optional dependencies."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def without(name: str) -> Iterator[None]:
    """Let the import of module ``name`` fail in the body, so that a library is loaded as if that were not installed.

    None in ``sys.modules`` does that (Python's reference, "The module cache"). What was loaded before stays loaded.
    """
    loaded = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # typeshed leaves out None
    try:
        yield
    finally:
        if loaded is None:
            del sys.modules[name]
        else:
            sys.modules[name] = loaded
