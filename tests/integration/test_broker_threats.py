"""The claims of docs/security.md about stolen grants, the broker's key and stores, tested on real stores."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError

from tests.brokers import Broker, broker_for
from tests.canary import assert_no_signatures
from tests.faulty_s3 import FaultyS3
from tests.stores import SeaweedFS, Store
from tests.system.harness import COMMAND

DOCS = Path(__file__).parents[2] / "docs"
BODY = b"what was sent\n"
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()
Grant = dict[str, Any]


def send(grant: Grant, body: bytes | None = None, *, method: str = "", **headers: str) -> tuple[int, bytes, str]:
    """Send a grant, changed or not; return the status, the body, and the ETag."""
    given = {**grant["headers"], **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = urllib.request.Request(grant["url"], data=body, method=method or grant["method"], headers=given)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read(), answer.headers.get("ETag", "")
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read(), ""


def changed(grant: Grant, before: str, after: str) -> Grant:
    """Return the grant with something else in its URL."""
    assert before in grant["url"]
    return {**grant, "url": grant["url"].replace(before, after)}


@pytest.fixture
def bucket(seaweedfs: Store) -> str:
    return seaweedfs.new_bucket()


@pytest.fixture
def broker(seaweedfs: Store, tmp_path: Path) -> Iterator[Broker]:
    with broker_for(tmp_path / "broker", seaweedfs) as broker:
        yield broker


def put(bucket: str, key: str, **more: Any) -> dict[str, Any]:
    asked = {"operation": "put", "bucket": bucket, "key": key, "size": len(BODY), "checksum": MD5, "expires": 600}
    return {**asked, **more}


def of(operation: str, bucket: str, key: str, **more: Any) -> dict[str, Any]:
    return {"operation": operation, "bucket": bucket, "key": key, "expires": 600, **more}


# --- what a stolen grant opens --------------------------------------------------------------------------


def test_a_link_opens_one_object_and_nothing_else(broker: Broker, bucket: str, seaweedfs: Store) -> None:
    secret = broker.token("one", bucket)
    seaweedfs.write(bucket, "one/a", BODY)
    seaweedfs.write(bucket, "one/b", b"other")
    (link,) = broker.grants(secret, of("get", bucket, "one/a"))
    assert send(link)[:2] == (200, BODY)
    assert send(changed(link, "/one/a?", "/one/b?"))[0] == 403
    assert send(changed(link, "/one/a?", "?"))[0] == 403
    assert send(changed(link, "X-Amz-Expires=600", "X-Amz-Expires=604800"))[0] == 403
    assert send({**link, "url": link["url"] + "&response-content-type=text/html"})[0] == 403
    for method in ("PUT", "DELETE", "POST"):
        assert send(link, BODY if method != "DELETE" else None, method=method)[0] in {403, 405}
    assert seaweedfs.read(bucket, "one/a") == BODY


def test_an_upload_grant_is_for_its_own_request_alone(broker: Broker, bucket: str, seaweedfs: Store) -> None:
    secret = broker.token("one", bucket, headers=["x-amz-meta-*"])
    seaweedfs.write(bucket, "two/secret", b"another's")
    (grant,) = broker.grants(secret, put(bucket, "one/a", content_type="text/plain"))
    for added in (
        {"x_amz_copy_source": f"/{bucket}/two/secret"},
        {"x_amz_acl": "public-read"},
        {"x_amz_meta_owner": "mallory"},
        {"x_amz_tagging": "a=b"},
    ):
        assert send(grant, BODY, **added)[0] == 403
    assert send(grant, BODY, Content_Type="text/html")[0] == 403
    assert send(grant, BODY, method="GET")[0] == 403
    assert send(grant, BODY, method="DELETE")[0] == 403
    assert send(changed(grant, "/one/a?", "/one/a?uploads=&"), BODY, method="POST")[0] == 403
    assert "one/a" not in seaweedfs.list(bucket)
    assert [send(grant, BODY)[0] for _ in range(2)] == [200, 200], "the same bytes, as often as one likes"


def test_content_headers_that_are_not_bound_can_be_added_to_an_upload(
    broker: Broker, bucket: str, seaweedfs: Store
) -> None:
    """SigV4 can't bind that a header is absent; docs/security.md says what that means for the store's host name."""
    secret = broker.token("one", bucket)
    added = {
        "Cache_Control": "max-age=31536000",
        "Content_Disposition": "inline",
        "Content_Encoding": "gzip",
        "Content_Language": "xx",
        "Expires": "Wed, 21 Oct 2037 07:28:00 GMT",
        "Content_Type": "text/html",
    }
    (bare,) = broker.grants(secret, put(bucket, "one/bare"))
    assert send(bare, BODY, **added)[0] == 200
    kept = seaweedfs.stat(bucket, "one/bare")["ResponseMetadata"]["HTTPHeaders"]
    assert {name: kept[name.lower().replace("_", "-")] for name in added} == added
    (typed,) = broker.grants(secret, put(bucket, "one/typed", content_type="text/plain"))
    assert send(typed, BODY, **added)[0] == 403
    strict = broker.token("strict", bucket, require_content_type=True)
    refused, granted = broker.grants(
        strict, put(bucket, "strict/a"), put(bucket, "strict/a", content_type="application/pdf")
    )
    assert refused["error"]["code"] == "content_type_required"
    assert send(granted, BODY)[0] == 200


def test_check_says_which_conditions_each_prefix_can_rely_on(ceph: Store, tmp_path: Path) -> None:
    bucket = ceph.new_bucket()
    ceph.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    with broker_for(tmp_path / "broker", ceph) as broker:
        broker.token("one", bucket)
        said = check(broker)
    assert said.returncode == 0, said
    assert "the end of an upload in parts ignores If-None-Match and If-Match" in said.stdout
    left = ceph.client.list_object_versions(Bucket=bucket)
    assert [left.get("Versions"), left.get("DeleteMarkers")] == [None, None]


def test_a_store_that_verifies_no_signature_fails(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """There no token keeps anybody out."""
    faulty_s3.signatures = False
    with broker_for(tmp_path / "broker", cast("Store", faulty_s3)) as broker:
        broker.token("one", faulty_s3.bucket)
        said = check(broker)
    assert said.returncode == 3, said
    assert "a request with a wrong signature is taken" in said.stdout


def test_a_store_that_takes_unsigned_acls_is_told_of(ceph: Store, tmp_path: Path) -> None:
    """Ceph 16 opens an object to everybody for whoever may PUT it."""
    bucket = ceph.new_bucket()
    with broker_for(tmp_path / "broker", ceph) as broker:
        (grant,) = broker.grants(broker.token("one", bucket), put(bucket, "one/a"))
        assert send(grant, BODY, x_amz_acl="public-read")[0] == 200
        with urllib.request.urlopen(grant["url"].partition("?")[0], timeout=30) as answer:
            assert answer.read() == BODY
        said = check(broker)
    assert said.returncode == 0, said
    assert "make what it stores public (x-amz-acl)" in said.stdout
    assert "x-amz-copy-source" in said.stdout
    assert ceph.list(bucket) == ["one/a"]


def test_a_store_that_takes_unsigned_headers_is_told_of(juicefs: Store, tmp_path: Path) -> None:
    """It copies another's object for whoever may PUT: docs/security.md says what to do there."""
    bucket = juicefs.new_bucket()
    juicefs.write(bucket, "two/secret", b"another's")
    with broker_for(tmp_path / "broker", juicefs) as broker:
        secret = broker.token("one", bucket)
        grant, link = broker.grants(secret, put(bucket, "one/a"), of("get", bucket, "one/a"))
        assert send(grant, BODY, x_amz_copy_source=f"/{bucket}/two/secret")[0] == 200
        assert send(link)[1] == b"another's"
        said = check(broker)
        assert said.returncode == 0
        assert f"warn bucket {bucket}/one/: the store takes headers that were not signed" in said.stdout
        assert "x-amz-acl" not in said.stdout, "it takes an ACL and opens nothing by it"
    assert "JuiceFS gateway" in (DOCS / "security.md").read_text("utf-8")


