"""Make what the services of compose.yaml share, in the volume /secrets; what is there already stays as it is."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

from presignd.demo.selfsigned import loopback_pem

BROKER = (10001, 10001)
"""The user of the image."""
ROOT = (0, 0)
TOKEN = ("presignd", "broker", "token", "create", "drop", "--bucket", "drop", "--prefix", "")
OPERATIONS = "put,multipart,head,get,link"


def keep(file: Path, text: str, owner: tuple[int, int]) -> None:
    """Write a file that only ``owner`` reads, unless it is there."""
    if not file.exists():
        fresh = file.with_name(f".{file.name}")
        fresh.touch(0o400)
        fresh.write_text(text, encoding="utf-8")
        os.chown(fresh, *owner)
        fresh.rename(file)


def make_token(folder: Path, owner: tuple[int, int]) -> None:
    """Make the daemon's token, and for the broker the file with its hash."""
    (folder / "tokens.d").mkdir(exist_ok=True)
    if (folder / "daemon_token").exists():
        return
    block = folder / "tokens.d" / "drop.toml"
    block.unlink(missing_ok=True)  # of a setup that was interrupted: its token is lost
    command = [*TOKEN, "--operations", OPERATIONS, "--write", str(folder / "tokens.d")]
    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own command
    os.chown(block, *BROKER)
    os.chown(block.parent, *BROKER)
    keep(folder / "daemon_token", made.stdout.strip(), owner)


def main(folder: Path, state: Path, owner: tuple[int, int]) -> None:
    """Make everything; ``owner`` is the daemon's user, who keeps its ledger in ``state``."""
    keep(folder / "access_key", secrets.token_hex(10), BROKER)
    keep(folder / "secret_key", secrets.token_hex(20), BROKER)
    keep(folder / "database_password", secrets.token_hex(20), ROOT)
    password = (folder / "database_password").read_text(encoding="utf-8")
    keep(folder / "state_url", f"postgresql://presignd:{password}@database/presignd?sslmode=disable", BROKER)
    keep(folder / "tls.pem", loopback_pem()[0], ROOT)
    make_token(folder, owner)
    os.chown(state, *owner)


if __name__ == "__main__":
    uid, _, gid = os.environ.get("OWNER", "1000:1000").partition(":")
    main(Path("/secrets"), Path("/var/lib/presignd"), (int(uid), int(gid)))
