"""The sources of the configuration, which one wins, and that all problems are reported at once."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from presignd.config import Loaded, load
from presignd.errors import UsageError

WATCH = """
[[watch]]
name = "drop"
path = "/srv/drop"
bucket = "test-bucket"
"""


class Home:
    """A home folder of its own, and ``load`` with nothing else in the environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {"HOME": str(folder)}
        self.file = folder / "config.toml"

    def write(self, text: str, file: Path | None = None) -> Path:
        target = file or self.file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o600)
        return target

    def load(self, text: str | None = None, /, **environ: str) -> Loaded:
        path = None if text is None else self.write(text)
        return load(path, environ=self.environ | environ)

    def problems(self, text: str | None = None, /, **environ: str) -> list[str]:
        with pytest.raises(UsageError) as caught:
            self.load(text, **environ)
        return list(caught.value.problems)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_only_a_watch_is_needed(home: Home) -> None:
    loaded = home.load(WATCH)
    (watch,) = loaded.config.watches
    assert (watch.name, watch.path, watch.bucket, watch.key) == ("drop", Path("/srv/drop"), "test-bucket", "{path}")
    assert loaded.config.presign.endpoint == "http://127.0.0.1:9000"
    assert loaded.file == home.file
    assert loaded.sources["watch.drop.path"] == f"file {home.file}"
    assert loaded.sources["presign.endpoint"] == "default"
    assert loaded.warnings == ()


def test_each_source_wins_over_the_ones_below_it(home: Home) -> None:
    """Flags, then PRESIGND_*, then the file, then AWS_*, then defaults: §3 of the contract."""
    environ = {"AWS_REGION": "aws"}
    steps = [
        (home.load(WATCH), "", "default"),
        (home.load(WATCH, **environ), "aws", "AWS_REGION"),
        (home.load(f'[presign]\nregion="file"\n{WATCH}', **environ), "file", f"file {home.file}"),
    ]
    environ["PRESIGND_PRESIGN__REGION"] = "env"
    steps.append((load(home.file, environ=environ), "env", "environment PRESIGND_PRESIGN__REGION"))
    steps.append((load(home.file, flags={"presign.region": "flag"}, environ=environ), "flag", "flag"))
    for loaded, region, source in steps:
        assert loaded.config.presign.region == region
        assert loaded.sources["presign.region"] == source


@pytest.mark.parametrize(
    ("environ", "key", "value", "source"),
    [
        ({"AWS_ENDPOINT_URL": "http://a:1"}, "endpoint", "http://a:1", "AWS_ENDPOINT_URL"),
        (
            {"AWS_ENDPOINT_URL": "http://a:1", "AWS_ENDPOINT_URL_S3": "http://b:2"},
            "endpoint",
            "http://b:2",
            "AWS_ENDPOINT_URL_S3",
        ),
        ({"AWS_DEFAULT_REGION": "d"}, "region", "d", "AWS_DEFAULT_REGION"),
        ({"AWS_DEFAULT_REGION": "d", "AWS_REGION": "r"}, "region", "r", "AWS_REGION"),
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": "d"}, "region", "d", "AWS_DEFAULT_REGION"),
        ({"SSL_CERT_FILE": "/ssl.pem"}, "ca_file", Path("/ssl.pem"), "SSL_CERT_FILE"),
        ({"SSL_CERT_FILE": "/ssl.pem", "AWS_CA_BUNDLE": "/aws.pem"}, "ca_file", Path("/aws.pem"), "AWS_CA_BUNDLE"),
    ],
)
def test_what_other_s3_tools_are_told_holds_here_too(
    home: Home, environ: dict[str, str], key: str, value: object, source: str
) -> None:
    loaded = home.load(WATCH, **environ)
    assert getattr(loaded.config.presign, key) == value
    assert loaded.sources[f"presign.{key}"] == source


