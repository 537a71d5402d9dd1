"""The sections of the status page as HTML, from the status document. Pure; only ``links`` contains URLs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from presignd.control.documents import IDLE_SECONDS
from presignd.pages.html import Html, ago, count, figure, join, listed, name_of, shown, tag, titled, until
from presignd.presign.stable import id_in
from presignd.units import short_duration, short_size
from presignd.web.page.chart import chart, in_words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from presignd.web.snapshots import Minute

    Document = dict[str, Any]

LISTED = 50
"""The most files in a list; the number of further files follows the list."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the page shows: the status document, the newest links and the last hour, as of ``now`` (UTC).

    ``links`` are lines of ``links.jsonl`` with their URLs; they are shown only where ``full``.
    """

    status: Document
    links: Sequence[Document]
    minutes: Sequence[Minute]
    now: datetime


def headline(status: Document) -> str:
    """Return the state of the queue in one sentence."""
    counts = [watch["counts"] for watch in status["watches"]]
    queued = sum(c["queued"] for c in counts)
    under_way = sum(c[state] for c in counts for state in ("uploading", "verified", "linked"))
    said = [
        _waiting_for([found["what"] for found in status["blocked"] if not found["watch"]]),
        _quarantined(status["quarantined_count"]),
        f"{under_way:,} in progress" if under_way else "",
        f"{queued:,} queued" if queued else "",
        f"{status['settling_count']:,} not complete yet" if status["settling_count"] else "",
    ]
    return ", ".join(filter(None, said)) or "Up to date"


def _waiting_for(what: list[str]) -> str:
    return f"Waiting for {' and '.join(what)}" if what else ""


def _quarantined(number: int) -> str:
    return f"{count(number, 'file')} quarantined" if number else ""


def sections(snapshot: Snapshot, *, full: bool) -> dict[str, Html]:
    """Return every section by its id, empty if it has no content; ``full`` with links and retry buttons."""
    return {
        "blocked": _blocked(snapshot),
        "uploads": _uploads(snapshot),
        "stopped": _stopped(snapshot, full=full),
        "links": _links(snapshot, full=full),
        "settling": _settling(snapshot),
        "inboxes": _inboxes(snapshot),
        "hour": _hour(snapshot),
        "watches": _watches(snapshot),
        "webhooks": _webhooks(snapshot),
    }


# --- what came in -----------------------------------------------------------------------------------
def _inboxes(snapshot: Snapshot) -> Html:
    def item(inbox: Document) -> Html:
        said = [f"{count(inbox['received'], 'file')} received", f"{inbox['waiting']:,} waiting"]
        said += [f"{inbox['stopped']:,} of these stopped: see the log"] if inbox["stopped"] else []
        last = (", the last ", ago(inbox["last_at"], snapshot.now), " ago") if inbox["last_at"] else ()
        head = tag("h3", inbox["name"], ": ", shown(inbox["path"]))
        return join(
            head, tag("p", "By the invitation ", tag("code", inbox["invitation"])), tag("p", ", ".join(said), *last)
        )

    return titled("Inboxes", _list(snapshot.status["inboxes"], item))


# --- work in progress -------------------------------------------------------------------------------
def _blocked(snapshot: Snapshot) -> Html:
    def item(found: Document) -> Html:
        what = f"Watch {found['watch']} is blocked" if found["watch"] else _waiting_for([found["what"]])
        since = tag("p", "For ", ago(found["since"], snapshot.now), ". No file is lost; uploads resume by themselves.")
        return join(tag("h3", what), _cause(found), since)

    return titled("Blocked", _list(snapshot.status["blocked"], item, class_="bad"))


def _uploads(snapshot: Snapshot) -> Html:
    found = snapshot.status["in_flight"]
    rate = sum(upload["rate"] for upload in found if upload["sent"] < upload["size"])
    title = f"Uploading {count(len(found), 'file')}" + (f", {short_size(rate)}/s" if rate else "")
    return titled(title, _list(found, _upload)) if found else Html("")


def _upload(upload: Document) -> Html:
    whole, sent = upload["size"], upload["sent"]
    words = f"{short_size(sent)} of {short_size(whole)}" + _speed(upload)
    bar = tag("progress", words, value=sent, max=max(1, whole), aria_label=f"upload of {shown(upload['path'])}")
    return join(_file(upload), bar, tag("p", words))


def _speed(upload: Document) -> str:
    if upload["idle_seconds"] >= IDLE_SECONDS:  # the store may be frozen
        return f", nothing sent for {short_duration(upload['idle_seconds'])}"
    if not 0 < upload["sent"] < upload["size"]:
        return ""
    left = upload["seconds_left"]
    return f", {short_size(upload['rate'])}/s" + ("" if left is None else f", {short_duration(left)} left")


def _settling(snapshot: Snapshot) -> Html:
    def item(found: Document) -> Html:
        return join(_file(found), tag("p", found["why"], ", for ", ago(found["since"], snapshot.now)))

    return titled("Not complete yet", _list(snapshot.status["settling"], item, total=snapshot.status["settling_count"]))


def _stopped(snapshot: Snapshot, *, full: bool) -> Html:
    """Return the quarantined files with cause and fix; with a retry button for each if logged in."""

    def item(found: Document) -> Html:
        error = found["error"] or {"code": "", "cause": "", "fix": ""}
        return join(_file(found), _cause(error), retry_form(found["file_id"], found["path"]) if full else None)

    total = snapshot.status["quarantined_count"]
    every = retry_form("", "") if full and total > 1 else None
    stopped = _list(snapshot.status["quarantined"], item, total=total, class_="bad")
    return titled(f"Quarantined: {count(total, 'file')}", stopped, every)


def retry_form(file_id: str, path: str) -> Html:
    """Return the button that puts one file (or with "" every one) back into the queue."""
    words = join("Retry ", tag("span", shown(path), class_="unseen")) if file_id else Html("Retry all")
    hidden = tag("input", type="hidden", name="file_id", value=file_id)
    return tag("form", hidden, tag("button", words, id=f"retry-{file_id or 'all'}"), method="post", action="retry")


# --- links ------------------------------------------------------------------------------------------
def _links(snapshot: Snapshot, *, full: bool) -> Html:
    def item(found: Document) -> Html:
        return _link(found, snapshot.now) if full else _hidden_link(found, snapshot.now)

    if not snapshot.links:
        return titled("Latest links", tag("p", "None yet. Drop a file into a watched folder."))
    note = None if full else tag("p", "Log in to see the links.")
    return titled("Latest links", note, _list(snapshot.links, item, class_="links"))


def living(snapshot: Snapshot) -> list[Document]:
    """Return the links that still open."""
    return [found for found in snapshot.links if _is_alive(found, snapshot.now)]


def _is_alive(found: Document, now: datetime) -> bool:
    if found.get("revoked"):
        return False
    return found["expires_at"] is None or datetime.fromisoformat(found["expires_at"]) > now


def _link(found: Document, now: datetime) -> Html:
    if not _is_alive(found, now):
        return _hidden_link(found, now)
    url, name, file_id = found["url"], found["path"], found["file_id"]
    # noreferrer: the store must not learn this page's address.
    link = tag("a", name_of(name), href=url, rel="noreferrer noopener", target="_blank", id=f"link-{file_id}")
    words = join("Copy link", tag("span", " of ", shown(name), class_="unseen"))
    copy = tag("button", words, type="button", data_copy=url, hidden=True, id=f"copy-{file_id}")
    more = tag("div", _qr(file_id, name), _revoke(file_id, name) if id_in(url) else None, class_="more")
    return join(link, _about(found, now), copy, more)


def _revoke(file_id: str, path: str) -> Html:
    """Return the form that revokes a stable link, closed: a second click sends it, as it can't be undone."""
    of = tag("span", " the link of ", shown(path), class_="unseen")
    hidden = tag("input", type="hidden", name="file_id", value=file_id)
    button = tag("button", "Revoke for good", of, id=f"revoke-{file_id}")
    form = tag("form", hidden, button, method="post", action="revoke")
    warning = tag("p", "Nobody can open this link then. That can't be undone.")
    return tag("details", tag("summary", "Revoke", of, id=f"ask-{file_id}"), warning, form, id=f"revoking-{file_id}")


