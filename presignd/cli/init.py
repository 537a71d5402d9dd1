"""``presignd init``: ask a few questions, write the configuration, check it."""

from __future__ import annotations

import getpass
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from presignd.cli import beside, loop, show
from presignd.cli.check import check
from presignd.cli.streams import clean
from presignd.config.paths import base_folder, expanded, home
from presignd.config.toml import toml_text
from presignd.system.clock import utcnow

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
SYSTEM_FILE = Path("/etc/presignd/config.toml")
LIFETIME = "How long links live (7d at most)"
LINKS_GROUP = "presignd-links"
"""The group of systemd/presignd.sysusers.conf."""
UNIT = Path("/etc/systemd/system/presignd.service")
"""Where systemd/install.sh puts the unit."""
PACKAGE = Path("/usr/lib/presignd")
"""Where the Debian package has the program; its units are installed with it."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The least that a configuration needs; with ``region`` "" each start asks the store.

    With a ``broker`` and its ``token``, the daemon has no keys. With ``links_url``, that broker is set up beside it: it
    has the keys, and ``link_expires`` may be "".
    """

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str
    folder: Path
    link_expires: str
    region: str = ""
    broker: str = ""
    token: str = field(default="", repr=False)
    links_url: str = ""


def init_command(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="The file to write; default: $PRESIGND_CONFIG, else presignd/config.toml in $XDG_CONFIG_HOME "
            "(or ~/.config), or for root /etc/presignd/config.toml.",
        ),
    ] = None,
    broker: Annotated[
        str,
        typer.Option(
            "--broker", metavar="URL", help="Use a presignd broker: init then asks for its token, not for keys."
        ),
    ] = "",
    with_broker: Annotated[
        bool,
        typer.Option(
            "--with-broker", help="Set up a broker on this machine too: its links last, and you can revoke them."
        ),
    ] = False,
) -> None:
    """Ask a few questions, write the configuration (mode 0600), and check it.

    With --with-broker it also writes broker.toml (for root, /etc/presignd-broker/broker.toml; mode 0600), which then
    holds the keys, and the daemon gets a token. Without the option, init asks for that only in a terminal.

    Example: presignd init
    """
    from presignd.errors import UsageError  # noqa: PLC0415 - help must be fast

    if broker and with_broker:
        raise UsageError("init: --broker uses a broker that is there, --with-broker makes one; give one of them")
    target = expanded(file or default_file(), os.environ)
    if with_broker:
        beside.require_none(target)
    exists = os.path.lexists(target)
    if exists and not confirm(f"{target} exists. Replace it?", default=False):
        raise UsageError(f"{target} exists and was not changed", fix="name another file: presignd init FILE")
    # Scripts that answer on stdin know no question about a broker.
    offer_one = not broker and sys.stdin.isatty() and not os.path.lexists(beside.broker_file(target))
    answers = ask_all(broker, with_broker=with_broker, offer_one=offer_one)
    set_up_all = set_up_both if answers.links_url else set_up
    raise SystemExit(set_up_all(target, answers, exists=exists))


def set_up(target: Path, answers: Answers, *, exists: bool) -> int:
    """Write the daemon's configuration and check it; return the exit code."""
    write(target, render(answers, group=links_group(target)), replace=exists)
    show.say(f"wrote {target}")
    code = check(target)
    if code == 0:
        show.say(f"All checks passed. To start: {start_command(target)}")
        show.say(first_link(answers.folder))
    else:
        show.say(f"A check failed: correct {target}, then test it again: presignd check -c {target}")
    return code


def set_up_both(target: Path, answers: Answers, *, exists: bool) -> int:
    """Write the configurations of broker and daemon, and check what needs no running broker; return the exit code."""
    from presignd.cli.broker import check as check_broker  # noqa: PLC0415 - help must be fast

    file = beside.broker_file(target)
    write(file, beside.render_broker(answers), replace=False)
    try:
        write(target, render(answers, group=links_group(target)), replace=exists)
    except BaseException:
        file.unlink()  # unused, and the next try would refuse to replace it
        raise
    show.say(f"wrote {file} and {target}")
    code = check_broker(file) or check(target, offline=True)
    show.say(f"A check failed: correct {file} or {target}, then go on." if code else "All checks passed.")
    for line in [*beside.next_steps(target, file), first_link(answers.folder)]:
        show.say(line)
    return code


def first_link(folder: Path) -> str:
    """Return how to get a first link."""
    return f"Then drop a file into {folder}. To see its link: presignd links"


