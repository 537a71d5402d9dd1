"""The dashboard for Grafana, as the tests read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "docs" / "grafana.json"


def panels() -> list[dict[str, Any]]:
    """Return its panels."""
    found: list[dict[str, Any]] = json.loads(FILE.read_text("utf-8"))["panels"]
    return found


def queries() -> list[str]:
    """Return every query of the dashboard, its variables replaced as Grafana does."""
    found = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    replaced = {"$job": ".*", "$instance": ".*", "$__rate_interval": "10s"}
    for name, value in replaced.items():
        found = [query.replace(name, value) for query in found]
    assert not [query for query in found if "$" in query]
    return found
