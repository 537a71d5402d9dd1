"""The configuration as frozen models. Durations are seconds, sizes bytes; "" and "auto" become None.

``kinds`` defines how each option is read and written, ``rules`` which values are valid. An option that depends on
another is checked here, by the later of the two. ``load`` fills in computed defaults.
"""

from __future__ import annotations

import os.path
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from presignd.config import kinds, rules
from presignd.config.addresses import (
    check_listen,
    mask_userinfo,
    parse_broker_url,
    parse_endpoint,
    parse_proxy,
)
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
        raise ValueError("must be longer than 60s: a request may wait in a queue, and clocks differ")
    return seconds


def _link_expires(seconds: int | None, info: ValidationInfo) -> int | None:
    return None if seconds is None else rules.check_expiry(seconds, signed=info.data.get("links") == "presigned")


WebhookEvent: TypeAlias = Literal[
    "file.done", "file.quarantined", "store.unreachable", "store.back", "upload.received", "link.opened"
]


def _some_events(events: tuple[str, ...]) -> tuple[str, ...]:
    if not events:
        raise ValueError('is empty; name at least one event, e.g. ["file.done"]')
    return tuple(dict.fromkeys(events))


class Section(BaseModel):
    """A section of the configuration: frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class PresignConfig(Section):
    """[presign]: who signs, and the store. ``endpoint`` is always ``scheme://host[:port]``."""

    kind: Literal["local", "broker"] = "local"
    """Who signs: "local" with the keys given here, "broker" asks a presignd broker."""
    endpoint: Annotated[str, AfterValidator(parse_endpoint)] = "http://127.0.0.1:9000"
    """The store: http://host:port, https://host, or a bare host:port, which means https."""
    public_endpoint: Annotated[str, _unless_empty(parse_endpoint)] = ""
    """The store's address in links, if clients reach it under another name; "" = endpoint."""
    region: str = ""
    """The store's region; "" asks the store. A broker knows its own."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Where URLs have the bucket: in the path or in the host name."""
    access_key: kinds.AccessKey = Field("", repr=False)
    """The access key; without any key the usual chain is used (AWS_*, shared file, metadata)."""
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
    """With kind = "broker": this daemon's token; better in token_file."""
    token_file: kinds.UnsetPath = None
    """A file that holds the token, mode 0600."""
    ca_file: kinds.UnsetPath = None
    """PEM file of the CAs to trust, for a private CA; "" = the system's CAs."""
    client_cert: kinds.UnsetPath = None
    """PEM file of the certificate to show to the store, and to the broker."""
    client_key: kinds.UnsetPath = None
    """PEM file of client_cert's key, if it is not in the same file."""
    proxy: Annotated[kinds.ProxyUrl, _unless_empty(parse_proxy)] = ""
    """HTTP proxy, http://[user:password@]host:port; "" = HTTPS_PROXY and NO_PROXY decide."""
    put_expires: Annotated[kinds.WholeSeconds, AfterValidator(_put_expires)] = 3600
    """How long a presigned upload is valid: over 60s, 7d at most."""
    get_expires: Annotated[kinds.WholeSeconds, AfterValidator(rules.check_expiry)] = 900
    """How long links live unless the watch sets link_expires: 1s to 7d."""

    @field_validator("client_key")
    @classmethod
    def _key_of_a_certificate(cls, path: Any, info: ValidationInfo) -> Any:
        if path is not None and info.data.get("client_cert", path) is None:
            raise ValueError("is given without client_cert")
        return path

    def __repr_args__(self) -> Any:
        """Hide the proxy's user and password: a repr may get into a log."""
        return [(name, mask_userinfo(value) if name == "proxy" else value) for name, value in super().__repr_args__()]


