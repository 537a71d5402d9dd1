"""nginx in front of the store with its default limit: bodies of one megabyte, and an error page that is not S3's."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from presignd.demo.seaweedfs import LOOPBACK, free_ports, is_free
from tests.needs import find
from tests.stores import Store
from tests.system.harness import Presignd, config_for, until_true

pytestmark = pytest.mark.needs("nginx")
NGINX = """
pid {folder}/nginx.pid;
error_log stderr;
worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen {address}:{port};
    location / {{
      proxy_pass {store};
      proxy_set_header Host $http_host;
      proxy_request_buffering off;
    }}
  }}
}}
"""


@pytest.fixture
def proxy(tmp_path: Path, seaweedfs: Store) -> Iterator[str]:
    """Run nginx before the store; return its address."""
    folder, (port,) = tmp_path / "nginx", free_ports(1)
    folder.mkdir()
    (folder / "nginx.conf").write_text(
        NGINX.format(folder=folder, address=LOOPBACK, port=port, store=seaweedfs.endpoint)
    )
    nginx = find("nginx")
    assert nginx is not None
    command: list[str | Path] = [nginx, "-p", folder, "-c", folder / "nginx.conf", "-g", "daemon off;"]
    with (folder / "nginx.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        until_true(lambda: not is_free(port), "nginx", 30, process=process, log=folder / "nginx.log")
        yield f"http://{LOOPBACK}:{port}"
    finally:
        process.terminate()
        process.wait(10)


def test_a_proxys_limit_on_bodies_is_named_and_stops_the_large_file_alone(
    proxy: str, seaweedfs: Store, tmp_path: Path
) -> None:
    bucket = seaweedfs.new_bucket()
    config = config_for(seaweedfs, tmp_path, bucket, watch='settle = "0s"').replace(seaweedfs.endpoint, proxy)
    daemon = Presignd(tmp_path, config, secrets=(seaweedfs.secret_key,))
    try:
        daemon.start()
        (tmp_path / "drop" / "large").write_bytes(bytes(40 << 20))
        daemon.until(lambda: daemon.events("file.quarantined"), "file.quarantined")
        (tmp_path / "drop" / "small").write_bytes(b"small")
        daemon.until(lambda: daemon.events("file.done"), "file.done")
    finally:
        daemon.end()
    (stopped,) = daemon.events("file.quarantined")
    assert stopped["error_code"] == "body_limit"
    assert "client_max_body_size" in stopped["fix"]
    assert daemon.events("watch.blocked", "store.unreachable") == []
    assert seaweedfs.list(bucket) == ["small"]
