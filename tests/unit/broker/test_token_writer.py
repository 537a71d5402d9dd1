"""[[token]] blocks in files: written completely or not at all, removed alone, also by several writers at a time."""

from __future__ import annotations

import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from presignd.broker import token_writer
from presignd.broker.tokens import hash_of, new_token
from presignd.errors import UsageError

ONE, TWO = new_token(), new_token()


def block(name: str, secret: str = "", **options: Any) -> str:
    given = {"name": name, "hash": hash_of(secret) if secret else "", "bucket": "bucket", **options}
    return token_writer.render({key: value for key, value in given.items() if value})


def test_a_block_is_cut_out_and_the_rest_stays_byte_for_byte(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    first = "# kept\n" + block("one", ONE) + "\n# about two\n"
    file.write_text(first + block("two", TWO, prefix="[[token]]/") + block("three", "three"))
    file.chmod(0o640)
    token_writer.revoke(file, "two")
    assert file.read_text() == first + block("three", "three")
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_file_with_nothing_left_goes(tmp_path: Path) -> None:
    token_writer.create(tmp_path / "t.toml", block("one", ONE))
    assert (tmp_path / "t.toml").stat().st_mode & 0o777 == 0o640
    token_writer.revoke(tmp_path / "t.toml", "one")
    assert list(tmp_path.iterdir()) == []


def test_a_token_behind_a_symlink_is_taken_out_of_the_file_itself(tmp_path: Path) -> None:
    """Another broker may read that file by its own name."""
    (tmp_path / "shared.toml").write_text(block("one", ONE))
    (tmp_path / "one.toml").symlink_to("shared.toml")
    token_writer.revoke(tmp_path / "one.toml", "one")
    assert (tmp_path / "one.toml").is_symlink()
    assert tomllib.loads((tmp_path / "shared.toml").read_text()).get("token") is None


def test_a_token_is_revoked_in_a_file_that_windows_wrote(tmp_path: Path) -> None:
    both = f"\ufeff{block('one', ONE)}\n{block('two', TWO)}".replace("\n", "\r\n")
    (tmp_path / "t.toml").write_bytes(both.encode())
    token_writer.revoke(tmp_path / "t.toml", "one")
    assert [each["name"] for each in tomllib.loads((tmp_path / "t.toml").read_text())["token"]] == ["two"]


@pytest.mark.parametrize(
    "text",
    [
        'token = [{name = "one", bucket = "b"}, {name = "two", bucket = "b"}]\n',
        '[[token]]\nname = "one"\ntext = """\n[[token]]\nname = "two"\n"""\n',
    ],
)
def test_a_block_that_cannot_be_separated_from_the_rest_is_left_to_a_person(tmp_path: Path, text: str) -> None:
    file = tmp_path / "t.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match="can't be separated"):
        token_writer.revoke(file, "one")
    assert tomllib.loads(file.read_text()) == tomllib.loads(text)


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text("x = 1\n")
    with pytest.raises(UsageError, match="there already"):
        token_writer.create(tmp_path / "t.toml", block("one", ONE))
    assert [each.name for each in tmp_path.iterdir()] == ["t.toml"]


def test_revoked_at_the_same_moment_all_are(tmp_path: Path) -> None:
    """Each takes its own out of what it read: one that read before another wrote would put that one's back."""
    names = [f"token-{number}" for number in range(40)]
    file, begin = tmp_path / "t.toml", threading.Barrier(8)
    file.write_text("# kept\n" + "\n".join(block(name, name) for name in names))

    def revoke(mine: list[str]) -> None:
        begin.wait(30)
        for name in mine:
            token_writer.revoke(file, name)

    with ThreadPoolExecutor(8) as revokers:
        for done in [revokers.submit(revoke, names[start::8]) for start in range(8)]:
            done.result(60)
    assert file.read_text() == "# kept\n"
    assert list(tmp_path.iterdir()) == [file]


def test_of_many_that_make_the_same_file_at_the_same_moment_one_does(tmp_path: Path) -> None:
    file, begin, made = tmp_path / "t.toml", threading.Barrier(8), []

    def create(name: str) -> None:
        begin.wait(30)
        with suppress(UsageError):
            token_writer.create(file, block(name, name))
            made.append(name)

    with ThreadPoolExecutor(8) as makers:
        for done in [makers.submit(create, f"token-{number}") for number in range(8)]:
            done.result(60)
    assert [each["name"] for each in tomllib.loads(file.read_text())["token"]] == made
    assert list(tmp_path.iterdir()) == [file]


def test_a_token_whose_file_went_meanwhile_is_as_good_as_revoked(tmp_path: Path) -> None:
    token_writer.revoke(tmp_path / "t.toml", "one")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("linked", [False, True], ids=["while it wrote", "between link and unlink"])
def test_what_a_crash_left_behind_is_taken_over(tmp_path: Path, linked: bool) -> None:
    file, left = tmp_path / "t.toml", tmp_path / ".t.toml.new"
    file.write_text(block("one", ONE) + block("two", TWO))
    if linked:
        left.hardlink_to(file)
    else:
        left.write_text("x" * 10_000)
    with file.open() as before:
        token_writer.revoke(file, "one")
        assert before.read() == block("one", ONE) + block("two", TWO), "who reads the former file reads it whole"
    assert file.read_text() == block("two", TWO)
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_takes_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be written: No such file"):
        token_writer.create(tmp_path / "away" / "t.toml", block("one", ONE))