class WatchConfig(Section):
    """[[watch]]: one folder with its bucket, key template and policy. None means "auto" or not set."""

    name: Annotated[str, AfterValidator(rules.check_watch_name)]
    """The watch's name in logs and commands: letters, digits, and . _ -"""
    path: kinds.RequiredPath
    """The folder."""
    bucket: Annotated[str, AfterValidator(rules.check_bucket)]
    """The bucket that its files go to."""
    key: Annotated[str, AfterValidator(check_key_template)] = "{path}"
    """The object's key: a template with the file's path, names, times and content. With kind = "broker" the
    default is "{prefix}{path}"."""
    timezone: Annotated[str, AfterValidator(rules.check_timezone)] = "UTC"
    """The time zone of {mtime:…} and {queued:…}."""
    recursive: bool = True
    """Whether to upload files in folders below too."""
    existing: Literal["upload", "ignore"] = "upload"
    """Files that exist at the very first start: uploaded, or only recorded."""
    ignore: Annotated[tuple[str, ...], AfterValidator(rules.check_ignore)] = ()
    """Files to skip, in gitignore syntax, in addition to the defaults."""
    ignore_defaults: bool = True
    """Whether to skip files whose names mark them as temporary or hidden."""
    settle: kinds.AutoSeconds = None
    """How long a file must not change before it is uploaded: "auto" or a duration."""
    ready_marker: Annotated[str, _unless_empty(check_name_template)] = ""
    """Upload a file only once a file of this name exists beside it, e.g. "{name}.ok"."""
    unit: Literal["file", "folder"] = "file"
    """What gets a link: each file, or each folder in the watch's as a whole, once its ready_marker is there."""
    rescan: Annotated[kinds.AutoSeconds, _range(1, 366 * 86400, "must be at least 1s and at most a year")] = None
    """How often the folder is scanned again: "auto" or a duration."""
    polling: Literal["auto", "always", "never"] = "auto"
    """Whether to poll, for filesystems without events: NFS, SMB, FUSE."""
    poll_interval: Annotated[kinds.Seconds, _range(0.1, 86400, "must be at least 100ms and at most 1d")] = 10.0
    """How often to poll."""
    collision: Literal["update", "rename", "refuse", "overwrite"] = "update"
    """What to do when the key holds an object that was not uploaded from this path by this ledger."""
    after: Literal["keep", "move", "delete"] = "keep"
    """What to do with the file once its link is issued."""
    move_to: Annotated[kinds.UnsetPath, Field(validate_default=True)] = None
    """With after = "move": the folder to move files to."""
    links: Literal["auto", "presigned", "stable"] = "auto"
    """Which links its files get: presigned ones, or stable ones of the broker, which can be revoked and live as long
    as you want; "auto" = stable where the broker and its token have them."""
    link_expires: Annotated[kinds.UnsetSeconds, AfterValidator(_link_expires)] = None
    """How long this watch's links live: presigned ones 1s to 7d, "" = presign.get_expires; stable ones any time, "" =
    as long as the broker's token allows."""
    link_file: Annotated[str, _unless_empty(check_name_template)] = ""
    """Also write the link to a file of this name beside the uploaded one, e.g. "{name}.link.txt"."""
    events: Literal["auto", "inotify", "watchfiles"] = "auto"
    """Where change events come from."""
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
                raise ValueError('is missing: after = "move" needs a folder to move to')
            return move_to
        path = info.data.get("path")
        if path is not None and os.path.normpath(path) == os.path.normpath(move_to):
            raise ValueError("is the watch's own folder; name another, e.g. a folder in it")
        return move_to

    @field_validator("unit")
    @classmethod
    def _is_whole(cls, unit: str, info: ValidationInfo) -> str:
        return rules.check_folder_unit(info.data) if unit == "folder" else unit

    @field_validator("link_file")
    @classmethod
    def _is_no_marker(cls, link_file: str, info: ValidationInfo) -> str:
        if link_file and link_file == info.data.get("ready_marker"):
            raise ValueError("is the same as ready_marker")
        return link_file

    @property
    def links_folders(self) -> bool:
        """Whether a folder gets a link as a whole, and the files in it none."""
        return self.unit == "folder"

    @property
    def moved_inside(self) -> str:
        """Return move_to as a path below the watch's folder; "" if it is not set or lies elsewhere.

        Only the spelling counts, because the daemon also reaches it by this path below its own folder.
        """
        inside = Path(os.path.relpath(self.move_to or self.path, self.path))
        return "" if inside.parts[:1] in {(), (os.pardir,)} else str(inside)

    def __repr_args__(self) -> Any:
        """Hide a customer's encryption key: a repr may get into a log."""
        for name, value in super().__repr_args__():
            yield name, kinds.masked_headers(value) if name == "headers" else value


class InboxConfig(Section):
    """[[inbox]]: a folder for what comes in by an invitation of the broker."""

    name: Annotated[str, AfterValidator(rules.check_watch_name)]
    """The inbox's name in logs and commands: letters, digits, and . _ -"""
    path: kinds.RequiredPath
    """The folder."""
    invitation: Annotated[str, AfterValidator(rules.check_watch_name)]
    """The name of the invitation, as `presignd broker invite create` was given it."""


class UploadConfig(Section):
    """[upload]: how files are sent."""

    concurrency: Annotated[kinds.Count, _range(1, 1024, "must be 1 to 1024")] = 16
    """How many files at a time, over all watches."""
    checksum: Annotated[
        Literal["auto", "md5", "sha256", "crc64nvme", "crc32c"], AfterValidator(rules.check_checksum)
    ] = "auto"
    """How the store checks each body: by Content-MD5, or by a signed x-amz-checksum-…."""
    multipart_threshold: Annotated[kinds.Size, _range(1, 5 * _GIB, "must be 1B to 5GiB, the most one PUT holds")] = (
        64 * _MIB
    )
    """Files of at least this size are uploaded in parts."""
    part_size: Annotated[kinds.Size, _range(5 * _MIB, 5 * _GIB, "must be 5MiB to 5GiB: S3 takes no other parts")] = (
        16 * _MIB
    )
    """The size of a part; larger if a file would need more than 10,000 parts."""
    part_concurrency: Annotated[kinds.Count, _range(1, 1024, "must be 1 to 1024")] = 4
    """How many parts of one file at a time."""
    memory: Annotated[kinds.Size, _range(_MIB, 1 << 50, "must be at least 1MiB")] = 128 * _MIB
    """Memory for bytes in flight, for all uploads together."""
    max_rate: kinds.UnsetSize = None
    """Bytes a second over all uploads; "" = no limit."""
    drain_timeout: Annotated[kinds.Seconds, _range(0, 86400, "must be at most 1d")] = 30.0
    """On SIGTERM: how long uploads in flight may go on."""
    timeout: Annotated[kinds.Seconds, _range(0.1, 86400, "must be at least 100ms and at most 1d")] = 60.0
    """How long a request may make no progress."""
    attempts: Annotated[kinds.Count, _at_least_one()] = 10
    """How often one file is tried after faults of its own; presignd waits for an absent store without limit."""


