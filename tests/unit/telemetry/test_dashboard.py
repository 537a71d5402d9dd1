"""The dashboard for Grafana shows every metric there is, by the labels that it has."""

from __future__ import annotations

import re

from prometheus_client.metrics import MetricWrapperBase

from presignd.broker import metrics as of_the_broker
from presignd.telemetry import metrics as of_the_daemon
from tests.dashboard import panels, queries


def there() -> dict[str, set[str]]:
    """Return every metric there is, by its name without ``_total``, with its labels."""
    found = [*vars(of_the_daemon).values(), *vars(of_the_broker).values()]
    return {metric._name: {*metric._labelnames} for metric in found if isinstance(metric, MetricWrapperBase)}


def test_the_dashboard_shows_every_metric_there_is_by_its_own_labels() -> None:
    metrics, shown = there(), set[str]()
    for query in queries():
        names = {re.sub("_(bucket|total)$", "", name) for name in re.findall(r"presignd_\w+", query)}
        shown |= names
        for labels in re.findall(r"by \(([\w, ]+)\)", query):
            assert set(labels.split(", ")) - {"le"} <= set.union(*(metrics[name] for name in names)), query
    assert shown | {"presignd_broker_build_info"} == metrics.keys()


def test_the_panels_of_the_dashboard_do_not_overlap_and_have_ids_of_their_own() -> None:
    shown = panels()
    assert len({panel["id"] for panel in shown}) == len(shown)
    cells = [
        (x, y)
        for panel in shown
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
