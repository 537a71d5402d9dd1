"""broker.toml: every option and its default, every problem at once, and no ambiguous values."""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from presignd.broker.config import (
    SYSTEM_FILE,
    SYSTEM_STATE,
    BrokerConfig,
    BrokerSection,
    ControlSection,
    FleetSection,
    LinksSection,
    StateSection,
    TokenConfig,
)
from presignd.broker.load import load, read_tokens, state_folder
from presignd.config import LogConfig, PresignConfig, WebhookConfig
from presignd.config.options import defaults
from presignd.errors import UsageError
from tests.receivers import SECRET

EXAMPLE = Path(__file__).parents[3] / "broker.example.toml"
HASH = "sha256:" + "0" * 64
TOKEN = {"name": "scanner-1", "hash": HASH, "bucket": "bucket"}


def loaded(folder: Path, text: str, **environ: str) -> BrokerConfig:
    file = folder / "broker.toml"
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)
    return load(file, environ=environ)


def problems_of(folder: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(UsageError) as caught:
        loaded(folder, text)
    return caught.value.problems


def token(**options: Any) -> TokenConfig:
    problems: list[str] = []
    found = read_tokens({"token": [{**TOKEN, **options}]}, problems)
    assert problems == []
    return found[0]


def token_problems(**options: Any) -> list[str]:
    problems: list[str] = []
    read_tokens({"token": [{**TOKEN, **options}]}, problems)
    return problems


# --- the example ----------------------------------------------------------------------------------------


def test_the_example_can_be_loaded() -> None:
    assert load(EXAMPLE, environ={}).broker.listen == "127.0.0.1:8420"


def test_where_the_services_file_is_not_there_the_users_own_is_read(tmp_path: Path) -> None:
    system, own = tmp_path / "etc.toml", tmp_path / "presignd" / "broker.toml"
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    with pytest.raises(UsageError, match=r"etc\.toml"):
        load(system, environ=environ, system=system)
    own.parent.mkdir()
    for file in (own, system):
        file.write_bytes(EXAMPLE.read_bytes())
        assert load(system, environ=environ, system=system).file == file


@pytest.mark.parametrize(
    ("section", "model", "but"),
    [
        ("broker", BrokerSection, {"token_files"}),
        ("token", TokenConfig, {"name", "hash", "bucket", "prefix"}),
        ("links", LinksSection, set()),
        ("state", StateSection, set()),
        ("log", LogConfig, set()),
        ("fleet", FleetSection, set()),
        ("control", ControlSection, set()),
    ],
)
def test_the_example_has_every_option_with_its_default(section: str, model: Any, but: set[str]) -> None:
    found = tomllib.loads(EXAMPLE.read_text("utf-8"))[section]
    table = found[0] if isinstance(found, list) else found
    assert set(table) == set(model.model_fields)
    known = defaults(model)
    assert {name: value for name, value in table.items() if name not in but} == {
        name: value for name, value in known.items() if name not in but
    }


def test_the_examples_store_is_as_the_daemons_presign() -> None:
    found = tomllib.loads(EXAMPLE.read_text("utf-8"))["store"]
    known = defaults(PresignConfig)
    assert found == {name: known[name] for name in found}


# --- problems -------------------------------------------------------------------------------------------


def test_every_problem_is_told_at_once_each_with_its_key(tmp_path: Path) -> None:
    text = """
    [broker]
    lisen = "127.0.0.1:1"
    tls_key = "key.pem"
    [store]
    endpoint = "ftp://x"
    acces_key = "a"
    [[token]]
    name = "a b"
    bucket = "B"
    prefx = ""
    [tokens]
    """
    found = problems_of(tmp_path, text)
    assert [each.split(": ")[0] for each in found] == [
        "tokens",
        "broker.lisen",
        "broker.tls_key",
        "store.acces_key",
        "token.a b.prefx",
        "token.a b.name",
        "token.a b.bucket",
    ]
    assert "did you mean listen?" in found[1]
    assert "did you mean access_key?" in found[3]


def test_a_file_that_is_no_toml_or_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no valid TOML"):
        loaded(tmp_path, "a = b")
    with pytest.raises(UsageError, match="can't be read"):
        load(tmp_path / "none.toml", environ={})


@pytest.mark.parametrize("listen", ["0.0.0.0:8420", "[::]:8420", "192.0.2.1:8420", "broker.example:8420"])
def test_tokens_never_travel_in_the_clear_unless_a_proxy_is_said_to_stand_before(tmp_path: Path, listen: str) -> None:
    (found,) = problems_of(tmp_path, f'[broker]\nlisten = "{listen}"')
    assert "broker.listen: is no loopback address" in found
    assert loaded(tmp_path, f'[broker]\nlisten = "{listen}"\nbehind_proxy = true').broker.listen == listen
    assert loaded(tmp_path, f'[broker]\nlisten = "{listen}"\ntls_cert = "c.pem"').broker.tls_cert == tmp_path / "c.pem"


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:8420", "localhost:8420", "unix:/run/x.sock"])
def test_on_loopback_it_may_listen_without_tls(tmp_path: Path, listen: str) -> None:
    assert loaded(tmp_path, f'[broker]\nlisten = "{listen}"').broker.listen == listen


def test_client_certificates_need_tls(tmp_path: Path) -> None:
    (found,) = problems_of(tmp_path, '[broker]\nclient_ca = "ca.pem"')
    assert found.startswith("broker.client_ca: is given without tls_cert")


def test_token_files_start_from_the_files_folder(tmp_path: Path) -> None:
    text = '[broker]\ntoken_files = ["tokens.d/*.toml", "/etc/x.toml"]'
    assert loaded(tmp_path, text).broker.token_files == (f"{tmp_path}/tokens.d/*.toml", "/etc/x.toml")


# --- the fleet page -------------------------------------------------------------------------------------


def test_the_fleet_page_is_off_unless_it_has_an_address(tmp_path: Path) -> None:
    assert loaded(tmp_path, "").fleet.listen == ""
    assert loaded(tmp_path, '[fleet]\nlisten = "unix:/run/fleet.sock"').fleet.listen == "unix:/run/fleet.sock"


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.1:0", ":8422", "unix:fleet.sock"])
def test_the_fleet_page_needs_an_address_that_a_command_can_print(tmp_path: Path, listen: str) -> None:
    (problem,) = problems_of(tmp_path, f'[fleet]\nlisten = "{listen}"')
    assert problem.startswith("fleet.listen: ")


@pytest.mark.parametrize("option", ["listen", "metrics_listen"])
def test_the_fleet_page_has_an_address_of_its_own(tmp_path: Path, option: str) -> None:
    (problem,) = problems_of(tmp_path, f'[broker]\n{option} = "127.0.0.1:9"\n[fleet]\nlisten = "127.0.0.1:9"')
    assert problem.startswith("fleet.listen: is the broker's own address")


def test_the_fleet_page_s_token_is_where_service_and_commands_both_look(tmp_path: Path) -> None:
    assert loaded(tmp_path, "").fleet.token_file == tmp_path / "fleet.token"
    assert loaded(tmp_path, '[fleet]\ntoken_file = "t"').fleet.token_file == tmp_path / "t"
    assert loaded(tmp_path, "", STATE_DIRECTORY="/var/lib/x:/var/lib/y").fleet.token_file == Path(
        "/var/lib/x/fleet.token"
    )
    assert state_folder(SYSTEM_FILE, {}) == SYSTEM_STATE


# --- the store ------------------------------------------------------------------------------------------


def test_keys_come_from_values_files_and_the_environments_usual_variables(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from-a-file\n", encoding="utf-8")
    (tmp_path / "secret").chmod(0o600)
    text = '[store]\naccess_key = "A"\nsecret_key_file = "secret"'
    store = loaded(tmp_path, text, AWS_ENDPOINT_URL_S3="https://s3.example", AWS_REGION="eu-west-1").store
    assert (store.access_key, store.endpoint, store.region) == ("A", "https://s3.example", "eu-west-1")
    assert store.secret_key is not None
    assert store.secret_key.get_secret_value() == "from-a-file"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('kind = "broker"', "store.kind: must be"),
        ('url = "https://x"', "store.url: is for"),
        ('access_key = "A"', "store.secret_key: is missing"),
        ('secret_key = "S"\nsecret_key_file = "f"', "store.secret_key: is given as"),
        ("endpoint = 5", "store.endpoint: must be text"),
    ],
)
def test_a_store_that_cannot_sign_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    found = problems_of(tmp_path, f"[store]\n{text}")
    assert any(each.startswith(problem) for each in found), found


