"""The ignore rules of a watch with the given patterns and options."""

from __future__ import annotations

from presignd.config import WatchConfig
from presignd.pipeline.files.ignore import Ignore


def ignoring(*patterns: str, **options: object) -> Ignore:
    fields = {"name": "drop", "path": "/srv/drop", "bucket": "test-bucket", "ignore": patterns}
    return Ignore(WatchConfig.model_validate(fields | options))
