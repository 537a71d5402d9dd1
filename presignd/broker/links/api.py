"""The calls for stable links: make, list, revoke.

Each is limited to the caller's own token. The caller chooses the id and may repeat the call: a known id is answered
with what was recorded first. So after a crash on either side there is exactly one link.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from presignd.broker import audit, metrics, wire
from presignd.broker.access import Rejected
from presignd.broker.calls import Calls, as_json
from presignd.broker.config import LinksSection, TokenConfig
from presignd.broker.links import request as asking
from presignd.broker.links.pin import Pins
from presignd.broker.links.policy import decide_link, end_of
from presignd.broker.links.request import ById, ByObject, ByRef, LinkRequest, ParsedLinks, Revocation
from presignd.broker.policy import LINK, Refusal, RefusalCode
from presignd.broker.state.database import StateAway
from presignd.broker.state.links import Link, Links, NewLink, hash_of
from presignd.system.clock import utcnow

STATE_RETRY = 2
"""Retry-After in seconds while the state is away."""

MOST_PINS = 20
"""New PINs in one call: each takes some 50 ms of a core to hash."""

PAGE = 1000
"""Links in one answer to ``GET /v1/links``."""

ONE = "{id:[A-Za-z0-9_-]{22}}"
"""The part of a path that is the id of a link."""

_STATUS = {RefusalCode.LINK_TAKEN: 409}
_CREATED, _FORBIDDEN = 201, 403


@dataclass(frozen=True, slots=True)
class Recorded:
    """A link in the state, and whether this call made it."""

    link: Link
    url: str
    is_new: bool


Result = Recorded | Refusal
Handler = Callable[["LinkCalls", web.Request], Awaitable[web.Response]]


def _needing_state(handler: Handler) -> Handler:
    """Answer 503 while the state is away, and 403 where this broker has no links."""

    async def answer(self: LinkCalls, request: web.Request) -> web.Response:
        if not self.config.url:
            self.calls.authenticated(request)
            raise Rejected(
                403, RefusalCode.OPERATION_REFUSED, "this broker has no stable links: [links] url is not set"
            )
        try:
            return await handler(self, request)
        except StateAway:
            raise state_away() from None

    return answer


def state_away() -> Rejected:
    """Return the 503 for a state that can't be reached."""
    return Rejected(503, "state_unreachable", "links can't be looked up now; try again", retry_after=STATE_RETRY)


