"""The container image, built for real by buildah: one for a whole run of pytest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.needs import need
from tests.system.debian import PACKAGE, minimal_debian, run

CHECKOUT = PACKAGE.parent


class Image:
    """The image in a storage of its own, and its root."""

    def __init__(self, folder: Path, base: Path) -> None:
        self._storage = folder
        at = self._buildah("from", "scratch")
        root = self._buildah("mount", at)
        run("cp", "-a", f"{base}/.", root)
        # Debian's own image has none of what apt keeps.
        run("sh", "-euc", 'rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*', "sh", root)
        self._buildah("umount", at)
        self._buildah("commit", "--quiet", "--rm", at, "localhost/debian:bookworm-slim")
        settings = [Path("/etc/pip.conf")] if Path("/etc/pip.conf").exists() else []
        volumes = [f"--volume={path}:{path}:ro" for path in settings]
        self._buildah(
            *("build", "--quiet", "--isolation=chroot", "--network=host", "--format=docker", *volumes),
            *("--build-arg=BASE=localhost/debian:bookworm-slim", "--tag=presignd", str(CHECKOUT)),
        )
        self.config: dict[str, Any] = json.loads(self._buildah("inspect", "--type=image", "presignd"))["Docker"][
            "config"
        ]
        self.root = Path(self._buildah("mount", self._buildah("from", "presignd")))

    def _buildah(self, *arguments: str) -> str:
        storage = ("--storage-driver=vfs", f"--root={self._storage}/root", f"--runroot={self._storage}/run")
        return run("buildah", *storage, *arguments, timeout=900).strip()

    def compressed(self) -> int:
        """Return how many bytes the layers have as a registry keeps them."""
        target = self._storage / "pushed"
        self._buildah("push", "--quiet", "presignd", f"dir:{target}")
        layers = json.loads((target / "manifest.json").read_text())["layers"]
        assert all(layer["mediaType"].endswith("gzip") for layer in layers)
        return sum(layer["size"] for layer in layers)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Build the image; tests must leave its root as it is."""
    need("mount", "buildah")
    return Image(tmp_path_factory.mktemp("storage"), minimal_debian(tmp_path_factory))
