"""What S3 allows at most. Sizes are bytes, times seconds."""

from __future__ import annotations

MAX_KEY = 1024
"""Bytes of UTF-8 in a key (S3 user guide, "Naming Amazon S3 objects")."""

MAX_EXPIRES = 7 * 86400
"""A presigned request lives 7 days at most (AWS Signature Version 4)."""
