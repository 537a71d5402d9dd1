"""Decide which stable links a token may have, and when a link ends. Pure."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from presignd.broker.config import TokenConfig
from presignd.broker.links.names import safe_filename
from presignd.broker.links.request import LinkRequest
from presignd.broker.policy import Refusal, RefusalCode, may_link
from presignd.broker.state.links import Link
from presignd.presign.stable import UNPRINTABLE, pin_problem
from presignd.s3.limits import LARGEST_OBJECT

MOST_DOWNLOADS = 1_000_000
LONGEST_TEXT = 1000
LONGEST_TYPE = 255
LONGEST_VERSION = 1024

_ID = re.compile(r"[A-Za-z0-9_-]{22}")
_TYPE = re.compile(r"[ -~]*")


def decide_link(token: TokenConfig, asked: LinkRequest, now: datetime) -> LinkRequest | Refusal:
    """Return the link to record, with its end within the token's limit and a safe file name, or a refusal."""
    if refusal := may_link(token, asked.bucket, asked.key, asked.version_id):
        return refusal
    if problem := _problem(asked):
        return Refusal(RefusalCode.LINK_REFUSED, problem)
    name = safe_filename(asked.filename or asked.key.rpartition("/")[2])
    return replace(asked, filename=name, expires_at=_end(token, asked.expires_at, now))


def is_link_id(text: str) -> bool:
    """Return whether this has the form of an id."""
    return bool(_ID.fullmatch(text))


def _problem(asked: LinkRequest) -> str | None:  # noqa: PLR0911 - one line a rule
    if not is_link_id(asked.id):
        return "an id has 22 characters of base64url: 128 random bits"
    for name, limit in (("note", LONGEST_TEXT), ("version_id", LONGEST_VERSION)):
        text = getattr(asked, name)
        if len(text) > limit or UNPRINTABLE.search(text):
            return f"{name} is longer than {limit} characters, or holds one that can't be shown"
    if len(asked.content_type) > LONGEST_TYPE or not _TYPE.fullmatch(asked.content_type):
        return f"content_type is no ASCII text of at most {LONGEST_TYPE} characters"
    if asked.size is not None and not 0 <= asked.size <= LARGEST_OBJECT:
        return "size is no object's"
    if asked.max_downloads is not None and not 1 <= asked.max_downloads <= MOST_DOWNLOADS:
        return f"max_downloads lies between 1 and {MOST_DOWNLOADS}"
    if asked.expires_at is not None and not _is_in_utc(asked.expires_at):
        return "expires_at lies outside the years 1 to 9999 in UTC"
    if asked.pin and (problem := pin_problem(asked.pin)):
        return problem
    return None


def _is_in_utc(time: datetime) -> bool:
    try:
        time.astimezone(UTC)
    except OverflowError:
        return False
    return True


def _end(token: TokenConfig, asked: datetime | None, now: datetime) -> datetime | None:
    if token.max_stable_link is None:
        return asked
    most = now + timedelta(seconds=token.max_stable_link)
    return most if asked is None else min(asked, most)


def end_of(link: Link, token: TokenConfig | None) -> datetime | None:
    """Return when a link ends, None for never: at its own end or its token's, unless it outlives its token."""
    ends = [link.new.ends_at, None if link.kept or token is None else token.valid_until]
    return min((end for end in ends if end is not None), default=None)