def start_command(target: Path, unit: Path = UNIT) -> str:
    """Return the command that starts a daemon with ``target``: the service's, if that is installed and reads it."""
    if target == SYSTEM_FILE and (is_packaged() or unit.exists()):
        return "systemctl enable --now presignd"
    return f"presignd run -c {target}"


def is_packaged() -> bool:
    """Return whether this program came as the Debian package."""
    return Path(sys.prefix) == PACKAGE


def default_file() -> Path:
    """Return the file that ``init`` writes when none is named."""
    if named := os.environ.get("PRESIGND_CONFIG"):
        return Path(named)
    if os.geteuid() == 0:
        return SYSTEM_FILE
    base = base_folder(os.environ, "XDG_CONFIG_HOME", ".config")
    return (base or Path("~/.config")) / "presignd" / "config.toml"


# --- asking -------------------------------------------------------------------------------------


def ask_all(broker: str = "", *, with_broker: bool = False, offer_one: bool = False) -> Answers:
    """Ask every question on stderr; each answer is checked before the next question.

    ``with_broker`` asks about the links of a new local broker, ``offer_one`` whether to set one up.
    """
    from presignd.config.addresses import parse_endpoint  # noqa: PLC0415 - help must be fast
    from presignd.config.rules import check_bucket  # noqa: PLC0415 - as above

    if broker:
        _require_address(broker)
    endpoint = ask("The store's endpoint", parse_endpoint, default="http://127.0.0.1:9000")
    token = ask("The broker's token (not shown)", _secret, hidden=True) if broker else ""
    access_key = (
        "" if broker else ask("Access key (empty: from AWS_* variables or another usual source)", _key, default="")
    )
    secret_key = ask("Secret key (not shown)", _secret, hidden=True) if access_key else ""
    bucket = ask("Bucket", check_bucket, default="test-bucket")
    folder = ask("Folder to watch", _folder, default=str(default_folder()))
    answers = Answers(endpoint, access_key, secret_key, bucket, folder, "", broker=broker, token=token)
    if with_broker or (offer_one and confirm(beside.OFFER, default=False)):
        return with_region(beside.ask_for_links(answers))
    question = "How long presigned links live (7d at most; not the broker's stable ones)" if broker else LIFETIME
    answers = replace(answers, link_expires=ask(question, _expiry, default="15m"))
    return answers if broker else with_region(answers)


def _require_address(broker: str) -> None:
    from presignd.config.addresses import parse_broker_url  # noqa: PLC0415 - help must be fast
    from presignd.errors import UsageError  # noqa: PLC0415 - as above

    try:
        parse_broker_url(broker)
    except ValueError as problem:
        raise UsageError(f"--broker {problem}") from None


def ask(question: str, parse: Callable[[str], T], *, default: str | None = None, hidden: bool = False) -> T:
    """Ask until ``parse`` accepts the answer, else show the reason of its ``ValueError``; "" means ``default``."""
    shown = f"{question} [{default}]: " if default else f"{question}: "
    while True:
        answer = _read(shown, hidden=hidden)
        try:
            return parse(answer if answer or default is None else default)
        except ValueError as problem:
            show.say(f"  it {problem}")


def confirm(question: str, *, default: bool) -> bool:
    """Ask a yes-or-no question."""
    answer = _read(f"{question} [{'Y/n' if default else 'y/N'}]: ").lower()
    return answer in ("y", "yes") if answer else default


def _read(prompt: str, *, hidden: bool = False) -> str:
    """Read one answer from a terminal or a pipe; raise ``UsageError`` at the end of input."""
    from presignd.errors import UsageError  # noqa: PLC0415 - help must be fast

    try:
        if hidden and sys.stdin.isatty():
            return getpass.getpass(prompt).strip()
        sys.stderr.write(clean(prompt))
        sys.stderr.flush()
        line = sys.stdin.readline()
    except EOFError:
        line = ""
    if not line:
        sys.stderr.write("\n")
        raise UsageError(
            "init asks questions, but its input has ended; nothing was written",
            fix="run it in a terminal, or copy config.example.toml",
        )
    return line.strip()


def _key(text: str) -> str:
    if not text.isprintable() or " " in text:
        raise ValueError("holds a space or a control character")
    return text


