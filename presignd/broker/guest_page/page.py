"""The page's HTML, its files, and what it may load. Its texts come from ``web/words.*.js``. Pure."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from presignd.pages.html import Html, join, tag
from presignd.pages.layout import asset as shared_asset

PLACE = "/i/"
"""Where the page's files are served."""

_KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_SHARED = ("style.css", "icon.svg")
_OWN = (
    "broker.js",
    "crc64.js",
    "engine.js",
    "failure.js",
    "guest.css",
    "hasher.js",
    "hashing.js",
    "hex.js",
    "keep.js",
    "language.js",
    "main.js",
    "md5.js",
    "pick.js",
    "plan.js",
    "receipt.js",
    "s3.js",
    "view.js",
    "words.ar.js",
    "words.de.js",
    "words.en.js",
)
ASSETS = {name: _KINDS[name[name.rindex(".") :]] for name in (*_SHARED, *_OWN)}
"""The files that the page loads, each with its media type."""


@cache
def asset(name: str) -> bytes:
    """Return one of ``ASSETS``."""
    return shared_asset(name) if name in _SHARED else files(__package__).joinpath("web", name).read_bytes()


def security_policy(store: str) -> str:
    """Return the page's Content-Security-Policy: requests go to its own origin and the store's, and nowhere else."""
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; worker-src 'self'; "
        f"connect-src 'self' {store}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def guest_page(without_script: Html) -> str:
    """Return the page; ``without_script`` is shown where its JavaScript does not run."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="robots", content="noindex"),
        tag("title", "Send files"),
        tag("link", rel="stylesheet", href=f"{PLACE}style.css"),
        tag("link", rel="stylesheet", href=f"{PLACE}guest.css"),
        tag("link", rel="icon", href=f"{PLACE}icon.svg"),
        tag("script", src=f"{PLACE}main.js", type="module"),
    )
    body = tag(
        "body",
        tag("header", tag("h1", "Send files", data_words="title"), tag("p", id="what"), tag("p", id="limits")),
        tag("p", id="note", role="status"),
        tag("section", without_script, id="unscripted"),
        tag("main", _pin(), _drop(), _work(), _receipt(), id="page", hidden=True),
        tag("footer", _text("p", "still")),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en")


def _text(element: str, words: str, **attributes: str | bool) -> Html:
    return tag(element, **attributes, data_words=words)


def _button(words: str, name: str) -> Html:
    return _text("button", words, type="button", id=name)


def _pin() -> Html:
    field = tag(
        "input", id="pin-input", type="password", inputmode="numeric", autocomplete="off", maxlength=64, required=True
    )
    form = tag("form", _text("label", "pin", for_="pin-input"), field, " ", _text("button", "open"), id="pin-form")
    return tag("section", _text("h2", "pinTitle"), form, id="pin", hidden=True)


def _picker(name: str, **attributes: str | bool) -> Html:
    """Return a field that a button opens: a file field can't be styled or translated."""
    return tag("input", id=name, type="file", hidden=True, **attributes)


def _drop() -> Html:
    return tag(
        "section",
        _text("p", "drop"),
        _text("p", "or"),
        tag("div", _button("files", "files"), _button("folder", "folder"), _button("photo", "photo"), id="choose"),
        _picker("pick-files", multiple=True),
        _picker("pick-folder", webkitdirectory=True),
        _picker("pick-photo", accept="image/*", capture="environment"),
        id="drop",
    )


def _work() -> Html:
    return tag(
        "section",
        _text("h2", "list"),
        tag("p", id="all"),
        tag("progress", id="bar", max=1, value=0),
        tag("div", _go_on(), _button("pauseAll", "pause-all"), _button("resumeAll", "resume-all"), class_="buttons"),
        tag("ul", id="list"),
        id="work",
        hidden=True,
    )


def _go_on() -> Html:
    return _text("button", "goOn", type="button", id="go-on", hidden=True)


def _receipt() -> Html:
    buttons = join(_button("saveText", "save-text"), _button("saveJson", "save-json"))
    return tag("section", _text("h2", "receipt"), tag("div", buttons, class_="buttons"), id="receipt", hidden=True)