def begun(store: Store, bucket: str, key: str) -> str:
    """Begin an upload with one part, as its uploader does; return its id."""
    upload_id: str = store.client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    store.client.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=1, Body=BODY)
    return upload_id


def on_upload(bucket: str, key: str, upload_id: str) -> list[dict[str, Any]]:
    """Return every request that names an upload: list, replace a part, complete, abort."""
    part = {"size": len(BODY), "checksum": MD5, "part_number": 1}
    operations: dict[str, dict[str, Any]] = {"list": {}, "part": part, "complete": {"size": 9}, "abort": {}}
    return [of(f"multipart.{name}", bucket, key, upload_id=upload_id, **how) for name, how in operations.items()]


def test_an_upload_is_its_own_token_s_and_key_s_from_its_first_use_on(store: Store, tmp_path: Path) -> None:
    """The JuiceFS gateway takes any key for an id; so the broker signs none for an id that it knows as another's."""
    bucket = store.new_bucket()
    upload_id = begun(store, bucket, "two/secret")
    with broker_for(tmp_path / "broker", store) as broker:
        thief, owner = broker.token("one", bucket), broker.token("two", bucket)
        (listed,) = broker.grants(owner, of("multipart.list", bucket, "two/secret", upload_id=upload_id))
        assert send(listed)[0] == 200
        refused = broker.grants(thief, *on_upload(bucket, "one/x", upload_id))
        refused += broker.grants(owner, *on_upload(bucket, "two/other", upload_id))
        assert [answer["error"]["code"] for answer in refused] == ["upload_refused"] * 8
        (completes,) = broker.grants(owner, of("multipart.list", bucket, "two/secret", upload_id=upload_id))
        assert send(completes)[0] == 200, "its owner goes on"


