"""``kind = "broker"``: what is required, what is refused, and that no storage key is searched for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from presignd.config import Loaded, load
from presignd.errors import UsageError

WATCH = '\n[[watch]]\nname = "drop"\npath = "/srv/drop"\nbucket = "test-bucket"\n'
BROKER = 'kind = "broker"\nurl = "https://broker:8420"\n'
TOKEN = 'token = "a-token-0123456789"\n'

Load = Callable[..., Loaded]


@pytest.fixture
def config(tmp_path: Path) -> Load:
    """``config(presign_lines, watch_lines, VARIABLE=…)`` with an environment of its own."""

    def read(presign: str, watch: str = "", **environ: str) -> Loaded:
        file = tmp_path / "config.toml"
        file.write_text(f"[presign]\n{presign}\n{WATCH}{watch}")
        file.chmod(0o600)
        return load(file, environ={"HOME": str(tmp_path)} | environ)

    return read


def problems(config: Load, presign: str, watch: str = "", **environ: str) -> list[str]:
    with pytest.raises(UsageError) as refused:
        config(presign, watch, **environ)
    return list(refused.value.problems)


def test_a_broker_and_a_token_are_all_that_is_needed(config: Load) -> None:
    loaded = config(BROKER + TOKEN)
    presign = loaded.config.presign
    assert (presign.kind, presign.url, presign.token) == (
        "broker",
        "https://broker:8420",
        SecretStr("a-token-0123456789"),
    )
    assert presign.access_key == ""
    assert presign.secret_key is None
    assert loaded.warnings == ()


def test_its_watches_keys_begin_with_the_tokens_prefix_unless_they_say_otherwise(config: Load) -> None:
    assert config(BROKER + TOKEN).config.watches[0].key == "{prefix}{path}"
    assert config(BROKER + TOKEN).sources["watch.drop.key"] == "default"
    assert config(BROKER + TOKEN, 'key = "scanner-1/{name}"').config.watches[0].key == "scanner-1/{name}"
    assert config("").config.watches[0].key == "{path}"


def test_a_bare_address_means_https(config: Load) -> None:
    assert config('kind = "broker"\nurl = "broker:8420"\n' + TOKEN).config.presign.url == "https://broker:8420"


def test_the_token_comes_from_a_file_or_from_systemd(config: Load, tmp_path: Path) -> None:
    file = tmp_path / "presignd.token"
    file.write_text("from-a-file-0123\n")
    file.chmod(0o600)
    assert config(f'{BROKER}token_file = "{file}"').config.presign.token == SecretStr("from-a-file-0123")
    loaded = config(BROKER, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert loaded.config.presign.token == SecretStr("from-a-file-0123")
    assert loaded.sources["presign.token"] == "credential presignd.token"


def test_a_client_certificate_may_stand_for_the_token(config: Load, tmp_path: Path) -> None:
    assert config(f'{BROKER}client_cert = "{tmp_path}/client.pem"').config.presign.token is None


@pytest.mark.parametrize(
    ("presign", "problem"),
    [
        ('kind = "broker"\n' + TOKEN, "presign.url: is missing"),
        (BROKER, "presign.token_file: is missing"),
        (BROKER + TOKEN + 'access_key = "AK"', "presign.access_key: is for kind"),
        (BROKER + TOKEN + 'secret_key = "SK"', "presign.secret_key: is for kind"),
        (BROKER + TOKEN + 'secret_access_key = "SK"', "presign.secret_access_key: is for kind"),
        (BROKER + TOKEN + 'secret_key_file = "/nowhere"', "presign.secret_key_file: is for kind"),
        (BROKER + TOKEN + 'session_token = "ST"', "presign.session_token: is for kind"),
        ('kind = "broker"\nurl = "https://broker/v1"\n' + TOKEN, "presign.url: has a path"),
        ('kind = "broker"\nurl = "https://me:secret@broker"\n' + TOKEN, "presign.url: holds credentials"),
        ('kind = "broker"\nurl = "ftp://broker"\n' + TOKEN, "presign.url: has an unknown scheme"),
        ('url = "https://broker:8420"', 'presign.url: is for kind = "broker"'),
    ],
)
def test_what_does_not_go_with_who_signs_is_refused(config: Load, presign: str, problem: str) -> None:
    [told] = problems(config, presign)
    assert told.startswith(problem)
    assert "SK" not in told
    assert "me:secret" not in told


def test_a_storage_key_from_the_environment_is_refused_too(config: Load) -> None:
    """It would be in the process whatever is done with it."""
    [told] = problems(config, BROKER + TOKEN, PRESIGND_PRESIGN__SECRET_KEY="SK")
    assert told.startswith("presign.secret_key: is for kind")


def test_a_prefix_is_there_only_with_a_broker(config: Load) -> None:
    [told] = problems(config, "", 'key = "{prefix}{path}"')
    assert re.match(r'watch\.drop\.key: has \{prefix\}.*kind = "broker"', told)


def test_no_storage_key_is_looked_for_anywhere(config: Load, tmp_path: Path) -> None:
    """Neither systemd's credentials nor AWS_* are read; what says where the store is, is."""
    for name in ("presignd.access_key", "presignd.secret_key"):
        (tmp_path / name).mkdir()  # reading it would be a problem
    loaded = config(
        BROKER + TOKEN,
        CREDENTIALS_DIRECTORY=str(tmp_path),
        AWS_ACCESS_KEY_ID="AK",
        AWS_SECRET_ACCESS_KEY="SK",
        AWS_ENDPOINT_URL="http://store:9000",
    )
    assert loaded.config.presign.endpoint == "http://store:9000"
    assert "SK" not in repr(loaded.config)
    assert loaded.config.presign.secret_key is None


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("https://broker:8420", False),
        ("http://127.0.0.1:8420", False),
        ("http://[::1]:8420", False),
        ("http://localhost:8420", False),
        ("http://broker:8420", True),
        ("http://192.0.2.7:8420", True),
    ],
)
def test_a_token_that_would_travel_in_clear_is_warned_of(config: Load, url: str, warned: bool) -> None:
    warnings = config(f'kind = "broker"\nurl = "{url}"\n{TOKEN}').warnings
    assert [warning.partition(":")[0] for warning in warnings] == ["presign.url"] * warned


def test_the_links_of_a_broker_may_live_for_years(config: Load) -> None:
    watch = config(BROKER + TOKEN, 'links = "stable"\nlink_expires = "3650d"').config.watches[0]
    assert (watch.links, watch.link_expires) == ("stable", 3650 * 86400)
    assert config(BROKER + TOKEN).config.watches[0].links == "auto"


@pytest.mark.parametrize(
    ("watch", "problem"),
    [
        ('link_expires = "0s"', "link_expires: must be at least 1s"),
        ('link_expires = "36501d"', "link_expires: is longer than a hundred years"),
        ('links = "presigned"\nlink_expires = "8d"', "link_expires: must be at most 7d"),
    ],
)
def test_a_lifetime_that_no_link_of_a_broker_has_is_refused(config: Load, watch: str, problem: str) -> None:
    [found] = problems(config, BROKER + TOKEN, watch)
    assert problem in found
