"""Keys and tokens are found in every place they can be given, and never shown."""

from __future__ import annotations

import grp
import json
import os
import pwd
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from presignd.config import Loaded, PresignConfig, WatchConfig, load
from presignd.errors import UsageError

WATCH = '\n[[watch]]\nname = "drop"\npath = "/srv/drop"\nbucket = "test-bucket"\n'

Load = Callable[..., Loaded]


@pytest.fixture
def config(tmp_path: Path) -> Load:
    """``config(presign_lines, VARIABLE=…)`` with a file of mode 0600 and an environment of its own."""

    def read(text: str, **environ: str) -> Loaded:
        file = tmp_path / "config.toml"
        file.write_text(f"[presign]\n{text}\n{WATCH}")
        file.chmod(0o600)
        return load(file, environ={"HOME": str(tmp_path)} | environ)

    return read


def secret_file(folder: Path, name: str, text: str, mode: int = 0o600) -> Path:
    file = folder / name
    file.write_text(text)
    file.chmod(mode)
    return file


def group_named(name: str) -> grp.struct_group:
    return grp.struct_group((name, "x", 4711, []))


def value(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""


@pytest.mark.parametrize("access", ["access_key", "access_key_id"])
@pytest.mark.parametrize("secret", ["secret_key", "secret_access_key"])
def test_either_name_of_a_key_will_do(config: Load, access: str, secret: str) -> None:
    loaded = config(f'{access} = "AK"\n{secret} = "SK"\nsession_token = "ST"')
    presign = loaded.config.presign
    assert (presign.access_key, value(presign.secret_key), value(presign.session_token)) == ("AK", "SK", "ST")
    assert loaded.sources["presign.secret_key"].startswith("file ")


def test_secrets_come_from_files_without_their_trailing_newline(config: Load, tmp_path: Path) -> None:
    secret_file(tmp_path, "ak", "AK\n")
    secret_file(tmp_path, "sk", "SK/+=\r\n")
    secret_file(tmp_path, "token", "TK")
    loaded = config('access_key_file = "ak"\nsecret_key_file = "sk"\ntoken_file = "token"')
    presign = loaded.config.presign
    assert (presign.access_key, value(presign.secret_key), value(presign.token)) == ("AK", "SK/+=", "TK")
    assert presign.secret_key_file == tmp_path / "sk"
    assert loaded.sources["presign.secret_key"] == f"secret_key_file {tmp_path / 'sk'}"
    assert loaded.warnings == ()


def test_systemds_credentials_are_read_where_nothing_else_is_given(config: Load, tmp_path: Path) -> None:
    for name in ("access_key", "secret_key", "token"):
        secret_file(tmp_path, f"presignd.{name}", f"credential-{name}\n")
    loaded = config('access_key = "AK"', CREDENTIALS_DIRECTORY=str(tmp_path))
    presign = loaded.config.presign
    assert (presign.access_key, value(presign.secret_key)) == ("AK", "credential-secret_key")
    assert value(presign.token) == "credential-token"
    assert loaded.sources["presign.secret_key"] == "credential presignd.secret_key"


def test_a_stronger_source_replaces_a_secret_whatever_name_the_weaker_one_used(config: Load, tmp_path: Path) -> None:
    """The file's secret_key_file doesn't clash with the environment's secret key: it isn't even read."""
    loaded = config(
        'access_key_id = "AK"\nsecret_key_file = "missing"',
        PRESIGND_PRESIGN__SECRET_ACCESS_KEY="from-env",
    )
    assert value(loaded.config.presign.secret_key) == "from-env"
    assert loaded.config.presign.secret_key_file is None
    secret_file(tmp_path, "sk", "from-file")
    loaded = config('access_key = "AK"\nsecret_key = "SK"', PRESIGND_PRESIGN__SECRET_KEY_FILE=str(tmp_path / "sk"))
    assert value(loaded.config.presign.secret_key) == "from-file"


def test_aws_credentials_are_not_mixed_into_keys_given_here(config: Load) -> None:
    """The usual chain is asked as a whole, by presign, when there is no access key at all."""
    presign = config("", AWS_ACCESS_KEY_ID="A", AWS_SECRET_ACCESS_KEY="S", AWS_SESSION_TOKEN="T").config.presign
    assert (presign.access_key, presign.secret_key, presign.session_token) == ("", None, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('access_key="A"\nsecret_key="hunter2"\nsecret_key_file="f"', "presign.secret_key: is given as secret_key and"),
        ('access_key="A"\naccess_key_id="A"\nsecret_key="hunter2"', "presign.access_key: is given as access_key and"),
        ('access_key="A"', "presign.secret_key: is missing"),
        ('secret_key="hunter2"', "presign.access_key: is missing"),
        ('session_token="hunter2"', "presign.access_key: is missing"),
        ('access_key="A"\nsecret_key=["hunter2"]', "presign.secret_key: "),
        ('access_key=["hunter2"]\nsecret_key="s"', "presign.access_key: must be text in quotes"),
        ('proxy="socks5://me:hunter2@p"', "presign.proxy: has an unknown scheme"),
        ('public_endpoint="https://me:hunter2@p"', "presign.public_endpoint: holds credentials"),
        ('endpoint="https://p/?X-Amz-Signature=hunter2"', "presign.endpoint: has a query"),
        ("endpoint=['hunter2']", "presign.endpoint: must be text in quotes"),
        ("secret_key_file=5", "presign.secret_key_file: must be a path"),
    ],
)
def test_a_problem_with_a_secret_is_told_without_it(config: Load, text: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        config(text)
    assert any(each.startswith(problem) for each in caught.value.problems)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in str(caught.value.problems)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("", "is empty"), ("\n", "is empty"), ("a\nb\n", "one line"), (" a", "one line"), ("a" * 70000, "one line")],
)
def test_a_secrets_file_that_holds_no_secret_is_refused(
    config: Load, tmp_path: Path, content: str, reason: str
) -> None:
    file = secret_file(tmp_path, "sk", content)
    with pytest.raises(UsageError) as caught:
        config('access_key = "A"\nsecret_key_file = "sk"')
    assert f"presign.secret_key_file: {file} {'is empty' if reason == 'is empty' else 'must hold'}" in str(
        caught.value.problems
    )
    assert reason in str(caught.value.problems)