class LedgerConfig(Section):
    """[ledger]: ``path`` is a folder, its default filled in by ``load``."""

    path: kinds.RequiredPath
    """A folder on a local filesystem; "" = $STATE_DIRECTORY, else $XDG_STATE_HOME/presignd."""
    keep: Annotated[kinds.Seconds, _range(1, 36500 * 86400, "must be at least 1s")] = 90 * 86400.0
    """How long the ledger keeps files that are gone."""


class LinksConfig(Section):
    """[links]: the default of ``file`` is filled in by ``load``."""

    file: kinds.RequiredPath
    """The links, one JSON object a line, mode 0600; "" = links/links.jsonl beside the ledger."""
    group: str = ""
    """A group that may read the links and ask for them over the control socket."""
    in_log: bool = False
    """Whether the log's link.created has the link too; then everyone who reads the log can download."""
    rotate_size: Annotated[kinds.Size, _range(4096, 1 << 63, "must be at least 4KiB")] = 64 * _MIB
    """The size at which the file is rotated."""
    keep: Annotated[kinds.Count, _at_least_one()] = 5
    """How many rotated files are kept."""


class ControlConfig(Section):
    """[control]: the control socket; None means the first usable default."""

    socket: kinds.UnsetPath = None
    """The control socket; "" = the first usable of $PRESIGND_SOCKET, $RUNTIME_DIRECTORY/control.sock and others."""
    group: str = ""
    """A group that may use the control socket."""


class LogConfig(Section):
    """[log]: the event log on stderr."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(kinds.lower)] = "info"
    """The least important event that is logged."""
    format: Literal["auto", "json", "console"] = "auto"
    """"auto": console on a terminal, else json."""


class WebConfig(Section):
    """[web]: the status page."""

    listen: Annotated[str, _unless_empty(check_listen)] = ""
    """Where it listens, e.g. "127.0.0.1:8321" or unix:/path; "" = no status page."""
    token_file: kinds.UnsetPath = None
    """The file with its token, made if missing; "" = web.token beside the ledger."""
    metrics_auth: bool = False
    """Whether /metrics needs the token too."""


class WebhookConfig(Section):
    """[[webhook]]: one receiver of events. ``load`` fills in the name, and url and secret from their files."""

    name: Annotated[str, AfterValidator(rules.check_watch_name)]
    """Its name in logs and commands: letters, digits, and . _ -; if none is given, the receiver's host."""
    url: kinds.WebhookUrl
    """Where events are sent: https://…; http:// only to this machine. Its path is a secret: it is never shown."""
    url_file: kinds.UnsetPath = None
    """A file that holds the address, mode 0600."""
    secret: kinds.SigningSecret
    """The secret that signs each message, whsec_ and base64; better in secret_file."""
    secret_file: kinds.UnsetPath = None
    """A file that holds the secret, mode 0600."""
    events: Annotated[tuple[WebhookEvent, ...], AfterValidator(_some_events)] = get_args(WebhookEvent)
    """Which events are sent: a daemon has those of files and stores, a broker those of uploads and links."""
    include_link: bool = False
    """Whether file.done has the link too; then the receiver can download the file."""
    ca_file: kinds.UnsetPath = None
    """PEM file of the CAs to trust, for a receiver with a private CA; "" = the system's CAs."""


class Config(Section):
    """The whole configuration of a daemon.

    In TOML ``watches`` are ``[[watch]]``, ``inboxes`` ``[[inbox]]`` and ``webhooks`` ``[[webhook]]``.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    presign: PresignConfig
    watches: tuple[WatchConfig, ...] = Field(alias="watch")
    webhooks: tuple[WebhookConfig, ...] = Field((), alias="webhook")
    inboxes: tuple[InboxConfig, ...] = Field((), alias="inbox")
    upload: UploadConfig
    ledger: LedgerConfig
    links: LinksConfig
    control: ControlConfig
    log: LogConfig
    web: WebConfig

    @property
    def web_token(self) -> Path:
        """The file with the status page's token: ``web.token_file``, else beside the ledger."""
        return self.web.token_file or self.ledger.path / "web.token"
