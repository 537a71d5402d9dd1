"""The multipart uploads of FaultyS3: what S3 keeps of them, without HTTP."""

from __future__ import annotations

import hashlib
import itertools
import re

_UPLOADS = itertools.count(1)


def md5(body: bytes) -> str:
    """Return the MD5 in hex."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


class Uploads:
    """Those under way: ``under_way`` holds the parts of each by number. An id that is none is a ``KeyError``.

    ``customer_key`` is the MD5 of the key that each was begun with (SSE-C), "" for none.
    """

    def __init__(self) -> None:
        self.under_way: dict[str, dict[int, bytes]] = {}
        self.customer_key: dict[str, str] = {}

    def create(self, customer_key: str = "") -> bytes:
        """Begin one; return S3's answer."""
        upload_id = f"upload-{next(_UPLOADS)}"
        self.under_way[upload_id] = {}
        self.customer_key[upload_id] = customer_key
        return _xml("InitiateMultipartUploadResult", f"<UploadId>{upload_id}</UploadId>")

    def part(self, upload_id: str, number: int, body: bytes, *, lose: bool = False) -> str:
        """Keep a part (unless told to lose it); return its ETag."""
        parts = self.under_way[upload_id]
        if not lose:
            parts[number] = body
        return f'"{md5(body)}"'

    def listed(self, upload_id: str, after: int) -> bytes:
        """Return S3's list of the parts behind ``after``."""
        rows = (
            f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{md5(body)}&quot;</ETag></Part>"
            for number, body in sorted(self.under_way[upload_id].items())
            if number > after
        )
        return _xml("ListPartsResult", "".join(rows))

    def complete(self, upload_id: str, order: bytes) -> tuple[bytes, str]:
        """End one with the parts that ``order`` (the request's XML) names; return content and ETag."""
        parts = self.under_way[upload_id]
        wanted = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", order)]
        if wanted != sorted(wanted) or not set(wanted) <= set(parts):
            raise ValueError("InvalidPart")
        del self.under_way[upload_id]
        digests = b"".join(bytes.fromhex(md5(parts[number])) for number in wanted)
        return b"".join(parts[number] for number in wanted), f'"{md5(digests)}-{len(wanted)}"'

    def abort(self, upload_id: str) -> None:
        """Forget one."""
        del self.under_way[upload_id]


def _xml(name: str, inside: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><{name}>{inside}</{name}>'.encode()
