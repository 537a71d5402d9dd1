"""The broker as a process: its commands, reload and stop, its addresses and its certificate."""

from __future__ import annotations

import json
import resource
import select
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPSConnection
from pathlib import Path

import pytest
import trustme

from presignd.broker.tokens import hash_of, new_token
from presignd.demo.seaweedfs import free_ports
from tests.brokers import Broker, broker_for, command, get
from tests.stores import Store


@pytest.fixture(scope="module")
def broker(seaweedfs: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker_for(tmp_path_factory.mktemp("broker"), seaweedfs) as broker:
        yield broker


# --- commands ---


def test_tokens_are_made_listed_and_revoked_by_commands(broker: Broker) -> None:
    tokens = broker.folder / "tokens.d"
    options = [
        "--bucket",
        "bucket-x",
        "--valid",
        "90d",
        "--max-size",
        "5GiB",
        "--operations",
        "put,head",
        "--rate",
        "5/s",
    ]
    made = command("token", "create", "made", *options, "--write", tokens)
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    broker.secrets.append(secret)
    assert secret not in (tokens / "made.toml").read_text()
    status, me, _ = broker.call("/v1/me", secret)
    assert (status, me["operations"], me["max_size"]) == (200, ["put", "head"], 5 << 30)
    assert "made\t" in command("token", "list", "-c", broker.file).stdout
    revoked = command("token", "revoke", "made", "-c", broker.file)
    assert revoked.returncode == 0, revoked.stderr
    assert broker.call("/v1/me", secret)[0] == 401
    assert command("token", "revoke", "made", "-c", broker.file).returncode == 4


def test_a_command_says_once_which_token_files_are_wrong(broker: Broker) -> None:
    """A broker logs it; a person gets a line."""
    file = broker.folder / "tokens.d" / "wrong.toml"
    file.write_text('[[token]]\nname = "wrong"\n')
    try:
        listed = command("token", "list", "-c", broker.file)
        assert listed.returncode == 2
        assert {line.split(": ")[:2][1] for line in listed.stderr.splitlines()} == {str(file)}
        refused = command("token", "revoke", "none", "-c", broker.file)
        assert (refused.returncode, refused.stderr.count("\n")) == (4, 1)
        assert str(file) in refused.stderr
    finally:
        file.unlink()


def test_a_token_of_the_environment_is_listed_and_only_a_restart_without_it_revokes_it(broker: Broker) -> None:
    secret = new_token()
    broker.secrets.append(secret)
    broker.environ = {"PRESIGND_TOKEN__ENV__HASH": hash_of(secret), "PRESIGND_TOKEN__ENV__BUCKET": "bucket-x"}
    broker.stop()
    broker.start()
    status, me, _ = broker.call("/v1/me", secret)
    assert (status, me["bucket"], me["prefix"]) == (200, "bucket-x", "env/")
    listed = command("token", "list", "--json", "-c", broker.file, **broker.environ)
    assert {each["name"]: each["file"] for each in json.loads(listed.stdout)}["env"] is None
    assert "\tthe environment\n" in command("token", "list", "-c", broker.file, **broker.environ).stdout
    refused = command("token", "revoke", "env", "-c", broker.file, **broker.environ)
    assert (refused.returncode, "PRESIGND_TOKEN__ENV__" in refused.stderr) == (4, True)
    broker.reload()
    assert broker.call("/v1/me", secret)[0] == 200
    broker.environ = {}
    broker.stop()
    broker.start()
    assert broker.call("/v1/me", secret)[0] == 401


def test_a_token_is_not_written_where_no_broker_looks_for_it(tmp_path: Path) -> None:
    """A folder that is still to be made would become a file."""
    made = command("token", "create", "x", "--bucket", "bucket", "--write", tmp_path / "tokens.d")
    assert (made.returncode, made.stdout, list(tmp_path.iterdir())) == (2, "", [])
    assert "mkdir" in made.stderr


def test_a_new_token_is_printed_once_with_the_block_that_holds_its_hash() -> None:
    made = command("token", "create", "x", "--bucket", "bucket", "--json")
    found = json.loads(made.stdout)
    assert found["token"] not in found["block"]
    plain = command("token", "create", "x", "--bucket", "bucket").stdout
    assert plain.splitlines()[0].startswith("psd_")
    assert "[[token]]" in plain.splitlines()
    wrong = command("token", "create", "x y", "--bucket", "B", "--prefix", "x")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 3


# --- reload, and the end ---


def test_with_as_many_connections_as_there_are_descriptors_tokens_are_still_known(
    tmp_path: Path, seaweedfs: Store
) -> None:
    """Files and folders of tokens take descriptors, too: connections leave some."""
    with broker_for(tmp_path, seaweedfs) as broker, ExitStack() as stack:
        secret = broker.token("one", "bucket-x")
        assert broker.call("/v1/me", secret)[0] == 200
        assert broker.process is not None
        resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE, (160, 160))
        address = ("127.0.0.1", broker.port)
        first, *_, last = [stack.enter_context(socket.create_connection(address, 30)) for _ in range(200)]
        first.settimeout(10)
        assert first.recv(65536) == b"", "the longest quiet one makes room"
        statuses = []
        for each in (new_token(), secret, broker.token("two", "bucket-x")):  # looked for everywhere, known, to be read
            last.sendall(f"GET /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {each}\r\n\r\n".encode())
            statuses.append(last.recv(65536)[9:12])
        assert statuses == [b"401", b"200", b"200"]


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


def test_a_reload_that_puts_a_proxy_before_it_ends_the_metrics_there(broker: Broker) -> None:
    assert "presignd_broker_tokens" in broker.metrics()
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
            broker.until(lambda: "in_flight 1.0" in broker.metrics(), "a request in flight")
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


def test_a_port_that_is_taken_or_a_wrong_configuration_is_told_in_a_line(broker: Broker) -> None:
    done = command("run", "-c", broker.file)
    assert (done.returncode, "can't listen at" in done.stderr, "Traceback" in done.stderr) == (3, True, False)
    done = command("run", "-c", broker.folder / "none.toml")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


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
        assert command("run", "-c", broker.file).returncode == 3
        assert broker.stop() == 0
        assert not path.exists()
    finally:
        broker.end()


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


# --- TLS ---


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
    done = command("run", "-c", broker.file)
    assert done.returncode == 2
    assert "broker.tls_cert: " in done.stderr


def test_connections_that_never_finish_their_handshake_take_no_descriptors_from_tokens(
    tmp_path: Path, seaweedfs: Store, certificates: Certificates
) -> None:
    """Who says nothing is nobody yet, and must not keep a new token from being read."""
    with broker_for(tmp_path, seaweedfs, tls=certificates.options) as broker, ExitStack() as stack:
        assert broker.process is not None
        resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE, (160, 160))
        known = stack.enter_context(
            closing(HTTPSConnection("127.0.0.1", broker.port, timeout=60, context=certificates.context()))
        )
        first, later = broker.token("one", "bucket-x"), broker.token("two", "bucket-x")
        known.request("GET", "/v1/me", headers={"Authorization": f"Bearer {first}"})
        assert known.getresponse().read()
        silent = [
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", broker.port)))) for _ in range(200)
        ]
        ended = [sock for sock in silent if select.select([sock], [], [], 0.05)[0]]
        assert len(ended) >= 160
        known.request("GET", "/v1/me", headers={"Authorization": f"Bearer {later}"})
        assert known.getresponse().status == 200
        assert broker.events("tokens.unlisted", "unexpected_error") == []
