"""The broker as a process, over HTTP, with a real store: what it answers, and to whom."""

from __future__ import annotations

import hashlib
import json
import resource
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from presignd.broker.tokens import new_token
from presignd.embedded import free_ports
from tests.stores import Store
from tests.system.harness import COMMAND
from tests.token_brokers import Broker, broker_for

BODY = b"what was sent\n"
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()


@pytest.fixture(scope="module")
def bucket(seaweedfs: Store) -> str:
    return seaweedfs.new_bucket()


@pytest.fixture(scope="module")
def broker(seaweedfs: Store, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker_for(tmp_path_factory.mktemp("broker"), seaweedfs) as broker:
        yield broker


@pytest.fixture(scope="module")
def token(broker: Broker, bucket: str) -> str:
    return broker.token("one", bucket, max_size="1MiB", rate="", max_put_expires="1h", headers=["x-amz-meta-*"])


def put(bucket: str, key: str, **more: Any) -> dict[str, Any]:
    asked = {"operation": "put", "bucket": bucket, "key": key, "size": len(BODY), "checksum": MD5, "expires": 600}
    return {**asked, **more}


def get(bucket: str, key: str, **more: Any) -> dict[str, Any]:
    return {"operation": "get", "bucket": bucket, "key": key, "expires": 600, **more}


def send(grant: dict[str, Any], body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(
        grant["url"], data=body, method=grant["method"], headers={**grant["headers"], **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read()


# --- grants ---------------------------------------------------------------------------------------------


def test_a_token_uploads_and_fetches_without_a_key(broker: Broker, token: str, bucket: str) -> None:
    upload, link = broker.grants(
        token, put(bucket, "one/a b.txt", content_type="text/plain"), get(bucket, "one/a b.txt")
    )
    assert send(upload, BODY) == (200, b"")
    assert send(link) == (200, BODY)
    ends = datetime.fromisoformat(link["expires_at"])
    assert timedelta(seconds=590) < ends - datetime.now(UTC) <= timedelta(seconds=600)


def test_a_grant_is_for_its_own_bytes_alone(broker: Broker, token: str, bucket: str) -> None:
    (grant,) = broker.grants(token, put(bucket, "one/bound"))
    assert send(grant, BODY[::-1])[0] == 400
    assert send(grant, BODY + b"more", **{"Content-Length": str(len(BODY) + 4)})[0] == 403
    assert send({**grant, "url": grant["url"].replace("/one/bound", "/one/other")}, BODY)[0] == 403
    assert send(grant, BODY)[0] == 200


def test_answers_stand_in_the_order_asked_and_a_refusal_stops_no_other(broker: Broker, token: str, bucket: str) -> None:
    found = broker.grants(
        token,
        get(bucket, "one/a"),
        get(bucket, "two/a"),
        get("other-bucket", "one/a"),
        put(bucket, "one/a", size=(1 << 20) + 1),
        put(bucket, "one/a", headers={"x-amz-tagging": "a=b"}),
        put(bucket, "one/a", headers={"x-amz-meta-a": "b"}),
        get(bucket, "one/a", expires=0),
        {"operation": "delete", "bucket": bucket, "key": "one/a", "expires": 60},
    )
    codes = [answer["error"]["code"] if "error" in answer else answer["method"] for answer in found]
    assert codes == [
        *("GET", "outside_prefix", "outside_bucket", "too_large", "header_refused", "PUT", "grant_refused"),
        "operation_refused",
    ]


def test_nothing_tells_whether_an_object_exists(broker: Broker, token: str, bucket: str, seaweedfs: Store) -> None:
    """The broker never asks the store for one: what is outside is refused alike, there or not."""
    seaweedfs.write(bucket, "two/there", b"secret")
    there, not_there = broker.grants(token, get(bucket, "two/there"), get(bucket, "two/not-there"))
    assert there == not_there
    inside, nothing = broker.grants(token, get(bucket, "one/x-there"), get(bucket, "one/not-there"))
    assert set(inside) == set(nothing)


def test_expiries_are_cut_and_what_is_told_is_the_truth(broker: Broker, token: str, bucket: str) -> None:
    (grant,) = broker.grants(token, put(bucket, "one/long", expires=7 * 86400))
    assert "X-Amz-Expires=3600&" in grant["url"]
    lives = datetime.fromisoformat(grant["expires_at"]) - datetime.fromisoformat(grant["signer_date"])
    assert lives == timedelta(hours=1)


def test_me_tells_a_token_what_it_may_have(broker: Broker, token: str, bucket: str) -> None:
    status, me, headers = broker.call("/v1/me", token)
    assert status == 200
    assert me == {
        "name": "one",
        "bucket": bucket,
        "prefix": "one/",
        "operations": ["put", "multipart", "head", "get"],
        "headers": ["x-amz-meta-*"],
        "max_size": 1 << 20,
        "max_put_expires": 3600,
        "max_link_expires": 604_800,
        "max_grants": 1000,
        "rate": None,
        "valid_until": None,
        "credential_expires_at": None,
    }
    assert abs(parsedate_to_datetime(headers["date"]) - datetime.now(UTC)) < timedelta(seconds=30)
    assert headers["cache-control"] == "no-store"


# --- refusals of a whole call ---------------------------------------------------------------------------


def raw(broker: Broker, *lines: str, body: bytes = b"") -> bytes:
    """Send a request as it stands, and read all of the answer."""
    with socket.create_connection(("127.0.0.1", broker.port), timeout=30) as sock:
        sock.sendall("".join(f"{line}\r\n" for line in (*lines, "Connection: close", "")).encode() + body)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    return answer


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Authorization: Bearer "],
        ["Authorization: Bearer psd_" + "x" * 43],
        ["Authorization: Basic {token}"],
        ["Authorization: {token}"],
        ["Authorization: Bearer {token}x"],
        ["Authorization: Bearer {token}", "Authorization: Bearer {token}"],
        ["Authorization: Bearer " + "x" * 5000],
        ["X-Authorization: Bearer {token}"],
        ["Cookie: token={token}"],
    ],
)
@pytest.mark.parametrize("call", ["GET /v1/me", "POST /v1/grants"])
def test_without_a_valid_token_nothing_is_answered_but_401(
    broker: Broker, token: str, headers: list[str], call: str
) -> None:
    given = [line.format(token=token) for line in headers]
    answer = raw(broker, f"{call} HTTP/1.1", "Host: x", "Content-Length: 0", *given)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"WWW-Authenticate: Bearer" in answer
    assert b'"code": "unauthorized"' in answer


def test_a_stranger_cannot_have_a_body_read(broker: Broker) -> None:
    """Who it is is known by the headers: the answer comes before a byte of the body."""
    assert raw(broker, "POST /v1/grants HTTP/1.1", "Host: x", "Content-Length: 1000000").startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Invalid JSON"),
        (b"[]", "object"),
        (b'{"grants": 5}', "grants"),
        (b'{"grants": [], "more": 1}', "more"),
        (b'{"grants": [{"operation": "copy", "bucket": "b", "key": "k", "expires": 1}]}', "grants.0.operation"),
        (b'{"grants": [{"operation": "put", "bucket": "b", "key": "k", "expires": "1"}]}', "grants.0.expires"),
        (b'{"grants": [{"operation": "put", "bucket": "b", "key": "k", "expires": 1, "siz": 1}]}', "grants.0.siz"),
        (b"[" * 100_000, "recursion"),
        (b"\xff\xfe", "Invalid JSON"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_batch_is_a_bad_request_that_names_the_field(
    broker: Broker, token: str, body: bytes, message: str
) -> None:
    status, answer, _ = broker.call("/v1/grants", token, body)
    assert (status, answer["error"]["code"]) == (400, "bad_request")
    assert message in answer["error"]["message"]


def test_more_than_a_thousand_grants_and_a_larger_body_are_too_much(broker: Broker, token: str, bucket: str) -> None:
    assert len(broker.grants(token, *[get(bucket, f"one/{n}") for n in range(1000)])) == 1000
    status, answer, _ = broker.call("/v1/grants", token, {"grants": [get(bucket, "one/a")] * 1001})
    assert (status, answer["error"]["code"]) == (413, "too_many_grants")
    status, answer, _ = broker.call("/v1/grants", token, b" " * (5 << 20))
    assert (status, answer["error"]["code"]) == (413, "body_too_large")


def test_other_paths_methods_and_types_have_their_own_status(broker: Broker, token: str) -> None:
    assert broker.call("/v2/grants", token)[0] == 404
    assert broker.call("/v1/grants", token)[0] == 405
    assert broker.call("/v1/grants", token, b"{}", Content_Type="text/plain")[0] == 415
    assert broker.call("/v1/grants", token, b"{}", Content_Encoding="gzip")[0] == 400


def test_a_rate_is_answered_with_when_to_ask_again(broker: Broker, bucket: str) -> None:
    slow = broker.token("slow", bucket, rate="10/m")
    assert len(broker.grants(slow, *[get(bucket, "slow/a")] * 10)) == 10
    status, answer, headers = broker.call("/v1/grants", slow, {"grants": [get(bucket, "slow/a")]})
    assert (status, answer["error"]["code"]) == (429, "rate_limited")
    assert 1 <= int(headers["retry-after"]) <= 60


# --- tokens ---------------------------------------------------------------------------------------------


def test_a_revoked_token_is_refused_at_once_on_a_connection_that_is_open(broker: Broker, bucket: str) -> None:
    secret = broker.token("gone", bucket)
    with socket.create_connection(("127.0.0.1", broker.port), timeout=30) as sock:
        asked = f"GET /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n\r\n".encode()
        sock.sendall(asked)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        broker.revoke("gone")
        sock.sendall(asked)
        assert sock.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_with_as_many_connections_as_there_are_descriptors_tokens_are_still_known(
    tmp_path: Path, seaweedfs: Store
) -> None:
    """A folder that can't be opened for want of descriptors looks empty."""
    with broker_for(tmp_path, seaweedfs) as broker, ExitStack() as stack:
        secret = broker.token("one", "bucket-x")
        assert broker.call("/v1/me", secret)[0] == 200
        assert broker.process is not None
        resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE, (160, 160))
        first, *_ = [stack.enter_context(socket.create_connection(("127.0.0.1", broker.port), 30)) for _ in range(200)]
        statuses = []
        for each in (new_token(), secret):  # one that is looked for everywhere
            first.sendall(f"GET /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {each}\r\n\r\n".encode())
            statuses.append(first.recv(65536)[9:12])
        assert statuses == [b"401", b"200"]


def test_a_token_that_has_ended_is_refused(broker: Broker, bucket: str) -> None:
    ended = broker.token("ended", bucket, valid_until="2020-01-01")
    status, answer, _ = broker.call("/v1/me", ended)
    assert (status, answer["error"]["code"]) == (401, "token_expired")


def presignd(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, "broker", *arguments], capture_output=True, text=True, check=False, timeout=60)


def test_tokens_are_made_listed_and_revoked_by_commands(broker: Broker, bucket: str) -> None:
    tokens = broker.folder / "tokens.d"
    options = ["--bucket", bucket, "--valid", "90d", "--max-size", "5GiB", "--operations", "put,head", "--rate", "5/s"]
    made = presignd("token", "create", "made", *options, "--write", tokens)
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    broker.secrets.append(secret)
    assert secret not in (tokens / "made.toml").read_text()
    status, me, _ = broker.call("/v1/me", secret)
    assert (status, me["operations"], me["max_size"]) == (200, ["put", "head"], 5 << 30)
    assert "made\t" in presignd("token", "list", "-c", broker.file).stdout
    revoked = presignd("token", "revoke", "made", "-c", broker.file)
    assert revoked.returncode == 0, revoked.stderr
    assert broker.call("/v1/me", secret)[0] == 401
    assert presignd("token", "revoke", "made", "-c", broker.file).returncode == 4


def test_a_token_is_not_written_where_no_broker_looks_for_it(tmp_path: Path) -> None:
    """A folder that is still to be made would become a file."""
    made = presignd("token", "create", "x", "--bucket", "bucket", "--write", tmp_path / "tokens.d")
    assert (made.returncode, made.stdout, list(tmp_path.iterdir())) == (2, "", [])
    assert "mkdir" in made.stderr


def test_a_new_token_is_printed_once_with_the_block_that_holds_its_hash() -> None:
    made = presignd("token", "create", "x", "--bucket", "bucket", "--json")
    found = json.loads(made.stdout)
    assert found["token"] not in found["block"]
    plain = presignd("token", "create", "x", "--bucket", "bucket").stdout
    assert plain.splitlines()[0].startswith("psd_")
    assert "[[token]]" in plain.splitlines()
    wrong = presignd("token", "create", "x y", "--bucket", "B", "--prefix", "x")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 3


# --- reload, and the end --------------------------------------------------------------------------------


def test_a_reload_takes_a_new_key_and_a_broken_file_changes_nothing(tmp_path: Path, seaweedfs: Store) -> None:
    with broker_for(tmp_path, seaweedfs) as broker:
        text = broker.file.read_text()
        secret = broker.token("one", "bucket-x")
        broker.configure(text.replace(seaweedfs.access_key, "another-key"))
        broker.reload()
        assert "another-key" in broker.grants(secret, get("bucket-x", "one/a"))[0]["url"]
        broker.configure(text + "\n[brokr]\n")
        broker.reload()
        (refused,) = broker.events("config.refused")
        assert "brokr" in refused["problems"][0]
        assert "another-key" in broker.grants(secret, get("bucket-x", "one/a"))[0]["url"]
        broker.configure(text.replace(str(broker.port), "1"))
        broker.reload()
        assert broker.events("config.reloaded")[-1]["restart_needed"] == ["broker.listen"]


def test_a_reload_puts_no_token_on_an_open_address_in_the_clear(
    tmp_path: Path, seaweedfs: Store, certificates: Certificates
) -> None:
    """Another address takes a restart, so what counts is where it does listen."""
    broker = Broker(tmp_path, seaweedfs, tls=certificates.options)
    text = broker.file.read_text()
    broker.configure(text.replace(f"127.0.0.1:{broker.port}", f"0.0.0.0:{broker.port}"))
    try:
        broker.start()
        broker.configure(text.replace(certificates.options, ""))
        broker.reload()
        (refused,) = broker.events("config.refused")
        assert "broker.tls_cert" in refused["problems"][0]
        assert served_certificate(broker, certificates.context())
    finally:
        broker.end()


def test_a_reload_that_puts_a_proxy_before_it_ends_the_metrics_there(broker: Broker) -> None:
    assert "presignd_broker_tokens" in metrics_of(broker)
    text = broker.file.read_text()
    broker.configure(text.replace("[store]", "behind_proxy = true\n[store]"))
    broker.reload()
    assert broker.call("/metrics")[0] == 404
    broker.configure(text)
    broker.reload()


def test_a_reload_leaves_no_connection_of_the_former_key_behind(tmp_path: Path, seaweedfs: Store) -> None:
    with broker_for(tmp_path, seaweedfs) as broker:
        secret = broker.token("one", seaweedfs.bucket)
        broker.grants(secret, get(seaweedfs.bucket, "one/a"))  # asks the store for the bucket's region
        broker.reload()
        assert broker.stop() == 0
        assert [event for event in broker.events() if event["level"] in {"warning", "error"}] == []


def test_on_sigterm_what_is_being_answered_is_and_nothing_new(tmp_path: Path, seaweedfs: Store) -> None:
    with broker_for(tmp_path, seaweedfs) as broker:
        secret = broker.token("one", "bucket-x")
        body = json.dumps({"grants": [get("bucket-x", "one/a")]}).encode()
        head = f"POST /v1/grants HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", broker.port), timeout=30) as sock:
            sock.sendall(head.encode() + body[:10])
            broker.until(lambda: "in_flight 1.0" in metrics_of(broker), "a request in flight")
            assert broker.process is not None
            broker.process.terminate()
            broker.until(lambda: broker.events("broker.draining"), "broker.draining")
            with pytest.raises(ConnectionRefusedError):
                connect_for(broker, 10)
            sock.sendall(body[10:])
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert broker.process.wait(30) == 0


