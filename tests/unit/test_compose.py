"""compose.yaml: valid, its files there, its secrets made as each service reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # mkdocs brings it, without types

from presignd.broker.load import load as load_broker
from presignd.broker.tokens import hash_of
from presignd.config.load import load

CHECKOUT = Path(__file__).parents[2]
COMPOSE = CHECKOUT / "package" / "compose"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Return the services as docker-compose reads them: it refuses what its schema does not have."""
    command = ["docker-compose", "--file", str(CHECKOUT / "compose.yaml"), "config", "--no-interpolate"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return read


@pytest.mark.needs("docker-compose")
def test_compose_yaml_is_valid_and_names_files_that_are_there(services: dict[str, Any]) -> None:
    assert set(services) == {"setup", "store", "database", "broker", "daemon", "proxy"}
    mounted = [volume.split(":")[0] for service in services.values() for volume in service["volumes"]]
    files = [Path(each) for each in mounted if "/package/" in each]
    assert len(files) == 3
    assert [file for file in files if not file.is_file()] == []


@pytest.mark.needs("docker-compose")
def test_the_daemons_environment_is_a_configuration(services: dict[str, Any], tmp_path: Path) -> None:
    environ = dict(services["daemon"]["environment"])
    token = tmp_path / "token"
    token.write_text("psb_" + "x" * 43)
    token.chmod(0o600)
    environ["PRESIGND_PRESIGN__TOKEN_FILE"] = str(token)
    loaded = load(None, environ={**environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)})
    assert [str(watch.path) for watch in loaded.config.watches] == ["/drop"]
    assert loaded.config.presign.kind == "broker"


@pytest.mark.needs("root")
def test_setup_makes_what_the_services_read_and_a_second_one_changes_nothing(tmp_path: Path) -> None:
    secrets, state = tmp_path / "secrets", tmp_path / "state"
    secrets.mkdir()
    state.mkdir()
    for _ in range(2):
        script = f"import sys; sys.path.insert(0, {str(COMPOSE)!r}); import setup; from pathlib import Path; "
        script += f"setup.main(Path({str(secrets)!r}), Path({str(state)!r}), (1000, 1000))"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environ = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        subprocess.run([sys.executable, "-c", script], check=True, env=environ, cwd=CHECKOUT, timeout=120)
        made = {file.name: file.read_text() for file in secrets.iterdir() if file.is_file()}
        assert len(made) == 6
    assert hash_of(made["daemon_token"]) in (secrets / "tokens.d" / "drop.toml").read_text()
    assert made["database_password"] in made["state_url"]
    assert {file.name: (file.stat().st_uid, oct(file.stat().st_mode)[-3:]) for file in secrets.iterdir()} == {
        "access_key": (10001, "400"),
        "secret_key": (10001, "400"),
        "state_url": (10001, "400"),
        "tokens.d": (10001, "755"),
        "database_password": (0, "400"),
        "tls.pem": (0, "400"),
        "daemon_token": (1000, "400"),
    }
    assert state.stat().st_uid == 1000
    text = (COMPOSE / "broker.toml").read_text("utf-8").replace("/secrets/", f"{tmp_path}/secrets/")
    (tmp_path / "broker.toml").write_text(text)
    for file in secrets.iterdir():  # the broker's user is another one here
        os.chown(file, os.geteuid(), os.getegid())
    os.chown(secrets / "tokens.d" / "drop.toml", os.geteuid(), os.getegid())
    assert load_broker(tmp_path / "broker.toml").links.url == "https://links.localhost:8443"


@pytest.mark.needs("nginx")
def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    from presignd.demo.selfsigned import loopback_pem  # noqa: PLC0415 - it is slow to import

    (tmp_path / "tls.pem").write_text(loopback_pem()[0])
    text = (
        (COMPOSE / "nginx.conf")
        .read_text("utf-8")
        .replace("/secrets", str(tmp_path))
        .replace("//store:", "//127.0.0.1:")
    )
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid;\n{text}")
    done = subprocess.run(
        ["/usr/sbin/nginx", "-t", "-q", "-c", tmp_path / "nginx.conf", "-p", tmp_path],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
