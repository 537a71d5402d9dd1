"""Tokens: stored as hashes, read from the current files, and never granted by a file that can't be read."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from presignd.broker import token_writer, tokens
from presignd.broker.config import TokenConfig
from presignd.broker.limits import GrantRates
from presignd.broker.tokens import Tokens, hash_of, named_by, new_token
from presignd.redaction.redact import redact
from tests.finishing import failing
from tests.unprivileged import without_rights

ONE, TWO = new_token(), new_token()


def block(name: str, secret: str = "", **options: Any) -> str:
    given = {"name": name, "hash": hash_of(secret) if secret else "", "bucket": "bucket", **options}
    return token_writer.render({key: value for key, value in given.items() if value})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with broker.toml and tokens.d/one.toml."""
    (tmp_path / "tokens.d").mkdir()
    (tmp_path / "broker.toml").write_text(f'[broker]\nlisten = "127.0.0.1:0"\n{block("main", "in-main")}')
    (tmp_path / "tokens.d" / "one.toml").write_text(block("one", ONE))
    return tmp_path


Registry = Callable[[Path], Tokens]


@pytest.fixture(params=[tokens.SETTLED_NS, -1], ids=["just written", "settled"])
def registry(request: pytest.FixtureRequest) -> Registry:
    """``registry(folder)`` reads its tokens; files count as settled at once, or not at all."""
    return lambda folder: tokens_in(folder, settled_ns=request.param, look_share=0)


def tokens_in(folder: Path, **options: Any) -> Tokens:
    return Tokens(folder / "broker.toml", [f"{folder}/tokens.d/*.toml"], **options)


def of_environment(name: str, secret: str) -> TokenConfig:
    """Return a token as the environment gives it."""
    return TokenConfig(name=name, hash=hash_of(secret), bucket="bucket")


def name_of(found: Tokens, secret: str) -> str:
    token = found.of_secret(secret)
    return token.name if token else ""


# --- made -----------------------------------------------------------------------------------------------


def test_a_token_is_256_random_bits_that_redaction_knows() -> None:
    assert re.fullmatch(r"psd_[\w-]{43}", ONE)
    assert new_token() != new_token()
    assert ONE not in redact(f"it said {ONE}, and went on")


def test_what_is_stored_is_the_hash_alone() -> None:
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", hash_of(ONE))
    assert ONE not in block("one", ONE)


# --- found ----------------------------------------------------------------------------------------------


def test_a_token_is_found_by_its_secret_alone(folder: Path, registry: Registry) -> None:
    found = registry(folder)
    assert name_of(found, ONE) == "one"
    assert name_of(found, "in-main") == "main"
    for wrong in ("", TWO, ONE[:-1], ONE + "x", hash_of(ONE), "one", "\ud800", "\0"):
        assert name_of(found, wrong) == ""


def test_a_certificates_names_stand_for_a_token_that_says_so(folder: Path, registry: Registry) -> None:
    (folder / "tokens.d" / "two.toml").write_text(block("two", certificate="two.example"))
    token = registry(folder).of_certificate(["x", "two.example"])
    assert token is not None
    assert token.name == "two"
    assert registry(folder).of_certificate(["one", "x"]) is None


def test_a_token_without_a_hash_is_nobodys_secret(folder: Path, registry: Registry) -> None:
    (folder / "tokens.d" / "two.toml").write_text(block("two", certificate="two.example"))
    assert name_of(registry(folder), "") == ""


# --- as the files stand now -----------------------------------------------------------------------------


def test_a_new_file_is_found_without_being_told(folder: Path, registry: Registry) -> None:
    found = registry(folder)
    assert name_of(found, TWO) == ""
    (folder / "tokens.d" / "two.toml").write_text(block("two", TWO))
    assert name_of(found, TWO) == "two"


class Clock:
    """Stands still, but for the looks at files: these take 50 ms, as on a busy machine."""

    def __init__(self) -> None:
        self.now, self.looks = 1000.0, 0

    def look(self, pattern: Path) -> list[Path]:
        self.now, self.looks = self.now + 0.05, self.looks + 1
        return list(pattern.parent.iterdir())


def test_a_new_token_is_known_at_once_and_guessing_takes_a_tenth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("presignd.broker.tokens.named_by", clock.look)
    (tmp_path / "broker.toml").write_text("")
    (tmp_path / "tokens.d").mkdir()
    found = tokens_in(tmp_path, monotonic=lambda: clock.now)
    assert name_of(found, TWO) == ""
    (tmp_path / "tokens.d" / "one.toml").write_text(block("one", ONE))
    assert name_of(found, ONE) == "one"
    clock.looks = 0
    for _ in range(100):
        for _ in range(100):
            name_of(found, TWO)
        clock.now += 0.1
    assert 10 <= clock.looks <= 25  # of ten seconds and what they took


