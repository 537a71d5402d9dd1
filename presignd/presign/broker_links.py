"""The stable links of a broker's token, over HTTP: make them, revoke them, list them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic import ValidationError

from presignd.errors import Fault, fault
from presignd.presign import Operation
from presignd.presign.broker_client import (
    LEAST_BODY,
    NO_CONTENT,
    OK,
    TOO_LARGE,
    BrokerClient,
    BrokerResponse,
    refusal,
    unusable,
)
from presignd.presign.stable import BrokerAnswer, StableLink, StableRequest, Time, Word
from presignd.runtime.heartbeat import resting

if TYPE_CHECKING:
    from presignd.presign.remote import Me

MOST = 1000
"""Links in one call, and in one page of the list."""

LONGEST_LINK = 16 << 10
"""Bytes of a response for each link: key and file name percent-encoded or escaped, three times over."""


_PRINTABLE = re.compile(r"[!-~]{1,8192}")


class IssuedLink(BrokerAnswer):
    """One of a token's links in the broker's list, without the id that opens it. ``state`` says whether it opens."""

    ref: Word
    bucket: str
    key: str
    filename: str = ""
    state: Word
    made_at: Time
    expires_at: Time | None = None
    opened: int = 0
    opened_at: Time | None = None
    max_downloads: int | None = None
    pin: bool = False


class BrokerLinks:
    """Makes, revokes and lists stable links at a broker.

    ``me`` returns its cached answer about the token; ``forget`` drops that. Every method raises ``PresignerFault`` if
    the broker gives no usable answer, and ``no_stable_links`` if it or the token has none.
    """

    def __init__(self, client: BrokerClient, me: Callable[[], Awaitable[Me]], forget: Callable[[], None]) -> None:
        self._client, self._me, self._forget = client, me, forget

    async def root(self) -> str:
        """Return the address below which the links are; "" if the broker or the token has none."""
        return (await self._me()).links_root

    async def make(self, requests: Sequence[StableRequest]) -> list[StableLink | Fault]:
        """Make links, or return those that already have these ids; a refused one has its ``Fault`` at its place."""
        root = await self._own_root()
        answers: list[StableLink | Fault] = []
        for start in range(0, len(requests), MOST):
            answers += await self._make(requests[start : start + MOST], root)
        if any(isinstance(answer, Fault) for answer in answers):
            self._forget()  # the token may have lost the operation
        return answers

    async def _make(self, requests: Sequence[StableRequest], root: str) -> list[StableLink | Fault]:
        document = {"links": [each.to_json() for each in requests]}
        response = await self._ask("/v1/links", document, len(requests))
        if response.status == TOO_LARGE and len(requests) > 1:
            half = len(requests) // 2
            return [*await self._make(requests[:half], root), *await self._make(requests[half:], root)]
        answers = response.document.get("links") if isinstance(response.document, dict) else None
        if response.status != OK or not isinstance(answers, list) or len(answers) != len(requests):
            self._forget()
            raise unusable(response)
        return [judged(asked, answer, root) for asked, answer in zip(requests, answers, strict=True)]

    async def revoke(self, named: Mapping[str, str]) -> None:
        """Revoke links by ``{"id"}`` or ``{"ref"}``, or by ``{"bucket", "key"}`` all to that object.

        The broker answers the same whether there is such a link or not.
        """
        await self._own_root()
        response = await self._ask("/v1/links/revoke", named, 0)
        if response.status != NO_CONTENT:
            raise unusable(response)

    async def revoked(self, refs: Collection[str]) -> set[str]:
        """Return which of the token's links with these ``refs`` were revoked, by any client."""
        await self._own_root()
        response = await self._ask(f"/v1/links?refs={','.join(sorted(refs))}", None, MOST)
        if response.status != OK:
            raise unusable(response)
        # An older broker answers with the first page of all.
        links, _ = page_of(response.document)
        return {link.ref for link in links if link.ref in refs and link.state == "revoked"}

    async def issued(self) -> AsyncIterator[list[IssuedLink]]:
        """Yield the token's links in pages, oldest first."""
        await self._own_root()
        after: str | None = ""
        seen: set[str] = set()
        while after is not None:
            response = await self._ask(f"/v1/links?after={quote(after, safe='')}" if after else "/v1/links", None, MOST)
            if response.status != OK:
                raise unusable(response)
            links, after = page_of(response.document)
            if after in seen:
                raise fault("bad_broker", "its list of links has no end")
            seen.add(after or "")
            yield links

    async def _own_root(self) -> str:
        root = await self.root()
        if not root:
            self._forget()  # requested again next time: it may have them by then
            raise fault("no_stable_links", "the broker, or its token here, has none")
        return root

    async def _ask(self, path: str, document: Mapping[str, object] | None, links: int) -> BrokerResponse:
        try:
            with resting():  # the exchange has a deadline
                return await self._client.ask(path, document, most=LEAST_BODY + LONGEST_LINK * links)
        except Fault:
            self._forget()
            raise


# --- which answers are trusted ---------------------------------------------------------------------------------
def judged(asked: StableRequest, answer: Any, root: str) -> StableLink | Fault:
    """Return the link in a broker's answer, or the fault for a refusal or for an answer that is not trusted.

    ``root`` is the broker's address of links: a link elsewhere, or with another id, is refused.
    """
    if not isinstance(answer, dict):
        return fault("bad_broker", "neither a link nor a refusal")
    if "error" in answer:
        return refusal(Operation.GET, answer)
    try:
        link = StableLink.model_validate(answer)
    except ValidationError:
        return fault("bad_broker", "its answer about a link can't be read")
    if not link.url.startswith(f"{root}/l/{asked.id}/") or not _PRINTABLE.fullmatch(link.url):
        return fault("bad_broker", "a link that is not the one asked for, or not below its links_url")
    return link


def page_of(document: Any) -> tuple[list[IssuedLink], str | None]:
    """Return the links of one page of the list, and where the next page begins (None: this was the last).

    Raises ``bad_broker`` for anything else, an empty page that is not the last included.
    """
    try:
        links = [IssuedLink.model_validate(each) for each in _listed(document)]
        more = document["next"]
    except (ValidationError, TypeError, ValueError, KeyError):
        raise fault("bad_broker", "its list of links can't be read") from None
    if more is not None and not (links and isinstance(more, str) and more):
        raise fault("bad_broker", "its list of links has no end")
    return links, more


def _listed(document: Any) -> list[Any]:
    links = document["links"] if isinstance(document, Mapping) else None
    if not isinstance(links, list):
        raise TypeError("links")
    return links