def test_an_upload_id_that_climbs_is_never_signed(juicefs: Store, tmp_path: Path) -> None:
    """It would name another folder of the JuiceFS gateway's volume, such as another's objects."""
    bucket = juicefs.new_bucket()
    juicefs.write(bucket, "two/1", b"another's")
    with broker_for(tmp_path / "broker", juicefs) as broker:
        secret = broker.token("one", bucket)
        for climbs in ("../../two", f"../../../{bucket}/two", "..", "%2e%2e%2ftwo"):
            refused = broker.grants(secret, *on_upload(bucket, "one/x", climbs))
            assert [answer["error"]["code"] for answer in refused] == ["upload_refused"] * 4


def test_after_a_restart_of_the_broker_an_upload_goes_on(juicefs: Store, tmp_path: Path) -> None:
    """It remembers nothing then, and the first to ask is again the upload's own daemon."""
    bucket = juicefs.new_bucket()
    upload_id = begun(juicefs, bucket, "two/file")
    asked = of("multipart.list", bucket, "two/file", upload_id=upload_id)
    with broker_for(tmp_path / "broker", juicefs) as broker:
        owner, other = broker.token("two", bucket), broker.token("one", bucket)
        assert "url" in broker.grants(owner, asked)[0]
        broker.stop()
        broker.start()
        assert send(broker.grants(owner, asked)[0])[0] == 200
        (refused,) = broker.grants(other, of("multipart.list", bucket, "one/x", upload_id=upload_id))
        assert refused["error"]["code"] == "upload_refused"


