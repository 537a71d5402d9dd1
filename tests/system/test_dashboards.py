"""Debian's Prometheus scrapes a real daemon and a real broker by the rules and the dashboard of the docs."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from presignd.demo.seaweedfs import LOOPBACK, free_ports
from tests.brokers import Broker, get
from tests.canary import assert_no_secrets
from tests.dashboard import queries
from tests.needs import need
from tests.receivers import SECRET
from tests.stores import Store
from tests.system.harness import Presignd, config_for, until_true

DOCS = Path(__file__).parents[2] / "docs"
RULES = DOCS / "alerts.yml"
SILENT = {
    "presignd_broker_token_expiry_timestamp_seconds",
    "presignd_broker_token_links_alive",
    "presignd_broker_links_total",
    "presignd_broker_link_requests_total",
    "presignd_broker_invited_files_total",
    "presignd_webhook_tries_total",
    "presignd_webhook_given_up_total",
    "presignd_webhook_waiting",
    "presignd_webhook_off",
    "presignd_inbox_received_total",
    "presignd_inbox_received_bytes_total",
    "presignd_inbox_waiting_files",
    "presignd_inbox_stopped_files",
    "presignd_inbox_last_timestamp_seconds",
}
"""Metrics without a series here: the token has no end, and there are no links, invitations, webhooks or inboxes."""


class Prometheus:
    """Prometheus over one folder: it scrapes the targets and evaluates the rules each second."""

    def __init__(self, folder: Path, targets: dict[str, str], rules: str) -> None:
        need("prometheus")
        folder.mkdir()
        (self._port,) = free_ports(1)
        self.log = folder / "log"
        (folder / "alerts.yml").write_text(rules)
        jobs = [{"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()]
        every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config = {"global": every, "rule_files": ["alerts.yml"], "scrape_configs": jobs}
        (folder / "prometheus.yml").write_text(json.dumps(config))  # YAML contains JSON
        command = [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={LOOPBACK}:{self._port}",
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def until(self, true: Callable[[], object], what: str) -> None:
        until_true(true, what, 120, process=self.process, log=self.log)

    def ask(self, path: str, **query: str) -> Any:
        """Return the data of an API's answer; None while it doesn't answer."""
        url = f"http://{LOOPBACK}:{self._port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as refused:
            raise AssertionError(f"{query}: {refused.read().decode()}") from None
        except OSError:
            return None

    def up(self) -> int:
        targets = (self.ask("targets") or {}).get("activeTargets", [])
        return sum(target["health"] == "up" for target in targets)

    def series(self, query: str) -> list[dict[str, Any]]:
        found = self.ask("query", query=query)
        return list(found["result"]) if found else []

    def alerts(self, state: str = "firing") -> set[str]:
        found = self.ask("alerts") or {"alerts": []}
        return {alert["labels"]["alertname"] for alert in found["alerts"] if alert["state"] == state}


class Scene:
    """A daemon with one file uploaded and one quarantined, a broker with a token, and a Prometheus for both."""

    def __init__(self, folder: Path, store: Store, webhooks: str = "") -> None:
        self.store, bucket = store, store.new_bucket()
        (page,) = free_ports(1)
        more = f'[web]\nlisten = "{LOOPBACK}:{page}"\n{webhooks}'
        config = config_for(store, folder, bucket, watch='settle = "0s"\nmax_size = "1KiB"', more=more)
        self.daemon = Presignd(folder, config, secrets=(store.secret_key,))
        self.broker = Broker(folder / "broker", store)
        self._bucket, self._token = bucket, self.broker.token("scanner", bucket=bucket)
        targets = {"presignd": f"{LOOPBACK}:{page}", "broker": f"{LOOPBACK}:{self.broker.port}"}
        self.prometheus = Prometheus(folder / "prometheus", targets, at_once(RULES.read_text("utf-8")))

    def start(self) -> None:
        self.broker.start()
        self.daemon.start()
        (self.daemon.folder / "drop" / "a").write_bytes(b"x")
        (self.daemon.folder / "drop" / "large").write_bytes(b"x" * 2048)
        self.daemon.until(self.daemon.links, "a link")
        status, _, _ = self.broker.call(
            "/v1/grants", self._token, {"grants": [get(self._bucket, "a")]}, Date=formatdate(usegmt=True)
        )
        assert status == 200
        self.prometheus.until(lambda: self.prometheus.up() == 2, "two targets that are up")

    def end(self) -> None:
        self.prometheus.end()
        self.daemon.end()
        self.broker.end()
        assert_no_secrets(self.prometheus.log.read_bytes(), self.store.secret_key)


def at_once(rules: str) -> str:
    """Return the rules without their patience: each fires when it is true at one evaluation."""
    quick, count = re.subn(r"^( +for: )\d+\w+$", r"\g<1>0s", rules, flags=re.MULTILINE)
    assert count > 5
    return quick


@pytest.fixture
def scene(tmp_path: Path, own_seaweedfs: Store) -> Iterator[Scene]:
    made = Scene(tmp_path, own_seaweedfs)
    try:
        yield made
    finally:
        made.end()


@pytest.mark.needs("prometheus")
def test_the_rules_are_what_promtool_takes() -> None:
    done = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("prometheus")
def test_the_rules_fire_when_the_store_is_away_and_end_when_it_is_back(scene: Scene) -> None:
    scene.start()
    scene.prometheus.until(lambda: scene.prometheus.alerts() == {"PresigndQuarantined"}, "the only alert")
    scene.store.stop()
    (scene.daemon.folder / "drop" / "b").write_bytes(b"y")
    scene.prometheus.until(lambda: "PresigndStoreDown" in scene.prometheus.alerts(), "PresigndStoreDown")
    scene.store.start()
    scene.prometheus.until(lambda: scene.prometheus.alerts() == {"PresigndQuarantined"}, "end of it")
    scene.daemon.stop()
    scene.prometheus.until(lambda: "PresigndDown" in scene.prometheus.alerts(), "PresigndDown")


class Gone(BaseHTTPRequestHandler):
    """Answers 410 to each message."""

    def do_POST(self) -> None:
        self.send_response(410)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.needs("prometheus")
def test_webhooks_that_are_off_or_fail_are_alerts(tmp_path: Path, own_seaweedfs: Store) -> None:
    """One receiver is gone, at the other's address nothing listens."""
    gone = ThreadingHTTPServer((LOOPBACK, 0), Gone)
    serving = Thread(target=gone.serve_forever)
    serving.start()
    (closed,) = free_ports(1)
    webhooks = "".join(
        f'[[webhook]]\nname = "{name}"\nurl = "http://{LOOPBACK}:{port}/"\nsecret = "{SECRET}"\n'
        for name, port in (("gone", gone.server_port), ("away", closed))
    )
    scene = Scene(tmp_path, own_seaweedfs, webhooks)
    try:
        scene.start()
        wanted = {"PresigndQuarantined", "PresigndWebhookOff", "PresigndWebhookFailing"}
        scene.prometheus.until(lambda: scene.prometheus.alerts() == wanted, "an alert for each")
        assert [each["metric"]["webhook"] for each in scene.prometheus.series("presignd_webhook_off == 1")] == ["gone"]
    finally:
        scene.end()
        gone.shutdown()
        serving.join()
        gone.server_close()


@pytest.mark.needs("prometheus")
def test_every_query_of_the_dashboard_is_understood_and_has_series(scene: Scene) -> None:
    """A metric that is not there, or a label that it has not, leaves a panel empty for ever."""
    scene.start()
    for query in queries():
        metrics = set(re.findall(r"presignd_\w+", query))
        if metrics & SILENT:
            assert scene.prometheus.series(query) == []
            continue
        scene.prometheus.until(partial(scene.prometheus.series, query), query)
        grouped = re.search(r"by \(([\w, ]+)\)", query)
        wanted = {label.strip() for label in grouped[1].split(",")} - {"le"} if grouped else set()
        assert wanted <= set(scene.prometheus.series(query)[0]["metric"]), query