def connect_for(broker: Broker, seconds: float) -> None:
    """Connect again and again, until one is refused."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        socket.create_connection(("127.0.0.1", broker.port), timeout=5).close()
        time.sleep(0.02)


def metrics_of(broker: Broker) -> str:
    with urllib.request.urlopen(f"{broker.url}/metrics", timeout=30) as answer:
        text: bytes = answer.read()
    return text.decode()


def test_a_port_that_is_taken_or_a_wrong_configuration_is_told_in_a_line(broker: Broker) -> None:
    done = presignd("run", "-c", broker.file)
    assert (done.returncode, "can't listen at" in done.stderr, "Traceback" in done.stderr) == (3, True, False)
    done = presignd("run", "-c", broker.folder / "none.toml")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


# --- log and metrics ------------------------------------------------------------------------------------


def test_the_audit_log_tells_who_asked_for_what_and_what_came_of_it(broker: Broker, token: str, bucket: str) -> None:
    part = {"operation": "multipart.part", "upload_id": "u", "size": 5, "checksum": MD5, "expires": 60}
    parts = [{**part, "bucket": bucket, "key": "one/audited", "part_number": number} for number in range(1, 101)]
    broker.grants(token, put(bucket, "one/audited"), get(bucket, "two/audited"), *parts)
    issued = [event for event in broker.events("grant.issued") if event["key"] == "one/audited"]
    assert [(e["by"], e["operation"], e["bucket"], e.get("count", 1)) for e in issued] == [
        ("one", "put", bucket, 1),
        ("one", "multipart.part", bucket, 100),
    ]
    (refused,) = [event for event in broker.events("grant.refused") if event["key"] == "two/audited"]
    assert (refused["by"], refused["error_code"], refused["level"]) == ("one", "outside_prefix", "warning")


def test_metrics_hold_no_key_path_or_secret(broker: Broker, token: str, bucket: str) -> None:
    broker.grants(token, put(bucket, "one/a-path-nobody-shall-see"))
    shown = metrics_of(broker)
    assert 'presignd_broker_grants_total{operation="put",result="granted",token="one"}' in shown
    assert "a-path-nobody-shall-see" not in shown
    assert token not in shown


def test_metrics_are_served_where_strangers_do_not_come(tmp_path: Path, seaweedfs: Store) -> None:
    (port,) = free_ports(1)
    options = f'behind_proxy = true\nmetrics_listen = "127.0.0.1:{port}"'
    with broker_for(tmp_path, seaweedfs, options=options) as broker:
        assert broker.call("/metrics")[0] == 404
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            assert b"presignd_broker_tokens 0.0" in answer.read()
    with broker_for(tmp_path, seaweedfs, options="behind_proxy = true") as broker:
        assert broker.call("/metrics")[0] == 404


def test_it_listens_at_a_unix_socket_that_a_killed_one_left_behind(tmp_path: Path, seaweedfs: Store) -> None:
    path = tmp_path / "broker.sock"
    broker = Broker(tmp_path, seaweedfs)
    broker.configure(broker.file.read_text().replace(f"127.0.0.1:{broker.port}", f"unix:{path}"))
    try:
        broker.start()
        broker.kill()
        assert path.is_socket()
        broker.start()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert presignd("run", "-c", broker.file).returncode == 3
        assert broker.stop() == 0
        assert not path.exists()
    finally:
        broker.end()


def test_health_and_readiness_are_told_to_anybody(broker: Broker) -> None:
    assert broker.call("/healthz")[:2] == (200, {"status": "ok"})
    assert broker.call("/readyz")[:2] == (200, {"status": "ok"})


def test_without_credentials_it_runs_and_says_so(tmp_path: Path, seaweedfs: Store) -> None:
    broker = Broker(tmp_path, seaweedfs)
    broker.configure(f'[broker]\nlisten = "127.0.0.1:{broker.port}"\ntoken_files = ["tokens.d/*.toml"]\n')
    secret = broker.token("one", "bucket-x")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\naws_access_key_id = half\n")
    try:
        broker.start()
        assert broker.call("/readyz")[0] == 503
        status, answer, headers = broker.call("/v1/grants", secret, {"grants": [get("bucket-x", "one/a")]})
        assert (status, answer["error"]["code"], headers["retry-after"]) == (503, "no_credentials", "5")
        (tmp_path / ".aws" / "credentials").write_text(
            "[default]\naws_access_key_id = whole\naws_secret_access_key = whole-secret\n"
        )
        broker.until(lambda: broker.call("/readyz")[0] == 200, "credentials")
        broker.until(lambda: broker.events("presigner.back"), "presigner.back")
        (told,) = broker.events("presigner.unreachable")
        assert told["fix"].startswith("set store.access_key")
    finally:
        broker.end()


# --- TLS ------------------------------------------------------------------------------------------------


class Certificates:
    """A CA of the test's own with a certificate for the broker, and one for each client."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ca = folder, trustme.CA()
        folder.mkdir(parents=True, exist_ok=True)
        self.ca.cert_pem.write_to_path(folder / "ca.pem")
        self.renew()

    def renew(self) -> None:
        """Give the broker another certificate, by a rename."""
        cert = self.ca.issue_cert("127.0.0.1")
        cert.private_key_and_cert_chain_pem.write_to_path(self.folder / "draft.pem")
        (self.folder / "draft.pem").replace(self.folder / "broker.pem")

    def context(self, *names: str, ca: trustme.CA | None = None) -> ssl.SSLContext:
        """Return a client's context; with names, it has a certificate of ``ca``, by default ours."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if names:
            (ca or self.ca).issue_cert(*names).configure_cert(context)
        return context

    @property
    def options(self) -> str:
        return f'tls_cert = "{self.folder}/broker.pem"\nclient_ca = "{self.folder}/ca.pem"'


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "tls")


def served_certificate(broker: Broker, context: ssl.SSLContext) -> bytes:
    with (
        socket.create_connection(("127.0.0.1", broker.port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        return sock.getpeercert(binary_form=True) or b""


def test_a_client_certificate_stands_for_the_token_that_names_it(
    tmp_path: Path, seaweedfs: Store, certificates: Certificates
) -> None:
    with broker_for(tmp_path, seaweedfs, tls=certificates.options) as broker:
        secret = broker.token("one", "bucket-x", certificate="one.example")
        (broker.folder / "tokens.d" / "two.toml").write_text(
            '[[token]]\nname = "two"\ncertificate = "two.example"\nbucket = "bucket-x"\n'
        )
        assert broker.call("/v1/me", tls=certificates.context("one.example"))[1]["name"] == "one"
        assert broker.call("/v1/me", tls=certificates.context("x.example", "two.example"))[1]["name"] == "two"
        assert broker.call("/v1/me", secret, tls=certificates.context("two.example"))[1]["name"] == "one"
        assert broker.call("/v1/me", secret, tls=certificates.context())[1]["name"] == "one"
        assert broker.call("/v1/me", tls=certificates.context("three.example"))[0] == 401
        assert broker.call("/v1/me", tls=certificates.context())[0] == 401
        with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
            broker.call("/v1/me", tls=certificates.context("one.example", ca=trustme.CA()))
        broker.revoke("two")
        assert broker.call("/v1/me", tls=certificates.context("two.example"))[0] == 401


def test_a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_is_not(
    tmp_path: Path, seaweedfs: Store, certificates: Certificates
) -> None:
    with broker_for(tmp_path, seaweedfs, tls=certificates.options) as broker:
        context = certificates.context()
        secret = broker.token("one", "bucket-x")
        before = served_certificate(broker, context)
        certificates.renew()
        broker.until(lambda: served_certificate(broker, context) != before, "the new certificate")
        after = served_certificate(broker, context)
        (certificates.folder / "broker.pem").write_text("no certificate")
        broker.until(lambda: broker.events("certificate.refused"), "certificate.refused")
        assert served_certificate(broker, context) == after
        assert broker.call("/v1/me", secret, tls=context)[0] == 200
        assert len(broker.events("certificate.refused")) == 1


def test_a_certificate_that_cannot_be_used_keeps_it_from_starting(
    tmp_path: Path, seaweedfs: Store, certificates: Certificates
) -> None:
    broker = Broker(tmp_path, seaweedfs, tls=certificates.options)
    (certificates.folder / "broker.pem").write_text("no certificate")
    done = presignd("run", "-c", broker.file)
    assert done.returncode == 2
    assert "broker.tls_cert: " in done.stderr


# --- guesses ------------------------------------------------------------------------------


def test_an_unknown_token_costs_no_look_at_every_file(broker: Broker) -> None:
    """Guessing is answered alike, again and again."""
    assert {broker.call("/v1/me", new_token())[0] for _ in range(50)} == {401}
