"""The sources of credentials: always fresh, never shown, never incomplete."""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from minio.credentials.credentials import Credentials as MinioCredentials
from minio.credentials.providers import IamAwsProvider
from pydantic import SecretStr

from presignd.config import PresignConfig
from presignd.errors import PresignerFault, UsageError, fault
from presignd.presign.credentials import Credentials, CredentialSource, find_credentials, from_config
from presignd.redaction import redact
from presignd.s3.sigv4 import Keys

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECRET = "canary-secret%/+"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable or file of whoever runs the tests counts, and nothing is asked over the network."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "MINIO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def set_all(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def shared_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / ".aws" / "credentials"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_the_config_goes_before_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, AWS_ACCESS_KEY_ID="other", AWS_SECRET_ACCESS_KEY="other")
    config = PresignConfig(access_key="a", secret_key=SecretStr("s"), session_token=SecretStr("t"))
    found = from_config(config)
    assert found == Credentials(Keys("a", "s", "t"), "config")


async def test_a_source_with_config_keys_never_looks_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, AWS_ACCESS_KEY_ID="half")
    source = CredentialSource(PresignConfig(access_key="a", secret_key=SecretStr("s")), clock=lambda: NOW)
    assert (await source.get()).source == "config"


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"access_key": "a"}, "presign.secret_key"),
        ({"secret_key": SecretStr(SECRET)}, "presign.access_key"),
        ({"session_token": SecretStr(SECRET)}, "presign.access_key"),
        ({"access_key": "a", "session_token": SecretStr(SECRET)}, "presign.secret_key"),
    ],
)
def test_half_a_credential_in_the_config_is_a_problem_that_names_the_other_half(
    given: dict[str, Any], missing: str
) -> None:
    with pytest.raises(UsageError) as caught:
        CredentialSource(PresignConfig(**given), clock=lambda: NOW)
    assert caught.value.problems[0].startswith(f"{missing}: ")
    assert SECRET not in str(caught.value)


def test_an_empty_config_gives_way_to_the_chain() -> None:
    assert from_config(PresignConfig()) is None


def test_aws_variables_give_keys_and_token(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="s", AWS_SESSION_TOKEN="t")
    set_all(monkeypatch, MINIO_ACCESS_KEY="x", MINIO_SECRET_KEY="y")
    assert find_credentials() == Credentials(Keys("a", "s", "t"), "environment AWS_ACCESS_KEY_ID")


def test_minio_variables_come_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_all(monkeypatch, MINIO_ACCESS_KEY="a", MINIO_SECRET_KEY="s", AWS_SESSION_TOKEN="of-another-key")
    shared_file(tmp_path, "[default]\naws_access_key_id = x\naws_secret_access_key = y\n")
    assert find_credentials() == Credentials(Keys("a", "s"), "environment MINIO_ACCESS_KEY")


def test_the_shared_file_gives_its_default_profile_and_may_change(tmp_path: Path) -> None:
    """A secret with ``%`` stands there as it is: AWS's own tools don't interpolate."""
    shared_file(tmp_path, f"[default]\naws_access_key_id = a\naws_secret_access_key = {SECRET}\naws_session_token=t\n")
    found = find_credentials()
    assert found.keys == Keys("a", SECRET, "t")
    assert found.source == "shared credentials file, profile default"
    assert found.reread


def test_aws_profile_and_file_choose_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = shared_file(tmp_path, "[backup]\naws_access_key_id = a\naws_secret_access_key = s\n")
    moved = path.rename(tmp_path / "elsewhere")
    set_all(monkeypatch, AWS_SHARED_CREDENTIALS_FILE=str(moved), AWS_PROFILE="backup")
    assert find_credentials().source == "shared credentials file, profile backup"


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"AWS_ACCESS_KEY_ID": "a"}, "AWS_ACCESS_KEY_ID is given without AWS_SECRET_ACCESS_KEY"),
        ({"AWS_SECRET_ACCESS_KEY": SECRET}, "AWS_SECRET_ACCESS_KEY is given without AWS_ACCESS_KEY_ID"),
        ({"MINIO_ACCESS_KEY": "a"}, "MINIO_ACCESS_KEY is given without MINIO_SECRET_KEY"),
    ],
)
def test_half_a_credential_stops_the_chain_and_names_the_other_half(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], told: str
) -> None:
    """Going on to another place would sign with keys that nobody meant."""
    set_all(monkeypatch, **variables)
    shared_file(tmp_path, "[default]\naws_access_key_id = x\naws_secret_access_key = y\n")
    with pytest.raises(PresignerFault, match=told):
        find_credentials()


