"""The configuration: ``models`` defines it, ``load`` reads it from TOML, environment and credentials."""

from presignd.config.folders import folder_problems
from presignd.config.load import Loaded, load
from presignd.config.models import (
    Config,
    ControlConfig,
    InboxConfig,
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
    "InboxConfig",
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
