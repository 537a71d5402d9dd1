"""The configuration as frozen models. Durations are seconds, sizes bytes; "" and "auto" become None.

``kinds`` says how each option is read and written, ``rules`` what it may be; what depends on another
option is checked here, by the later one of the two. ``load`` fills in what comes from elsewhere.
"""

from __future__ import annotations

import os.path
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from presignd.config import kinds, rules
from presignd.config.addresses import check_listen, mask_userinfo, parse_broker_url, parse_endpoint, parse_proxy
from presignd.config.templates import check_key_template, check_name_template

_MIB, _GIB = 1 << 20, 1 << 30
_MIN_EXPIRES = 60


def _unless_empty(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda value: check(value) if value else value)


def _range(low: float, high: float, words: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if value is not None and not low <= value <= high:
            raise ValueError(words)
        return value

    return AfterValidator(check)


def _at_least_one() -> AfterValidator:
    return _range(1, 1 << 31, "must be at least 1")


def _put_expires(seconds: int) -> int:
    if rules.check_expiry(seconds) <= _MIN_EXPIRES:
        raise ValueError("must be longer than 60s: a request must outlive its queue and the clocks' difference")
    return seconds


def _optional_expiry(seconds: int | None) -> int | None:
    return None if seconds is None else rules.check_expiry(seconds)


class Section(BaseModel):
    """A section of the configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)


class PresignConfig(Section):
    """[presign]: who signs, and the store. ``endpoint`` is always ``scheme://host[:port]``."""

    kind: Literal["local", "broker"] = "local"
    """Who signs: "local" with the keys given here, "broker" asks a presignd broker."""
    endpoint: Annotated[str, AfterValidator(parse_endpoint)] = "http://127.0.0.1:9000"
    """The store: http://host:port, https://host, or a bare host:port, which means https."""
    public_endpoint: Annotated[str, _unless_empty(parse_endpoint)] = ""
    """The name links are signed for, where clients see the store under another one; "" = endpoint."""
    region: str = ""
    """The store's region; "" asks the store. A broker knows its own."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Where the bucket stands in a URL: in the path or in the host name."""
    access_key: kinds.AccessKey = Field("", repr=False)
    """The access key; with none of these the usual chain is asked (AWS_*, shared file, metadata)."""
    access_key_id: kinds.AccessKey = Field("", repr=False)
    """Another name for access_key."""
    access_key_file: kinds.UnsetPath = None
    """A file that holds the access key."""
    secret_key: kinds.Secret = None
    """The secret key; better in secret_key_file."""
    secret_access_key: kinds.Secret = None
    """Another name for secret_key."""
    secret_key_file: kinds.UnsetPath = None
    """A file that holds the secret key, mode 0600."""
    session_token: kinds.Secret = None
    """The session token of temporary keys."""
    url: Annotated[str, _unless_empty(parse_broker_url)] = ""
    """With kind = "broker": the broker's address; a bare host:port means https."""
    token: kinds.Secret = None
    """With kind = "broker": the token it gave this daemon; better in token_file."""
    token_file: kinds.UnsetPath = None
    """A file that holds the token, mode 0600."""
    ca_file: kinds.UnsetPath = None
    """PEM file of the CAs to trust, for a private CA; "" = the system's."""
    client_cert: kinds.UnsetPath = None
    """PEM file of the certificate to show to the store, and to the broker."""
    client_key: kinds.UnsetPath = None
    """PEM file of client_cert's key, when it is not in the same file."""
    proxy: Annotated[kinds.ProxyUrl, _unless_empty(parse_proxy)] = ""
    """HTTP proxy, http://[user:password@]host:port; "" = HTTPS_PROXY and NO_PROXY decide."""
    put_expires: Annotated[kinds.WholeSeconds, AfterValidator(_put_expires)] = 3600
    """How long a presigned upload lives: over 60s, 7d at most."""
    get_expires: Annotated[kinds.WholeSeconds, AfterValidator(rules.check_expiry)] = 900
    """How long a link lives where a watch says nothing: 1s to 7d."""

    @field_validator("client_key")
    @classmethod
    def _key_of_a_certificate(cls, path: Any, info: ValidationInfo) -> Any:
        if path is not None and info.data.get("client_cert", path) is None:
            raise ValueError("is given without client_cert")
        return path

    def __repr_args__(self) -> Any:
        """Hide the proxy's user and password: a repr may end in a log."""
        return [(name, mask_userinfo(value) if name == "proxy" else value) for name, value in super().__repr_args__()]


class WatchConfig(Section):
    """[[watch]]: one folder with its bucket, key template and policy. None means "auto" or unset."""

    name: Annotated[str, AfterValidator(rules.check_watch_name)]
    """Names the watch in logs and commands: letters, digits, and . _ -"""
    path: kinds.RequiredPath
    """The folder."""
    bucket: Annotated[str, AfterValidator(rules.check_bucket)]
    """Where its files go."""
    key: Annotated[str, AfterValidator(check_key_template)] = "{path}"
    """The object's key: a template over the file's path, names, times and content; with kind = "broker" the
    default is "{prefix}{path}"."""
    timezone: Annotated[str, AfterValidator(rules.check_timezone)] = "UTC"
    """The time zone of {mtime:…} and {queued:…}."""
    recursive: bool = True
    """Whether folders below count too."""
    existing: Literal["upload", "ignore"] = "upload"
    """Files there at the very first start: sent, or only recorded."""
    ignore: Annotated[tuple[str, ...], AfterValidator(rules.check_ignore)] = ()
    """What to leave alone, in gitignore syntax, on top of the defaults."""
    ignore_defaults: bool = True
    """Leave alone what is temporary or hidden by its name."""
    settle: kinds.AutoSeconds = None
    """How long a file must be quiet: "auto" or a duration."""
    ready_marker: Annotated[str, _unless_empty(check_name_template)] = ""
    """A file counts only once the file of this name exists beside it, e.g. "{name}.ok"."""
    rescan: Annotated[kinds.AutoSeconds, _range(1, 366 * 86400, "must be at least 1s and at most a year")] = None
    """How often the folder is scanned again: "auto" or a duration."""
    polling: Literal["auto", "always", "never"] = "auto"
    """Whether to poll, for filesystems that give no events: NFS, SMB, FUSE."""
    poll_interval: Annotated[kinds.Seconds, _range(0.1, 86400, "must be at least 100ms and at most 1d")] = 10.0
    """How often to poll."""
    collision: Literal["update", "rename", "refuse", "overwrite"] = "update"
    """What to do when the key holds an object this ledger didn't put there from this path."""
    after: Literal["keep", "move", "delete"] = "keep"
    """What becomes of the file once its link is issued."""
    move_to: Annotated[kinds.UnsetPath, Field(validate_default=True)] = None
    """Where to, with after = "move"."""
    link_expires: Annotated[kinds.UnsetSeconds, AfterValidator(_optional_expiry)] = None
    """How long this watch's links live, 1s to 7d; "" = presign.get_expires."""
    link_file: Annotated[str, _unless_empty(check_name_template)] = ""
    """The link is also left in a file of this name beside the one dropped, e.g. "{name}.link.txt"."""
    events: Literal["auto", "inotify", "watchfiles"] = "auto"
    """Where change hints come from."""
    content_type: Annotated[str, AfterValidator(rules.check_content_type)] = "auto"
    """The objects' media type; "auto" guesses it from the name."""
    max_size: Annotated[kinds.UnsetSize, _range(1, 1 << 63, "must be at least 1B")] = None
    """Larger files are quarantined; "" = what S3 takes."""
    headers: Annotated[kinds.Headers, AfterValidator(rules.check_headers)] = {}
    """Headers to send with each object, signed."""

    @field_validator("move_to")
    @classmethod
    def _moves_elsewhere(cls, move_to: Any, info: ValidationInfo) -> Any:
        if move_to is None:
            if info.data.get("after") == "move":
                raise ValueError('is missing: after = "move" needs to know where to')
            return move_to
        path = info.data.get("path")
        if path is not None and os.path.normpath(path) == os.path.normpath(move_to):
            raise ValueError("is the watch's own folder; name another, e.g. a folder in it")
        return move_to

    @field_validator("link_file")
    @classmethod
    def _is_no_marker(cls, link_file: str, info: ValidationInfo) -> str:
        if link_file and link_file == info.data.get("ready_marker"):
            raise ValueError("is the same as ready_marker")
        return link_file

    @property
    def moved_inside(self) -> str:
        """Return move_to as a path below the watch's folder; "" where it is none, or lies elsewhere.

        By its spelling alone: what the daemon skips by this it walks to below its own folder, too.
        """
        inside = Path(os.path.relpath(self.move_to or self.path, self.path))
        return "" if inside.parts[:1] in {(), (os.pardir,)} else str(inside)

    def __repr_args__(self) -> Any:
        """Hide a customer's encryption key: a repr may end in a log."""
        for name, value in super().__repr_args__():
            yield name, kinds.masked_headers(value) if name == "headers" else value


class UploadConfig(Section):
    """[upload]."""

    concurrency: Annotated[kinds.Count, _range(1, 1024, "must be 1 to 1024")] = 16
    """How many files at a time, over all watches."""
    checksum: Literal["md5", "sha256"] = "md5"
    """What the store checks each body by: Content-MD5, or the signed x-amz-checksum-sha256."""
    multipart_threshold: Annotated[kinds.Size, _range(1, 5 * _GIB, "must be 1B to 5GiB, the most one PUT holds")] = (
        64 * _MIB
    )
    """Files of this size and more go in parts."""
    part_size: Annotated[kinds.Size, _range(5 * _MIB, 5 * _GIB, "must be 5MiB to 5GiB: S3 takes no other parts")] = (
        16 * _MIB
    )
    """The size of a part; larger where a file would need more than 10,000."""
    part_concurrency: Annotated[kinds.Count, _range(1, 1024, "must be 1 to 1024")] = 4
    """How many parts of one file at a time."""
    memory: Annotated[kinds.Size, _range(_MIB, 1 << 50, "must be at least 1MiB")] = 128 * _MIB
    """For bytes in flight, all uploads together."""
    max_rate: kinds.UnsetSize = None
    """Bytes a second over all uploads; "" = no limit."""
    drain_timeout: Annotated[kinds.Seconds, _range(0, 86400, "must be at most 1d")] = 30.0
    """On SIGTERM: how long what is in flight may go on."""
    timeout: Annotated[kinds.Seconds, _range(0.1, 86400, "must be at least 100ms and at most 1d")] = 60.0
    """How long a request may make no progress."""
    attempts: Annotated[kinds.Count, _at_least_one()] = 10
    """For one file's own faults; an absent store is waited for without limit."""


class LedgerConfig(Section):
    """[ledger]: ``path`` is a folder, resolved to its default when not given; ``keep`` in seconds."""

    path: kinds.RequiredPath
    """A folder on a local filesystem; "" = $STATE_DIRECTORY, else $XDG_STATE_HOME/presignd."""
    keep: Annotated[kinds.Seconds, _range(1, 36500 * 86400, "must be at least 1s")] = 90 * 86400.0
    """How long a file that is gone is remembered."""


class LinksConfig(Section):
    """[links]: ``file`` is resolved to links/links.jsonl beside the ledger when not given."""

    file: kinds.RequiredPath
    """The links, one JSON object a line, mode 0600; "" = links/links.jsonl beside the ledger."""
    group: str = ""
    """A group that may read the links and ask for them over the control socket."""
    in_log: bool = False
    """Whether link.created carries the link too; then whoever reads the log can fetch."""
    rotate_size: Annotated[kinds.Size, _range(4096, 1 << 63, "must be at least 4KiB")] = 64 * _MIB
    """When the file is rotated."""
    keep: Annotated[kinds.Count, _at_least_one()] = 5
    """How many rotated files are kept."""


class ControlConfig(Section):
    """[control]: ``socket`` None means the first usable default."""

    socket: kinds.UnsetPath = None
    """The control socket; "" = the first usable of $PRESIGND_SOCKET, $RUNTIME_DIRECTORY/control.sock and others."""
    group: str = ""
    """A group that may use it."""


class LogConfig(Section):
    """[log]."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(kinds.lower)] = "info"
    """The least important event that is logged."""
    format: Literal["auto", "json", "console"] = "auto"
    """"auto": console on a terminal, else json."""


class WebConfig(Section):
    """[web]: the status page."""

    listen: Annotated[str, _unless_empty(check_listen)] = ""
    """Where it listens, e.g. "127.0.0.1:8321" or unix:/path; "" = nowhere."""
    token_file: kinds.UnsetPath = None
    """Its token; made when missing; "" = web.token beside the ledger."""
    metrics_auth: bool = False
    """Whether the metrics ask for the token too."""


class Config(Section):
    """The whole configuration of a daemon. ``watches`` is ``[[watch]]`` in TOML."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    presign: PresignConfig
    watches: tuple[WatchConfig, ...] = Field(alias="watch")
    upload: UploadConfig
    ledger: LedgerConfig
    links: LinksConfig
    control: ControlConfig
    log: LogConfig
    web: WebConfig

    @property
    def web_token(self) -> Path:
        """Where the status page's token is: ``web.token_file``, else beside the ledger."""
        return self.web.token_file or self.ledger.path / "web.token"
