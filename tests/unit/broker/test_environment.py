"""A broker's configuration in the environment: alone, over a file, and beside a daemon's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from presignd.broker.config import SYSTEM_STATE, BrokerConfig, StatePlace
from presignd.broker.load import load
from presignd.errors import UsageError
from tests.receivers import SECRET

Nowhere = Callable[[dict[str, str]], BrokerConfig]

HASH = "sha256:" + "0" * 64
URL = "postgresql://presignd:hush-hush@db/presignd"


def secret_file(folder: Path, name: str, text: str) -> str:
    file = folder / name
    file.write_text(text)
    file.chmod(0o600)
    return str(file)


@pytest.fixture
def nowhere(tmp_path: Path) -> Nowhere:
    """Load the service's configuration, whose file is not there."""
    file = tmp_path / "broker.toml"

    def read(environ: dict[str, str]) -> BrokerConfig:
        return load(file, environ=environ, system=file)

    return read


def loaded(folder: Path, text: str = "", **environ: str) -> BrokerConfig:
    file = folder / "broker.toml"
    file.write_text(text)
    file.chmod(0o600)
    return load(file, environ={"HOME": str(folder), **environ})


def problems(folder: Path, **environ: str) -> tuple[str, ...]:
    with pytest.raises(UsageError) as refused:
        loaded(folder, **environ)
    return refused.value.problems


def test_no_file_is_needed_and_secrets_come_from_files(nowhere: Nowhere, tmp_path: Path) -> None:
    found = nowhere(
        {
            "PRESIGND_BROKER__LISTEN": "0.0.0.0:8420",
            "PRESIGND_BROKER__BEHIND_PROXY": "true",
            "PRESIGND_BROKER__TOKEN_FILES": '["/run/secrets/tokens.d/*.toml"]',
            "PRESIGND_STORE__ENDPOINT": "https://s3.example.org",
            "PRESIGND_STORE__ACCESS_KEY": "AK",
            "PRESIGND_STORE__SECRET_KEY_FILE": secret_file(tmp_path, "secret_key", "hush-hush\n"),
            "PRESIGND_LINKS__URL": "https://files.example.org",
            "PRESIGND_STATE__URL_FILE": secret_file(tmp_path, "state_url", URL),
            "PRESIGND_LOG__LEVEL": "warning",
            "PRESIGND_FLEET__LISTEN": "127.0.0.1:8422",
            "PRESIGND_TOKEN__SCANNER-1__HASH": HASH,
            "PRESIGND_TOKEN__SCANNER-1__BUCKET": "scans",
            "PRESIGND_TOKEN__SCANNER-1__OPERATIONS": '["put", "head"]',
            "PRESIGND_WEBHOOK__DESK__URL": "https://desk.example.org/hook",
            "PRESIGND_WEBHOOK__DESK__SECRET_FILE": secret_file(tmp_path, "hook", SECRET),
        },
    )
    assert found.file is None
    assert (found.broker.listen, found.broker.behind_proxy) == ("0.0.0.0:8420", True)
    assert found.broker.token_files == ("/run/secrets/tokens.d/*.toml",)
    assert (found.store.endpoint, found.store.access_key) == ("https://s3.example.org", "AK")
    assert found.store.secret_key is not None
    assert found.store.secret_key.get_secret_value() == "hush-hush"
    assert found.links.url == "https://files.example.org"
    assert found.state == StatePlace(url=URL)
    assert found.log.level == "warning"
    assert (found.fleet.listen, found.fleet.token_file) == ("127.0.0.1:8422", SYSTEM_STATE / "fleet.token")
    [token] = found.tokens
    assert (token.name, token.hash, token.prefix, token.operations) == (
        "scanner-1",
        HASH,
        "scanner-1/",
        ("put", "head"),
    )
    [webhook] = found.webhooks
    assert (webhook.name, webhook.secret.get_secret_value()) == ("desk", SECRET)
    assert found.warnings == ()
    assert "hush" not in repr(found)


def test_the_state_is_in_the_services_folder_without_a_file(nowhere: Nowhere) -> None:
    given = {"PRESIGND_STORE__ENDPOINT": "http://store:9000"}
    assert nowhere(given).state.path == SYSTEM_STATE / "state.db"
    assert nowhere({**given, "STATE_DIRECTORY": "/s"}).state.path == Path("/s/state.db")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"PRESIGND_WATCH__DROP__PATH": "/drop", "PRESIGND_PRESIGN__ENDPOINT": "http://store"},
        {"PRESIGND_STATE_URL": URL},
    ],
)
def test_without_a_broker_in_the_environment_the_file_is_missed(nowhere: Nowhere, environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"broker\.toml: can't be read"):
        nowhere(environ)


def test_another_file_that_is_named_and_not_there_is_missed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        load(tmp_path / "gone.toml", environ={"PRESIGND_BROKER__LISTEN": "127.0.0.1:1"})


