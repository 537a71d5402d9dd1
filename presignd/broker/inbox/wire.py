"""The JSON of inboxes: the files that came in, and acknowledgements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, FailFast, TypeAdapter

from presignd.broker import wire
from presignd.broker.state.arrivals import Arrival
from presignd.units import rfc3339


@dataclass(frozen=True, slots=True)
class Acks:
    """The body of ``POST /v1/inbox/{invitation}/ack``: the ids of files that have been fetched."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    ids: Annotated[list[str], FailFast()]


ACKS = TypeAdapter(Acks)


def read_acks(body: bytes) -> Acks:
    """Return the body; raise ``TooMany``, or ``ValueError`` that names the wrong field."""
    acks = wire.read_one(body, ACKS)
    if len(acks.ids) > wire.MAX_GRANTS:
        raise wire.TooMany("ids")
    return acks


def shown(arrivals: Sequence[Arrival], after: int) -> dict[str, Any]:
    """Return the answer with what came in after ``after``; ``next`` is the next call's ``after``."""
    return {"files": [_file(each) for each in arrivals], "next": str(arrivals[-1].number if arrivals else after)}


def _file(arrival: Arrival) -> dict[str, Any]:
    return {
        "id": arrival.ref,
        "path": arrival.path,
        "bucket": arrival.bucket,
        "key": arrival.key,
        "size": arrival.size,
        "content_type": arrival.content_type,
        "part_size": arrival.part_size,
        "checksum": arrival.checksum or None,
        "etag": arrival.etag,
        "received_at": rfc3339(arrival.received_at),
    }