def test_a_whole_configuration_comes_from_the_environment_alone(home: Home) -> None:
    loaded = home.load(
        PRESIGND_PRESIGN__ENDPOINT="http://minio:9000",
        PRESIGND_PRESIGN__ACCESS_KEY="ak",
        PRESIGND_PRESIGN__SECRET_KEY="sk",
        PRESIGND_WATCH__DROP__PATH="/data",
        PRESIGND_WATCH__DROP__BUCKET="bucket",
        PRESIGND_WATCH__DROP__RECURSIVE="false",
        PRESIGND_WATCH__DROP__SETTLE="2s",
        PRESIGND_WATCH__DROP__IGNORE='["*.bak", "a b"]',
        PRESIGND_WATCH__DROP__HEADERS='{"x-amz-meta-origin": "env"}',
        PRESIGND_UPLOAD__CONCURRENCY="4",
        PRESIGND_LINKS__IN_LOG="1",
        PRESIGND_LOG__LEVEL="DEBUG",
    )
    config, (watch,) = loaded.config, loaded.config.watches
    assert loaded.file is None
    assert (watch.name, watch.path, watch.recursive, watch.settle) == ("drop", Path("/data"), False, 2.0)
    assert watch.ignore == ("*.bak", "a b")
    assert watch.headers == {"x-amz-meta-origin": "env"}
    assert (config.upload.concurrency, config.links.in_log, config.log.level) == (4, True, "debug")
    assert loaded.sources["watch.drop.path"] == "environment PRESIGND_WATCH__DROP__PATH"


def test_lists_and_tables_from_the_environment_are_toml_or_json(home: Home) -> None:
    (watch,) = home.load(
        WATCH,
        PRESIGND_WATCH__DROP__IGNORE="['*.bak', ]",
        PRESIGND_WATCH__DROP__HEADERS='{ x-amz-meta-a = "1" }',
    ).config.watches
    assert (watch.ignore, watch.headers) == (("*.bak",), {"x-amz-meta-a": "1"})
    (problem,) = home.problems(WATCH, PRESIGND_WATCH__DROP__IGNORE="*.bak")
    assert problem.startswith("watch.drop.ignore (from environment PRESIGND_WATCH__DROP__IGNORE): must be a list")


@pytest.mark.parametrize("name", ["my_scans", "my-scans", "My.Scans"])
def test_a_variables_name_means_the_watch_that_differs_only_in_case_and_punctuation(home: Home, name: str) -> None:
    """A shell can't write "my-scans" in a variable's name."""
    loaded = home.load(WATCH.replace("drop", name), PRESIGND_WATCH__MY_SCANS__LINK_FILE="{name}.link")
    (watch,) = loaded.config.watches
    assert (watch.name, watch.link_file) == (name, "{name}.link")


def test_a_variable_that_could_mean_two_watches_is_refused(home: Home) -> None:
    text = WATCH.replace("drop", "a-b") + WATCH.replace("drop", "a_b")
    (problem,) = home.problems(text, PRESIGND_WATCH__A_B__BUCKET="bucket") or [""]
    assert "PRESIGND_WATCH__A_B__BUCKET: could mean any of the watches a-b, a_b" in problem


def test_a_watch_from_the_environment_joins_those_of_the_file_and_keeps_underscores(home: Home) -> None:
    loaded = home.load(WATCH, PRESIGND_WATCH__MY__OLD_SCANS__PATH="/o", PRESIGND_WATCH__MY__OLD_SCANS__BUCKET="old")
    assert [watch.name for watch in loaded.config.watches] == ["drop", "my__old_scans"]


def test_a_name_given_by_variable_names_the_watch(home: Home) -> None:
    loaded = home.load(
        PRESIGND_WATCH__X__NAME="My-Scans", PRESIGND_WATCH__X__PATH="/s", PRESIGND_WATCH__X__BUCKET="bucket"
    )
    assert loaded.config.watches[0].name == "My-Scans"
    assert loaded.sources["watch.My-Scans.path"] == "environment PRESIGND_WATCH__X__PATH"