def _secret(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return _key(text)


def _expiry(text: str) -> str:
    from presignd.config.rules import check_expiry  # noqa: PLC0415 - help must be fast
    from presignd.units import format_duration, parse_whole_seconds  # noqa: PLC0415 - as above

    return format_duration(check_expiry(parse_whole_seconds(text)))


def default_folder() -> Path:
    """Return the default folder: for root below /srv, for a person in their home."""
    own = None if os.geteuid() == 0 else home(os.environ)
    return own / "drop" if own else Path("/srv/drop")


def _folder(text: str) -> Path:
    """Return the absolute folder; make it if the user agrees."""
    if not text or not text.isprintable():
        raise ValueError("is not the name of a folder")
    folder = expanded(Path(text), os.environ).absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError("is a file; name the folder it is in")
    if not folder.exists() and confirm(f"{folder} does not exist. Make it?", default=True):
        _make(folder)
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as problem:
        raise ValueError(f"can't be made: {problem.strerror}") from None


# --- the region ---------------------------------------------------------------------------------


def with_region(answers: Answers) -> Answers:
    """Return ``answers`` with the bucket's region; print the reason when it can't be found."""
    from presignd.errors import PresigndError  # noqa: PLC0415 - help must be fast

    try:
        region = loop.run(_find_region(answers))
    except PresigndError as problem:
        show.say(f"The region could not be found ({problem.message}). presignd will ask the store at each start.")
        return answers
    show.say(f"region: {region}")
    return replace(answers, region=region)


async def _find_region(answers: Answers) -> str:
    from presignd.config import PresignConfig, UploadConfig  # noqa: PLC0415 - help must be fast
    from presignd.presign.local import local_presigner  # noqa: PLC0415 - as above
    from presignd.presign.region import find_region, region_in_host  # noqa: PLC0415 - as above
    from presignd.store.client import StoreClient  # noqa: PLC0415 - as above

    given = {"access_key": answers.access_key, "secret_key": answers.secret_key}
    presign = PresignConfig.model_validate({"endpoint": answers.endpoint, **given})
    if named := region_in_host(presign.endpoint):
        return named
    store = StoreClient(presign, UploadConfig(timeout=5.0))
    presigner = local_presigner(presign, send=store.send, clock=utcnow)
    try:
        return (await find_region(answers.bucket, presigner.location_grant, store.send)).region
    finally:
        await store.close()


# --- writing ------------------------------------------------------------------------------------


def links_group(target: Path) -> str:
    """Return the group that may read the links of the system service, if its installation made it."""
    import grp  # noqa: PLC0415 - help must be fast

    try:
        return grp.getgrnam(LINKS_GROUP).gr_name if target == SYSTEM_FILE else ""
    except KeyError:
        return ""


def render(answers: Answers, group: str = "") -> str:
    """Return the configuration as TOML; ``group`` may read the links and use the control socket."""
    keys, lifetime = "", f"{toml_text(answers.link_expires)}\n"
    groups = f"\n[links]\ngroup = {toml_text(group)}\n\n[control]\ngroup = {toml_text(group)}\n" if group else ""
    if answers.broker:
        keys = f'kind = "broker"\nurl = {toml_text(answers.broker)}\ntoken = {toml_text(answers.token)}\n'
    elif answers.access_key:
        keys = f"access_key = {toml_text(answers.access_key)}\nsecret_key = {toml_text(answers.secret_key)}\n"
    return f"""\
# Written by presignd init. Every option, its default and unit: config.example.toml

[presign]
endpoint = {toml_text(answers.endpoint)}
region = {toml_text(answers.region)}
{keys}{"" if answers.links_url else f"get_expires = {lifetime}"}
[[watch]]
name = "drop"
path = {toml_text(str(answers.folder))}
bucket = {toml_text(answers.bucket)}
{f"link_expires = {lifetime}" if answers.links_url and answers.link_expires else ""}{groups}"""


def write(target: Path, text: str, *, replace: bool) -> None:
    """Write ``target`` (mode 0600; see ``share``), whole or not at all; without ``replace`` an existing file stays.

    A crash leaves at most a temporary file beside it. Raises ``UsageError`` when it can't be written.
    """
    from presignd.errors import UsageError  # noqa: PLC0415 - help must be fast
    from presignd.system.durable import write_file  # noqa: PLC0415 - help must be fast

    try:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_file(target, text.encode(), replace=replace)
        share(target)
    except FileExistsError:
        raise UsageError(f"{target} appeared meanwhile and was not changed", fix="run init again") from None
    except OSError as problem:
        fix = "name a file that you may write: presignd init FILE"
        raise UsageError(f"{target} can't be written: {problem.strerror}", fix=fix) from None


def share(file: Path) -> None:
    """Let a service read root's ``file`` (0640) in the folder of its group, as /etc/presignd is root:presignd."""
    from presignd.system.trust import is_private  # noqa: PLC0415 - help must be fast

    group = file.parent.stat().st_gid
    if os.geteuid() == 0 and group != 0 and is_private(group):
        os.chown(file, 0, group)  # before the mode: no other group may read it in between
        file.chmod(0o640)
