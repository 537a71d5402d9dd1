"""[[webhook]] as it is read: names, addresses and secrets, from values, files and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from presignd.config import Config, load
from presignd.config.addresses import parse_webhook_url
from presignd.config.load import Loaded
from presignd.errors import UsageError
from tests.receivers import SECRET

WATCH = '[[watch]]\nname = "drop"\npath = "/srv/drop"\nbucket = "test-bucket"\n'


def loaded(folder: Path, text: str, **environ: str) -> Loaded:
    file = folder / "config.toml"
    file.write_text(WATCH + text)
    file.chmod(0o600)
    return load(file, environ={"HOME": str(folder), **environ})


def configured(folder: Path, text: str, **environ: str) -> Config:
    return loaded(folder, text, **environ).config


def problems(folder: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(UsageError) as refused:
        loaded(folder, text)
    return refused.value.problems


def hook(url: str, more: str = "", secret: str = SECRET) -> str:
    return f'[[webhook]]\nurl = "{url}"\nsecret = "{secret}"\n{more}\n'


def test_without_a_name_a_webhook_has_its_hosts(tmp_path: Path) -> None:
    text = hook("https://Chat.example.org/a") + hook("https://chat.example.org/b") + hook("http://127.0.0.1:81/")
    text += hook("http://[::1]/c", 'name = "chat.example.org-2"')
    names = [webhook.name for webhook in configured(tmp_path, text).webhooks]
    assert names == ["chat.example.org", "chat.example.org-3", "127.0.0.1-81", "chat.example.org-2"]


def test_address_and_secret_come_from_files_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("https://ntfy.example/a-secret-topic\n")
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    (tmp_path / "url").chmod(0o600)
    (tmp_path / "secret").chmod(0o644)
    found = loaded(tmp_path, '[[webhook]]\nurl_file = "url"\nsecret_file = "secret"\nevents = ["file.done"]\n')
    [webhook] = found.config.webhooks
    assert webhook.url.get_secret_value() == "https://ntfy.example/a-secret-topic"
    assert webhook.secret.get_secret_value() == SECRET
    assert (webhook.name, webhook.events, webhook.include_link) == ("ntfy.example", ("file.done",), False)
    assert found.warnings == (
        f"webhook[1].secret_file: {tmp_path}/secret can be read by others; chmod 600 {tmp_path}/secret",
    )
    assert found.sources["webhook.ntfy.example.url"] == f"url_file {tmp_path}/url"
    assert "topic" not in str(found.config.model_dump(mode="json")) + repr(found.config)
    assert found.config.model_dump(mode="json")["webhook"][0]["url"] == "https://ntfy.example/********"


def test_the_environment_alone_makes_a_webhook(tmp_path: Path) -> None:
    hooks = {"PRESIGND_WEBHOOK__CHAT__URL": "https://chat.example/x", "PRESIGND_WEBHOOK__CHAT__SECRET": SECRET}
    [webhook] = configured(tmp_path, "", **hooks, PRESIGND_WEBHOOK__CHAT__EVENTS='["file.done"]').webhooks
    assert (webhook.name, webhook.events) == ("chat", ("file.done",))


def test_every_problem_is_told_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    text = hook("http://chat.example.org/canary", 'name = "a"') + hook("https://x.example/canary", secret="whsec_short")
    text += '[[webhook]]\nname = "b"\nurl = "https://x.example/canary"\nurl_file = "empty"\nsecret_file = "empty"\n'
    text += '[[webhook]]\nname = "c"\nevents = []\n[[webhook]]\nname = "c"\nevent = ["file.done"]\n'
    found = problems(tmp_path, text)
    assert "canary" not in "".join(found)
    told = "\n".join(found)
    for wanted in (
        "webhook.a.url: must begin with https://",
        "webhook[2].secret: must be whsec_",
        "webhook.b.url: is given as url and as url_file; keep one of them",
        f"webhook.b.secret_file: {tmp_path}/empty is empty",
        "webhook.c.url: is missing",
        "webhook.c.secret: is missing",
        "webhook.c.events: is empty",
        "webhook.c.name: two webhooks have this name",
        "event: is no option; did you mean events?",
    ):
        assert wanted in told, told


def test_a_secret_in_place_of_its_file_is_not_told_again(tmp_path: Path) -> None:
    text = '[[webhook]]\nurl = "https://x.example/"\nsecret_file = "whsec_canary"\n'
    assert problems(tmp_path, text) == (
        "webhook[1].secret_file: names no file that is there; a secret itself goes into secret",
    )


def test_a_file_that_holds_a_secret_must_be_private(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(WATCH + hook("https://chat.example.org/a"))
    file.chmod(0o644)
    assert any("holds secrets" in warning for warning in load(file, environ={"HOME": str(tmp_path)}).warnings)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("https://Example.org", "https://example.org/"),
        ("https://example.org:443/a/b?c=d", "https://example.org/a/b?c=d"),
        ("https://example.org?q", "https://example.org?q"),
        (" http://localhost:8080/x ", "http://localhost:8080/x"),
        ("http://[::1]:9/x", "http://[::1]:9/x"),
    ],
)
def test_addresses_of_receivers(text: str, parsed: str) -> None:
    assert parse_webhook_url(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "example.org/x",
            "ftp://example.org",
            "http://example.org/x",
            "https://",
            "https://a b/",
            "https://u:p@h/",
        ),
        *("https://h/#f", "https://h/\\x", "https://h:99999/"),
    ],
)
def test_what_is_no_address_of_a_receiver(text: str) -> None:
    with pytest.raises(ValueError, match=r"must|holds|has"):
        parse_webhook_url(text)
