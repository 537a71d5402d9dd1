"""``/l/``: a stable link redirects to a request that is signed for it, or shows a page first.

Only the page's POST opens a link with a limit or a PIN: mail scanners and previews send GET and HEAD, and would use it
up. Redirects are counted; only the store knows whether a download was completed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

from aiohttp import web

from presignd.broker import audit, metrics
from presignd.broker.access import Rejected
from presignd.broker.calls import Calls
from presignd.broker.config import LinksSection, TokenConfig, api_origins
from presignd.broker.links import folder_page, page
from presignd.broker.links.api import ONE, STATE_RETRY
from presignd.broker.links.folder_files import MANIFEST, File, FolderFiles, NoManifest
from presignd.broker.links.guard import (
    MISS_WINDOW,
    MISSES,
    PIN_TRIES,
    PIN_WINDOW,
    ClientLimit,
    is_pass,
    new_pass,
)
from presignd.broker.links.names import safe_filename
from presignd.broker.links.pin import Pins
from presignd.broker.links.policy import end_of
from presignd.broker.links.request import LinkState, state_of
from presignd.broker.links.target import overrides
from presignd.broker.links.words import Words, words_for
from presignd.broker.policy import may_link
from presignd.broker.state.database import Database, StateAway
from presignd.broker.state.links import Link, Links, NewLink, hash_of
from presignd.broker.state.outbox import StateOutbox
from presignd.errors import Fault
from presignd.pages import layout
from presignd.presign import Grant, GrantRequest, Operation
from presignd.presign.local import LocalPresigner
from presignd.store.signed import SignedStore
from presignd.system.clock import utcnow

PATHS = ("/l/", "/i/")
"""Paths for strangers; all others need a token."""

_MISPLACED = "the name in [links] url serves links alone, and no other name does; [broker] url is the API's name"

COOKIE = "presignd-pass"
LARGEST_FORM = 4096
ANY = r"[\s\S]*"
"""The rest of a path: a file's name may hold a line break, which ``.`` does not match."""
_PAGES = frozenset(map(str, range(1, 1000)))

HEADERS = {"Referrer-Policy": "no-referrer", "X-Robots-Tag": "noindex", "X-Frame-Options": "DENY"}
_CSP = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action "

_STATUS = {
    "unknown": 404,
    "expired": 410,
    "revoked": 410,
    "used_up": 410,
    "no_such_file": 404,
    "no_manifest": 502,
    "too_many_tries": 429,
    "no_form": 400,
    "state_unreachable": 503,
}


class Closed(Exception):
    """A link does not open: ``why`` is one of ``_STATUS``."""

    def __init__(self, why: str, *, link: Link | None = None, retry_after: int = 0) -> None:
        super().__init__(why)
        self.why, self.link, self.retry_after = why, link, retry_after


class Visit(NamedTuple):
    """A request for a link that exists and that its token's rights allow; it may be used up."""

    link: Link
    token: TokenConfig | None
    ends: datetime | None
    now: datetime


Handler = Callable[["PublicLinks", web.Request], Awaitable[web.Response]]


def _explained(handler: Handler) -> Handler:
    """Answer with a page, or a line of text, if a link does not open."""

    async def answer(self: PublicLinks, request: web.Request) -> web.Response:
        try:
            with self.calls.answering(request):
                return await handler(self, request)
        except Closed as closed:
            return self.closed(request, closed)
        except (StateAway, Fault):
            return self.closed(request, Closed("state_unreachable", retry_after=STATE_RETRY))

    return answer