def test_secrets_that_others_can_read_are_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text('[store]\naccess_key = "A"\nsecret_key = "S"', encoding="utf-8")
    file.chmod(0o644)
    (warning,) = load(file, environ={}).warnings
    assert "chmod 600" in warning


# --- tokens ---------------------------------------------------------------------------------------------


def test_a_token_has_its_name_as_prefix_unless_told_otherwise() -> None:
    assert token().prefix == "scanner-1/"
    assert token(prefix="in/{name}/").prefix == "in/scanner-1/"
    assert token(prefix="").prefix == ""


@pytest.mark.parametrize(
    "prefix", ["scanner-1", "/", "/a/", "a//", "a/../", "./", "a\\/", "a\0/", "\udcff/", "x" * 1024 + "/"]
)
def test_a_prefix_that_could_be_read_in_two_ways_is_refused(prefix: str) -> None:
    (problem,) = token_problems(prefix=prefix)
    assert problem.startswith("token.scanner-1.prefix: ")


@pytest.mark.parametrize(
    "header",
    ["x-amz-acl", "x-amz-grant-read", "x-amz-copy-source", "x-amz-*", "x-*", "*", "host", "content-length", "range"],
)
def test_no_token_may_bind_an_acl_a_copy_or_what_is_not_known(header: str) -> None:
    (problem,) = token_problems(headers=[header])
    assert problem.startswith("token.scanner-1.headers: ")