def test_a_removed_file_revokes_at_once(folder: Path, registry: Registry) -> None:
    found = registry(folder)
    assert name_of(found, ONE) == "one"
    (folder / "tokens.d" / "one.toml").unlink()
    assert name_of(found, ONE) == ""


def test_a_file_that_is_replaced_or_rewritten_revokes_at_once(folder: Path, registry: Registry) -> None:
    found, file = registry(folder), folder / "tokens.d" / "one.toml"
    assert name_of(found, ONE) == "one"
    (folder / "draft").write_text(block("one", TWO))
    (folder / "draft").replace(file)
    assert (name_of(found, ONE), name_of(found, TWO)) == ("", "one")
    file.write_text(block("one", ONE, prefix="elsewhere/"))
    assert (name_of(found, ONE), name_of(found, TWO)) == ("one", "")


def test_a_file_behind_a_symlink_that_is_switched_revokes_at_once(folder: Path, registry: Registry) -> None:
    """Kubernetes mounts secrets so."""
    (folder / "first").mkdir()
    (folder / "second").mkdir()
    (folder / "first" / "t.toml").write_text(block("linked", TWO))
    (folder / "second" / "t.toml").write_text(block("other", "other-secret"))
    (folder / "data").symlink_to("first")
    (folder / "tokens.d" / "linked.toml").symlink_to("../data/t.toml")
    found = registry(folder)
    assert name_of(found, TWO) == "linked"
    (folder / "data2").symlink_to("second")
    (folder / "data2").replace(folder / "data")
    assert name_of(found, TWO) == ""


def test_a_change_that_the_clock_cannot_tell_is_seen(tmp_path: Path) -> None:
    """The same size, inode and times within one tick: a file that was just written is read each time."""
    main = tmp_path / "broker.toml"
    main.write_text(block("one", ONE))
    found = Tokens(main, [])
    assert name_of(found, ONE) == "one"
    times = (main.stat().st_atime_ns, main.stat().st_mtime_ns)
    main.write_text(block("one", TWO))
    os.utime(main, ns=times)
    assert name_of(found, ONE) == ""


def test_tokens_in_the_main_file_are_revoked_as_the_others(folder: Path, registry: Registry) -> None:
    found = registry(folder)
    assert name_of(found, "in-main") == "main"
    (folder / "broker.toml").write_text('[broker]\nlisten = "127.0.0.1:0"\n')
    assert name_of(found, "in-main") == ""


# --- files that can't be read grant nothing -------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[[token]\n",
        "[[token]]\nname = 5\n",
        "{good}[[token]]\n",
        "{good}x = 1\n",
        "{good}x = " + 5000 * "9" + "\n",
        "{good}[tokn]\n",
        "\udcff{good}",
        '{good}[[token]]\nname = "one"\nhash = "sha256:{zeros}"\nbucket = "bucket"\n',
    ],
)
def test_a_broken_file_grants_nothing_and_the_others_go_on(folder: Path, registry: Registry, text: str) -> None:
    """It may be the one that revokes: what it said before counts for nothing."""
    found, file = registry(folder), folder / "tokens.d" / "one.toml"
    assert name_of(found, ONE) == "one"
    whole = text.format(good=block("one", ONE), zeros="0" * 64)
    file.write_text(whole, encoding="utf-8", errors="surrogateescape")
    assert name_of(found, ONE) == ""
    assert name_of(found, "in-main") == "main"
    assert [each.path for each in found.broken] == [file]
    file.write_text(block("one", ONE))
    assert name_of(found, ONE) == "one"
    assert found.broken == []


def test_a_file_that_anybody_may_write_grants_nothing(folder: Path, registry: Registry) -> None:
    file = folder / "tokens.d" / "one.toml"
    file.chmod(0o646)
    found = registry(folder)
    assert name_of(found, ONE) == ""
    assert "chmod o-w" in found.broken[0].problems[0]
    file.chmod(0o640)
    assert name_of(found, ONE) == "one"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
def test_a_folder_that_anybody_may_write_grants_nothing(folder: Path, registry: Registry, mode: int) -> None:
    """Whoever may put a file there would give himself tokens; it is seen at once, and only as long as it is so."""
    found = registry(folder)
    assert name_of(found, ONE) == "one"
    (folder / "tokens.d").chmod(mode)
    assert name_of(found, ONE) == ""
    assert name_of(found, "in-main") == "main"
    (problem,) = found.unreadable()
    assert problem.endswith(f"chmod o-w {folder}/tokens.d")
    (folder / "tokens.d").chmod(0o755)
    assert name_of(found, ONE) == "one"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
