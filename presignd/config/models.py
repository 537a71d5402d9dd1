"""The configuration as frozen models. Durations are seconds, sizes bytes; "" and "auto" become None."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, SecretStr


class Section(BaseModel):
    """A section of the configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PresignConfig(Section):
    """[presign]: who signs, and the store. ``endpoint`` is always ``scheme://host[:port]``."""

    kind: Literal["local", "broker"] = "local"
    endpoint: str = "http://127.0.0.1:9000"
    public_endpoint: str = ""
    region: str = ""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    access_key: str = ""
    secret_key: SecretStr | None = None
    session_token: SecretStr | None = None
    url: str = ""
    token: SecretStr | None = None
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    proxy: str = ""
    put_expires: int = 3600
    get_expires: int = 900


class WatchConfig(Section):
    """[[watch]]: one folder with its bucket, key template and policy. None means "auto" or unset."""

    name: str
    path: Path
    bucket: str
    key: str = "{path}"
    timezone: str = "UTC"
    recursive: bool = True
    existing: Literal["upload", "ignore"] = "upload"
    ignore: tuple[str, ...] = ()
    ignore_defaults: bool = True
    settle: float | None = None
    ready_marker: str = ""
    rescan: float | None = None
    polling: Literal["auto", "always", "never"] = "auto"
    poll_interval: float = 10.0
    collision: Literal["update", "rename", "refuse", "overwrite"] = "update"
    after: Literal["keep", "move", "delete"] = "keep"
    move_to: Path | None = None
    link_expires: int | None = None
    link_file: str = ""
    events: Literal["auto", "watchfiles"] = "auto"
    content_type: str = "auto"
    max_size: int | None = None
    headers: dict[str, str] = {}


class UploadConfig(Section):
    """[upload]."""

    concurrency: int = 16
    checksum: Literal["md5", "sha256"] = "md5"
    multipart_threshold: int = 64 << 20
    part_size: int = 16 << 20
    part_concurrency: int = 4
    memory: int = 128 << 20
    max_rate: int | None = None
    drain_timeout: float = 30.0
    timeout: float = 60.0
    attempts: int = 10


class LedgerConfig(Section):
    """[ledger]: ``path`` is a folder, resolved to its default when not given; ``keep`` in seconds."""

    path: Path
    keep: float = 90 * 86400.0


class LinksConfig(Section):
    """[links]: ``file`` is resolved to links/links.jsonl beside the ledger when not given."""

    file: Path
    group: str = ""
    in_log: bool = False
    rotate_size: int = 64 << 20
    keep: int = 5


class ControlConfig(Section):
    """[control]: ``socket`` None means the first usable default."""

    socket: Path | None = None
    group: str = ""


class LogConfig(Section):
    """[log]."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class WebConfig(Section):
    """[web]: the status page."""

    listen: str = ""
    token_file: Path | None = None
    metrics_auth: bool = False


class Config(Section):
    """The whole configuration of a daemon."""

    presign: PresignConfig
    watches: tuple[WatchConfig, ...]
    upload: UploadConfig
    ledger: LedgerConfig
    links: LinksConfig
    control: ControlConfig
    log: LogConfig
    web: WebConfig