def _qr(file_id: str, name: str) -> Html:
    """Return the QR code of a link, closed; a browser loads the picture once it is opened."""
    of = tag("span", " of ", shown(name), class_="unseen")
    image = tag("img", src=f"qr/{file_id}.svg", alt=f"QR code of the link of {shown(name)}", loading="lazy")
    return tag("details", tag("summary", "QR code", of, id=f"code-{file_id}"), image, id=f"qr-{file_id}")


def _hidden_link(found: Document, now: datetime) -> Html:
    return join(name_of(found["path"]), _about(found, now))


def _about(found: Document, now: datetime) -> Html:
    made = (", made ", ago(found["time"], now), " ago")
    return tag("p", short_size(found["size"]), *made, _end_of(found, now))


def _end_of(found: Document, now: datetime) -> Html | None:
    ends = found["expires_at"]
    if found.get("revoked"):
        return join(", ", tag("span", "revoked", class_="over"))
    if ends is None:
        return None
    if _is_alive(found, now):
        return join(", ", tag("span", "expires in ", until(ends, now)))
    return join(", ", tag("span", "expired ", ago(ends, now), " ago", class_="over"))


# --- the rest ---------------------------------------------------------------------------------------
def _hour(snapshot: Snapshot) -> Html:
    moved = any(minute.sent for minute in snapshot.minutes)
    return titled("The last hour", chart(snapshot.minutes) if moved else None, tag("p", in_words(snapshot.minutes)))


