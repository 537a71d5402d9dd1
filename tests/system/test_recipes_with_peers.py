"""The recipes with their real peers: Samba, SFTP, rsync, Chromium, PostgreSQL, tar; each command as on its page."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
from playwright.sync_api import sync_playwright

from presignd.demo.seaweedfs import LOOPBACK, free_ports
from tests.needs import CHROMIUM, find, need, postgres_programs
from tests.postgres import Postgres
from tests.recipes import block, daemon_by, replaced
from tests.stores import Store
from tests.system.harness import COMMAND, Presignd, config_for, fetch, until_true

yaml = pytest.importorskip("yaml")  # mkdocs brings it

USER = "games"
"""A user that each Debian has, without a login."""
WHOLE = b"a page\n" * 50_000


def shell(
    command: str, folder: Path, *, of: Presignd | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a page's command in bash, with ``presignd`` in the PATH that asks the daemon ``of`` a test."""
    programs = f"{COMMAND.parent}:{os.environ['PATH']}"
    socket_of = {"PRESIGND_SOCKET": of.environ["PRESIGND_SOCKET"]} if of else {}
    environ = {"PATH": programs, "HOME": str(folder), "LANG": "C.UTF-8", **socket_of, **environ}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=60
    )


def arrived(daemon: Presignd, *keys: str) -> list[dict[str, Any]]:
    """Wait for exactly these links; return them."""
    daemon.until(lambda: len(daemon.links()) >= len(keys), "the links")
    links = daemon.links()
    assert sorted(link["key"] for link in links) == sorted(keys)
    return links


def settles(daemon: Presignd, name: str) -> bool:
    """Return whether a file is seen, and not complete as a program writes it."""
    settling = daemon.status()["settling"]
    return any(found["path"].endswith(name) and "open for writing" in found["why"] for found in settling)