class PublicLinks:
    """The handlers.

    ``presigner`` and ``store`` return the ones in use: a reload replaces them. Without a store, a link to a folder
    redirects to its manifest.
    """

    def __init__(
        self,
        calls: Calls,
        config: LinksSection,
        database: Database,
        presigner: Callable[[], LocalPresigner],
        store: Callable[[], SignedStore] | None = None,
        *,
        outbox: StateOutbox | None = None,
    ) -> None:
        self.calls, self._config, self._presigner = calls, config, presigner
        self._folders = FolderFiles(store) if store else None
        self._database, self._links = database, Links(database, outbox)
        self._pins = Pins()
        self._misses = ClientLimit(MISSES, MISS_WINDOW)
        self._tries = ClientLimit(PIN_TRIES, PIN_WINDOW)
        self._secret = b""
        self._is_separate = bool(config.url) and config.url not in api_origins(calls.config)

    def routes(self) -> list[web.RouteDef]:
        """Return the public routes; none where this broker has no links."""
        if not self._config.url:
            return []
        places = (f"/l/{ONE}", f"/l/{ONE}/{{filename:{ANY}}}")
        found = [web.get(place, self.get) for place in places]  # HEAD too
        found += [web.post(place, self.post) for place in places]
        return [
            *found,
            *(web.get(f"/l/{name}", _asset) for name in page.ASSETS),
            web.get(f"/l/{{else:{ANY}}}", self.other),
        ]

    def refuse_misplaced(self, request: web.Request) -> None:
        """Raise ``Rejected`` (404) for a path that this host name does not serve.

        The name of [links] url serves links alone, and no other name serves links, unless that name is the API's, too.
        """
        of_links = self._is_separate and _is_for(request.host.lower(), self._config.url)
        if self._is_separate and of_links != request.path.startswith(PATHS):
            raise Rejected(404, "no_such_path", _MISPLACED)

    @_explained
    async def get(self, request: web.Request) -> web.Response:
        """Redirect; show the page of a link with a limit or a PIN."""
        digest = hash_of(request.match_info["id"])
        is_head, now = request.method == "HEAD", utcnow()
        self._refuse_guesser(request, now)
        # The statement that finds the link also counts, as a second one would slow down every opening.
        counted = None if is_head else await self._links.open(digest, now)
        try:
            visit = self._visit(request, counted or await self._links.find(digest), now)
            operation = Operation.HEAD if is_head else Operation.GET
            if visit.link.new.unit and self._folders is not None:
                return await self._open_folder(request, visit, operation, self._folders)
            if _is_limited(visit.link):
                return await self._offer(request, visit)
            return self._redirect(request, visit, await self._target(visit, operation), 302)
        except (Closed, Fault):
            if counted is not None:
                with suppress(StateAway):
                    await self._links.take_back(digest, now)
            raise

    @_explained
    async def post(self, request: web.Request) -> web.Response:
        """Count one opening, and redirect."""
        now = utcnow()
        self._refuse_guesser(request, now)
        link = await self._links.find(hash_of(request.match_info["id"]))
        visit = self._visit(request, link, now)
        if await self._has_pass(request, visit):
            return self._opened(request, visit, await self._target(visit, Operation.GET))
        if visit.link.new.pin and not await self._is_right_pin(request, visit):
            audit.link_refused(self.calls.client(request), "wrong_pin", visit.link)
            return await self._offer(request, visit, wrong_pin=True)
        target = await self._target(visit, Operation.GET)  # first: an opening that can't be signed is not counted
        spent = await self._links.spend(visit.link.new.id, now)
        if spent is None:
            raise Closed(LinkState.USED_UP, link=visit.link)
        answer = self._opened(request, visit._replace(link=spent), target)
        await self._give_pass(request, answer, visit)
        return answer

    @_explained
    async def other(self, request: web.Request) -> web.Response:
        """Answer that there is no link."""
        self._refuse_guesser(request, utcnow())
        raise Closed("unknown")

    # --- whether it opens -----------------------------------------------------------------------------
    def _refuse_guesser(self, request: web.Request, now: datetime) -> None:
        if wait := self._misses.wait(self.calls.client(request), now):
            raise Closed("too_many_tries", retry_after=wait)

    def _visit(self, request: web.Request, link: Link | None, now: datetime) -> Visit:
        """Return a link that its token still allows; raise ``Closed``. A pass still opens one that is used up."""
        if link is None:
            self._misses.take(self.calls.client(request), now)
            raise Closed("unknown")
        token = self.calls.tokens.named(link.new.token)
        if token is None and not link.kept and self.calls.tokens.unreadable():
            raise Closed("state_unreachable", link=link, retry_after=STATE_RETRY)
        ends = end_of(link, token)
        state = state_of(link, ends, now)
        if state in {LinkState.REVOKED, LinkState.EXPIRED}:
            raise Closed(state, link=link)
        if not link.kept and (
            token is None or may_link(token, link.new.bucket, link.new.key, link.new.version_id) is not None
        ):
            raise Closed(LinkState.REVOKED, link=link)
        return Visit(link, token, ends, now)

    async def _is_right_pin(self, request: web.Request, visit: Visit) -> bool:
        """Compare the form's PIN; raise ``Closed`` for too many tries, of this link or of this client."""
        pin, client, now = await self._form_pin(request), self.calls.client(request), visit.now
        wait = self._tries.wait(client, now)
        self._tries.take(client, now)
        took = not wait and await self._links.take_pin_try(visit.link.new.id, now, most=PIN_TRIES, window=PIN_WINDOW)
        if not took:
            seconds = wait or int(PIN_WINDOW.total_seconds())
            raise Closed("too_many_tries", link=visit.link, retry_after=seconds)
        if not await self._pins.is_right(pin, visit.link.new.pin):
            return False
        self._tries.forgive(client)
        return True

    async def _form_pin(self, request: web.Request) -> str:
        if not request.can_read_body:
            return ""
        if request.content_type != "application/x-www-form-urlencoded":
            raise Closed("no_form")
        body = await self.calls.in_time(_read_form(request))
        return parse_qs(body.decode("utf-8", "replace")).get("pin", [""])[0]

    # --- passes -----------------------------------------------------------------------------------------
    async def _has_pass(self, request: web.Request, visit: Visit) -> bool:
        given = request.cookies.get(COOKIE, "")
        return bool(given) and is_pass(given, await self._pass_secret(), visit.link.new.id, visit.now)

    async def _give_pass(self, request: web.Request, answer: web.Response, visit: Visit) -> None:
        seconds = self._config.target_expires
        given = new_pass(await self._pass_secret(), visit.link.new.id, visit.now + timedelta(seconds=seconds))
        secure = self._config.url.startswith("https:")
        path = f"/l/{request.match_info['id']}"
        answer.set_cookie(COOKIE, given, max_age=seconds, path=path, httponly=True, samesite="Lax", secure=secure)

    async def _pass_secret(self) -> bytes:
        """Return the secret of the passes, which all brokers share."""
        self._secret = self._secret or await self._database.secret("link pass", secrets.token_bytes(32))
        return self._secret

    # --- folders ----------------------------------------------------------------------------------------
    async def _open_folder(
        self, request: web.Request, visit: Visit, operation: Operation, folders: FolderFiles
    ) -> web.Response:
        """Show the page with the folder's files, or redirect to the file that the path names.

        A program that requests the folder itself gets the manifest.
        """
        if _is_limited(visit.link) and not await self._has_pass(request, visit):
            return await self._offer(request, visit)
        path = request.match_info.get("filename", "").partition("/")[2]
        if not path and is_browser(request):
            return await self._page(request, visit, folders)
        if path not in ("", MANIFEST):
            visit = visit._replace(link=visit.link._replace(new=await self._file(visit, path, folders)))
        target = await self._target(visit, operation)
        if operation is Operation.GET and not _is_limited(visit.link):
            await self._links.spend(visit.link.new.id, visit.now)  # there is no limit: this only counts
        return self._redirect(request, visit, target, 302)

    async def _file(self, visit: Visit, path: str, folders: FolderFiles) -> NewLink:
        """Return the link as one to a file of its folder; raise ``Closed`` if its token may not link that file."""
        file = (await self._listed(visit, folders)).get(path)
        if file is None or not _may_have(visit, file.key):
            raise Closed("no_such_file", link=visit.link)
        return visit.link.new._replace(
            key=file.key, version_id="", size=file.size, filename=safe_filename(file.name), content_type=file.kind
        )

    async def _page(self, request: web.Request, visit: Visit, folders: FolderFiles) -> web.Response:
        files = await self._listed(visit, folders)
        root = f"/l/{request.match_info['id']}/{quote(visit.link.new.filename, safe='')}/"
        number = request.query.get("page", "1")
        shown = folder_page.Shown(visit.link, visit.ends, root, int(number) if number in _PAGES else 1)
        metrics.OPENINGS.labels("page").inc()
        text = await asyncio.to_thread(folder_page.folder_page, shown, [*files.values()], words_of(request))
        return page_response(request, 200, text)

    async def _listed(self, visit: Visit, folders: FolderFiles) -> Mapping[str, File]:
        try:
            return await folders.of(visit.link.new)
        except NoManifest:
            raise Closed("no_manifest", link=visit.link) from None

    def _opened(self, request: web.Request, visit: Visit, target: Grant) -> web.Response:
        """Answer the form: redirect to the object, or to the folder's page, which the browser's pass opens."""
        if not visit.link.new.unit or self._folders is None:
            return self._redirect(request, visit, target, 303)
        audit.link_opened(self.calls.client(request), request.headers.get("User-Agent", ""), visit.link)
        metrics.OPENINGS.labels("opened").inc()
        headers = {**HEADERS, "Location": request.rel_url.raw_path, "Content-Security-Policy": f"{_CSP}'none'"}
        return web.Response(status=303, headers=headers)

    # --- answers ----------------------------------------------------------------------------------------
    async def _target(self, visit: Visit, operation: Operation) -> Grant:
        new, seconds = visit.link.new, self._config.target_expires
        if visit.token is not None and not visit.link.kept:
            seconds = min(seconds, visit.token.max_link_expires)
        asked = GrantRequest(operation, new.bucket, new.key, seconds, public=True, version_id=new.version_id)
        return await self._presigner().link_target(asked, overrides(new))

    def _redirect(self, request: web.Request, visit: Visit, target: Grant, status: int) -> web.Response:
        is_head = request.method == "HEAD"
        if not is_head:
            audit.link_opened(self.calls.client(request), request.headers.get("User-Agent", ""), visit.link)
        metrics.OPENINGS.labels("head" if is_head else "opened").inc()
        headers = {**HEADERS, "Location": target.url, "Content-Security-Policy": f"{_CSP}'none'"}
        return web.Response(status=status, headers=headers)

    async def _offer(self, request: web.Request, visit: Visit, *, wrong_pin: bool = False) -> web.Response:
        known = await self._has_pass(request, visit)
        if not known and state_of(visit.link, visit.ends, visit.now) is LinkState.USED_UP:
            raise Closed(LinkState.USED_UP, link=visit.link)
        offer = page.Offer(visit.link, visit.ends, known, wrong_pin)
        origin = self._presigner().public_origin(visit.link.new.bucket)
        metrics.OPENINGS.labels("page").inc()
        body = page.offer_page(offer, words_of(request)) if is_browser(request) else page.offer_text(offer)
        return page_response(request, 403 if wrong_pin else 200, body, forms_to=origin)

    def closed(self, request: web.Request, closed: Closed) -> web.Response:
        """Return the answer for a link that does not open."""
        why = str(closed.why)
        audit.link_refused(self.calls.client(request), why, closed.link)
        metrics.OPENINGS.labels(why).inc()
        body = page.refusal_page(why, words_of(request)) if is_browser(request) else page.refusal_text(why)
        response = page_response(request, _STATUS[why], body)
        if closed.retry_after:
            response.headers["Retry-After"] = str(closed.retry_after)
        return response