def _watches(snapshot: Snapshot) -> Html:
    def item(watch: Document) -> Html:
        counts = watch["counts"]
        lost = tag("p", "Its folder is missing; looking for it every second.", class_="bad") if watch["lost"] else None
        oldest = ago(watch["oldest_queued_at"], snapshot.now)
        under_way = counts["uploading"] + counts["verified"] + counts["linked"]
        numbers = tag(
            "dl",
            figure("queued", f"{counts['queued']:,}"),
            figure("oldest queued", oldest) if oldest else None,
            figure("in progress", f"{under_way:,}"),
            figure("done", f"{counts['finished']:,}"),
            figure("quarantined", f"{counts['quarantined']:,}"),
            figure("next scan", join("in ", until(watch["next_scan"], snapshot.now))) if watch["next_scan"] else None,
        )
        place = tag("p", tag("code", shown(watch["path"])), " to bucket ", tag("code", watch["bucket"]))
        return join(tag("h3", watch["name"]), lost, place, numbers)

    return titled("Watches", _list(snapshot.status["watches"], item))


def _webhooks(snapshot: Snapshot) -> Html:
    def item(found: Document) -> Html:
        numbers = tag(
            "dl",
            figure("waiting", f"{found['waiting']:,}"),
            figure("oldest", oldest) if (oldest := ago(found["oldest"], snapshot.now)) else None,
            figure("given up", f"{found['given_up']:,}") if found["given_up"] else None,
        )
        return join(tag("h3", found["name"]), _webhook_trouble(found, snapshot.now), numbers)

    return titled("Webhooks", _list(snapshot.status["webhooks"], item))


def _webhook_trouble(found: Document, now: datetime) -> Html | None:
    if found["off_since"]:
        switch = tag("code", "presignd webhook enable ", found["name"])
        return tag("p", "Off for ", ago(found["off_since"], now), ": its receiver is gone. ", switch, class_="bad")
    if found["failing_since"]:
        return tag("p", "Failing for ", ago(found["failing_since"], now), ": ", found["problem"], class_="bad")
    return None


def _file(found: Document) -> Html:
    return join(name_of(found["path"]), tag("span", found["watch"], class_="watch"))


def _cause(found: Document) -> Html:
    fix = tag("p", tag("strong", "Fix: "), found["fix"]) if found["fix"] else None
    return join(tag("p", found["cause"], " (", tag("code", found["code"]), ")"), fix)


def _list(
    found: Sequence[Document], item: Callable[[Document], Html], *, total: int = 0, class_: str | None = None
) -> Html:
    return listed(found, item, most=LISTED, more="presignd status", total=total, class_=class_)