def test_half_a_credential_in_the_shared_file_names_the_other_half(tmp_path: Path) -> None:
    shared_file(tmp_path, f"[default]\naws_secret_access_key = {SECRET}\n")
    with pytest.raises(PresignerFault, match="aws_secret_access_key is given without aws_access_key_id"):
        find_credentials()


def test_without_any_the_message_tells_where_was_looked() -> None:
    with pytest.raises(PresignerFault, match=r"AWS_\*, MINIO_\* and the shared credentials file") as caught:
        find_credentials()
    assert caught.value.code == "no_credentials"


@pytest.mark.parametrize("text", [f"{SECRET}\n", f"[default]\n{SECRET}", f"[default]\na=1\na={SECRET}", "\udcff"])
def test_a_broken_shared_file_is_never_quoted(tmp_path: Path, text: str) -> None:
    """The parser's errors quote the line, and that line may be the secret."""
    shared_file(tmp_path, "").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(PresignerFault, match="shared credentials file: ") as caught:
        find_credentials()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_failing_provider_is_named_and_nothing_it_said_goes_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """urllib3's errors quote the URL, which holds the web identity token in its query."""

    def fail(_: IamAwsProvider) -> MinioCredentials:
        raise ValueError(f"https://sts.example/?WebIdentityToken={SECRET} failed")

    monkeypatch.setattr(IamAwsProvider, "retrieve", fail)
    set_all(monkeypatch, AWS_WEB_IDENTITY_TOKEN_FILE="/token")
    with pytest.raises(PresignerFault, match=r"web identity gave none \(ValueError\)") as caught:
        find_credentials()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("variables", "source"),
    [
        ({"AWS_WEB_IDENTITY_TOKEN_FILE": "/token"}, "web identity"),
        ({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/x"}, "container metadata"),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1/"}, "container metadata"),
        ({"AWS_EC2_METADATA_DISABLED": "false"}, "instance metadata"),
    ],
)
def test_expiring_credentials_tell_their_place_and_their_end_in_utc(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], source: str
) -> None:
    given = MinioCredentials("a", "s", "t", NOW + timedelta(hours=1))
    monkeypatch.setattr(IamAwsProvider, "retrieve", lambda _: given)
    set_all(monkeypatch, **variables)
    assert find_credentials() == Credentials(Keys("a", "s", "t"), source, NOW + timedelta(hours=1))


def test_no_part_of_a_credential_is_in_its_repr() -> None:
    shown = repr(Credentials(Keys("the-access", "the-secret", "the-token"), "config"))
    assert not [word for word in ("the-access", "the-secret", "the-token") if word in shown]


class Places:
    """A chain that answers what the test says, and counts how often it is asked."""

    def __init__(self, *answers: Credentials | PresignerFault) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self) -> Credentials:
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, PresignerFault):
            raise answer
        return answer


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def ending(hours: float, name: str = "a") -> Credentials:
    return Credentials(Keys(name, "s"), "web identity", NOW + timedelta(hours=hours))


def no_credentials() -> PresignerFault:
    problem = fault("no_credentials", "web identity gave none")
    assert isinstance(problem, PresignerFault)
    return problem


def source_of(find: Callable[[], Credentials], clock: Clock, **more: Any) -> CredentialSource:
    return CredentialSource(PresignConfig(), clock=clock, find=find, **more)


async def test_lasting_credentials_are_looked_up_once() -> None:
    places, clock = Places(Credentials(Keys("a", "s"), "environment")), Clock()
    source = source_of(places, clock)
    await source.get()
    clock.now += timedelta(days=3650)
    await source.get()
    assert places.asked == 1


