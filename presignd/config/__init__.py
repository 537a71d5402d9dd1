"""TOML, environment and credentials → frozen models. ``models`` says what there is, ``load`` where it comes from."""

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
)
from presignd.config.templates import Piece, template_fields

__all__ = [
    "Config",
    "ControlConfig",
    "LedgerConfig",
    "LinksConfig",
    "Loaded",
    "LogConfig",
    "Piece",
    "PresignConfig",
    "UploadConfig",
    "WatchConfig",
    "WebConfig",
    "folder_problems",
    "load",
    "template_fields",
]