def test_the_environment_wins_over_the_file_and_the_file_over_aws_variables(tmp_path: Path) -> None:
    text = f"""
        [broker]
        listen = "127.0.0.1:1"
        url = "https://broker.example.org"
        [store]
        endpoint = "http://of-the-file"
        region = "of-the-file"
        access_key = "AK"
        secret_key = "of-the-file"
        [links]
        url = "https://files.example.org"
        [state]
        path = "of-the-file.db"
        [[webhook]]
        name = "desk"
        url = "https://desk.example.org/hook"
        secret = "{SECRET}"
        [[webhook]]
        url = "https://chat.example.org/hook"
        secret = "{SECRET}"
    """
    found = loaded(
        tmp_path,
        text,
        AWS_REGION="of-aws",
        AWS_ENDPOINT_URL="http://of-aws",
        PRESIGND_BROKER__LISTEN="127.0.0.1:2",
        PRESIGND_STORE__ENDPOINT="http://of-the-environment",
        PRESIGND_STORE__SECRET_KEY_FILE=secret_file(tmp_path, "key", "of-the-environment"),
        PRESIGND_STATE__URL=URL,
        PRESIGND_WEBHOOK__DESK__EVENTS='["link.opened"]',
        PRESIGND_WEBHOOK__MORE__URL="https://more.example.org/hook",
        PRESIGND_WEBHOOK__MORE__SECRET=SECRET,
    )
    assert (found.broker.listen, found.broker.url) == ("127.0.0.1:2", "https://broker.example.org")
    assert (found.store.endpoint, found.store.region) == ("http://of-the-environment", "of-the-file")
    assert found.store.secret_key is not None
    assert found.store.secret_key.get_secret_value() == "of-the-environment"
    assert found.state == StatePlace(url=URL)
    assert [hook.name for hook in found.webhooks] == ["desk", "chat.example.org", "more"]
    assert found.webhooks[0].events == ("link.opened",)
    assert len(found.webhooks[1].events) > 1


def test_paths_in_the_environment_start_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = loaded(
        tmp_path,
        PRESIGND_BROKER__TOKEN_FILES='["t/*.toml"]',
        PRESIGND_BROKER__TLS_CERT="c.pem",
        PRESIGND_STATE__PATH="s.db",
    )
    assert found.broker.token_files == (f"{tmp_path}/here/t/*.toml",)
    assert found.broker.tls_cert == tmp_path / "here" / "c.pem"
    assert found.state.path == tmp_path / "here" / "s.db"


def test_a_daemons_variables_are_left_to_it(tmp_path: Path) -> None:
    """Both may have one environment; what both have, such as [log], is for both."""
    found = loaded(
        tmp_path,
        PRESIGND_WATCH__DROP__PATH="/drop",
        PRESIGND_PRESIGN__ENDPOINT="http://of-the-daemon",
        PRESIGND_LINKS__GROUP="links",
        PRESIGND_STATE_URL=URL,
        PRESIGND_LOG__LEVEL="error",
    )
    assert (found.store.endpoint, found.links.url, found.log.level) == ("http://127.0.0.1:9000", "", "error")
    assert found.state == StatePlace(url=URL)


def test_every_problem_is_told_with_its_variable_or_key_and_no_secret(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        PRESIGND_BROKER__LISEN="127.0.0.1:1",
        PRESIGND_STOR__ENDPOINT="http://store",
        PRESIGND_BROKER_LISTEN="127.0.0.1:1",
        PRESIGND_TOKEN__HASH=HASH,
        PRESIGND_TOKEN__ONE__HASH="hush-hush",
        PRESIGND_TOKEN__ONE__BUCKET="scans",
        PRESIGND_BROKER__TOKEN_FILES="t/*.toml",
        PRESIGND_STATE__URL="hush-hush",
        PRESIGND_STORE__SECRET_KEY="hush-hush",
        PRESIGND_STORE__SECRET_KEY_FILE="hush-hush",
    )
    told = "\n".join(found)
    for wanted in (
        "PRESIGND_BROKER__LISEN: lisen is no option of broker; did you mean listen?",
        "PRESIGND_STOR__ENDPOINT: stor is no section; did you mean store?",
        "PRESIGND_BROKER_LISTEN: write PRESIGND_BROKER__LISTEN, with two underscores",
        "PRESIGND_TOKEN__HASH: write PRESIGND_TOKEN__<NAME>__<KEY>",
        "token.one.hash: must be",
        "broker.token_files: ",
        "state.url: must be an address of PostgreSQL",
        "store.secret_key: is given as secret_key and as secret_key_file",
    ):
        assert wanted in told, told
    assert "hush" not in told


def test_a_secret_in_place_of_its_file_is_not_told_again(tmp_path: Path) -> None:
    secret = "canary" * 6
    found = problems(tmp_path, PRESIGND_STORE__ACCESS_KEY="AK", PRESIGND_STORE__SECRET_KEY_FILE=secret)
    assert found[0].startswith("store.secret_key_file: names no file that is there")
    assert "canary" not in "".join(found)


def test_the_file_is_no_table_or_list_where_one_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        loaded(
            tmp_path,
            "broker = 1\nwebhook = [1]\nstate = 1\ntoken = 1",
            PRESIGND_BROKER__LISTEN="127.0.0.1:1",
            PRESIGND_WEBHOOK__A__URL="x",
        )
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["broker", "state", "token", "webhook"]
