"""The configuration: ``models`` defines it, ``load`` reads it from TOML, environment and credentials."""

from presignd.config.folders import folder_problems
from presignd.config.load import Loaded, load
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
    WebhookConfig,
    WebhookEvent,
)

__all__ = [
    "Config",
    "ControlConfig",
    "LedgerConfig",
    "LinksConfig",
    "Loaded",
    "LogConfig",
    "PresignConfig",
    "UploadConfig",
    "WatchConfig",
    "WebConfig",
    "WebhookConfig",
    "WebhookEvent",
    "folder_problems",
    "load",
]
