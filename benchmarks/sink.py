"""A server that reads every body, stores none, and answers like S3; so cheap that only the client is measured.

``python -m benchmarks.sink --port N``. It knows each object's size and ETag (the Content-MD5 that came with
it; without one an ETag that is no MD5) and the CRC64NVME that came with it, lists, heads, takes uploads in parts, and
honours If-None-Match and If-Match. It checks the CRC of small bodies only, which is enough for a probe, and no
signature. Pages of any origin may send to it. A GET gives small bodies back, and zeros for what it didn't keep.
``GET /-/stats`` tells what it has counted, as JSON. ``--objects FILE`` names objects of the one byte "x" to have from
the start: size, mtime in nanoseconds and key in each line.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import resource
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import cast
from urllib.parse import parse_qsl, unquote
from xml.sax.saxutils import escape

import uvloop

from presignd.s3.checksums import checksum_of, combined

BUFFER = 256 << 10
CRC, CRC_HEADER = "crc64nvme", b"x-amz-checksum-crc64nvme"
KEPT = 1 << 10
"""Bytes up to which a body is kept, for a GET of it; a check's small object is one."""

CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, HEAD, PUT, POST, DELETE",
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Expose-Headers": "ETag",
    "Access-Control-Max-Age": "3600",
}
"""Any page may send: what an invitation's page needs."""

LIST_PAGE = 1000
LAST = "\U0010ffff"
"""Sorts after any name that follows a prefix."""
_buffer = memoryview(bytearray(BUFFER))
"""One for all connections: between ``get_buffer`` and ``buffer_updated`` nothing else runs."""


@dataclass(slots=True)
class Object:
    """What is known of one object, or of one part."""

    size: int
    etag: str
    body: bytes = b""
    modified: float = field(default_factory=time.time)
    mtime: str = ""
    """``x-amz-meta-mtime`` as it came: rclone keeps a file's own time there."""
    crc: str = ""
    """The CRC64NVME in hex, "" where none came."""

    @property
    def headers(self) -> dict[str, str]:
        """Its ETag and its checksum, which S3 returns for a PUT too."""
        crc = {CRC_HEADER.decode(): base64.b64encode(bytes.fromhex(self.crc)).decode()} if self.crc else {}
        return {"ETag": f'"{self.etag}"'} | crc

    @property
    def is_as_told(self) -> bool:
        """Whether a small body has its CRC."""
        return not (self.crc and self.body) or checksum_of(self.body, CRC) == f"{CRC}:{self.crc}"