def test_an_empty_variable_is_one_not_set(home: Home) -> None:
    loaded = home.load(f'[presign]\nregion="file"\n{WATCH}', PRESIGND_PRESIGN__REGION="", PRESIGND_UPLOAD__ATTEMPTS="")
    assert (loaded.config.presign.region, loaded.config.upload.attempts) == ("file", 10)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("yes", True), ("off", False), ("0", False)])
def test_yes_and_no_are_read_from_the_environment_as_people_write_them(home: Home, text: str, value: object) -> None:
    assert home.load(WATCH, PRESIGND_LINKS__IN_LOG=text).config.links.in_log is value


def test_yes_and_no_are_not_guessed(home: Home) -> None:
    (problem,) = home.problems(WATCH, PRESIGND_LINKS__IN_LOG="maybe")
    assert problem == ('links.in_log (from environment PRESIGND_LINKS__IN_LOG): must be true or false, not "maybe"')


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("PRESIGND_UPLOAD__CONCURENCY", "did you mean concurrency?"),
        ("PRESIGND_UPLOADS__CONCURRENCY", "did you mean upload?"),
        ("PRESIGND_UPLOAD_CONCURRENCY", "write PRESIGND_UPLOAD__CONCURRENCY"),
        ("PRESIGND_WATCH_DROP_PATH", "write PRESIGND_WATCH__<NAME>__<KEY>"),
        ("PRESIGND_WATCH__PATH", "write PRESIGND_WATCH__<NAME>__<KEY>"),
        ("PRESIGND_LOG__X__LEVEL", "write PRESIGND_LOG__<KEY>"),
        ("PRESIGND_WATCH__DROP__PTH", "did you mean path?"),
    ],
)
def test_a_mistyped_variable_is_a_problem_with_the_right_one(home: Home, variable: str, hint: str) -> None:
    (problem,) = home.problems(WATCH, **{variable: "x"})
    assert problem.startswith(f"{variable}: ")
    assert hint in problem


def test_variables_that_kubernetes_sets_for_a_service_of_that_name_are_left_alone(home: Home) -> None:
    loaded = home.load(WATCH, PRESIGND_SERVICE_HOST="10.0.0.1", PRESIGND_WEB_PORT="tcp://10.0.0.1:80")
    assert "environment" not in str(loaded.sources)


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ('[presign]\nendpont = "x"', "presign.endpont", "did you mean endpoint?"),
        ("[uplod]", "uplod", "did you mean upload?"),
        ('[presign]\n"put-expires" = "1h"', "presign.put-expires", "did you mean put_expires?"),
        ("[[watches]]", "watches", "did you mean watch?"),
        ("upload = 5", "upload", "write [upload]"),
    ],
)
def test_an_unknown_key_or_section_is_a_problem_with_the_nearest_known(
    home: Home, text: str, key: str, hint: str
) -> None:
    (problem,) = home.problems(f"{text}\n{WATCH}")
    assert problem.startswith(f"{key}: ")
    assert hint in problem


