"""``check`` against real servers: it names the cause and the fix of each fault."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import ssl
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from presignd.checks import CHECKS, CheckResult, Outcome, context_of, exit_code, run_checks
from presignd.config import (
    Config,
    ControlConfig,
    LedgerConfig,
    LinksConfig,
    LogConfig,
    PresignConfig,
    UploadConfig,
    WatchConfig,
    WebConfig,
    load,
)
from presignd.demo.seaweedfs import free_ports
from presignd.ledger import open_ledger
from presignd.ledger.lock import DaemonLock
from tests.brokers import one_token
from tests.faulty_etags import ETAGS
from tests.faulty_s3 import FOREVER, FaultyS3

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.canary import Canary
    from tests.stores import Store


@dataclass
class Told:
    """What a whole check said."""

    results: list[CheckResult]

    def __getitem__(self, name: str) -> CheckResult:
        [result] = [each for each in self.results if each.name == name]
        return result

    @property
    def failed(self) -> list[str]:
        return [each.name for each in self.results if each.outcome is Outcome.FAIL]


async def told(config: Config) -> Told:
    async with context_of(config) as context:
        return Told([result async for result in run_checks(context, CHECKS)])


def config_of(
    tmp_path: Path, bucket: str = "test-bucket", *, watch: dict[str, Any] | None = None, **presign: Any
) -> Config:
    folder = tmp_path / "drop"
    folder.mkdir(exist_ok=True)
    settings = {"name": "drop", "path": folder, "bucket": bucket, "key": "in/{path}", **(watch or {})}
    keys = {"access_key": "somebody", "secret_key": "something-0123456789", **presign}
    return Config(
        presign=PresignConfig.model_validate(keys),
        watches=(WatchConfig.model_validate(settings),),
        upload=UploadConfig(),
        ledger=LedgerConfig(path=tmp_path / "ledger"),
        links=LinksConfig(file=tmp_path / "ledger" / "links" / "links.jsonl"),
        control=ControlConfig(),
        log=LogConfig(),
        web=WebConfig(),
    )


def on(store: Store | FaultyS3, tmp_path: Path, bucket: str | None = None, **settings: Any) -> Config:
    keys = {"endpoint": store.endpoint, "access_key": store.access_key, "secret_key": store.secret_key}
    return config_of(tmp_path, bucket or store.bucket, **{**keys, **settings})


async def test_a_working_store_passes_and_is_left_as_it_was(store: Store, tmp_path: Path) -> None:
    bucket = store.new_bucket()
    found = await told(on(store, tmp_path, bucket))
    assert found.failed == []
    assert exit_code(found.results) == 0
    assert "PUT, HEAD and GET of in/.presignd-check" in found[f"bucket {bucket}"].detail
    assert found[f"checksum {bucket}"].outcome is Outcome.OK
    assert found["credentials"].detail == "from config"
    assert store.list(bucket) == []


async def test_it_tells_whether_conditional_writes_are_honoured(
    seaweedfs: Store, juicefs: Store, tmp_path: Path
) -> None:
    """SeaweedFS holds to each condition, of a PUT and of an upload in parts; the JuiceFS gateway to none."""
    honoured = await told(on(seaweedfs, tmp_path))
    ignored = await told(on(juicefs, tmp_path))
    assert honoured[f"conditional writes {seaweedfs.bucket}"].outcome is Outcome.OK
    assert "made of MD5s" in honoured[f"parts {seaweedfs.bucket}"].detail
    result = ignored[f"conditional writes {juicefs.bucket}"]
    assert result.outcome is Outcome.WARN
    assert "a PUT ignores If-None-Match and If-Match" in result.detail
    assert "{host}/{path}" in result.fix


async def test_conditions_that_only_a_put_is_held_to_are_told_so(ceph: Store, tmp_path: Path) -> None:
    """It was said that no other writer's object is overwritten; the end of an upload in parts does overwrite it."""
    result = (await told(on(ceph, tmp_path)))[f"conditional writes {ceph.bucket}"]
    assert result.outcome is Outcome.WARN
    assert "a PUT honours If-None-Match and If-Match" in result.detail
    assert "the end of an upload in parts ignores If-None-Match and If-Match" in result.detail


