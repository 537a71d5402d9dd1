"""nginx in front of a server, for tables over https, with a certificate of a CA that is made for each start."""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import trustme

from benchmarks.servers import Server, StartedServer, until
from presignd.demo.seaweedfs import LOOPBACK, Child, find_program, free_ports

CONFIG = """
daemon off;
master_process off;
error_log stderr warn;
pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_max_body_size 0;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream store {{ server {store}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen {LOOPBACK}:{port} ssl backlog=4096;
    ssl_certificate {folder}/server.pem;
    ssl_certificate_key {folder}/server.key;
    ssl_session_cache shared:tls:1m;
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://store;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      client_body_buffer_size 256k;
      proxy_request_buffering off;
      proxy_buffering off;
    }}
  }}
}}
"""
"""As Debian ships nginx, but that bodies pass through at once, and of any size."""


class OverTls:
    """A server behind nginx, during a ``with``; both run on the servers' core."""

    name: str
    endpoint: str
    access_key: str
    secret_key: str
    ca_file: Path | None

    def __init__(self, behind: StartedServer, folder: Path) -> None:
        self._behind, self._folder = behind, folder / "nginx"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        server: Server = self._stack.enter_context(self._behind)
        self.name, self.access_key, self.secret_key = f"{server.name} over https", server.access_key, server.secret_key
        self._folder.mkdir(exist_ok=True)
        self.ca_file = self._certify()
        (port,) = free_ports(1)
        self.endpoint = f"https://{LOOPBACK}:{port}"
        config = self._folder / "nginx.conf"
        store = urlsplit(server.endpoint).netloc
        config.write_text(CONFIG.format(folder=self._folder, store=store, port=port, LOOPBACK=LOOPBACK))
        nginx = find_program("nginx") or "/usr/sbin/nginx"
        argv = [nginx, "-e", "stderr", "-p", str(self._folder), "-c", str(config)]
        child = Child(argv, env=dict(os.environ), cwd=self._folder, log=self._folder / "nginx.log")
        self._stack.callback(child.stop)
        until(self._answers, "nginx's answer", 60)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _certify(self) -> Path:
        """Make a CA and a certificate for loopback; return the CA's file."""
        ca = trustme.CA()
        certificate = ca.issue_cert(LOOPBACK)
        ca.cert_pem.write_to_path(self._folder / "ca.pem")
        certificate.private_key_pem.write_to_path(self._folder / "server.key")
        for number, pem in enumerate(certificate.cert_chain_pems):
            pem.write_to_path(self._folder / "server.pem", append=number > 0)
        return self._folder / "ca.pem"

    def _answers(self) -> bool:
        context = ssl.create_default_context(cafile=self.ca_file)
        try:
            urllib.request.urlopen(self.endpoint, timeout=10, context=context).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True