def test_every_problem_is_told_at_once_each_with_its_key(home: Home) -> None:
    text = """
    extra = 1
    [presign]
    endpoint = "http://minio/bucket"
    put_expires = "30s"
    get_expires = "8d"
    [upload]
    concurrency = 0
    part_size = "1MiB"
    [[watch]]
    name = "drop"
    key = "{pth}"
    bucket = "B"
    after = "move"
    timezone = "Mars"
    [[watch]]
    path = "/b"
    headers = { "x-amz-acl" = "public-read" }
    """
    keys = [problem.partition(": ")[0] for problem in home.problems(text, PRESIGND_LOG__FORMAT="xml")]
    assert sorted(keys) == sorted(
        [
            "extra",
            "presign.endpoint",
            "presign.put_expires",
            "presign.get_expires",
            "upload.concurrency",
            "upload.part_size",
            "watch.drop.path",
            "watch.drop.key",
            "watch.drop.bucket",
            "watch.drop.move_to",
            "watch.drop.timezone",
            "watch[2].name",
            "watch[2].bucket",
            "watch[2].headers",
            "log.format (from environment PRESIGND_LOG__FORMAT)",
        ]
    )


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ('[presign]\nkind = "broke"', 'presign.kind: must be "local" or "broker", not "broke"'),
        ('[presign]\nurl = "https://b"', "presign.url: is for kind = "),
        ('[web]\nlisten = ":8321"', "web.listen: must be host:port"),
        ('[web]\nlisten = "8321"', "web.listen: must be host:port"),
        ('[web]\nlisten = "127.0.0.1:65536"', "web.listen: must be host:port"),
        ('[web]\nlisten = "http://127.0.0.1:8321"', "web.listen: must be host:port"),
        ('[web]\nlisten = "unix:web.sock"', "web.listen: must name an absolute path after unix:"),
        ('[log]\nlevel = "trace"', 'log.level: must be "debug", "info", "warning" or "error", not "trace"'),
        ("[upload]\nconcurrency = true", "upload.concurrency: must be a whole number"),
        ("[upload]\nconcurrency = 1.5", "upload.concurrency: must be a whole number"),
        ("[links]\nkeep = 0", "links.keep: must be at least 1"),
        ('[upload]\npart_size = "4MiB"', "upload.part_size: must be 5MiB to 5GiB"),
        ('[upload]\ntimeout = "soon"', "upload.timeout: must be a duration such as"),
        ('[presign]\nput_expires = "1m"', "presign.put_expires: must be longer than 60s"),
        ('[presign]\nget_expires = "8d"', "presign.get_expires: must be at most 7d"),
        ('[presign]\nget_expires = "1500ms"', "presign.get_expires: must be whole seconds"),
        ('[presign]\nendpoint = ""', "presign.endpoint: is empty"),
        ('[presign]\nclient_key = "/k"', "presign.client_key: is given without client_cert"),
        ("[presign]\nregion = 5", "presign.region: must be text in quotes, not 5"),
        ("[ledger]\npath = 5", "ledger.path: must be a path, not 5"),
    ],
)
def test_a_refused_option_says_what_it_must_be(home: Home, option: str, words: str) -> None:
    (problem,) = home.problems(f"{option}\n{WATCH}")
    assert problem.startswith(words)


FOLDER = 'unit = "folder"'
MARKED = f'{FOLDER}\nready_marker = "{{name}}.ok"'


@pytest.mark.parametrize("key", ["{path}", "in/{watch}/{host}/{path}", "{{a}}/{path}"])
def test_a_folder_can_be_linked_as_a_whole_where_its_files_share_a_prefix(home: Home, key: str) -> None:
    (watch,) = home.load(f'{WATCH}{MARKED}\nkey = "{key}"').config.watches
    assert watch.links_folders