async def test_expiring_credentials_are_renewed_five_minutes_before_their_end() -> None:
    places, clock = Places(ending(1, "old"), ending(2, "new")), Clock()
    source = source_of(places, clock)
    await source.get()
    clock.now += timedelta(minutes=54, seconds=59)
    assert (await source.get()).keys.access_key == "old"
    clock.now += timedelta(seconds=1)
    assert (await source.get()).keys.access_key == "new"


async def test_a_failed_renewal_keeps_what_is_still_valid_and_is_tried_again() -> None:
    places, clock = Places(ending(1, "old"), no_credentials(), ending(2, "new")), Clock()
    source = source_of(places, clock)
    await source.get()
    clock.now += timedelta(minutes=56)
    assert (await source.get()).keys.access_key == "old"
    clock.now += timedelta(seconds=10)
    assert (await source.get()).keys.access_key == "new"


async def test_credentials_that_have_ended_are_never_given_out() -> None:
    """Also not in the seconds after a failed renewal, when nothing is asked again."""
    places, clock = Places(ending(1), no_credentials(), no_credentials()), Clock()
    source = source_of(places, clock)
    await source.get()
    clock.now += timedelta(minutes=59, seconds=59)
    await source.get()
    clock.now += timedelta(seconds=1)
    with pytest.raises(PresignerFault, match="web identity gave none"):
        await source.get()


async def test_a_failure_is_not_asked_for_again_by_each_upload() -> None:
    places, clock = Places(no_credentials(), ending(1)), Clock()
    source = source_of(places, clock)
    for _ in range(3):
        with pytest.raises(PresignerFault, match="web identity gave none"):
            await source.get()
    assert places.asked == 1
    clock.now += timedelta(seconds=5)
    await source.get()
    assert places.asked == 2


async def test_credentials_that_come_with_little_time_left_are_not_asked_for_by_each_upload() -> None:
    places, clock = Places(ending(0.05), ending(1, "new")), Clock()
    source = source_of(places, clock)
    for _ in range(3):
        await source.get()
    assert places.asked == 1
    clock.now += timedelta(seconds=5)
    assert (await source.get()).keys.access_key == "new"


async def test_every_secret_found_is_known_to_redaction() -> None:
    found = Credentials(Keys("access", "canary-secret-key", "canary-session-token"), "test")
    try:
        await source_of(lambda: found, Clock()).get()
        shown = redact.redact("at canary-secret-key and canary-session-token")
    finally:
        redact.forget_all()
    assert "canary" not in shown


async def test_the_shared_file_is_read_again_after_a_minute() -> None:
    """aws-vault and its like rewrite it, and it doesn't tell when its keys end."""
    first, second = (Credentials(Keys(name, "s"), "file", reread=True) for name in ("old", "new"))
    places, clock = Places(first, second), Clock()
    source = source_of(places, clock)
    await source.get()
    clock.now += timedelta(minutes=1)
    assert (await source.get()).keys.access_key == "new"


async def test_credentials_the_store_calls_ended_are_renewed_next_time() -> None:
    places, clock = Places(ending(1, "old"), ending(2, "new")), Clock()
    source = source_of(places, clock)
    await source.get()
    source.renew_now()
    assert (await source.get()).keys.access_key == "new"


async def test_a_clock_that_is_set_back_keeps_nobody_waiting() -> None:
    places, clock = Places(no_credentials(), ending(hours=1)), Clock()
    source = source_of(places, clock)
    with pytest.raises(PresignerFault):
        await source.get()
    clock.now -= timedelta(days=1)
    await source.get()
    assert places.asked == 2


async def test_callers_at_the_same_time_share_one_lookup() -> None:
    places = Places(ending(1))
    source = source_of(places, Clock())
    found = await asyncio.gather(*(source.get() for _ in range(20)))
    assert places.asked == 1
    assert len({id(each) for each in found}) == 1


async def test_a_lookup_that_hangs_ends_in_a_fault() -> None:
    released = threading.Event()

    def hang() -> Credentials:
        released.wait()
        return ending(1)

    try:
        with pytest.raises(PresignerFault, match=r"took over 0\.01 s"):
            await source_of(hang, Clock(), wait=0.01).get()
    finally:
        released.set()