class LinkCalls:
    """The handlers; ``calls`` authenticates and limits them."""

    def __init__(self, calls: Calls, config: LinksSection, links: Links) -> None:
        self.calls, self.config, self.links = calls, config, links
        self._pins = Pins()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the API."""
        return [
            web.put(f"/v1/links/{ONE}", self.put),
            web.delete(f"/v1/links/{ONE}", self.delete),
            web.post("/v1/links", self.post),
            web.get("/v1/links", self.listed, allow_head=False),
            web.post("/v1/links/revoke", self.revoke),
        ]

    @_needing_state
    async def put(self, request: web.Request) -> web.Response:
        """Make one link."""
        read = partial(asking.read_link, link_id=request.match_info["id"])
        token, (result,) = await self.calls.in_turn(request, read, partial(self._made, self.calls.client(request)))
        if isinstance(result, Refusal):
            status = _STATUS.get(result.code, _FORBIDDEN)
            return as_json(wire.error(result.code, result.message), status)
        return as_json(_document(result, token), _CREATED if result.is_new else 200)

    @_needing_state
    async def post(self, request: web.Request) -> web.Response:
        """Make many links."""
        made = partial(self._made, self.calls.client(request))
        token, results = await self.calls.in_turn(request, asking.read_links, made, lambda asked: len(asked.links))
        return as_json({"links": [_document(result, token) for result in results]})

    @_needing_state
    async def listed(self, request: web.Request) -> web.Response:
        """List a token's links, ``PAGE`` at a time, or those with some refs."""
        token = self._linking(self.calls.authenticated(request))
        refs = request.query.get("refs")
        with self.calls.answering(request):
            after = request.query.get("after", "")
            if refs is None:
                found, more = await self._page(token, after)
            elif after:
                raise Rejected(404, "unknown_link", "after: a list by refs has no next page")
            else:
                found, more = await self.links.of_refs(token.name, refs.split(",")), None
        now = utcnow()
        return as_json({"links": [asking.shown(link, end_of(link, token), now) for link in found], "next": more})

    async def _page(self, token: TokenConfig, after: str) -> tuple[list[Link], str | None]:
        """Return one page of a token's links, and what the next page is after."""
        try:
            found = await self.links.of_token(token.name, after=after, limit=PAGE)
        except LookupError:
            raise Rejected(404, "unknown_link", 'after: give the "next" of the answer before') from None
        return found, found[-1].ref if len(found) == PAGE else None

    @_needing_state
    async def delete(self, request: web.Request) -> web.Response:
        """Revoke a link by its id."""
        token = self._linking(self.calls.authenticated(request))
        with self.calls.answering(request):
            await self._revoke(token, ById(request.match_info["id"]), self.calls.client(request))
        return web.Response(status=204)

    @_needing_state
    async def revoke(self, request: web.Request) -> web.Response:
        """Revoke a link by its ref or its id, or all to an object."""

        async def answer(token: TokenConfig, asked: Revocation) -> None:
            await self._revoke(self._linking(token), asked, self.calls.client(request))

        await self.calls.in_turn(request, asking.read_revocation, answer)
        return web.Response(status=204)

    def _linking(self, token: TokenConfig) -> TokenConfig:
        if LINK in token.operations:
            return token
        rejected = Rejected(403, RefusalCode.OPERATION_REFUSED, f"this token may not {LINK}")
        rejected.by = token.name
        raise rejected

    async def _revoke(self, token: TokenConfig, asked: Revocation, client: str) -> None:
        now = utcnow()
        match asked:
            case ByRef(ref):
                revoked = await self.links.revoke_ref(token.name, ref, now)
            case ById(link_id):
                revoked = await self.links.revoke(token.name, hash_of(link_id), now)
            case ByObject(bucket, key):
                revoked = await self.links.revoke_object(token.name, bucket, key, now)
        for link in revoked:
            audit.link_revoked(token.name, client, link)

    # --- making ---------------------------------------------------------------------------------------
    async def _made(self, client: str, token: TokenConfig, asked: ParsedLinks) -> tuple[TokenConfig, list[Result]]:
        now, pins = utcnow(), 0
        decided: list[LinkRequest | Refusal] = []
        for place, each in enumerate(asked.links):
            one = asked.refused.get(place) or decide_link(token, each, now)
            if isinstance(one, LinkRequest) and one.pin:
                pins += 1
                if pins > MOST_PINS:
                    one = Refusal(RefusalCode.LINK_REFUSED, f"at most {MOST_PINS} links with a pin in one call")
            decided.append(one)
        new = [await self._new(token, each) for each in decided if isinstance(each, LinkRequest)]
        recorded = iter(zip(new, await self.links.put(new) if new else [], strict=True))
        results = [each if isinstance(each, Refusal) else self._result(each.id, *next(recorded)) for each in decided]
        self._record(token.name, client, asked.links, results)
        refused = [str(each.code) for each in results if isinstance(each, Refusal)]
        self.calls.activity.answered(token.name, now, granted=0, refused=refused)
        return token, results

    async def _new(self, token: TokenConfig, asked: LinkRequest) -> NewLink:
        return NewLink(
            id=hash_of(asked.id),
            token=token.name,
            bucket=asked.bucket,
            key=asked.key,
            version_id=asked.version_id,
            size=asked.size,
            content_type=asked.content_type,
            filename=asked.filename,
            disposition=asked.disposition,
            note=asked.note,
            pin=await self._pins.hash_of(asked.pin),
            made_at=utcnow(),
            ends_at=asked.expires_at,
            max_downloads=asked.max_downloads,
            unit=asked.unit,
        )

    def _result(self, link_id: str, new: NewLink, link: Link) -> Result:
        found = link.new
        if (found.token, found.bucket, found.key) != (new.token, new.bucket, new.key):
            return Refusal(RefusalCode.LINK_TAKEN, "this id is another object's: choose a new one")
        return Recorded(link, asking.url_of(self.config.url, link_id, link), is_new=found == new)

    @staticmethod
    def _record(token: str, client: str, asked: Sequence[LinkRequest], results: Sequence[Result]) -> None:
        for each, result in zip(asked, results, strict=True):
            if isinstance(result, Refusal):
                audit.link_not_made(token, client, each.bucket, each.key, result.code)
            elif result.is_new:
                audit.link_created(token, client, result.link)
            code = str(result.code) if isinstance(result, Refusal) else "made" if result.is_new else "known"
            metrics.LINKS.labels(token, code).inc()


def _document(result: Result, token: TokenConfig) -> dict[str, Any]:
    if isinstance(result, Refusal):
        return wire.error(result.code, result.message)
    return {"url": result.url, **asking.shown(result.link, end_of(result.link, token), utcnow())}