def test_what_is_wrong_with_the_options_a_unit_needs_is_said_alone(home: Home) -> None:
    problems = home.problems(f'{WATCH}{FOLDER}\nready_marker = "done"\nkey = "{{nme}}"')
    assert [problem.partition(":")[0] for problem in problems] == ["watch.drop.key", "watch.drop.ready_marker"]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ('after = "move"', "move_to: is missing"),
        ('after = "move"\nmove_to = "/srv/drop/"', "move_to: is the watch's own folder"),
        ('link_expires = "8d"', "link_expires: must be at most 7d"),
        ('links = "presigned"\nlink_expires = "8d"', "link_expires: must be at most 7d"),
        ('link_expires = "0s"', "link_expires: must be at least 1s"),
        ('links = "stable"', 'links: "stable" needs presign.kind = "broker"'),
        ('links = "permanent"', 'links: must be "auto", "presigned" or "stable"'),
        ('settle = "soon"', 'settle: must be "auto" or a duration'),
        ('settle = ""', 'settle: must be "auto" or a duration'),
        ('events = "fanotify"', 'events: must be "auto", "inotify" or "watchfiles"'),
        ('collision = "replace"', 'collision: must be "update"'),
        ('ready_marker = "done"', "ready_marker: needs {name} or {stem}"),
        ('link_file = "links/{name}"', 'link_file: has a "/"'),
        ('ready_marker = "{name}.x"\nlink_file = "{name}.x"', "link_file: is the same as ready_marker"),
        ('unit = "dir"', 'unit: must be "file" or "folder"'),
        ('unit = "folder"', 'unit: is "folder", which needs ready_marker with {name}'),
        (f'{FOLDER}\nready_marker = "{{stem}}.ok"', 'unit: is "folder", which needs ready_marker with {name}'),
        (f"{MARKED}\nrecursive = false", 'unit: is "folder", which needs recursive = true'),
        (f'{MARKED}\nexisting = "ignore"', 'unit: is "folder", which needs existing = "upload"'),
        (f'{MARKED}\nkey = "{{uuid}}/{{path}}"', 'unit: is "folder", which needs a key that ends with {path}'),
        (f'{MARKED}\nkey = "{{path}}.bin"', 'unit: is "folder", which needs a key that ends with {path}'),
        (f'{MARKED}\nkey = "all/{{name}}"', 'unit: is "folder", which needs a key that ends with {path}'),
        ('ignore = "*.bak"', "ignore: must be a list"),
        ('ignore = ["!"]', "ignore: has "),
        ("ignore = [5]", "ignore[0]: must be text in quotes, not 5"),
        ('max_size = "0B"', "max_size: must be at least 1B"),
        ('poll_interval = "0s"', "poll_interval: must be at least 100ms"),
        ('headers = {"x-amz-meta-a" = 1}', "headers.x-amz-meta-a: must be text in quotes"),
    ],
)
def test_a_refused_option_of_a_watch_says_what_it_must_be(home: Home, option: str, words: str) -> None:
    (problem,) = home.problems(WATCH + option)
    assert problem.startswith(f"watch.drop.{words}")


def test_two_watches_of_one_name_are_refused(home: Home) -> None:
    assert home.problems(WATCH + WATCH) == ["watch.drop.name: two watches have this name; give each its own"]


@pytest.mark.parametrize("text", ["[watch]\nname='x'", "[watch.drop]\npath='/x'", "watch = 5", "watch = [5]"])
def test_a_watch_written_as_something_else_is_told_how(home: Home, text: str) -> None:
    assert "watch: write [[watch]]" in home.problems(text)[0]


def test_a_file_without_a_watch_is_a_problem(home: Home) -> None:
    assert home.problems("") == ["watch: there is none; add a [[watch]] with name, path and bucket, or an [[inbox]]"]
    assert "watch[1]: is empty" in home.problems("[[watch]]")[0]


def test_a_toml_error_tells_line_and_column(home: Home) -> None:
    with pytest.raises(UsageError, match=r"config.toml: is no valid TOML: line 2, column 10: Invalid value"):
        home.load("[presign]\nregion = eu\n")


def test_a_file_that_windows_saved_is_read(home: Home) -> None:
    home.file.write_bytes(b"\xef\xbb\xbf" + WATCH.replace("\n", "\r\n").encode())
    assert load(home.file, environ=home.environ).config.watches[0].name == "drop"


def test_a_file_that_is_no_text_or_not_there_is_one_clear_line(home: Home) -> None:
    home.file.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="is not UTF-8"):
        load(home.file, environ=home.environ)
    with pytest.raises(UsageError, match="can't be read: No such file"):
        load(home.folder / "none.toml", environ=home.environ)
    with pytest.raises(UsageError, match="can't be read: Is a directory"):
        load(home.folder, environ=home.environ)