@pytest.mark.parametrize("name", ["tokens.d/one.toml", "tokens.d"])
def test_what_another_user_owns_grants_nothing(folder: Path, registry: Registry, name: str) -> None:
    found = registry(folder)
    assert name_of(found, ONE) == "one"
    os.chown(folder / name, 65534, 65534)
    assert name_of(found, ONE) == ""
    (problem,) = found.unreadable()
    assert "it belongs to nobody, and only what is root's is believed" in problem


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_the_tokens_in_a_main_file_of_another_user_are_none(folder: Path, registry: Registry) -> None:
    os.chown(folder / "broker.toml", 65534, 65534)
    assert name_of(registry(folder), "in-main") == ""


def test_a_fifo_among_the_files_does_not_block(folder: Path, registry: Registry) -> None:
    os.mkfifo(folder / "tokens.d" / "fifo.toml")
    found = registry(folder)
    assert name_of(found, ONE) == "one"
    assert found.unreadable() == [f"{folder}/tokens.d/fifo.toml: is no regular file"]


@pytest.mark.parametrize(
    "second",
    [block("one", TWO), block("two", ONE), block("two", TWO, certificate="c")],
    ids=["name", "hash", "certificate"],
)
def test_of_two_files_that_clash_the_later_grants_nothing(folder: Path, registry: Registry, second: str) -> None:
    (folder / "tokens.d" / "a.toml").write_text(block("first", "first", certificate="c"))
    found = registry(folder)
    (folder / "tokens.d" / "z.toml").write_text(second)
    assert name_of(found, TWO) == ""
    assert (name_of(found, ONE), name_of(found, "first")) == ("one", "first")
    assert [each.path for each in found.broken] == [folder / "tokens.d" / "z.toml"]


def test_the_environments_tokens_are_in_no_file_and_stay_until_they_are_configured_anew(folder: Path) -> None:
    found = Tokens(None, [], [of_environment("env", TWO)])
    assert (name_of(found, TWO), found.named("env"), found.count) == ("env", of_environment("env", TWO), 1)
    assert found.all() == [(of_environment("env", TWO), None)]
    found.refresh()
    assert name_of(found, TWO) == "env"
    found.configure(folder / "broker.toml", [], [of_environment("other", "other")])
    assert (name_of(found, TWO), name_of(found, "other"), name_of(found, "in-main")) == ("", "other", "main")
    found.configure(None, [])
    assert found.all() == []


def test_a_file_with_a_token_of_the_environments_name_grants_nothing(folder: Path) -> None:
    found = Tokens(None, [f"{folder}/tokens.d/*.toml"], [of_environment("one", TWO)])
    assert (name_of(found, TWO), name_of(found, ONE)) == ("one", "")
    assert found.unreadable() == [f"{folder}/tokens.d/one.toml: token.one: another token has this name"]


def test_two_tokens_of_the_environment_with_one_secret_grant_nothing() -> None:
    found = Tokens(None, [], [of_environment("one", TWO), of_environment("two", TWO)])
    assert name_of(found, TWO) == ""
    assert found.unreadable() == ["the environment: token.two.hash: another token has it"]


def test_a_main_file_in_a_broken_moment_grants_nothing(folder: Path, registry: Registry) -> None:
    found = registry(folder)
    (folder / "broker.toml").write_text("[broker\n")
    assert name_of(found, "in-main") == ""
    assert name_of(found, ONE) == "one"


def test_a_file_that_could_not_be_read_for_a_moment_is_read_again_though_nothing_changed(
    folder: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = registry(folder)
    (folder / "tokens.d" / "two.toml").write_text(block("two", TWO))
    os.utime(folder / "tokens.d" / "two.toml", (0, 0))
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing(errno.EMFILE))
        assert name_of(found, TWO) == ""
    assert name_of(found, TWO) == "two"


