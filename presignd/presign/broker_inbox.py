"""The files of an invitation, over HTTP: wait for them at a broker, and acknowledge them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from presignd.errors import Fault, fault
from presignd.presign.broker_client import (
    LEAST_BODY,
    NO_CONTENT,
    OK,
    BrokerClient,
    BrokerResponse,
    error_message,
    unusable,
)
from presignd.presign.stable import Time
from presignd.runtime.heartbeat import resting
from presignd.s3.limits import LARGEST_OBJECT, MAX_KEY

WAIT = 30
"""Most seconds that a broker lets a call wait."""
TIMEOUT = WAIT + 15.0

MOST = 1000
"""Files in one answer, and ids in one acknowledgement."""

LONGEST_FILE = 16 << 10
"""Bytes of a response for each file: key and path escaped, three times over."""

FORBIDDEN, NOT_FOUND = 403, 404


class Arrived(BaseModel):
    """A file that came in. A broker is not trusted, and a guest chose the ``path``: it is text of any kind."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{16}$")]
    path: Annotated[str, StringConstraints(max_length=MAX_KEY)]
    bucket: Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]{3,63}$")]
    key: Annotated[str, StringConstraints(min_length=1, max_length=MAX_KEY)]
    size: Annotated[int, Field(ge=0, le=LARGEST_OBJECT)]
    part_size: Annotated[int, Field(ge=0, le=LARGEST_OBJECT)] = 0
    checksum: Annotated[str, StringConstraints(pattern=r"^([a-z0-9]{1,32}:[0-9a-f]{1,128}(-[0-9]{1,5})?)?$")] | None = (
        None
    )
    received_at: Time


class BrokerInbox:
    """Lists and acknowledges the files of one invitation at a broker.

    Every method raises ``PresignerFault`` if the broker gives no usable answer, and ``no_inbox`` if it or the token has
    no such invitation.
    """

    def __init__(self, client: BrokerClient, invitation: str) -> None:
        self._client, self._invitation = client, invitation

    async def arrived(self, after: str, wait: int) -> tuple[list[Arrived], str]:
        """Return the files that came in after ``after`` ("0": all that are not acknowledged), and the next ``after``.

        Waits up to ``wait`` seconds if there is nothing.
        """
        path = f"/v1/inbox/{self._invitation}?after={after}&wait={wait}"
        response = await self._ask(path, None, LEAST_BODY + LONGEST_FILE * MOST)
        if response.status != OK:
            raise unusable(response)
        return arrived_of(response.document, after)

    async def ack(self, refs: Sequence[str]) -> None:
        """Take files off the list; those that are not on it are ignored."""
        for start in range(0, len(refs), MOST):
            ids = list(refs[start : start + MOST])
            response = await self._ask(f"/v1/inbox/{self._invitation}/ack", {"ids": ids}, LEAST_BODY)
            if response.status != NO_CONTENT:
                raise unusable(response)

    async def _ask(self, path: str, document: dict[str, Any] | None, most: int) -> BrokerResponse:
        with resting():  # the exchange has a deadline
            response = await self._client.ask(path, document, most=most, also=(NOT_FOUND,))
        if response.status in (FORBIDDEN, NOT_FOUND):
            raise _none(response)
        return response

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()


def _none(response: BrokerResponse) -> Fault:
    """Return the fault of a broker's refusal; a broker that knows no inboxes answers 404 ``no_such_path``."""
    return fault("no_inbox", f"{response.status} {error_message(response.document)}".strip())


def arrived_of(document: Any, after: str) -> tuple[list[Arrived], str]:
    """Return the files in a broker's answer, and the next ``after``; raise ``bad_broker`` for anything else."""
    try:
        files = [Arrived.model_validate(each) for each in document["files"]]
        following = int(document["next"])
    except (ValidationError, TypeError, ValueError, KeyError):
        raise fault("bad_broker", "its list of what came in can't be read") from None
    if len(files) > MOST or following < int(after) or (files and following == int(after)):
        raise fault("bad_broker", "its list of what came in has no end")
    return files, str(following)