def test_a_secrets_file_that_is_missing_or_binary_is_one_problem(config: Load, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, reason in (("none", "can't be read: No such file"), ("binary", "is no text")):
        with pytest.raises(UsageError) as caught:
            config(f'access_key = "A"\nsecret_key_file = "{name}"')
        assert f"presign.secret_key_file: {tmp_path / name} {reason}" in caught.value.problems[0]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_file_of_secrets_that_others_can_read_is_warned_of(
    config: Load, tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grp, "getgrgid", lambda _: group_named("users"))
    secret_file(tmp_path, "sk", "SK", mode)
    (warning,) = config('access_key = "A"\nsecret_key_file = "sk"').warnings
    assert warning == (f"presign.secret_key_file: {tmp_path / 'sk'} can be read by others; chmod 600 {tmp_path / 'sk'}")


@pytest.mark.parametrize("group", ["presignd", pwd.getpwuid(os.geteuid()).pw_name])
@pytest.mark.parametrize(("mode", "warned"), [(0o640, False), (0o600, False), (0o660, True), (0o644, True)])
def test_the_daemons_group_and_a_users_own_may_read_a_file_of_secrets(
    config: Load, tmp_path: Path, group: str, mode: int, monkeypatch: pytest.MonkeyPatch, *, warned: bool
) -> None:
    monkeypatch.setattr(grp, "getgrgid", lambda _: group_named(group))
    secret_file(tmp_path, "sk", "SK", mode)
    assert bool(config('access_key = "A"\nsecret_key_file = "sk"').warnings) is warned


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ('access_key="A"\nsecret_key="S"', True),
        ('access_key_id="A"\nsecret_access_key="S"', True),
        ('proxy="http://u:p@h"', True),
        ('proxy="http://h"', False),
        ('region="eu"', False),
    ],
)
def test_a_configuration_that_others_can_read_is_warned_of_when_it_holds_a_secret(
    tmp_path: Path, text: str, warned: bool
) -> None:
    file = secret_file(tmp_path, "config.toml", f"[presign]\n{text}\n{WATCH}", 0o644)
    loaded = load(file, environ={"HOME": str(tmp_path)})
    assert bool(loaded.warnings) is warned


def test_no_repr_or_dump_of_a_configuration_holds_a_secret(config: Load) -> None:
    text = """
    access_key = "SECRET1"
    secret_key = "SECRET2"
    session_token = "SECRET3"
    token = "SECRET4"
    proxy = "http://me:SECRET5@proxy:3128"
    """
    loaded = config(
        text,
        PRESIGND_WATCH__DROP__HEADERS='{"x-amz-server-side-encryption-customer-key": "SECRET6"}',
    )
    assert loaded.config.presign.proxy == "http://me:SECRET5@proxy:3128"
    dumps = [loaded.config.model_dump_json(), json.dumps(loaded.config.model_dump(mode="json"))]
    for shown in (repr(loaded), str(loaded.config), repr(loaded.config.presign), *dumps):
        assert "SECRET" not in shown
    assert '"secret_key": "********"' in dumps[1]


def test_a_model_that_refuses_a_value_does_not_show_it() -> None:
    with pytest.raises(ValidationError) as caught:
        PresignConfig(endpoint="http://me:hunter2@minio")
    assert "hunter2" not in str(caught.value)


def test_models_are_frozen() -> None:
    watch = WatchConfig(name="drop", path=Path("/srv/drop"), bucket="test-bucket")
    with pytest.raises(ValidationError, match="frozen"):
        watch.bucket = "other"  # type: ignore[misc]  # that it can't be is what is tested


@pytest.mark.needs("root")
@pytest.mark.parametrize("option", ["access_key_file", "secret_key_file", "token_file"])
def test_a_file_of_another_user_is_taken_for_no_key_and_no_token(config: Load, tmp_path: Path, option: str) -> None:
    for name in ("access_key_file", "secret_key_file", "token_file"):
        secret_file(tmp_path, name, f"hunter2-{name}")
    os.chown(tmp_path / option, 65534, 65534)
    with pytest.raises(UsageError) as refused:
        config('access_key_file = "access_key_file"\nsecret_key_file = "secret_key_file"\ntoken_file = "token_file"')
    problem, *_ = refused.value.problems
    file = tmp_path / option
    assert problem.startswith(f"presign.{option}: {file} can't be read: it belongs to nobody, and only what is root's")
    assert problem.endswith(f"chown root {file}")


def test_a_credential_of_another_user_is_refused_too(config: Load, tmp_path: Path) -> None:
    file = secret_file(tmp_path, "presignd.secret_key", "hunter2", 0o602)
    with pytest.raises(UsageError) as refused:
        config('access_key = "AK"', CREDENTIALS_DIRECTORY=str(tmp_path))
    assert f"anybody may write it; see that it is right, then: chmod o-w {file}" in refused.value.problems[0]