@dataclass(slots=True)
class Request:
    """One request: its head, and the beginning of its body."""

    method: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[bytes, bytes]
    size: int = 0
    body: bytearray = field(default_factory=bytearray)

    @classmethod
    def of(cls, head: bytes) -> Request:
        """Parse a head (without its empty line)."""
        first, *lines = head.split(b"\r\n")
        method, target, _ = first.decode("latin-1").split(" ", 2)
        path, _, query = target.partition("?")
        bucket, _, key = path.lstrip("/").partition("/")
        pairs = (line.partition(b":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        asked = dict(parse_qsl(query, keep_blank_values=True)) if query else {}
        return cls(method, bucket, unquote(key), asked, headers, int(headers.get(b"content-length", b"0")))

    def made(self) -> Object:
        """Return the object, or the part, that this request's body makes."""
        md5 = self.headers.get(b"content-md5")
        etag = base64.b64decode(md5).hex() if md5 else "not-hashed"
        size = int(self.headers.get(b"x-amz-decoded-content-length", self.size))
        mtime = self.headers.get(b"x-amz-meta-mtime", b"").decode()
        crc = base64.b64decode(self.headers.get(CRC_HEADER, b"")).hex()
        return Object(size, etag, bytes(self.body) if size <= KEPT else b"", mtime=mtime, crc=crc)


Answer = tuple[int, dict[str, str], bytes]


class Bucket:
    """All objects and uploads of all buckets together: no benchmark uses two buckets at once."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.uploads: dict[str, dict[int, Object]] = {}
        self.counted: Counter[str] = Counter()
        self._sorted: list[str] = []

    def load(self, listing: Path) -> None:
        """Load the objects that ``listing`` names."""
        etag, now = hashlib.md5(b"x").hexdigest(), time.time()
        with listing.open(encoding="utf-8") as lines:
            for line in lines:
                size, mtime, key = line.rstrip("\n").split("\t", 2)
                self.objects[key] = Object(int(size), etag, b"x", now, f"{int(mtime) // 10**9}.{int(mtime) % 10**9:09}")

    def answer(self, request: Request) -> Answer:
        """Handle a request."""
        self.counted[request.method] += 1
        if request.method == "OPTIONS":
            return 204, CORS, b""
        if request.bucket == "-":
            return 200, {}, json.dumps(self._stats()).encode()
        if not request.key:
            return self._list(request) if request.method == "GET" else (200, {}, b"")
        if "uploads" in request.query or "uploadId" in request.query:
            return self._multipart(request)
        return {"PUT": self._put, "GET": self._get, "HEAD": self._get, "DELETE": self._delete}[request.method](request)

    def _stats(self) -> dict[str, object]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {"requests": dict(self.counted), "cpu": used.ru_utime + used.ru_stime, "objects": len(self.objects)}

    def _refused(self, request: Request) -> bool:
        there = self.objects.get(request.key)
        if request.headers.get(b"if-none-match") == b"*" and there:
            return True
        wanted = request.headers.get(b"if-match", b"").decode().strip('"')
        return bool(wanted) and (there is None or there.etag != wanted)

    def _put(self, request: Request) -> Answer:
        if self._refused(request):
            return _error(412, "PreconditionFailed")
        made = request.made()
        if not made.is_as_told:
            return _error(400, "BadDigest")
        self.objects[request.key] = made
        return 200, made.headers, b""

    def _get(self, request: Request) -> Answer:
        there = self.objects.get(request.key)
        if there is None:
            return _error(404, "NoSuchKey")
        headers = {**there.headers, "Last-Modified": formatdate(there.modified, usegmt=True)}
        if there.mtime:
            headers["x-amz-meta-mtime"] = there.mtime
        if request.method == "HEAD":
            return 200, {**headers, "Content-Length": str(there.size)}, b""
        return 200, headers, there.body or bytes(there.size)

    def _delete(self, request: Request) -> Answer:
        self.objects.pop(request.key, None)
        return 204, {}, b""

    def _multipart(self, request: Request) -> Answer:
        upload = request.query.get("uploadId", "")
        if "uploads" in request.query:
            upload = hashlib.md5(f"{request.key} {len(self.uploads)} {time.time()}".encode()).hexdigest()
            self.uploads[upload] = {}
            return 200, {}, _xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
        parts = self.uploads.get(upload)
        if parts is None:
            return _error(404, "NoSuchUpload")
        if request.method == "PUT":
            return self._part(request, parts)
        if request.method == "POST":
            return self._complete(request, upload, parts)
        if request.method == "DELETE":
            del self.uploads[upload]
            return 204, {}, b""
        return 200, {}, _parts_listed(parts)

    def _part(self, request: Request, parts: dict[int, Object]) -> Answer:
        part = request.made()
        if not part.is_as_told:
            return _error(400, "BadDigest")
        parts[int(request.query["partNumber"])] = part
        return 200, part.headers, b""

    def _complete(self, request: Request, upload: str, parts: dict[int, Object]) -> Answer:
        if self._refused(request):
            return _error(412, "PreconditionFailed")
        del self.uploads[upload]
        made = self.objects[request.key] = Object(sum(part.size for part in parts.values()), _etag_of(parts))
        made.crc = _crc_of(parts)
        return 200, {}, _xml("CompleteMultipartUploadResult", f"<ETag>&quot;{made.etag}&quot;</ETag>")

    def _list(self, request: Request) -> Answer:
        """ListObjectsV2, and V1 as far as clients here ask for it."""
        asked = request.query
        if "location" in asked:
            return 200, {}, _xml("LocationConstraint", "")
        prefix = asked.get("prefix", "")
        after = asked.get("continuation-token") or asked.get("start-after") or asked.get("marker") or ""
        page, more = self._page(prefix, after, asked.get("delimiter", ""), int(asked.get("max-keys", LIST_PAGE)))
        rows = "".join(_row(key, self.objects[key]) for key in page if key in self.objects)
        rows += "".join(_common(key) for key in page if key not in self.objects)
        last = escape(page[-1] if page and page[-1] in self.objects else f"{page[-1]}{LAST}") if more else ""
        token = f"<NextContinuationToken>{last}</NextContinuationToken><NextMarker>{last}</NextMarker>" if more else ""
        head = f"<IsTruncated>{str(more).lower()}</IsTruncated><KeyCount>{len(page)}</KeyCount>"
        return 200, {}, _xml("ListBucketResult", head + token + rows)

    def _page(self, prefix: str, after: str, delimiter: str, most: int) -> tuple[list[str], bool]:
        """Return keys, and common prefixes up to ``delimiter``, in order, and whether more follow."""
        if len(self._sorted) != len(self.objects):  # a key that is replaced by another at once is nobody's here
            self._sorted = sorted(self.objects)
        keys, page = self._sorted, list[str]()
        at = max(bisect_left(keys, prefix), bisect_right(keys, after))
        while at < len(keys) and keys[at].startswith(prefix):
            if len(page) == most:
                return page, True
            cut = keys[at].find(delimiter, len(prefix)) if delimiter else -1
            page.append(keys[at] if cut < 0 else keys[at][: cut + 1])
            at = at + 1 if cut < 0 else bisect_left(keys, f"{page[-1]}{LAST}", at)
        return page, False


def _common(prefix: str) -> str:
    return f"<CommonPrefixes><Prefix>{escape(prefix)}</Prefix></CommonPrefixes>"


def _row(key: str, there: Object) -> str:
    modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(there.modified))
    about = f"<LastModified>{modified}</LastModified><ETag>&quot;{there.etag}&quot;</ETag><Size>{there.size}</Size>"
    return f"<Contents><Key>{escape(key)}</Key>{about}<StorageClass>STANDARD</StorageClass></Contents>"


def _parts_listed(parts: dict[int, Object]) -> bytes:
    rows = (
        f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{part.etag}&quot;</ETag><Size>{part.size}</Size></Part>"
        for number, part in sorted(parts.items())
    )
    return _xml("ListPartsResult", "".join(rows))


def _etag_of(parts: dict[int, Object]) -> str:
    """Return the ETag as S3 makes it of parts' MD5s; of others one that is none."""
    etags = [parts[number].etag for number in sorted(parts)]
    if "not-hashed" in etags:
        return "not-hashed"
    return f"{hashlib.md5(bytes.fromhex(''.join(etags))).hexdigest()}-{len(etags)}"


def _crc_of(parts: dict[int, Object]) -> str:
    """Return the CRC of the whole (FULL_OBJECT), "" where a part came without one."""
    told = [(parts[number].crc, parts[number].size) for number in sorted(parts)]
    return combined(CRC, told) if all(crc for crc, _ in told) else ""


def _xml(name: str, inside: str) -> bytes:
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<?xml version="1.0" encoding="UTF-8"?><{name} xmlns="{space}">{inside}</{name}>'.encode()


def _error(status: int, code: str) -> Answer:
    return status, {}, f"<Error><Code>{code}</Code></Error>".encode()


class Connection(asyncio.BufferedProtocol):
    """One client: reads heads, lets bodies go by, answers in order."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._head = bytearray()
        self._request: Request | None = None
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for answers."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Return the one buffer."""
        return _buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Handle received bytes; a body's bytes are counted and dropped."""
        self._bucket.counted["bytes"] += nbytes
        if self._request and nbytes < self._left and self._request.size > KEPT:
            self._left -= nbytes
            return
        self._feed(bytes(_buffer[:nbytes]))

    def _feed(self, data: bytes) -> None:
        while data:
            data = self._read_head(data) if self._request is None else self._read_body(data)

    def _read_head(self, data: bytes) -> bytes:
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return b""
        request = self._request = Request.of(bytes(self._head[:end]))
        rest = bytes(self._head[end + 4 :])
        self._head.clear()
        self._left = request.size
        if request.headers.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._left:
            self._answer(request)
        return rest

    def _read_body(self, data: bytes) -> bytes:
        request = self._request
        assert request is not None
        taken, rest = data[: self._left], data[self._left :]
        self._left -= len(taken)
        if request.size <= KEPT:
            request.body += taken
        if not self._left:
            self._answer(request)
        return rest

    def _answer(self, request: Request) -> None:
        self._request = None
        status, headers, body = self._bucket.answer(request)
        headers = {"Content-Length": str(len(body)), "Date": formatdate(usegmt=True), **headers}
        if b"origin" in request.headers:
            headers |= CORS
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        said = f"HTTP/1.1 {status} -\r\n{lines}\r\n".encode()
        self._transport.write(said if request.method == "HEAD" else said + body)
        if request.headers.get(b"connection", b"").lower() == b"close":
            self._transport.close()


async def serve(port: int, objects: Path | None) -> None:
    """Serve on loopback, for ever."""
    bucket = Bucket()
    if objects:
        bucket.load(objects)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(bucket), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def main() -> None:
    """Serve on the given port."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--objects", type=Path)
    asked = parser.parse_args()
    uvloop.run(serve(asked.port, asked.objects))


if __name__ == "__main__":
    main()