def _may_have(visit: Visit, key: str) -> bool:
    """Return whether the link's token may link this object too, unless the link outlives it."""
    if visit.link.kept or visit.token is None:
        return True
    return may_link(visit.token, visit.link.new.bucket, key, "") is None


def _is_limited(link: Link) -> bool:
    return bool(link.new.pin) or link.new.max_downloads is not None


async def _read_form(request: web.Request) -> bytes:
    """Return the body, of a known length or in chunks; raise ``Closed`` if it is too long for a form."""
    body = b""
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > LARGEST_FORM:
            raise Closed("no_form")
    return body


def is_browser(request: web.Request) -> bool:
    """Return whether the client accepts HTML."""
    return "text/html" in request.headers.get("Accept", "")


def _is_for(host: str, url: str) -> bool:
    """Return whether a Host header names ``url``; a proxy may leave out the port, and a name may end with a dot."""
    name = urlsplit(url)
    hostname, colon, port = host.partition(":")
    host = hostname.removesuffix(".") + colon + port
    return host in {name.netloc, name.hostname, f"{name.netloc}:{443 if name.scheme == 'https' else 80}"}


def words_of(request: web.Request) -> Words:
    """Return the words in a language that the browser accepts."""
    return words_for(request.headers.get("Accept-Language", ""))


def page_response(request: web.Request, status: int, text: str, *, forms_to: str = "") -> web.Response:
    """Return a page whose form the browser may send here, and follow the redirect to ``forms_to``."""
    kind = "text/html" if is_browser(request) else "text/plain"
    headers = {
        **HEADERS,
        "Content-Security-Policy": f"{_CSP}'self' {forms_to}".rstrip(),
        "Vary": "Accept, Accept-Language, Cookie",
    }
    return web.Response(status=status, text=text, content_type=kind, charset="utf-8", headers=headers)


async def _asset(request: web.Request) -> web.Response:
    name = request.path.rpartition("/")[2]
    return web.Response(body=layout.asset(name), content_type=layout.ASSETS[name], charset="utf-8", headers=HEADERS)
