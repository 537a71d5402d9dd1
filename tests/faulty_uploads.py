"""The multipart uploads of FaultyS3: what S3 keeps of them, without HTTP."""

from __future__ import annotations

import itertools
import re
from html import unescape

from tests.faulty_etags import Etags, md5

__all__ = ["Uploads", "md5"]

_UPLOADS = itertools.count(1)


class Uploads:
    """Those under way: ``under_way`` holds the parts of each by number. An id that is none is a ``KeyError``.

    ``customer_key`` is the MD5 of the key that each was begun with (SSE-C), "" for none; ``algorithm`` is that of the
    checksum of the whole object. ``most`` is how many parts
    one may have. ``quote`` is how its lists write a quotation mark.
    """

    def __init__(self) -> None:
        self.etags = Etags()
        self.most = 10_000
        self.quote = "&quot;"
        self._names: dict[tuple[str, int], str] = {}
        self.under_way: dict[str, dict[int, bytes]] = {}
        self.customer_key: dict[str, str] = {}
        self.algorithm: dict[str, str] = {}

    def create(self, customer_key: str = "", algorithm: str = "") -> bytes:
        """Begin one; return S3's answer."""
        upload_id = f"upload-{next(_UPLOADS)}"
        self.under_way[upload_id] = {}
        self.customer_key[upload_id] = customer_key
        self.algorithm[upload_id] = algorithm
        return _xml("InitiateMultipartUploadResult", f"<UploadId>{upload_id}</UploadId>")

    def part(self, upload_id: str, number: int, body: bytes, *, lose: bool = False) -> str | None:
        """Keep a part (unless told to lose it); return its ETag, if it has one."""
        parts = self.under_way[upload_id]
        if number > self.most:
            raise ValueError(f"Part number must be an integer between 1 and {self.most}, inclusive")
        name = self.etags.part(body) if self.etags.part else None
        if not lose:
            parts[number] = body
            self._names[upload_id, number] = name or md5(body)
        return name and f'"{name}"'

    def forget(self, number: int) -> None:
        """Lose the part ``number`` of each that has it."""
        for upload_id, parts in self.under_way.items():
            if parts.pop(number, None) is not None:
                del self._names[upload_id, number]

    def listed(self, upload_id: str, after: int) -> bytes:
        """Return S3's list of the parts behind ``after``."""
        rows = (
            f"<Part><PartNumber>{number}</PartNumber><ETag>{self.quote}{md5(body)}{self.quote}</ETag></Part>"
            for number, body in sorted(self.under_way[upload_id].items())
            if number > after
        )
        return _xml("ListPartsResult", "".join(rows))

    def complete(self, upload_id: str, order: bytes) -> tuple[bytes, str | None]:
        """End one with the parts that ``order`` (the request's XML) names; return content and ETag, if it has one."""
        parts = self.under_way[upload_id]
        rows = re.findall(r"<PartNumber>(\d+)</PartNumber><ETag>(.*?)</ETag>", order.decode())
        wanted = [(int(number), unescape(etag).strip('"')) for number, etag in rows]
        if wanted != sorted(wanted) or any(self._names.get((upload_id, number)) != etag for number, etag in wanted):
            raise ValueError("InvalidPart")
        del self.under_way[upload_id]
        whole = [parts[number] for number, _ in wanted]
        name = self.etags.in_parts(whole) if self.etags.in_parts else None
        return b"".join(whole), name and f'"{name}"'

    def abort(self, upload_id: str) -> None:
        """Forget one."""
        del self.under_way[upload_id]


def _xml(name: str, inside: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><{name}>{inside}</{name}>'.encode()