def test_a_day_is_valid_to_its_end_and_a_time_needs_its_zone() -> None:
    day = tomllib.loads("day = 2027-06-30")["day"]
    for value in (day, "2027-06-30"):
        assert token(valid_until=value).valid_until == datetime(2027, 7, 1, tzinfo=UTC)
    assert token(valid_until="2027-06-30T12:00:00+02:00").valid_until == datetime(2027, 6, 30, 10, tzinfo=UTC)
    for wrong in ("2027-06-30T12:00:00", "soon", "", 5, True):
        assert len(token_problems(valid_until=wrong)) == (0 if wrong == "" else 1)


@pytest.mark.parametrize(("text", "rate"), [("200/s", 200.0), ("90/m", 1.5), ("3600/h", 1.0), ("", None)])
def test_rates_are_a_number_a_unit(text: str, rate: float | None) -> None:
    assert token(rate=text).rate == rate


@pytest.mark.parametrize("rate", ["0/s", "200", "5/d", "-1/s", 200, "nan/s"])
def test_a_rate_without_its_unit_is_refused(rate: Any) -> None:
    assert len(token_problems(rate=rate)) == 1


@pytest.mark.parametrize("hash_", ["sha256:" + "0" * 63, "0" * 64, "sha256:" + "G" * 64, "md5:" + "0" * 32])
def test_a_hash_is_one_of_sha256(hash_: str) -> None:
    assert token_problems(hash=hash_)[0].startswith("token.scanner-1.hash: ")


def test_a_token_is_someones() -> None:
    (problem,) = token_problems(hash="")
    assert "neither hash nor certificate" in problem
    assert token_problems(hash="", certificate="scanner-1.example") == []


def test_a_repr_of_a_token_does_not_hold_its_hash() -> None:
    assert HASH not in repr(token())


# --- webhooks -------------------------------------------------------------------------------------------


def test_a_brokers_webhooks_are_read_with_their_files_and_problems(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o600)
    links = '[links]\nurl = "https://files.example"\n'
    hook = '[[webhook]]\nurl = "https://desk.example/x"\nsecret_file = "secret"\nca_file = ""\n'
    [webhook] = loaded(tmp_path, links + hook).webhooks
    assert (webhook.name, webhook.secret.get_secret_value()) == ("desk.example", SECRET)
    assert problems_of(tmp_path, hook) == ("webhook: needs [links] url: what waits for webhooks is kept in the state",)
    assert problems_of(tmp_path, "webhook = 1\n")[0].startswith("webhook: write [[webhook]]")
    found = problems_of(tmp_path, links + hook + 'name = "a"\nevnts = []\n' + hook + 'name = "a"\nevents = ["x"]\n')
    assert found[:2] == (
        "webhook.a.name: two webhooks have this name",
        "webhook.a.evnts: is no option; did you mean events?",
    )
    assert found[2].startswith("webhook.a.events.0: must be ")


def test_the_examples_webhook_has_every_option_in_the_models_order() -> None:
    text = re.sub(r"^#(?=\[\[|\w+ = )", "", EXAMPLE.read_text("utf-8"), flags=re.MULTILINE)
    assert list(tomllib.loads(text)["webhook"][0]) == list(WebhookConfig.model_fields)
