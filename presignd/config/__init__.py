"""TOML, environment and credentials → frozen models. ``models`` says what there is, ``load`` where it comes from."""

from presignd.config.models import (
    Config,
    ControlConfig,
    LedgerConfig,
    LinksConfig,
    LogConfig,
    PresignConfig,
    UploadConfig,
    WatchConfig,
    WebConfig,
)

__all__ = [
    "Config",
    "ControlConfig",
    "LedgerConfig",
    "LinksConfig",
    "LogConfig",
    "PresignConfig",
    "UploadConfig",
    "WatchConfig",
    "WebConfig",
]