@pytest.mark.parametrize("name", ["juicefs", "seaweedfs"])
def test_check_tells_of_a_store_that_takes_an_upload_under_any_key(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    store: Store = request.getfixturevalue(name)
    bucket = store.new_bucket()
    with broker_for(tmp_path / "broker", store) as broker:
        broker.token("one", bucket)
        broker.token("two", bucket, operations=["put", "get"])
        said = check(broker)
    told = [line for line in said.stdout.splitlines() if "an upload begun under one key" in line]
    assert said.returncode == 0, said
    assert [line.partition(": ")[0] for line in told] == (
        [f"warn bucket {bucket}/one/"] if name == "juicefs" else []
    ), "and asks nothing of a prefix whose tokens have no multipart"
    assert store.list(bucket) == []
    assert "Uploads" not in store.client.list_multipart_uploads(Bucket=bucket)


def check(broker: Broker) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "broker", "check", "-c", broker.file], capture_output=True, text=True, check=False, timeout=60
    )


def test_check_proves_each_part_and_names_what_fails(broker: Broker, bucket: str, seaweedfs: Store) -> None:
    broker.token("one", bucket)
    said = check(broker)
    assert (said.returncode, said.stderr) == (0, "")
    assert [line.split(":")[0] for line in said.stdout.splitlines()] == [
        *("ok   config", "ok   certificate", "ok   tokens", "ok   credentials", f"ok   bucket {bucket}/one/"),
        f"ok   conditional writes {bucket}/one/",
    ]
    assert seaweedfs.list(bucket) == []
    broker.token("two", "no-such-bucket")
    (broker.folder / "tokens.d" / "three.toml").write_text("[[token]]")
    said = check(broker)
    assert said.returncode == 3
    failed = [line for line in said.stdout.splitlines() if line.startswith("FAIL")]
    assert ["tokens" in line or "no-such-bucket/two/: the bucket does not exist" in line for line in failed] == [
        True
    ] * len(failed)
    assert failed


@pytest.mark.parametrize(("status", "code"), [(403, "SignatureDoesNotMatch"), (400, ""), (500, ""), (503, "")])
def test_errors_of_a_store_that_lies_hold_no_secret(
    faulty_s3: FaultyS3, tmp_path: Path, status: int, code: str
) -> None:
    """It repeats in its error the signed URL of the one question a broker has: neither log nor answer does."""
    faulty_s3.fault(times=math.inf, status=status, code=code, echo=True)
    with broker_for(tmp_path / "broker", cast("Store", faulty_s3)) as broker:
        (answer,) = broker.grants(broker.token("one", faulty_s3.bucket), put(faulty_s3.bucket, "one/a"))
        told = broker.log.read_text() + json.dumps(answer.get("error"))
    assert ("error" in answer) == (status >= 500), "one that refuses to tell is taken to have no regions"
    signatures = {seen.query["X-Amz-Signature"] for seen in faulty_s3.requests}
    assert signatures
    assert_no_signatures(told, signatures)


# --- the key that a broker needs ------------------------------------------------------------------------


class Scoped(SeaweedFS):
    """SeaweedFS with an identity that has the documented policy, beside the root key that the tests use."""

    def __init__(self, folder: Path, policy: str) -> None:
        super().__init__(folder / "store")
        self.root = (self.access_key, self.secret_key)
        self.scoped = ("broker-key", "broker-secret-0123456789")
        config = folder / "s3.json"
        identities = [
            self._identity("root", *self.root, actions=["Admin", "Read", "Write", "List", "Tagging"]),
            self._identity("broker", *self.scoped, policyNames=["broker"]),
        ]
        document = {"identities": identities, "policies": [{"name": "broker", "content": policy}]}
        config.write_text(json.dumps(document), encoding="utf-8")
        flags = self.weed._flags
        self.weed._flags = lambda: [*flags(), f"-s3.config={config}"]  # type: ignore[method-assign] # this one store's

    def _identity(self, name: str, access_key: str, secret_key: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "credentials": [{"accessKey": access_key, "secretKey": secret_key}], **more}

    def use(self, keys: tuple[str, str]) -> None:
        """Take another key from here on."""
        self.access_key, self.secret_key = keys


