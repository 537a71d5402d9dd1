"""The promises of every presigner, tested on a real store.

An implementation is tested by a subclass of ``PresignerContract`` that defines the fixture ``presigner``:
one that signs for ``store`` and may do every operation in ``bucket``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from yarl import URL

from presignd.broker.wire import read_batch
from presignd.errors import Fault
from presignd.presign import Grant, GrantRequest, Operation, Presigner
from presignd.s3.checksums import checksum_of, header_of
from tests.contract.sender import Sender
from tests.stores import Store

BODY = b"what was sent\n"
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()
SHA256 = "sha256:" + hashlib.sha256(BODY).hexdigest()
PART = 5 << 20

ODD_KEYS = {
    "space": "a folder/with space.txt",
    "plus": "a+b",
    "percent": "100%",
    "encoded already": "a%2Fb%20c%41",
    "query": "what?uploads&x=1",
    "fragment": "a#b",
    "quotes": 'it\'s "so"',
    "reserved": "!$&'()*,;=:@",
    "unreserved": "~-_.x",
    "brackets": "[a]{b}^|`<c>",
    "NFC": "caf\u00e9",
    "NFD": "cafe\u0301",
    "emoji": "\U0001f5c2\ufe0f/\U0001f469\u200d\U0001f4bb.txt",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u202etxt",
    "segment of 200 bytes": "\u00e9" * 100,
    "ten levels": "/".join("abcdefghij"),
    "three dots": "a/.../b",
}


async def one(presigner: Presigner, request: GrantRequest) -> Grant:
    (answer,) = await presigner.grant([request])
    assert isinstance(answer, Grant)
    return answer


def put(bucket: str, key: str, **more: Any) -> GrantRequest:
    return GrantRequest(Operation.PUT, bucket, key, 3600, size=len(BODY), checksum=MD5, **more)


def get(bucket: str, key: str, **more: Any) -> GrantRequest:
    return GrantRequest(Operation.GET, bucket, key, 3600, **more)


class PresignerContract:
    """The promises. Each test takes keys of its own in one bucket.

    ``deletable`` is a key that may be deleted: a broker has none deleted but its check object.
    """

    deletable = "all/four.txt"

    @pytest.fixture(scope="class")
    @classmethod
    def bucket(cls, store: Store) -> str:
        return store.new_bucket()

    @pytest.fixture
    async def send(self) -> AsyncIterator[Sender]:
        async with aiohttp.ClientSession() as session:
            yield Sender(session)

    # --- what a grant allows, and only that -----------------------------------------------------------

    async def test_put_head_get_and_delete_work(
        self, presigner: Presigner, store: Store, bucket: str, send: Sender
    ) -> None:
        key = self.deletable
        operations = (Operation.HEAD, Operation.GET, Operation.DELETE)
        rest = [GrantRequest(operation, bucket, key, 60) for operation in operations]
        uploaded, head, fetched, deleted = [
            await send(grant, BODY if index == 0 else None)
            for index, grant in enumerate(await presigner.grant([put(bucket, key), *rest]))
        ]
        assert uploaded.status == 200
        assert uploaded.headers["etag"].strip('"') == MD5.removeprefix("md5:")
        assert (head.status, head.headers["content-length"]) == (200, str(len(BODY)))
        assert (fetched.status, fetched.body) == (200, BODY)
        assert deleted.status == 204
        assert key not in store.list(bucket)

    async def test_a_link_needs_no_header(self, presigner: Presigner, store: Store, bucket: str) -> None:
        """The receiver of a link has only a browser or curl, and can't add headers."""
        store.write(bucket, "linked", BODY)
        grant = await one(presigner, get(bucket, "linked", public=True))
        assert dict(grant.headers) == {}
        async with aiohttp.ClientSession() as browser, browser.get(URL(grant.url, encoded=True)) as reply:
            assert await reply.read() == BODY

    async def test_an_empty_file_can_be_put(
        self, presigner: Presigner, store: Store, bucket: str, send: Sender
    ) -> None:
        empty = "md5:" + hashlib.md5(b"").hexdigest()
        grant = await one(presigner, GrantRequest(Operation.PUT, bucket, "empty", 60, size=0, checksum=empty))
        assert (await send(grant, b"")).status == 200
        assert store.read(bucket, "empty") == b""

    async def test_a_grant_opens_no_other_key_and_no_other_operation(
        self, presigner: Presigner, store: Store, bucket: str, send: Sender
    ) -> None:
        store.write(bucket, "mine", BODY)
        store.write(bucket, "other", BODY)
        grant = await one(presigner, get(bucket, "mine"))
        elsewhere = replace(grant, url=grant.url.replace("/mine?", "/other?"))
        assert (await send(elsewhere)).status == 403
        assert (await send(replace(grant, method="DELETE"))).status == 403
        assert store.read(bucket, "mine") == BODY

    # --- what is bound --------------------------------------------------------------------------------

    async def test_a_bound_size_refuses_any_other(
        self, presigner: Presigner, store: Store, bucket: str, send: Sender
    ) -> None:
        grant = await one(presigner, put(bucket, "sized"))
        for body in (BODY + b"!", BODY[:-1], b""):
            assert (await send(grant, body, content_length=str(len(body)))).status == 403
        assert "sized" not in store.list(bucket)
        assert (await send(grant, BODY)).status == 200

    async def test_bytes_that_are_not_those_of_the_md5_are_refused(
        self, presigner: Presigner, store: Store, bucket: str, send: Sender
    ) -> None:
        grant = await one(presigner, put(bucket, "digest"))
        reply = await send(grant, BODY[::-1])
        assert reply.status == 400
        assert b"BadDigest" in reply.body
        assert "digest" not in store.list(bucket)

    async def test_a_crc_is_checked_and_told(self, presigner: Presigner, bucket: str, send: Sender) -> None:
        assert {"md5", "sha256", "crc64nvme"} <= {*await presigner.checksums()}
        right, wrong = (checksum_of(body, "crc64nvme") for body in (BODY, BODY[::-1]))
        request = GrantRequest(Operation.PUT, bucket, "crc", 60, size=len(BODY), checksum=wrong)
        assert (await send(await one(presigner, request), BODY)).status in (200, 400), "JuiceFS takes it"
        assert (await send(await one(presigner, replace(request, checksum=right)), BODY)).status == 200
        head = GrantRequest(Operation.HEAD, bucket, "crc", 60, checksum_mode="ENABLED")
        told = (await send(await one(presigner, head))).headers.get("x-amz-checksum-crc64nvme")
        assert told in (None, header_of(right)[1])

    async def test_a_sha256_is_sent_as_a_signed_checksum(self, presigner: Presigner, bucket: str, send: Sender) -> None:
        request = GrantRequest(Operation.PUT, bucket, "sha", 60, size=len(BODY), checksum=SHA256)
        grant = await one(presigner, request)
        sent = {name.lower(): value for name, value in grant.headers.items()}
        assert sent["x-amz-checksum-sha256"] == base64.b64encode(hashlib.sha256(BODY).digest()).decode()
        other = base64.b64encode(bytes(32)).decode()
        assert (await send(grant, BODY, x_amz_checksum_sha256=other)).status == 403
        assert (await send(grant, BODY)).status == 200

    @pytest.mark.parametrize(
        "changed",
        [
            {"content_type": "text/html"},
            {"content_type": None},
            {"content_md5": None},
            {"content_md5": base64.b64encode(bytes(16)).decode()},
            {"if_none_match": None},
            {"if_none_match": '"other"'},
            {"x_amz_meta_owner": "mallory"},
            {"x_amz_meta_owner": None},
            {"cache_control": "no-store"},
        ],
        ids=repr,
    )
    async def test_a_bound_header_can_be_neither_changed_nor_left_out(
        self, presigner: Presigner, bucket: str, send: Sender, changed: dict[str, str | None]
    ) -> None:
        request = put(
            bucket,
            f"bound-{len(repr(changed))}-{next(iter(changed))}",
            content_type="text/plain",
            if_none_match=True,
            headers={"x-amz-meta-owner": "alice", "Cache-Control": "max-age=60"},
        )
        grant = await one(presigner, request)
        # MinIO's code says 400 (headers that were signed are missing) where others say 403.
        assert (await send(grant, BODY, **changed)).status in {400, 403}
        assert (await send(grant, BODY)).status == 200

    async def test_bound_headers_are_stored_with_the_object(
        self, presigner: Presigner, store: Store, bucket: str, send: Sender
    ) -> None:
        disposition = "attachment; filename=\"a  b.txt\"; filename*=UTF-8''%C3%A9.txt"
        own = {"x-amz-meta-from": "scanner 1", "Cache-Control": "max-age=60", "Content-Disposition": disposition}
        grant = await one(presigner, put(bucket, "stored", content_type="text/x-odd; charset=utf-8", headers=own))
        assert (await send(grant, BODY)).status == 200
        stored = store.stat(bucket, "stored")
        assert stored["ContentType"] == "text/x-odd; charset=utf-8"
        assert stored["Metadata"]["from"] == "scanner 1"
        assert stored["CacheControl"] == "max-age=60"
        assert stored["ContentDisposition"] == disposition

    async def test_if_match_lets_the_own_object_be_replaced(
        self, presigner: Presigner, store: Store, bucket: str, send: Sender
    ) -> None:
        store.write(bucket, "replaced", b"before")
        grant = await one(presigner, put(bucket, "replaced", if_match=store.stat(bucket, "replaced")["ETag"]))
        assert (await send(grant, BODY)).status == 200
        assert store.read(bucket, "replaced") == BODY

    @pytest.mark.parametrize("key", ODD_KEYS.values(), ids=ODD_KEYS.keys())
    async def test_a_key_arrives_byte_for_byte(
        self, presigner: Presigner, store: Store, bucket: str, send: Sender, key: str
    ) -> None:
        key = f"odd/{key}"
        upload, link = await presigner.grant([put(bucket, key), get(bucket, key)])
        assert (await send(upload, BODY)).status == 200
        assert store.read(bucket, key) == BODY
        assert (await send(link)).body == BODY

    # --- many at once ---------------------------------------------------------------------------------

    async def test_a_thousand_grants_come_in_the_order_asked(
        self, presigner: Presigner, store: Store, bucket: str, send: Sender
    ) -> None:
        keys = [f"many/{number:04}" for number in range(1000)]
        grants = await presigner.grant([get(bucket, key) for key in keys])
        assert len(grants) == 1000
        for key, grant in zip(keys, grants, strict=True):
            assert isinstance(grant, Grant)
            assert f"/{key}?" in grant.url
        store.write(bucket, keys[-1], BODY)
        assert (await send(grants[-1])).body == BODY

    async def test_nothing_asked_is_nothing_answered(self, presigner: Presigner) -> None:
        assert await presigner.grant([]) == []

    async def test_a_refused_request_is_a_fault_in_its_place_and_stops_no_other(
        self, presigner: Presigner, bucket: str
    ) -> None:
        refused = [
            get(bucket, ""),
            get("", "k"),
            replace(get(bucket, "k"), expires=0),
            replace(put(bucket, "k"), checksum="md5:tooshort"),
            replace(put(bucket, "k"), size=-1),
            put(bucket, "k", headers={"x-amz-meta-a": "forged\r\nx-amz-acl: public-read"}),
            put(bucket, "k", headers={"x-amz-meta-a\r\nx-amz-acl": "public-read"}),
            put(bucket, "k", headers={"Host": "elsewhere"}),
            put(bucket, "k", headers={"content-length": "1"}),
            GrantRequest(Operation.MULTIPART_PART, bucket, "k", 60, part_number=1),
            GrantRequest(Operation.MULTIPART_PART, bucket, "k", 60, upload_id="u", part_number=0),
        ]
        answers = await presigner.grant([each for wrong in refused for each in (wrong, get(bucket, "right"))])
        assert [isinstance(answer, Fault) for answer in answers] == [True, False] * len(refused)

    # --- time -----------------------------------------------------------------------------------------

    async def test_the_expiry_told_is_the_one_signed(self, presigner: Presigner, bucket: str) -> None:
        grant = await one(presigner, get(bucket, "k"))
        assert re.search(r"[?&]X-Amz-Expires=3600(&|$)", grant.url)
        assert grant.expires_at - grant.signer_date == timedelta(hours=1)
        assert f"X-Amz-Date={grant.signer_date:%Y%m%dT%H%M%SZ}" in grant.url
        assert abs(grant.signer_date - datetime.now(UTC)) < timedelta(minutes=1)

    async def test_no_grant_lives_longer_than_seven_days(
        self, presigner: Presigner, store: Store, bucket: str, send: Sender
    ) -> None:
        store.write(bucket, "month", BODY)
        grant = await one(presigner, replace(get(bucket, "month"), expires=30 * 86400))
        assert grant.expires_at - grant.signer_date == timedelta(days=7)
        assert (await send(grant)).status == 200

    async def test_what_expires_at_calls_over_is_refused(
        self, presigner: Presigner, store: Store, bucket: str, send: Sender
    ) -> None:
        store.write(bucket, "over", BODY)
        ago = datetime.now(UTC) - timedelta(hours=1)
        alive, over = await presigner.grant(
            [
                replace(get(bucket, "over"), date=ago, expires=3600 + 300),
                replace(get(bucket, "over"), date=ago, expires=3600 - 5),
            ]
        )
        assert isinstance(over, Grant)
        assert over.expires_at < datetime.now(UTC)
        assert (await send(over)).status == 403
        assert (await send(alive)).status == 200

    async def test_the_same_date_gives_the_same_url(self, presigner: Presigner, bucket: str) -> None:
        """A crash between signing and writing the link must not make two links of one version."""
        request = get(bucket, "same", date=datetime.now(UTC) - timedelta(minutes=7), public=True)
        first, second = await one(presigner, request), await one(presigner, request)
        assert first == second
        assert (await one(presigner, replace(request, expires=3601))).url != first.url

    # --- secrets and JSON -----------------------------------------------------------------------------

    async def test_a_repr_shows_no_url(self, presigner: Presigner, bucket: str) -> None:
        grants = await presigner.grant([put(bucket, "secret")])
        for shown in (repr(grants), str(grants[0]), f"{grants[0]!r}"):
            assert "X-Amz" not in shown
            assert "http" not in shown

    async def test_requests_and_grants_survive_json(
        self, presigner: Presigner, store: Store, bucket: str, send: Sender
    ) -> None:
        request = put(bucket, "carried", content_type="text/plain", headers={"x-amz-meta-a": "b"})
        (carried,) = read_batch(json.dumps({"grants": [request.to_json()]}).encode()).grants
        assert carried == request
        grant = await one(presigner, carried)
        back = Grant.from_json(json.loads(json.dumps(grant.to_json())))
        assert back == grant
        assert (await send(back, BODY)).status == 200
        assert store.read(bucket, "carried") == BODY

    async def test_it_tells_when_its_credential_ends(self, presigner: Presigner) -> None:
        ends = await presigner.credential_expiry()
        assert ends is None or ends > datetime.now(UTC)

    # --- multipart ------------------------------------------------------------------------------------

    async def test_a_multipart_upload_goes_through(
        self, presigner: Presigner, store: Store, bucket: str, send: Sender
    ) -> None:
        key = "large file.bin"
        upload = GrantRequest(Operation.MULTIPART_CREATE, bucket, key, 60, content_type="application/x-odd")
        upload_id = await created(presigner, send, upload)
        parts = [bytes([number]) * PART for number in (1, 2)]
        etags = await self._send_parts(presigner, send, replace(upload, upload_id=upload_id), parts)
        listed = await send(await one(presigner, of_upload(upload, Operation.MULTIPART_LIST, upload_id)))
        assert re.findall(rb"<PartNumber>(\d+)</PartNumber>", listed.body) == [b"1", b"2"]
        rest = replace(of_upload(upload, Operation.MULTIPART_LIST, upload_id), part_number=1)
        assert re.findall(rb"<PartNumber>(\d+)</PartNumber>", (await send(await one(presigner, rest))).body) == [b"2"]
        await self._complete(presigner, send, of_upload(upload, Operation.MULTIPART_COMPLETE, upload_id), etags)
        assert store.read(bucket, key) == b"".join(parts)
        assert store.stat(bucket, key)["ContentType"] == "application/x-odd"

    async def _send_parts(
        self, presigner: Presigner, send: Sender, upload: GrantRequest, parts: list[bytes]
    ) -> list[str]:
        requests = [
            replace(
                upload,
                operation=Operation.MULTIPART_PART,
                part_number=number,
                size=len(part),
                content_type="",
                checksum="md5:" + hashlib.md5(part).hexdigest(),
            )
            for number, part in enumerate(parts, 1)
        ]
        replies = [await send(grant, part) for grant, part in zip(await presigner.grant(requests), parts, strict=True)]
        assert [reply.status for reply in replies] == [200] * len(parts)
        return [reply.headers["etag"] for reply in replies]

    async def _complete(self, presigner: Presigner, send: Sender, request: GrantRequest, etags: list[str]) -> None:
        listed = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>" for number, etag in enumerate(etags, 1)
        )
        document = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        grant = await one(presigner, replace(request, size=len(document)))
        reply = await send(grant, document)
        assert reply.status == 200, reply.body

    async def test_a_part_of_another_size_or_other_bytes_is_refused(
        self, presigner: Presigner, bucket: str, send: Sender
    ) -> None:
        upload = GrantRequest(Operation.MULTIPART_CREATE, bucket, "part-bound", 60)
        upload_id = await created(presigner, send, upload)
        part = replace(
            of_upload(upload, Operation.MULTIPART_PART, upload_id), part_number=1, size=len(BODY), checksum=MD5
        )
        grant = await one(presigner, part)
        assert (await send(grant, BODY + b"!", content_length=str(len(BODY) + 1))).status == 403
        assert (await send(grant, BODY[::-1])).status == 400
        assert (await send(grant, BODY)).status == 200

    async def test_an_aborted_upload_is_gone(
        self, presigner: Presigner, store: Store, bucket: str, send: Sender
    ) -> None:
        upload = GrantRequest(Operation.MULTIPART_CREATE, bucket, "aborted", 60)
        upload_id = await created(presigner, send, upload)
        abort = await one(presigner, of_upload(upload, Operation.MULTIPART_ABORT, upload_id))
        assert (await send(abort)).status == 204
        listing = await one(presigner, of_upload(upload, Operation.MULTIPART_LIST, upload_id))
        assert (await send(listing)).status == 404
        assert "aborted" not in store.list(bucket)


async def created(presigner: Presigner, send: Sender, upload: GrantRequest) -> str:
    """Start a multipart upload, return its id."""
    reply = await send(await one(presigner, upload))
    assert reply.status == 200
    match = re.search(rb"<UploadId>([^<]+)</UploadId>", reply.body)
    assert match is not None
    return match[1].decode()


def of_upload(upload: GrantRequest, operation: Operation, upload_id: str) -> GrantRequest:
    return GrantRequest(operation, upload.bucket, upload.key, 60, upload_id=upload_id)
