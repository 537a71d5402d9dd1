"""The disposition and the content type with which a link's target is served, bound in the signature. Pure.

A type that a browser would run is never shown inline, whatever the object's own headers say: an uploader may have
stored a page.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from presignd.broker.state.links import NewLink

PLAIN = "application/octet-stream"

_TYPE = re.compile(r"([\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127})[ \t]*(;[ -~]*)?", re.ASCII)
_SHOWN = re.compile(
    r"image/(?:png|jpeg|gif|webp|avif|bmp|apng|x-icon)|audio/[\w.+-]+|video/[\w.+-]+|text/plain|application/pdf",
    re.ASCII,
)
"""Types that a browser may show: images but SVG, audio, video, plain text, PDF. None of them runs scripts."""

_UNQUOTABLE = re.compile(r"[^ !#$&-\[\]^-~]")
"""Characters that a quoted-string must escape, and "%", which some browsers decode there."""
_PLAIN_CHARACTERS = "!#$&+-.^_`|~"
"""RFC 8187's attr-char, beside letters and digits."""


def overrides(link: NewLink) -> dict[str, str]:
    """Return the query parameters that make the store answer with a link's own disposition and type (S3, GetObject)."""
    kind = media_type(link.content_type)
    inline = link.disposition == "inline" and bool(_SHOWN.fullmatch(kind.partition(";")[0]))
    return {
        "response-content-disposition": content_disposition(link.filename, inline=inline),
        "response-content-type": kind,
    }


def media_type(text: str) -> str:
    """Return a media type in lower case, with its parameters; ``PLAIN`` for anything else."""
    found = _TYPE.fullmatch(text.strip())
    if found is None:
        return PLAIN
    kind = found[1].lower()
    return "text/plain; charset=utf-8" if kind == "text/plain" and not found[2] else kind + (found[2] or "")


def content_disposition(filename: str, *, inline: bool) -> str:
    """Return the header's value (RFC 6266, RFC 8187): ASCII, whatever the name."""
    plain = _UNQUOTABLE.sub("_", filename)
    value = f'{"inline" if inline else "attachment"}; filename="{plain}"'
    return value if plain == filename else f"{value}; filename*=UTF-8''{quote(filename, safe=_PLAIN_CHARACTERS)}"