@pytest.fixture
def scoped(tmp_path: Path) -> Iterator[Scoped]:
    policy = (DOCS / "broker-policy.example.json").read_text("utf-8")
    store = Scoped(tmp_path, policy)
    store.start()
    try:
        yield store
    finally:
        store.kill()


def test_a_broker_with_the_least_key_does_all_its_work_and_the_key_does_nothing_else(
    scoped: Scoped, tmp_path: Path
) -> None:
    bucket = "test-bucket"  # the one in the document
    scoped.client.create_bucket(Bucket="other")
    scoped.write("other", "k", b"another's")
    scoped.use(scoped.scoped)
    with broker_for(tmp_path / "broker", scoped) as broker:
        _does_all_its_work(broker, broker.token("one", bucket), bucket)
    client = scoped.client
    refused: list[Callable[[], Any]] = [
        lambda: client.put_object(Bucket="other", Key="k", Body=b""),
        lambda: client.get_object(Bucket="other", Key="k"),
        lambda: client.copy_object(Bucket=bucket, Key="one/c", CopySource="other/k"),
        lambda: client.delete_object(Bucket=bucket, Key="one/a"),
        lambda: client.list_objects_v2(Bucket=bucket),
        lambda: client.list_multipart_uploads(Bucket=bucket),
        lambda: client.put_object_acl(Bucket=bucket, Key="one/a", ACL="public-read"),
        lambda: client.put_object_tagging(Bucket=bucket, Key="one/a", Tagging={"TagSet": []}),
        lambda: client.put_bucket_policy(Bucket=bucket, Policy="{}"),
        lambda: client.delete_bucket(Bucket=bucket),
        lambda: client.create_bucket(Bucket="third"),
    ]
    for attempt in refused:
        with pytest.raises(ClientError, match="AccessDenied"):
            attempt()


def _does_all_its_work(broker: Broker, secret: str, bucket: str) -> None:
    """Do what a daemon does: upload whole and in parts, look, fetch, and remove the check object."""

    def ask(operation: str, key: str, **more: Any) -> Grant:
        (grant,) = broker.grants(secret, of(operation, bucket, key, **more))
        assert "url" in grant, grant
        return grant

    (upload,) = broker.grants(secret, put(bucket, "one/a", if_none_match=True))
    assert send(upload, BODY)[0] == 200
    assert send(ask("head", "one/a"))[0] == 200
    assert send(ask("get", "one/a"))[1] == BODY
    created = send(ask("multipart.create", "one/m"), b"")[1]
    upload_id = re.findall(rb"<UploadId>([^<]+)</UploadId>", created)[0].decode()
    size = {"size": len(BODY), "checksum": MD5, "upload_id": upload_id}
    status, _, etag = send(ask("multipart.part", "one/m", part_number=1, **size), BODY)
    assert status == 200
    assert send(ask("multipart.list", "one/m", upload_id=upload_id))[0] == 200
    parts = f"<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>"
    document = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
    assert send(ask("multipart.complete", "one/m", upload_id=upload_id, size=len(document)), document)[0] == 200
    assert send(ask("get", "one/m"))[1] == BODY
    created = send(ask("multipart.create", "one/m"), b"")[1]
    upload_id = re.findall(rb"<UploadId>([^<]+)</UploadId>", created)[0].decode()
    assert send(ask("multipart.abort", "one/m", upload_id=upload_id))[0] == 204
    (check,) = broker.grants(secret, put(bucket, "one/.presignd-check"))
    assert send(check, BODY)[0] == 200
    assert send(ask("delete", "one/.presignd-check"))[0] == 204


# --- the page itself ------------------------------------------------------------------------------------


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "security.md").read_text("utf-8")))
    tests = "".join(file.read_text("utf-8") for file in Path(__file__).parents[1].rglob("test_*.py"))
    assert {name for name in named if f"def {name}(" not in tests} == set()
