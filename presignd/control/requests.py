"""The requests of the control socket; a command without a daemon has them answered in its own process.

A request is ``{"op": …}`` with the fields its method names; each answer is one JSON object. Failures are
raised as ``PresigndError``. Requests come from other users: every field is checked before it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import stat
import time
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from presignd.control import documents, verify
from presignd.control.documents import LISTED, of_daemon, overview
from presignd.control.fields import flag, number, paths, text, whole_number
from presignd.control.links import Terms
from presignd.control.paths import NOT_SENT, Finder, WaitOutcome, WatchPath, forms
from presignd.errors import CODES, Refused, TimedOut, Unavailable, UsageError
from presignd.ledger import Selection
from presignd.links import answer_links
from presignd.model import State
from presignd.pipeline.put import STDIN, stream_name_problem
from presignd.presign.stable import id_in, is_ref
from presignd.runtime.heartbeat import USUAL, overdue
from presignd.s3.limits import MAX_EXPIRES
from presignd.telemetry.log import get_logger
from presignd.webhooks.shown import of_tested

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from presignd.control.documents import Document
    from presignd.control.peer import Peer
    from presignd.control.view import BlockedView, View
    from presignd.model import FileVersion, Link

    Request = Mapping[str, Any]
    Answering = Callable[[Request, Peer, Sequence[int]], AsyncGenerator[Document, None]]

LONGEST_WAIT = 7 * 86400.0
LONGEST_DAYS, MOST_DOWNLOADS = 36500, 1_000_000
PROGRESS_EVERY = 0.2
PATIENCE = 5.0
"""Seconds that ``put`` waits for a store or a watch that is blocked; the daemon itself waits without limit."""
STREAM_PATIENCE = 300.0
"""Seconds that it waits for a stream that was sent in part: its writer would have to begin again."""

_LISTED = {
    "link": "presignd links lists what was",
    "unlink": "presignd links --issued lists stable links by their refs",
}
"""Fixes that name the command which lists what can be given."""

log = get_logger()


def no_page() -> str:
    """Raise ``Unavailable``: this is ``login_url`` if there is no status page."""
    raise Unavailable("web: there is no status page", fix="set web.listen, and start the daemon anew")


class Responder:
    """Answers the requests of the control socket, from one ``View``.

    ``login_url`` returns an address that logs in to the status page once (secret), or raises ``Unavailable``.
    ``put`` waits up to ``patience`` seconds for a store or a watch that is blocked.
    """

    def __init__(self, view: View, login_url: Callable[[], str] = no_page, *, patience: float = PATIENCE) -> None:
        self.view = view
        self._login_url, self._patience = login_url, patience
        self._finder = Finder(view)
        self._verifying = asyncio.Semaphore(verify.WIDTH)
        self.operations: dict[str, Answering] = {
            "ping": self._ping,
            "status": self._status,
            "path": self._path,
            "wait": self._wait,
            "links": self._links,
            "link": self._link,
            "stable_link": self._stable_link,
            "unlink": self._unlink,
            "issued": self._issued,
            "put": self._put,
            "put_stream": self._put_stream,
            "retry": self._retry,
            "verify": self._verify,
            "web": self._web,
            "webhook_test": self._webhook_test,
            "webhook_enable": self._webhook_enable,
        }

    async def answer(self, request: Request, peer: Peer, fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        """Answer one request of ``peer``; ``fds`` stay the caller's.

        ``{"ledger": folder}`` in a request means the daemon of that ledger alone; any other refuses it.
        """
        operation = self.operations.get(text(request, "op"))
        if operation is None:
            raise UsageError("control socket: the daemon does not know this request", fix="update the daemon")
        ledger = text(request, "ledger")
        if ledger and ledger != str(self.view.config.ledger.path):
            raise OtherDaemon("control socket: this daemon has another ledger")
        async with contextlib.aclosing(operation(request, peer, fds)) as answers:
            async for found in answers:
                yield found

    async def _ping(self, _request: Request, _peer: Peer, _fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        """Answer with the daemon's pid and the loops that missed their turn."""
        yield {"daemon": of_daemon(self.view), "late": overdue(USUAL)}

    # --- status -------------------------------------------------------------------------------------
    async def _status(self, _request: Request, _peer: Peer, _fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        yield await overview(self.view)

    async def _path(self, request: Request, _peer: Peer, _fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        (named,) = await self._finder.find([_only_path(request, "status")])
        place, version = named.place, named.version
        settling = self.view.settling_at(place.watch, place.path)
        uploads = [u for u in self.view.in_flight() if version and u.version.file_id == version.file_id]
        if version is None and not settling:
            raise self._finder.unknown(named)
        yield {
            "path": os.fsdecode(place.absolute),
            "watch": place.watch or (version.watch if version else ""),
            "version": documents.of_version(version, self._roots) if version else None,
            "settling": documents.of_settling(settling, self._roots) if settling else None,
            "in_flight": documents.of_in_flight(uploads[0], self._roots) if uploads else None,
        } | ({"why": NOT_SENT} if version and version.state is State.IGNORED else {})

    async def _links(self, request: Request, peer: Peer, _fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        self._may_have_links(peer, "links")
        lines = cast("AsyncGenerator[Document, None]", answer_links(self.view.config.links.file, request))
        async with contextlib.aclosing(lines):
            async for found in lines:
                yield found

    # --- waiting ------------------------------------------------------------------------------------
    async def _wait(self, request: Request, _peer: Peer, _fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        """Yield ``{"path", "outcome", …}`` for each path once its outcome is final, for the others at the timeout.

        ``why`` is added if the path will get no link: it is in no watch, or a rule of its watch ignores it.
        """
        limit = number(request, "timeout", most=LONGEST_WAIT) or 0.0
        asked = {named.place: named.asked for named in await self._finder.find(paths(request, "paths"))}
        pending = list(asked)
        for place in pending:
            if place.watch:
                self.view.hint(place.watch, place.path)
        began = time.monotonic()
        while True:
            looked = time.monotonic()
            found = await self._finder.outcomes(pending)
            over = self.view.started_at is None or time.monotonic() - began >= limit
            for place, (result, version) in found.items():
                if result is not WaitOutcome.PENDING or over:
                    yield self._waited(asked[place], place, result, version)
            pending = [place for place, (result, _) in found.items() if result is WaitOutcome.PENDING]
            if over or not pending:
                break
            now = time.monotonic()
            await asyncio.sleep(max(0.0, min(polling_pause(now - began, now - looked), limit - (now - began))))
        self._still_pending(pending)

    def _waited(self, asked: bytes, place: WatchPath, result: WaitOutcome, version: FileVersion | None) -> Document:
        hopeless = result in {WaitOutcome.IGNORED, WaitOutcome.OUTSIDE}
        why = self._finder.why(place, version) if hopeless else ""
        return {
            "path": os.fsdecode(asked),
            "outcome": str(result),
            "version": documents.of_version(version, self._roots) if version else None,
        } | ({"why": why} if why else {})

    @property
    def _roots(self) -> Mapping[str, str]:
        return documents.roots_of(self.view.config)

    def _still_pending(self, pending: Sequence[WatchPath]) -> None:
        if not pending:
            return
        if self.view.started_at is None:
            raise Unavailable(f"wait: {_files(len(pending))} pending, and no daemon runs", fix="presignd run")
        raise TimedOut(f"wait: {_files(len(pending))} still pending", fix="presignd status shows why")

    # --- links --------------------------------------------------------------------------------------
    async def _link(self, request: Request, peer: Peer, _fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        self._may_have_links(peer, "link")
        expires = _expiry(request)
        version = await self._uploaded("link", paths(request, "path"), text(request, "key"))
        yield {"link": documents.of_link(await self.view.links.fresh(version, expires, by_uid=peer.uid))}

    async def _stable_link(self, request: Request, peer: Peer, _fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        """Yield ``{"link": …}``, a new stable one. An own operation, because an older daemon would ignore the PIN."""
        self._may_have_links(peer, "link")
        terms = Terms(
            days=whole_number(request, "days", most=LONGEST_DAYS),
            downloads=whole_number(request, "downloads", most=MOST_DOWNLOADS),
            pin=text(request, "pin"),
            name=text(request, "name"),
        )
        version = await self._uploaded("link", paths(request, "path"), text(request, "key"))
        yield {"link": documents.of_link(await self.view.links.on_terms(version, terms, by_uid=peer.uid))}

    async def _unlink(self, request: Request, peer: Peer, _fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        """Revoke the stable link at an address (``link``), else all to the file at ``path`` or ``key``, else a ref."""
        self._may_have_links(peer, "unlink")
        named = text(request, "link")
        if link_id := id_in(named):
            revoked = {"id": link_id}
        elif named.startswith(("http://", "https://")):
            raise Refused(
                "unlink: this address is no stable link",
                fix="presigned links can't be revoked; presignd links --issued lists the stable ones",
            )
        else:
            revoked = await self._named_links(paths(request, "path"), text(request, "key"), named)
        await self.view.links.revoke(revoked, by_uid=peer.uid)
        yield {"revoked": {name: value for name, value in revoked.items() if name != "id"}}

    async def _named_links(self, named: Sequence[bytes], key: str, ref: str) -> dict[str, str]:
        """Return which links a broker must revoke: all to a file's object, or else the one with a ref."""
        try:
            version = await self._uploaded("unlink", named, key)
        except Refused:
            if not is_ref(ref):
                raise
            return {"ref": ref}
        assert version.key is not None, "it is uploaded"
        return {"bucket": version.bucket, "key": version.key}

    async def _issued(self, _request: Request, peer: Peer, _fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        """Yield ``{"link": …}`` for each stable link of the broker's token, oldest first, and ``{"end": true}``."""
        self._may_have_links(peer, "links")
        async with contextlib.aclosing(self.view.links.issued()) as pages:
            async for page in pages:
                for link in page:
                    yield {"link": documents.of_issued(link)}
        yield {"end": True}

    async def _web(self, _request: Request, peer: Peer, _fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        """Yield ``{"url"}``: the address that logs in to the status page, which shows links."""
        self._may_have_links(peer, "web")
        yield {"url": self._login_url()}

    def _may_have_links(self, peer: Peer, op: str) -> None:
        group = self.view.config.links.group
        if peer.may_have_links(group):
            return
        log.warning("control.refused", op=op, by_uid=peer.uid)
        who = f"root, the daemon's user and the group {group}" if group else "root and the daemon's user"
        raise Refused(
            f"{op}: links go only to {who}",
            fix="join that group, and log in again" if group else "set links.group to a group you are in",
        )

    async def _uploaded(self, op: str, named: Sequence[bytes], key: str) -> FileVersion:
        """Return the version that ``link`` or ``unlink`` means: by a path, else by a key (``s3://bucket/key`` too)."""
        found = next(iter(await self._finder.find(named)), None)
        version = found.version if found else None
        if version is None:
            version = await self._by_key(key)
        if version is None and found and found.place.watch:
            raise self._finder.unknown(found)
        if version is None:
            raise Refused(f"{op}: nothing was uploaded from or as {key}", fix=_LISTED[op])
        if documents.has_receipt(version):
            return version
        raise _not_uploaded(op, version, documents.absolute(self._roots, version.watch, version.path))

    async def _by_key(self, named: str) -> FileVersion | None:
        """Return the newest version stored under a key, else under a key that looks the same."""
        bucket, key = _bucket_and_key(named)
        for form in forms(key.encode()):
            if version := await self.view.ledger.by_key(form.decode(), bucket):
                return version
        return None

    async def _put(self, request: Request, peer: Peer, fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        """Yield ``{"sent", "size"}`` while it is uploaded, and ``{"link": …}`` at the end."""
        self._may_have_links(peer, "put")
        size = _check_descriptor(fds, "put")
        place = await self._finder.exactly(_only_path(request, "put"))
        watch = self._watch_for(place, text(request, "watch"))
        own = place.path if watch == place.watch else place.absolute
        put = partial(self.view.put, fds[0], own, watch, key=text(request, "key") or None)
        async with contextlib.aclosing(self._link_of(put, watch, request, peer, size)) as answers:
            async for found in answers:
                yield found

    async def _put_stream(self, request: Request, peer: Peer, fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        """Yield as ``put`` does, with ``"size": null``: the client sends frames over the socket that it passed."""
        self._may_have_links(peer, "put")
        if len(fds) != 1 or not stat.S_ISSOCK(os.fstat(fds[0]).st_mode):
            raise UsageError("put: the request came without a socket")
        name = os.fsencode(text(request, "name"))
        if why := stream_name_problem(name):
            raise UsageError(f"put: --name: {why}", fix="give the name of a file, without folders")
        watch = self._watch_for(WatchPath(STDIN + name, "", STDIN + name), text(request, "watch"))
        with socket.socket(fileno=os.dup(fds[0])) as connection:
            put = partial(self.view.put_stream, connection, name, watch, key=text(request, "key") or None)
            async with contextlib.aclosing(self._link_of(put, watch, request, peer, None)) as answers:
                async for found in answers:
                    yield found

    async def _link_of(
        self,
        put: Callable[..., Awaitable[Link]],
        watch: str,
        request: Request,
        peer: Peer,
        size: int | None,
    ) -> AsyncGenerator[Document, None]:
        """Do a put; yield ``{"sent", "size"}`` while it is uploaded, and ``{"link": …}`` at the end.

        ``size`` is None for a stream. Raises ``Unavailable`` once its store or its watch was blocked for too long.
        """
        sent = 0

        def progress(now: int) -> None:
            nonlocal sent
            sent = now

        upload = asyncio.ensure_future(put(expires=_expiry(request), by_uid=peer.uid, progress=progress))
        open_at = time.monotonic()
        try:
            while not (await asyncio.wait({upload}, timeout=PROGRESS_EVERY))[0]:
                yield {"sent": sent, "size": size}
                if not (blocked := self._blocked(watch)):
                    open_at = time.monotonic()
                elif time.monotonic() - open_at >= (STREAM_PATIENCE if sent and size is None else self._patience):
                    raise _unavailable(blocked)
            link = upload.result()
            yield {"sent": sent, "size": size}  # a stream's client learns the whole size only from this
            yield {"link": documents.of_link(link)}
        finally:
            upload.cancel()
            await asyncio.gather(upload, return_exceptions=True)

    def _blocked(self, watch: str) -> BlockedView | None:
        return next((found for found in self.view.blocked() if found.watch in {"", watch}), None)

    def _watch_for(self, place: WatchPath, named: str) -> str:
        """Return the watch whose bucket and policy a ``put`` uses: as named, else the file's own, else the only one."""
        known = [watch.name for watch in self.view.config.watches]
        chosen = named or place.watch or (known[0] if len(known) == 1 else "")
        if chosen in known:
            return chosen
        listed = ", ".join(known)
        if named:
            raise UsageError(f"put: there is no watch {named!r}", fix=f"--watch is one of: {listed}")
        raise UsageError("put: which watch? The file is in none", fix=f"name one with --watch: {listed}")

    # --- verify -------------------------------------------------------------------------------------
    async def _verify(self, request: Request, peer: Peer, fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        """Compare the files at ``paths``, or all, with their objects (``Verification.answers``).

        A descriptor, or ``by_receipt``, is for the only path, of a file that was put from outside the watches.
        """
        named, every = paths(request, "paths"), flag(request, "all")
        by_receipt = flag(request, "by_receipt")
        if not named and not every:
            raise UsageError("verify: which files?", fix="name paths, or use --all")
        if fds:
            _only_path(request, "verify", "paths")
            _check_descriptor(fds, "verify")
        async with self.view.verifying(download=flag(request, "download")) as verifier:
            verification = verify.Verification(
                self.view, self._finder, verifier, self._verifying, fd=fds[0] if fds else None, by_receipt=by_receipt
            )
            answers = verification.answers(named, every=every, list_equal=flag(request, "list_equal"))
            async with contextlib.aclosing(answers):
                async for found in answers:
                    yield found
        log.info("verify.finished", by_uid=peer.uid, **verification.summary.outcomes)

    # --- webhooks -----------------------------------------------------------------------------------
    async def _webhook_test(self, request: Request, _peer: Peer, _fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        """Send a signed test message; yield the webhook's name and the result."""
        yield of_tested(*await self.view.webhooks.test(text(request, "webhook")))

    async def _webhook_enable(
        self, request: Request, _peer: Peer, _fds: Sequence[int]
    ) -> AsyncGenerator[Document, None]:
        """Switch a webhook on again that was off."""
        yield {"webhook": await self.view.webhooks.enable(text(request, "webhook"))}

    # --- retry --------------------------------------------------------------------------------------
    async def _retry(self, request: Request, _peer: Peer, _fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        """Put quarantined files back in the queue: those at ``paths``, or all that match ``watch`` and ``error``."""
        named, watch, code = paths(request, "paths"), text(request, "watch"), text(request, "error")
        if not (named or watch or code or flag(request, "all")):
            raise UsageError("retry: which files?", fix="name paths, or use --all, --watch NAME or --error CODE")
        if watch and watch not in {known.name for known in self.view.config.watches}:
            raise Refused(f"retry: there is no watch {watch!r}", fix="presignd status lists them")
        selections = await self._selections(named) or [Selection(watch=watch or None)]
        back: list[FileVersion] = []
        for chosen in selections:
            narrowed = Selection(chosen.path, chosen.watch or watch or None, code or None)
            back += await self.view.requeue(narrowed)
        if not back and not flag(request, "all"):
            raise Refused("retry: nothing quarantined matches", fix="presignd status lists what is quarantined")
        yield {"count": len(back), "files": [documents.of_version(version, self._roots) for version in back[:LISTED]]}

    async def _selections(self, named: Sequence[bytes]) -> list[Selection]:
        selections = []
        for found in await self._finder.find(named):
            if (version := found.version) is None:
                raise self._finder.unknown(found)
            if version.state is not State.QUARANTINED:
                raise Refused(f"retry: {os.fsdecode(found.asked)} is not quarantined, it is {version.state}")
            selections.append(Selection(path=(version.watch, version.path)))
        return selections


class OtherDaemon(Unavailable):
    """This daemon has another ledger than the request names: the client tries the next daemon."""

    code = "other_daemon"


def _only_path(request: Request, op: str, name: str = "path") -> bytes:
    found = paths(request, name)
    if len(found) != 1:
        raise UsageError(f"{op}: the request names no path")
    return found[0]


def _expiry(request: Request) -> int | None:
    seconds = number(request, "expires", most=MAX_EXPIRES)
    if seconds is not None and seconds < 1:
        raise UsageError("--expires: a link lives for 1s at least")
    return None if seconds is None else int(seconds)


def _bucket_and_key(named: str) -> tuple[str | None, str]:
    if not named.startswith("s3://"):
        return None, named
    bucket, _, key = named.removeprefix("s3://").partition("/")
    return bucket, key


def _check_descriptor(fds: Sequence[int], op: str) -> int:
    """Return the size of the file that came as a descriptor: exactly one, of a regular file, for reading only."""
    if len(fds) != 1:
        raise UsageError(f"{op}: the request came without an open file")
    found = os.fstat(fds[0])
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"{op}: not a regular file", fix="name a regular file")
    flags = fcntl.fcntl(fds[0], fcntl.F_GETFL)
    if flags & os.O_ACCMODE != os.O_RDONLY or flags & getattr(os, "O_PATH", 0):
        raise UsageError(f"{op}: the file must be open for reading only")
    return found.st_size


def _unavailable(blocked: BlockedView) -> Unavailable:
    known = CODES.get(blocked.code)
    error = Unavailable(f"put: {blocked.cause}", fix=known.fix if known else "")
    error.code = blocked.code
    return error


def _not_uploaded(op: str, version: FileVersion, path: str) -> Refused | TimedOut:
    error = documents.of_error(version)
    if error and version.state is State.QUARANTINED:
        return Refused(f"{op}: {path} is quarantined: {error['cause']}", fix=error["fix"])
    if version.state in {State.QUEUED, State.UPLOADING}:
        return TimedOut(f"{op}: {path} is {version.state}, not uploaded yet", fix="presignd wait waits for it")
    return Refused(f"{op}: {path} was not uploaded, it is {version.state}")


def _files(count: int) -> str:
    return f"{count} file is" if count == 1 else f"{count} files are"


def polling_pause(waited: float, took: float = 0.0) -> float:
    """Return the seconds until the next look: 50 ms at first, at most half a second.

    After a look that ``took`` long, at very many files, the pause is longer: a client that waits costs the uploads at
    most a tenth of a core.
    """
    return max(min(0.05 + waited * 0.02, 0.5), took * 10)
