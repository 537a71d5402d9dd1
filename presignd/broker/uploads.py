"""Which token, and which key, an upload id belongs to.

S3 names an upload by its id and its key, but not every store compares the two: the JuiceFS gateway lists,
completes and aborts an upload under any key. The broker never sees an id being made (the store answers the
uploader), so the first grant asked for with an id binds it. That is in memory: a restarted broker, and each
of several, learns anew, and an uploader that resumes is again the first to ask.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import sha256

from presignd.presign import GrantRequest

MOST = 1000
"""Ids remembered for each token (some 400 KB); past that, the one it has not used for longest is forgotten and
can be bound anew. Each token fills its own share alone, so none can make the broker forget another's."""


class Uploads:
    """Binds each upload id to the token and key that first used it."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._owners: dict[bytes, str] = {}
        self._keys: dict[str, OrderedDict[bytes, bytes]] = {}

    def claim(self, token: str, request: GrantRequest) -> bool:
        """Tell whether the upload in ``request`` is ``token``'s, under that bucket and key."""
        upload, key = _digest(request.upload_id), _digest(f"{request.bucket}/{request.key}")
        if self._owners.setdefault(upload, token) != token:
            return False
        own = self._keys.setdefault(token, OrderedDict())
        bound = own.setdefault(upload, key)
        own.move_to_end(upload)
        if len(own) > self._most:
            forgotten, _ = own.popitem(last=False)
            del self._owners[forgotten]
        return bound == key


def _digest(text: str) -> bytes:
    """Return a name of fixed size: an id or a key may have a thousand bytes."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()
