"""nginx by the example's configuration, over three brokers of a test."""

from __future__ import annotations

import http.client
import re
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path

import trustme

from presignd.demo.seaweedfs import LOOPBACK, free_ports
from tests.brokers import Broker
from tests.needs import find

EXAMPLE = Path(__file__).parents[2] / "docs" / "nginx-broker.conf.example"
LINKS = "files.example.org"
"""The name of stable links."""
MAIN = """
pid {folder}/nginx.pid;
error_log stderr warn;
worker_processes 1;
events {{ worker_connections 1000; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  include {folder}/brokers.conf;
}}
"""


class BehindNginx:
    """Three brokers and the nginx before them, which runs until ``end``."""

    def __init__(self, folder: Path, brokers: Sequence[Broker]) -> None:
        self.brokers = brokers
        self.ca = trustme.CA()
        self.context = ssl.create_default_context()
        self.ca.configure_trust(self.context)
        (self.port,) = free_ports(1)
        certificate = self.ca.issue_cert(LOOPBACK)
        certificate.private_key_pem.write_to_path(folder / "broker.key")
        certificate.cert_chain_pems[0].write_to_path(folder / "broker.pem")
        text = EXAMPLE.read_text("utf-8").replace("/etc/ssl/", f"{folder}/").replace(":8420", f":{self.port}")
        text = text.replace("/var/log/nginx/", f"{folder}/nginx-")
        for number, broker in enumerate(brokers, 1):
            text = text.replace(f":842{number}", f":{broker.port}")
        assert not re.search(r":842\d", text)
        (folder / "brokers.conf").write_text(text)
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
        nginx = find("nginx")
        assert nginx is not None
        command: list[str | Path] = [nginx, "-p", folder, "-c", folder / "nginx.conf", "-g", "daemon off;"]
        with (folder / "nginx.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def end(self) -> None:
        """End nginx."""
        self.process.terminate()
        self.process.wait(10)

    def connection(self) -> http.client.HTTPSConnection:
        """Return a connection to be opened."""
        return http.client.HTTPSConnection(LOOPBACK, self.port, timeout=30, context=self.context)

    def open_link(self, path: str, method: str = "GET") -> int:
        """Open a link at its own name; return the status, without following."""
        connection = self.connection()
        try:
            connection.request(method, path, headers={"Host": LINKS})
            return connection.getresponse().status
        finally:
            connection.close()