# --- folders that can't be opened -----------------------------------------------------------------------


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    def refused(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, call, refused)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EIO])
def test_a_folder_that_cannot_be_opened_is_not_an_empty_one(
    folder: Path, registry: Registry, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known goes on while its file is there, what is removed is revoked all the same, what is new waits."""
    (folder / "tokens.d" / "gone.toml").write_text(block("gone", "gone-secret"))
    found, listed, pattern = registry(folder), Path.iterdir, f"{folder}/tokens.d/*.toml"
    refuse(monkeypatch, "iterdir", number)
    (folder / "tokens.d" / "gone.toml").unlink()
    (folder / "tokens.d" / "two.toml").write_text(block("two", TWO))
    assert [name_of(found, secret) for secret in (ONE, "in-main", "gone-secret", TWO)] == ["one", "main", "", ""]
    assert found.unlisted == {pattern: os.strerror(number)}
    monkeypatch.setattr(Path, "iterdir", listed)
    assert [name_of(found, secret) for secret in (ONE, "gone-secret", TWO)] == ["one", "", "two"]
    assert found.unlisted == {}


def test_a_file_in_a_folder_that_may_not_even_be_entered_grants_nothing(folder: Path, registry: Registry) -> None:
    """Nobody can tell whether it was removed."""
    found = registry(folder)
    for place in (folder, *folder.parents):
        if place.stat().st_uid == os.geteuid():
            place.chmod(place.stat().st_mode | 0o755)
    (folder / "tokens.d").chmod(0)
    with without_rights():
        assert (name_of(found, ONE), name_of(found, "in-main")) == ("", "main")
        assert list(found.unlisted.values()) == ["Permission denied"]
    (folder / "tokens.d").chmod(0o700)
    assert name_of(found, ONE) == "one"


def test_a_folder_that_is_not_there_is_empty(folder: Path, registry: Registry) -> None:
    """Its removal revokes what it held."""
    found = registry(folder)
    shutil.rmtree(folder / "tokens.d")
    assert name_of(found, ONE) == ""
    assert found.unlisted == {}


@given(st.lists(st.sampled_from(["a.toml", ".a.toml", "b/a.toml", "b/c.toml", "[d].toml", "b/.e/a.toml", "a/b"])))
@example(["b/a.toml", "a.toml"])
def test_a_pattern_names_the_files_that_glob_says(names: list[str]) -> None:
    patterns = (
        "*.toml",
        "a.toml",
        "*/a.toml",
        "b/*.toml",
        ".*.toml",
        "*/*",
        "[[]d].toml",
        "?.toml",
        "*/.e/*",
        "b/*/a*",
    )
    with TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder, name)
            with suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        for pattern in patterns:
            assert sorted(map(str, named_by(Path(folder, pattern)))) == sorted(
                glob.glob(f"{folder}/{pattern}")  # noqa: PTH207 - the one to agree with
            )


# --- rates ----------------------------------------------------------------------------------------------


def test_a_rate_holds_over_time_and_lets_a_batch_of_any_size_through() -> None:
    rates = GrantRates()
    assert rates.take("one", 100.0, 1000, 0.0) == 0
    assert rates.take("one", 100.0, 1, 1.0) == 9
    assert rates.take("two", 100.0, 1, 1.0) == 0
    assert rates.take("one", 100.0, 100, 9.2) == 0


def test_over_a_long_time_no_more_is_granted_than_the_rate_and_one_batch() -> None:
    rates, now, granted = GrantRates(), 0.0, 0
    for _ in range(2000):
        wait = rates.take("one", 50.0, 30, now)
        granted += 0 if wait else 30
        now += wait or 0.1
    assert granted <= 50 * now + 50 + 30
    assert granted >= 0.9 * 50 * now


def test_without_a_rate_nothing_is_counted() -> None:
    assert not any(GrantRates().take("one", None, 1000, 0.0) for _ in range(100))


def test_a_token_is_found_by_its_name_as_it_was_a_moment_ago(folder: Path) -> None:
    """A link asks for its token at each opening: another look at its file is due after a quarter of a second.

    Nothing else of a link is remembered, so it is refused within a second of its token's revocation.
    """
    assert tokens.NAMED_SECONDS < 1
    now = [100.0]
    found = tokens_in(folder, monotonic=lambda: now[0], look_share=0)
    assert found.named("none") is None
    first = found.named("one")
    assert first is not None
    assert found.named("one") is first
    (folder / "tokens.d" / "one.toml").unlink()
    assert found.named("one") is first
    now[0] += tokens.NAMED_SECONDS
    assert found.named("one") is None
    (folder / "tokens.d" / "one.toml").write_text(block("one", TWO))
    assert found.named("one") is not None, "a token that was unknown is searched for"


def test_a_token_that_is_gone_from_the_table_is_not_remembered_by_its_name(folder: Path) -> None:
    found = tokens_in(folder, monotonic=lambda: 100.0, look_share=0)
    assert found.named("one") is not None
    (folder / "tokens.d" / "one.toml").unlink()
    found.refresh()
    assert found.named("one") is None