def test_the_file_is_looked_for_where_the_contract_says_and_never_here(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home.folder)
    home.write(WATCH)
    home.write(WATCH, home.folder / "presignd.toml")
    monkeypatch.setattr(import_module("presignd.config.load"), "_SYSTEM_FILE", home.folder / "etc/config.toml")
    with pytest.raises(UsageError, match="no configuration found") as caught:
        home.load()
    assert str(home.folder / ".config/presignd/config.toml") in caught.value.message
    assert str(home.folder / "etc/config.toml") in caught.value.message
    assert "presignd init" in caught.value.fix
    assert "presignd demo" in caught.value.fix

    expected = [home.write(WATCH, home.folder / "etc/config.toml")]
    assert home.load().file == expected[-1]
    expected.append(home.write(WATCH, home.folder / ".config/presignd/config.toml"))
    assert home.load().file == expected[-1]
    expected.append(home.write(WATCH, home.folder / "xdg/presignd/config.toml"))
    environ = {"XDG_CONFIG_HOME": str(home.folder / "xdg")}
    assert home.load(**environ).file == expected[-1]
    expected.append(home.write(WATCH, home.folder / "named.toml"))
    environ["PRESIGND_CONFIG"] = str(expected[-1])
    assert home.load(**environ).file == expected[-1]
    assert load(expected[0], environ=home.environ | environ).file == expected[0]


def test_a_named_file_must_be_there_even_when_the_environment_would_do(home: Home) -> None:
    environ = {"PRESIGND_WATCH__DROP__PATH": "/d", "PRESIGND_WATCH__DROP__BUCKET": "bucket"}
    with pytest.raises(UsageError, match="can't be read"):
        home.load(**environ, PRESIGND_CONFIG=str(home.folder / "none.toml"))


def test_paths_in_a_file_start_at_its_folder_and_others_at_the_current_one(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home.folder / "cwd").mkdir()
    monkeypatch.chdir(home.folder / "cwd")
    text = """
    [presign]
    ca_file = "ca.pem"
    [[watch]]
    name = "drop"
    path = "~/drop"
    bucket = "bucket"
    """
    config = home.load(text, PRESIGND_CONTROL__SOCKET="c.sock").config
    assert config.presign.ca_file == home.folder / "ca.pem"
    assert config.watches[0].path == home.folder / "drop"
    assert config.control.socket == home.folder / "cwd/c.sock"


def test_state_goes_where_systemd_or_the_user_keeps_it(home: Home) -> None:
    loaded = home.load(WATCH)
    assert loaded.config.ledger.path == home.folder / ".local/state/presignd"
    assert loaded.config.links.file == home.folder / ".local/state/presignd/links/links.jsonl"
    assert loaded.sources["ledger.path"] == "default"
    assert home.load(WATCH, XDG_STATE_HOME="/x").config.ledger.path == Path("/x/presignd")
    assert home.load(WATCH, XDG_STATE_HOME="relative").config.ledger.path == home.folder / ".local/state/presignd"
    systemd = home.load(WATCH, STATE_DIRECTORY="/var/lib/a:/var/lib/b")
    assert systemd.config.ledger.path == Path("/var/lib/a")
    assert systemd.sources["ledger.path"] == "STATE_DIRECTORY"
    assert home.load(f'[ledger]\npath="l"\n{WATCH}').config.links.file == home.folder / "l/links/links.jsonl"


def test_flags_reach_sections_and_watches_and_none_is_a_flag_not_given(home: Home) -> None:
    file = home.write(WATCH)
    flags = {"upload.concurrency": 3, "watch.drop.link_expires": "1h", "log.level": None}
    loaded = load(file, flags=flags, environ=home.environ)
    assert (loaded.config.upload.concurrency, loaded.config.watches[0].link_expires) == (3, 3600)
    assert loaded.sources["upload.concurrency"] == "flag"
    with pytest.raises(UsageError) as caught:
        load(file, flags={"upload.x": 1}, environ=home.environ)
    assert caught.value.problems == ("upload.x: is no option",)


def test_every_option_has_a_source(home: Home) -> None:
    loaded = home.load(WATCH)
    document = loaded.config.model_dump(mode="json", by_alias=True)
    (watch,) = document.pop("watch")
    expected = {f"{section}.{key}" for section, table in document.items() for key in table}
    assert set(loaded.sources) == expected | {f"watch.drop.{key}" for key in watch}


def test_a_name_with_control_characters_cannot_forge_a_line(home: Home) -> None:
    (problem, *_) = home.problems(f'"a\\nb\\u001b[2J" = 1\n{WATCH}')
    assert problem.startswith(r"a\nb\x1b[2J: is no section")