@contextmanager
def process(*command: str | Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server, its output in ``log``, while the body runs.

    It has a session of its own: when smbd ends, it ends its whole process group.
    """
    with log.open("wb") as out:
        started = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        yield started
    finally:
        started.terminate()
        started.wait(30)


def listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex((LOOPBACK, port)) == 0


@pytest.fixture
def public() -> Iterator[Path]:
    """Make a folder that all users may enter, and that is root's all the way up, as sshd demands (/tmp is not)."""
    need("root")
    folder = Path(tempfile.mkdtemp(prefix="presignd-", dir="/run"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


# --- Samba ----------------------------------------------------------------------------------------
@pytest.mark.needs("root", "samba", "smbclient")
def test_a_file_put_into_the_share_gets_its_link_beside_it(tmp_path: Path, public: Path, seaweedfs: Store) -> None:
    drop = public / "drop"
    drop.mkdir()
    shutil.chown(drop, "root", USER)
    drop.chmod(0o2770)
    (port,) = free_ports(1)
    share = replaced(
        block("samba", "samba-share"), {"/srv/drop": drop, "anna": USER, "group = drop": f"group = {USER}"}
    )
    own = {f"{name} directory": tmp_path / name for name in ("private", "lock", "state", "cache", "pid")}
    for folder in own.values():
        folder.mkdir()
    server = {**own, "interfaces": LOOPBACK, "bind interfaces only": "yes", "smb ports": port, "log level": 1}
    (tmp_path / "smb.conf").write_text(
        "[global]\n" + "".join(f"  {name} = {value}\n" for name, value in server.items()) + share
    )
    subprocess.run(
        ["smbpasswd", "-c", tmp_path / "smb.conf", "-s", "-a", USER], input=b"pass\npass\n", check=True, timeout=60
    )
    smbd = ("smbd", "--foreground", "--no-process-group", "--debug-stdout", "-s", tmp_path / "smb.conf")
    client = replaced(
        block("samba", "samba-client"),
        {"smbclient": f"smbclient -s {tmp_path}/smb.conf -p {port}", "server": LOOPBACK, "-U anna": f"-U {USER}%pass"},
    )
    with (
        daemon_by("samba", tmp_path, seaweedfs, {"/srv/drop": drop}) as daemon,
        process(*smbd, log=tmp_path / "smbd.log") as running,
    ):
        until_true(lambda: listens(port), "smbd", 60, process=running, log=tmp_path / "smbd.log")
        (tmp_path / "report.pdf").write_bytes(WHOLE)
        done = shell(client, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        [link] = arrived(daemon, "report.pdf")
        assert fetch(link["url"]) == WHOLE
        daemon.until((drop / "report.pdf.link.txt").exists, "the link file")
        done = shell(client.replace("put report.pdf", "get report.pdf.link.txt"), tmp_path)
        assert done.returncode == 0, "whoever may read the share may read its links" + done.stdout
        assert (tmp_path / "report.pdf.link.txt").read_text().strip() == link["url"]


# --- SFTP -----------------------------------------------------------------------------------------
@pytest.mark.needs("root", "sshd")
def test_a_file_put_into_the_drop_box_is_uploaded_and_taken_out_of_it(
    tmp_path: Path, public: Path, seaweedfs: Store
) -> None:
    box, keys = public / "sftp", public / "keys"
    for folder in (box, keys, box / "drop", box / "sent"):
        folder.mkdir(mode=0o755)
    shutil.chown(box / "drop", USER, USER)
    for key in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", public / key], check=True)
    (public / "client.pub").rename(keys / USER)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    (port,) = free_ports(1)
    rules = replaced(block("sftp", "sftp-sshd"), {"dropbox": USER, "/srv/sftp": box, "/etc/ssh/keys": keys})
    general = f"Port {port}\nListenAddress {LOOPBACK}\nHostKey {public}/host\nPidFile none\nUsePAM no\n"
    general += "Subsystem sftp /usr/lib/openssh/sftp-server\n"  # as Debian's sshd_config has it
    (public / "sshd_config").write_text(general + rules + "\n")
    sshd = (str(find("sshd")), "-D", "-e", "-f", public / "sshd_config")
    options = f"-P {port} -i {public}/client -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    client = replaced(
        block("sftp", "sftp-client"), {"sftp -b": f"sftp -q {options} -b", "dropbox@server": f"{USER}@{LOOPBACK}"}
    )
    with (
        daemon_by("sftp", tmp_path, seaweedfs, {"/srv/sftp": box}) as daemon,
        process(*sshd, log=tmp_path / "sshd.log") as running,
    ):
        until_true(lambda: listens(port), "sshd", 60, process=running, log=tmp_path / "sshd.log")
        (tmp_path / "report.pdf").write_bytes(WHOLE)
        done = shell(client, tmp_path)
        assert done.returncode == 0, done.stderr + (tmp_path / "sshd.log").read_text()
        [link] = arrived(daemon, "report.pdf")
        assert fetch(link["url"]) == WHOLE
        daemon.until((box / "sent" / "report.pdf").exists, "the file in its new place")
        assert not (box / "drop" / "report.pdf").exists()
        outside = shell(client.replace("put report.pdf", "get /etc/passwd"), tmp_path)
        assert outside.returncode != 0
        assert not (tmp_path / "passwd").exists()


# --- what writes slowly ---------------------------------------------------------------------------
SLOW: dict[str, tuple[dict[str, str], str, str]] = {
    "scanner": ({"/srv/scans": "srv", "{mtime:%Y/%m}/": ""}, "scan.pdf", "scan.pdf"),
    "obs": ({"/home/anna/Videos": "srv"}, "2026-11-29 20-00-00.mp4", "2026-11-29 20-00-00.mp4"),
}


@pytest.mark.needs("CAP_LEASE")
@pytest.mark.parametrize("page", SLOW)
def test_what_is_written_slowly_is_uploaded_once_nobody_writes_it(tmp_path: Path, seaweedfs: Store, page: str) -> None:
    by, name, key = SLOW[page]
    drop = tmp_path / "srv"
    words = {word: drop if value == "srv" else value for word, value in by.items()}
    with daemon_by(page, tmp_path, seaweedfs, words) as daemon:
        if page == "obs":
            (drop / "2026-11-29 20-00-00.mkv").write_bytes(b"the recording itself")
        with (drop / name).open("wb", buffering=0) as file:
            for half in (WHOLE[: len(WHOLE) // 2], WHOLE[len(WHOLE) // 2 :]):
                file.write(half)
                daemon.until(lambda: settles(daemon, name), "a file that is open for writing")
                assert daemon.links() == []
        [link] = arrived(daemon, key)
        assert fetch(link["url"]) == WHOLE


# --- rsync ----------------------------------------------------------------------------------------
@pytest.mark.needs("rsync")
def test_rsync_brings_each_file_once(tmp_path: Path, seaweedfs: Store) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"IMG_{number}.jpg").write_bytes(WHOLE[number:])
    config = config_for(seaweedfs, tmp_path, seaweedfs.new_bucket())
    daemon = Presignd(tmp_path, config, secrets=(seaweedfs.secret_key,))
    daemon.start()
    try:
        command = replaced(block("rsync", "rsync-client"), {"server:/srv/drop": tmp_path / "drop"})
        for _ in range(2):  # the second finds nothing to do
            done = shell(command, tmp_path)
            assert done.returncode == 0, done.stderr
        links = arrived(daemon, *(f"photos/IMG_{number}.jpg" for number in range(3)))
        assert sorted(fetch(link["url"]) for link in links) == sorted(WHOLE[number:] for number in range(3))
    finally:
        daemon.end()


# --- a browser ------------------------------------------------------------------------------------
class Website:
    """A server on loopback whose one file stops half way until ``rest`` is set; it records what is posted."""

    def __init__(self) -> None:
        self.rest, self.posted = threading.Event(), list[dict[str, Any]]()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(WHOLE)))
                self.send_header("Content-Disposition", 'attachment; filename="report.bin"')
                self.end_headers()
                self.wfile.write(WHOLE[: len(WHOLE) // 2])
                self.wfile.flush()
                site.rest.wait(120)
                self.wfile.write(WHOLE[len(WHOLE) // 2 :])

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                site.posted.append({**body, "posted_to": self.path, "posted_as": self.headers["Content-Type"]})
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self.url = f"http://{LOOPBACK}:{self._server.server_port}"
        self._serving = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._serving.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rest.set()
        self._server.shutdown()
        self._serving.join()
        self._server.server_close()


@pytest.mark.needs("chromium")
def test_a_download_is_uploaded_once_the_browser_has_it_whole(tmp_path: Path, seaweedfs: Store) -> None:
    downloads = tmp_path / "Downloads"
    downloads.mkdir()
    (downloads / "from before").write_bytes(b"x")
    options = ["--disable-gpu", "--disable-background-networking", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with (
        daemon_by("browser", tmp_path, seaweedfs, {"/home/anna/Downloads": downloads}) as daemon,
        Website() as site,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page()
        session = browser.new_browser_cdp_session()
        for context in session.send("Target.getBrowserContexts")["browserContextIds"]:  # as without playwright
            behavior = {"behavior": "allow", "downloadPath": str(downloads), "browserContextId": context}
            session.send("Browser.setDownloadBehavior", behavior)
        page.set_content(f'<a href="{site.url}/report.bin">the file</a>')
        page.click("a")
        daemon.until(lambda: [*downloads.glob("*.crdownload")], "half a download")
        daemon.run("status", "--json", check=True)
        assert daemon.links() == []
        site.rest.set()
        [link] = arrived(daemon, "report.bin")
        assert fetch(link["url"]) == WHOLE
        browser.close()


# --- webhooks -------------------------------------------------------------------------------------
def run_once(daemon: Presignd, command: str, folder: Path, by: dict[str, object]) -> None:
    """Run a page's command for the links there are, without waiting for more."""
    done = shell(replaced(command, {" --follow": "", "/var/lib": folder, **by}), folder, of=daemon)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.needs("jq", "curl")
def test_a_clip_is_told_with_its_link_and_nothing_else_is(tmp_path: Path, seaweedfs: Store) -> None:
    clips = tmp_path / "clips"
    with Website() as ntfy, daemon_by("nvr", tmp_path, seaweedfs, {"/srv/clips": clips}) as daemon:
        daemon.config.write_text(daemon.config.read_text() + watch_beside(daemon, tmp_path))
        daemon.stop()
        daemon.start()
        (clips / "door").mkdir()
        (clips / "door" / "$(touch pwned) 'a'\n.mp4").write_bytes(WHOLE)
        (tmp_path / "other" / "b").write_bytes(b"x")
        daemon.until(lambda: len(daemon.links()) == 2, "two links")
        run_once(daemon, block("nvr", "nvr-notify"), tmp_path, {"https://ntfy.example.org": ntfy.url})
        [told] = ntfy.posted
        [link] = [link for link in daemon.links() if link["watch"] == "clips"]
        assert (told["topic"], told["click"], told["posted_as"]) == ("front-door", link["url"], "application/json")
        assert told["title"].startswith("door/")
        assert told["title"].isprintable()
        assert fetch(told["click"]) == WHOLE
        assert not [*tmp_path.rglob("pwned")]
        run_once(daemon, block("nvr", "nvr-notify"), tmp_path, {"https://ntfy.example.org": ntfy.url})
        assert len(ntfy.posted) == 1


def watch_beside(daemon: Presignd, folder: Path) -> str:
    (folder / "other").mkdir()
    [bucket] = [line for line in daemon.config.read_text().splitlines() if line.startswith("bucket = ")]
    return f'\n[[watch]]\nname = "other"\npath = "{folder}/other"\n{bucket}\n'


@pytest.mark.needs("curl")
def test_home_assistant_is_told_what_its_automation_reads(tmp_path: Path, seaweedfs: Store) -> None:
    media = tmp_path / "media"
    words = {"/srv/home-assistant/media/drop": media}
    with Website() as home, daemon_by("home-assistant", tmp_path, seaweedfs, words) as daemon:
        (media / "door.jpg").write_bytes(WHOLE)
        [link] = arrived(daemon, "door.jpg")
        command = block("home-assistant", "home-assistant-notify")
        run_once(daemon, command, tmp_path, {"http://homeassistant.local:8123": home.url})
        [told] = home.posted
    [automation] = yaml.safe_load(block("home-assistant", "home-assistant-automation"))
    [trigger], [action] = automation["triggers"], automation["actions"]
    assert told["posted_to"] == f"/api/webhook/{trigger['webhook_id']}"
    assert (trigger["trigger"], trigger["allowed_methods"]) == ("webhook", ["POST"])
    assert action["data"]["message"] == "{{ trigger.json.url }}"
    assert (told["url"], told["key"]) == (link["url"], "door.jpg")
    configuration = yaml.safe_load(block("home-assistant", "home-assistant-configuration"))
    [step] = configuration["script"]["snapshot_of_the_door"]["sequence"]
    [folder] = configuration["homeassistant"]["allowlist_external_dirs"]
    assert step["data"]["filename"].startswith(f"{folder}/")


# --- pipes ----------------------------------------------------------------------------------------
def piped(folder: Path, store: Store) -> Presignd:
    return Presignd(folder, config_for(store, folder, store.new_bucket()), secrets=(store.secret_key,))


@pytest.mark.needs("postgres", "curl")
def test_a_dump_goes_through_a_pipe_and_can_be_restored(tmp_path: Path, seaweedfs: Store, postgres: Postgres) -> None:
    url, daemon = postgres.new_database(), piped(tmp_path, seaweedfs)
    programs = f"{COMMAND.parent}:{postgres_programs()}:{os.environ['PATH']}"
    restored = postgres.new_database()
    script = block("database", "database-script").replace("--format=custom shop", f"--format=custom {url}")
    daemon.start()
    try:
        made = shell(
            f"psql -qc 'create table price (cent int); insert into price values (42)' {url}", tmp_path, PATH=programs
        )
        assert made.returncode == 0, made.stderr
        done = shell(script, tmp_path, of=daemon, PATH=programs)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        [link] = daemon.links()
        assert link["key"].startswith("dumps/shop-")
        command = replaced(block("database", "database-restore"), {"--dbname=shop": f"--dbname={restored}"})
        done = shell(command, tmp_path, PATH=programs, LINK=link["url"])
        assert done.returncode == 0, done.stderr
        asked = shell(f"psql -Atc 'select cent from price' {restored}", tmp_path, PATH=programs)
        assert asked.stdout == "42\n"
        failing = shell(script.replace(url, f"{url}-not"), tmp_path, of=daemon, PATH=programs)
        assert failing.returncode != 0
        assert "not" in failing.stderr
    finally:
        daemon.end()


@pytest.mark.needs("systemd-analyze")
def test_the_units_of_the_dump_are_what_systemd_takes(tmp_path: Path) -> None:
    (tmp_path / "dump-shop").write_text("#!/bin/sh\n")
    (tmp_path / "dump-shop").chmod(0o755)
    for kind in ("service", "timer"):
        text = block("database", f"database-{kind}").replace("/usr/local/bin", str(tmp_path))
        (tmp_path / f"dump-shop.{kind}").write_text(text.replace("User=postgres\n", "") + "\n")
    units = (tmp_path / "dump-shop.service", tmp_path / "dump-shop.timer")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", *units], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.needs("zstd")
def test_tar_goes_through_a_pipe(tmp_path: Path, seaweedfs: Store) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_bytes(WHOLE)
    daemon = piped(tmp_path, seaweedfs)
    daemon.start()
    try:
        done = shell(replaced(block("database", "database-tar"), {"/srv/data": tmp_path / "data"}), tmp_path, of=daemon)
        assert (done.returncode, done.stderr) == (0, "")
        (tmp_path / "back").mkdir()
        (tmp_path / "data.tar.zst").write_bytes(fetch(done.stdout.strip()))
        subprocess.run(["tar", "-xf", tmp_path / "data.tar.zst", "-C", tmp_path / "back"], check=True)
        assert (tmp_path / "back" / "a").read_bytes() == WHOLE
    finally:
        daemon.end()
