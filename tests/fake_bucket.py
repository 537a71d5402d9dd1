"""A store with one bucket in memory, which carries out the requests that were signed for it, at any time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from presignd.errors import fault
from presignd.presign import Grant, GrantRequest, Operation
from presignd.presign.local import METHODS
from presignd.s3.responses import Response
from tests.memory_state import Turn

NOT_FOUND, TAKEN, DONE = 404, 412, 200


@dataclass
class Object:
    """An object; each write makes another ETag."""

    size: int
    etag: str


@dataclass
class Upload:
    key: str
    parts: dict[int, int] = field(default_factory=dict)


class FakeBucket:
    """Stands for ``SignedStore`` and its presigner.

    ``honours`` conditions or ignores them; ``mixes`` uploads as the JuiceFS gateway does: an id is enough, whatever the
    key. While it is ``away``, the broker's requests fail.
    """

    def __init__(self, *, honours: bool, mixes: bool) -> None:
        self.honours, self.mixes, self.away = honours, mixes, False
        self.objects: dict[str, Object] = {}
        self.uploads: dict[str, Upload] = {}
        self.signed: list[GrantRequest] = []
        self.writes = 0

    @property
    def presigner(self) -> FakeBucket:
        return self

    async def grant(self, requests: Sequence[GrantRequest]) -> list[Grant | Exception]:
        await Turn()
        return [self._grant(each) for each in requests]

    def _grant(self, request: GrantRequest) -> Grant:
        self.signed.append(request)
        date = request.date or datetime.now(UTC)
        url = f"http://store/{len(self.signed) - 1}"
        return Grant(METHODS[request.operation], url, {}, date + timedelta(seconds=request.expires), date)

    async def send(self, request: GrantRequest, *, accept: Collection[int] = ()) -> Response:
        """Carry out a request of the broker."""
        await Turn()
        if self.away:
            raise fault("connection_refused", "")
        response = self.carry_out(request)
        assert response.status // 100 == 2 or response.status in accept
        return response

    def carry_out(self, request: GrantRequest, *, only: Collection[int] | None = None) -> Response:
        """Carry out a signed request; an upload is completed with its parts in ``only`` (None: all)."""
        match request.operation:
            case Operation.PUT:
                assert request.size is not None
                return self._write(request, request.size)
            case Operation.HEAD:
                return self._head(request.key)
            case Operation.DELETE:
                self.objects.pop(request.key, None)
                return _answer(204)
            case Operation.MULTIPART_CREATE:
                upload_id = f"up-{len(self.uploads) + 1}-{self.writes}"
                self.writes += 1
                self.uploads[upload_id] = Upload(request.key)
                return Response(DONE, {}, f"<UploadId>{upload_id}</UploadId>".encode())
        return self._on_upload(request, only)

    def _on_upload(self, request: GrantRequest, only: Collection[int] | None) -> Response:
        upload = self.uploads.get(request.upload_id)
        if upload is None or (upload.key != request.key and not self.mixes):
            return _answer(NOT_FOUND)
        match request.operation:
            case Operation.MULTIPART_PART:
                assert request.size is not None
                upload.parts[request.part_number] = request.size
            case Operation.MULTIPART_ABORT:
                del self.uploads[request.upload_id]
            case Operation.MULTIPART_COMPLETE:
                size = sum(size for number, size in upload.parts.items() if only is None or number in only)
                response = self._write(request, size)
                if response.status == DONE:
                    del self.uploads[request.upload_id]
                return response
        return _answer(DONE)

    def _write(self, request: GrantRequest, size: int) -> Response:
        before = self.objects.get(request.key)
        if before is not None and request.if_none_match and self.honours:
            return _answer(TAKEN)
        self.writes += 1
        self.objects[request.key] = Object(size, f"{self.writes:032x}")
        return _answer(DONE)

    def _head(self, key: str) -> Response:
        found = self.objects.get(key)
        if found is None:
            return _answer(NOT_FOUND)
        return Response(DONE, {"content-length": str(found.size), "etag": f'"{found.etag}"'})


def _answer(status: int, **headers: Any) -> Response:
    return Response(status, headers)