async def test_conditions_that_a_store_refuses_are_told_so(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    faulty_s3.refuses_conditions = True
    found = await told(on(faulty_s3, tmp_path))
    assert found.failed == []
    assert "a PUT refuses If-None-Match and If-Match" in found["conditional writes test-bucket"].detail


async def test_a_token_without_uploads_in_parts_is_told_what_could_not_be_tried(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    faulty_s3.fault("POST", status=403, code="AccessDenied", times=FOREVER)
    found = await told(on(faulty_s3, tmp_path))
    assert found.failed == []
    assert "an upload in parts could not be tried" in found["conditional writes test-bucket"].detail


async def test_a_store_that_takes_any_signature_fails(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """A SeaweedFS without keys, or a mock server: whatever the secret, all went well."""
    faulty_s3.signatures = False
    found = await told(on(faulty_s3, tmp_path))
    assert found.failed == ["signatures test-bucket"]
    assert "whoever reaches the store" in found["signatures test-bucket"].detail
    assert exit_code(found.results) == 3


async def test_a_wrong_signature_is_sent_once_and_changes_nothing(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    found = await told(on(faulty_s3, tmp_path))
    assert found["signatures test-bucket"].outcome is Outcome.OK
    refused = [seen for seen in faulty_s3.requests if seen.query.get("X-Amz-Signature") == 64 * "0"]
    assert [(seen.method, seen.key, seen.status) for seen in refused] == [("HEAD", "in/.presignd-check", 403)]


MADE = {"x-amz-meta-team": "lab", "Cache-Control": "max-age=5", "x-amz-tagging": "a=b&c=d"}


async def test_headers_that_are_kept_are_told(seaweedfs: Store, tmp_path: Path) -> None:
    headers = {**MADE, "x-amz-storage-class": "STANDARD_IA"}
    result = (await told(on(seaweedfs, tmp_path, watch={"headers": headers})))[f"headers {seaweedfs.bucket}"]
    assert result.outcome is Outcome.OK
    assert "x-amz-tagging" in result.detail


async def test_headers_that_only_uploads_in_parts_lose_are_told(ceph: Store, tmp_path: Path) -> None:
    result = (await told(on(ceph, tmp_path, watch={"headers": MADE})))[f"headers {ceph.bucket}"]
    assert result.outcome is Outcome.WARN
    assert result.detail == "not kept of an upload in parts: x-amz-tagging (0 of 2 tags)"


async def test_headers_that_the_store_drops_are_told(juicefs_plain: Store, tmp_path: Path) -> None:
    found = await told(on(juicefs_plain, tmp_path, watch={"headers": MADE}))
    result = found[f"headers {juicefs_plain.bucket}"]
    assert found.failed == []
    assert result.outcome is Outcome.WARN
    assert all(name in result.detail for name in ("Content-Type", *MADE))


@pytest.mark.parametrize("status", [400, 501])
async def test_a_header_that_the_store_refuses_is_named(faulty_s3: FaultyS3, tmp_path: Path, status: int) -> None:
    faulty_s3.refuses_header, faulty_s3.refusal = "x-amz-storage-class", status
    headers = {"x-amz-meta-team": "lab", "x-amz-storage-class": "GLACIER"}
    found = await told(on(faulty_s3, tmp_path, watch={"headers": headers}))
    assert found.failed == ["bucket test-bucket"]
    assert "x-amz-storage-class" in found["bucket test-bucket"].detail
    assert "x-amz-meta-team" not in found["bucket test-bucket"].detail
    assert faulty_s3.objects == {}


@pytest.fixture(params=["seaweedfs", "ceph"])
def with_versions(request: pytest.FixtureRequest) -> Store:
    """Take each store that keeps versions in turn."""
    store: Store = request.getfixturevalue(request.param)
    return store


async def test_in_a_bucket_with_versions_none_of_its_own_stays(with_versions: Store, tmp_path: Path) -> None:
    bucket = with_versions.new_bucket()
    with_versions.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    found = await told(on(with_versions, tmp_path, bucket))
    left = with_versions.client.list_object_versions(Bucket=bucket)
    assert found[f"delete {bucket}"].outcome is Outcome.OK
    assert [left.get("Versions"), left.get("DeleteMarkers")] == [None, None]


async def test_in_a_locked_bucket_it_says_what_stays_and_until_when(with_versions: Store, tmp_path: Path) -> None:
    bucket = f"{with_versions.new_bucket()}-locked"
    retention = {"Mode": "COMPLIANCE", "Days": 1}
    with_versions.client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    with_versions.client.put_object_lock_configuration(
        Bucket=bucket,
        ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": retention}},
    )
    found = await told(on(with_versions, tmp_path, bucket))
    result = found[f"delete {bucket}"]
    assert found.failed == []
    assert result.outcome is Outcome.WARN
    assert "the bucket locks what is stored in it" in result.detail
    left = with_versions.client.list_object_versions(Bucket=bucket)["Versions"]
    assert f": {len(left)} versions of in/.presignd-check until 2" in result.detail


async def test_a_sha256_that_the_store_does_not_compare_is_told(juicefs: Store, tmp_path: Path) -> None:
    config = on(juicefs, tmp_path).model_copy(update={"upload": UploadConfig(checksum="sha256")})
    result = (await told(config))[f"checksum {juicefs.bucket}"]
    assert result.outcome is Outcome.WARN
    assert "Content-MD5 goes with it" in result.detail


async def test_a_wrong_secret_is_named(store: Store, tmp_path: Path) -> None:
    found = await told(on(store, tmp_path, secret_key="wrong-0123456789"))
    assert found.failed == [f"bucket {store.bucket}"]
    result = found[f"bucket {store.bucket}"]
    assert result.code == "signature_mismatch"
    assert "presign.secret_key" in result.fix
    assert exit_code(found.results) == 3


async def test_a_wrong_bucket_is_named(store: Store, tmp_path: Path) -> None:
    found = await told(on(store, tmp_path, "no-such-bucket"))
    assert found.failed == ["bucket no-such-bucket"]
    result = found["bucket no-such-bucket"]
    assert result.code == "no_such_bucket"
    assert "bucket" in result.fix


async def test_an_endpoint_where_nothing_listens_is_the_only_failure(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    found = await told(config_of(tmp_path, endpoint=f"http://127.0.0.1:{port}"))
    assert found.failed == ["endpoint"]
    assert found["endpoint"].code == "connection_refused"
    assert f"127.0.0.1:{port}" in found["endpoint"].detail
    assert found["buckets"].outcome is Outcome.SKIPPED
    assert exit_code(found.results) == 3


async def test_a_name_that_does_not_resolve_is_named(tmp_path: Path) -> None:
    """.invalid never resolves (RFC 2606)."""
    found = await told(config_of(tmp_path, endpoint="http://store.invalid:9000"))
    assert found["endpoint"].code == "dns"
    assert "store.invalid" in found["endpoint"].detail


async def test_https_on_a_plain_port_is_named(seaweedfs: Store, tmp_path: Path) -> None:
    found = await told(on(seaweedfs, tmp_path, endpoint=seaweedfs.endpoint.replace("http:", "https:")))
    assert found.failed == ["endpoint"]
    assert "speaks plain HTTP" in found["endpoint"].detail
    assert f'presign.endpoint = "{seaweedfs.endpoint}"' in found["endpoint"].fix


@pytest.fixture
def ca() -> trustme.CA:
    return trustme.CA()


@contextmanager
def tls_store(certificate: trustme.LeafCert) -> Iterator[FaultyS3]:
    """Serve S3 behind TLS with ``certificate``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    server = FaultyS3(tls=context)
    server.start()
    try:
        yield server
    finally:
        server.stop()


async def test_a_certificate_of_an_unknown_ca_is_named(ca: trustme.CA, tmp_path: Path) -> None:
    with tls_store(ca.issue_cert("127.0.0.1")) as tls:
        found = await told(on(tls, tmp_path))
    assert found.failed == ["certificate"]
    assert "presign.ca_file" in found["certificate"].fix
    assert found["buckets"].outcome is Outcome.SKIPPED


async def test_a_private_ca_passes_with_its_file(ca: trustme.CA, tmp_path: Path) -> None:
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with tls_store(ca.issue_cert("127.0.0.1")) as tls:
        found = await told(on(tls, tmp_path, ca_file=tmp_path / "ca.pem"))
    assert found.failed == []
    assert "days left" in found["certificate"].detail


@pytest.mark.parametrize(
    ("made_for", "words"),
    [
        (("127.0.0.1", -1), ("expired", "renew")),
        (("other.example.org", 100), ("mismatch", "that the certificate holds")),
    ],
)
async def test_a_certificate_that_can_not_be_used_is_named(
    ca: trustme.CA, tmp_path: Path, made_for: tuple[str, int], words: tuple[str, str]
) -> None:
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (name, days), (cause, fix) = made_for, words
    ends = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    with tls_store(ca.issue_cert(name, not_after=ends)) as tls:
        found = await told(on(tls, tmp_path, ca_file=tmp_path / "ca.pem"))
    assert found.failed == ["certificate"]
    assert cause in found["certificate"].detail
    assert fix in found["certificate"].fix


async def test_a_certificate_about_to_end_is_a_warning(ca: trustme.CA, tmp_path: Path) -> None:
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    ends = dt.datetime.now(dt.UTC) + dt.timedelta(days=3, hours=1)
    with tls_store(ca.issue_cert("127.0.0.1", not_after=ends)) as tls:
        found = await told(on(tls, tmp_path, ca_file=tmp_path / "ca.pem"))
    assert found["certificate"].outcome is Outcome.WARN
    assert "3 days left" in found["certificate"].detail
    assert found.failed == []


async def test_plain_http_on_a_tls_port_is_named(ca: trustme.CA, tmp_path: Path) -> None:
    with tls_store(ca.issue_cert("127.0.0.1")) as tls:
        found = await told(on(tls, tmp_path, endpoint=tls.endpoint.replace("https:", "http:")))
    assert found.failed == ["endpoint"]
    assert "speaks TLS" in found["endpoint"].detail
    assert f'presign.endpoint = "{tls.endpoint}"' in found["endpoint"].fix


async def test_a_port_that_speaks_something_else_is_named(tmp_path: Path) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = await told(config_of(tmp_path, endpoint=f"http://127.0.0.1:{port}"))
    assert found.failed == ["endpoint"]
    assert found["endpoint"].code == "bad_response"


@pytest.mark.parametrize(("hours", "words"), [(1, "behind the store"), (-1, "ahead of the store")])
async def test_a_clock_that_is_off_by_an_hour_is_named(
    faulty_s3: FaultyS3, tmp_path: Path, hours: int, words: str
) -> None:
    faulty_s3.clock_skew = dt.timedelta(hours=hours)
    found = await told(on(faulty_s3, tmp_path))
    assert found.failed == ["clock"]
    assert words in found["clock"].detail
    assert "NTP" in found["clock"].fix
    assert found["buckets"].outcome is Outcome.SKIPPED


async def test_a_refused_delete_is_only_a_warning(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    faulty_s3.fault("DELETE", status=403, code="AccessDenied", times=FOREVER)
    found = await told(on(faulty_s3, tmp_path))
    assert found.failed == []
    assert found["delete test-bucket"].outcome is Outcome.WARN
    assert "in/.presignd-check stays there" in found["delete test-bucket"].detail


@pytest.mark.parametrize("method", ["PUT", "GET"])
async def test_a_right_that_is_missing_is_named_with_the_request_that_lacks_it(
    faulty_s3: FaultyS3, tmp_path: Path, method: str
) -> None:
    faulty_s3.fault(method, "in/.presignd-check", status=403, code="AccessDenied")
    found = await told(on(faulty_s3, tmp_path))
    assert found.failed == ["bucket test-bucket"]
    assert found["bucket test-bucket"].detail.startswith(f"{method} in/.presignd-check: ")
    assert found["bucket test-bucket"].code == "access_denied"


async def test_a_store_that_looks_at_no_checksum_is_a_warning(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    faulty_s3.digests = False
    found = await told(on(faulty_s3, tmp_path))
    assert found.failed == []
    assert found["checksum test-bucket"].outcome is Outcome.WARN


async def test_where_nothing_proves_an_upload_it_is_told_that_it_is_read_back(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    faulty_s3.digests, faulty_s3.etags = False, ETAGS["of any form"]
    found = await told(on(faulty_s3, tmp_path))
    for name in ("checksum test-bucket", "parts test-bucket"):
        assert found[name].outcome is Outcome.WARN
        assert "read back" in found[name].detail


async def test_a_check_object_that_somebody_else_removed_is_written_again(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """A running daemon's probe uses the same key, and removes it."""
    faulty_s3.fault("PUT", "in/.presignd-check", lose=True)
    assert (await told(on(faulty_s3, tmp_path))).failed == []


async def test_uploads_headers_are_on_the_check_object_too(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """A bucket's policy may demand them of every PUT."""
    found = await told(on(faulty_s3, tmp_path, watch={"headers": {"x-amz-meta-origin": "scanner"}}))
    assert found.failed == []
    puts = [seen for seen in faulty_s3.seen("PUT") if "partNumber" not in seen.query]
    assert {seen.headers.get("x-amz-meta-origin") for seen in puts} == {"scanner"}


async def test_a_running_daemons_ledger_is_no_fault(seaweedfs: Store, tmp_path: Path) -> None:
    config = on(seaweedfs, tmp_path)
    with DaemonLock(config.ledger.path):
        await (await open_ledger(config.ledger.path)).close(clean=True)
        found = await told(config)
    assert found["ledger"].outcome is Outcome.OK
    assert f"in use by another presignd (pid {os.getpid()})" in found["ledger"].detail
    assert found.failed == []


# --- the commands -------------------------------------------------------------------------------


def presignd(*args: object, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "presignd", *map(str, args)],
        input=stdin,
        env={"PATH": os.defpath, "AWS_EC2_METADATA_DISABLED": "true", **env},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def answers(store: Store, folder: Path, **other: str) -> str:
    given = {
        "endpoint": store.endpoint,
        "access": store.access_key,
        "secret": store.secret_key,
        "bucket": store.bucket,
        "folder": str(folder),
        "make": "y",
        "expires": "1h",
        **other,
    }
    return "".join(f"{answer}\n" for answer in given.values())


def test_init_writes_a_private_configuration_that_passes_its_check(
    store: Store, tmp_path: Path, canary: Canary
) -> None:
    target = tmp_path / "etc" / "presignd.toml"
    done = presignd("init", target, stdin=answers(store, tmp_path / "drop"), HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert target.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "drop").is_dir()
    assert f"ok   bucket {store.bucket}" in done.stdout
    assert done.stderr.endswith(f"Then drop a file into {tmp_path / 'drop'}. To see its link: presignd links\n")
    assert tomllib.loads(target.read_text())["presign"]["region"] == "us-east-1"
    assert [path.name for path in target.parent.iterdir()] == ["presignd.toml"]
    canary(done.stdout + done.stderr, store.secret_key)
    assert presignd("check", "-c", target, HOME=str(tmp_path)).returncode == 0


def test_init_says_how_to_go_on_where_a_check_failed(seaweedfs: Store, tmp_path: Path) -> None:
    target = tmp_path / "presignd.toml"
    given = answers(seaweedfs, tmp_path / "drop", endpoint="http://127.0.0.1:1")
    done = presignd("init", target, stdin=given, HOME=str(tmp_path))
    assert done.returncode == 3
    assert done.stderr.endswith(f"A check failed: correct {target}, then test it again: presignd check -c {target}\n")


def test_init_with_a_broker_asks_for_its_token_and_no_key(seaweedfs: Store, tmp_path: Path, canary: Canary) -> None:
    store = seaweedfs
    target, bucket = tmp_path / "presignd.toml", store.new_bucket()
    with one_token(tmp_path / "broker", store, bucket, prefix="box-1/") as broker:
        given = (store.endpoint, broker.secret, bucket, str(tmp_path / "drop"), "y", "1h")
        stdin = "".join(f"{answer}\n" for answer in given)
        done = presignd("init", target, "--broker", broker.url, stdin=stdin, HOME=str(tmp_path))
        assert done.returncode == 0, done.stdout + done.stderr
        presign = load(target).config.presign
        assert (presign.kind, presign.url, presign.secret_key) == ("broker", broker.url, None)
        assert "How long presigned links live (7d at most; not the broker's stable ones)" in done.stderr
        canary(done.stdout + done.stderr, broker.secret)


def test_init_refuses_a_brokers_address_that_is_none_before_it_asks(tmp_path: Path) -> None:
    done = presignd("init", tmp_path / "c.toml", "--broker", "ftp://broker:8420", stdin="", HOME=str(tmp_path))
    assert (done.returncode, done.stderr.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])
    assert "--broker " in done.stderr


def test_init_asks_again_for_what_can_not_be_and_says_why(seaweedfs: Store, tmp_path: Path) -> None:
    wrong_first = answers(seaweedfs, tmp_path / "drop", endpoint=f"{seaweedfs.endpoint}/bucket\n{seaweedfs.endpoint}")
    done = presignd("init", tmp_path / "c.toml", stdin=wrong_first, HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "has a path" in done.stderr


def test_init_without_anybody_to_answer_writes_nothing(tmp_path: Path) -> None:
    done = presignd("init", tmp_path / "c.toml", HOME=str(tmp_path))
    assert done.returncode == 2
    assert "its input has ended" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_init_keeps_a_file_that_is_there_unless_told(seaweedfs: Store, tmp_path: Path) -> None:
    target = tmp_path / "c.toml"
    target.write_text("mine")
    kept = presignd("init", target, stdin="n\n", HOME=str(tmp_path))
    assert kept.returncode == 2
    assert target.read_text() == "mine"
    replaced = presignd("init", target, stdin="y\n" + answers(seaweedfs, tmp_path / "drop"), HOME=str(tmp_path))
    assert replaced.returncode == 0, replaced.stdout + replaced.stderr
    assert "[presign]" in target.read_text()
    assert target.stat().st_mode & 0o777 == 0o600


def test_check_tells_every_problem_of_the_configuration_at_once(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[presign]\nendpoint = "http://h/x"\n[[watch]]\nname = "a"\nbukket = "b"\n')
    done = presignd("check", "-c", tmp_path / "c.toml", HOME=str(tmp_path))
    assert done.returncode == 2
    for key in ("presign.endpoint", "watch.a.path", "watch.a.bukket"):
        assert f"FAIL config: {key}: " in done.stdout
    assert "Traceback" not in done.stderr


def test_check_tells_of_a_ca_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    env = {"PRESIGND_WATCH__DROP__PATH": str(tmp_path), "PRESIGND_WATCH__DROP__BUCKET": "test-bucket"}
    tls = {"AWS_CA_BUNDLE": str(tmp_path / "ca.pem"), "AWS_ENDPOINT_URL": "https://127.0.0.1:1"}
    done = presignd("check", HOME=str(tmp_path), **env, **tls)
    assert done.returncode == 2
    assert f"FAIL config: presign.ca_file: {tmp_path}/ca.pem can't be used (fix: it must be a PEM" in done.stdout


def test_check_offline_asks_nobody_and_answers_in_json(tmp_path: Path) -> None:
    """The endpoint would fail, were it asked."""
    (tmp_path / "drop").mkdir()
    env = {
        "PRESIGND_WATCH__DROP__PATH": str(tmp_path / "drop"),
        "PRESIGND_WATCH__DROP__BUCKET": "test-bucket",
        "PRESIGND_PRESIGN__ENDPOINT": "http://store.invalid:9000",
    }
    done = presignd("check", "--offline", "--json", HOME=str(tmp_path), **env)
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert document["ok"] is True
    assert [each["name"] for each in document["checks"]] == [
        "config",
        "folder drop",
        "writer check drop",
        "events drop",
        "inotify",
        "ledger",
    ]


def test_check_ends_with_3_when_only_the_store_fails(tmp_path: Path) -> None:
    env = {"PRESIGND_WATCH__DROP__PATH": str(tmp_path), "PRESIGND_WATCH__DROP__BUCKET": "test-bucket"}
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    state = {"HOME": str(tmp_path), "XDG_STATE_HOME": "/tmp"}
    done = presignd("check", **env, **keys, **state)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "ok   credentials: from environment AWS_ACCESS_KEY_ID" in done.stdout
    assert "FAIL endpoint: nothing listens at the endpoint: 127.0.0.1:1 (fix: " in done.stdout
    assert "skip buckets: needs clock" in done.stdout
