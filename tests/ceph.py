"""Ceph's object gateway as a store of the tests: a monitor, one OSD in memory, and radosgw, all on loopback.

It ignores If-None-Match and If-Match when an upload in parts completes (16.2), keeps no tags of one, and
stores every key byte by byte. It can't be started again: its data are gone with the OSD's memory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from typing import TYPE_CHECKING

import pytest

from presignd.demo.seaweedfs import LOOPBACK, Child, free_ports
from tests.needs import need
from tests.stores import START_TIMEOUT, Store, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = """
[global]
fsid = {fsid}
monmap = {folder}/monmap
public addr = {address}
cluster addr = {address}
auth cluster required = none
auth service required = none
auth client required = none
keyring = /dev/null
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
run dir = {folder}
log file = {folder}/$name.log
admin socket =
pid file =
osd objectstore = memstore
memstore device bytes = 4294967296
osd memory target = 939524096
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd crush update on start = false
osd class update on start = false
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
mon data avail warn = 2
paxos propose interval = 0.05
paxos min wait = 0.01
rgw frontends = beast endpoint={address}:{gateway}
rgw enable ops log = false
"""


class Ceph(Store):
    """One cluster of three processes; it can be started only once."""

    name = "ceph"
    bucket = "test-bucket"
    access_key = "CEPHACCESSKEY0000001"
    secret_key = "cephSecretKey0000000000000000000000000001"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[Child] = []
        self._port, monitor = free_ports(2)
        fsid = str(uuid.uuid4())
        for name in ("mon", "osd", "rgw"):
            (folder / name).mkdir(parents=True)
        self._config, self._map = folder / "ceph.conf", folder / "monmap"
        self._config.write_text(
            CONFIG.format(fsid=fsid, address=LOOPBACK, gateway=self._port, folder=folder.absolute())
        )
        self._run("monmaptool", "--create", "--addv", "a", f"[v1:{LOOPBACK}:{monitor}]", "--fsid", fsid, self._map)

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The gateway's."""
        return self._children[-1].pid if self._children else None

    def start(self) -> None:
        try:
            self._start_cluster()
            self._serve("radosgw", "-n", "client.rgw.a")
            self._wait()
            keys = ["--access-key", self.access_key, "--secret-key", self.secret_key]
            self._run("radosgw-admin", "user", "create", "--uid=test", "--display-name=test", *keys)
            self.client.create_bucket(Bucket=self.bucket)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        while self._children:
            self._children.pop().stop()

    def kill(self) -> None:
        while self._children:
            self._children.pop().kill()

    def admin(self, *arguments: str) -> str:
        """Run radosgw-admin: users, quotas."""
        return self._run("radosgw-admin", *arguments)

    def _start_cluster(self) -> None:
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", self._map)
        self._serve("ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        self._ceph("osd", "new", osd)
        # Else the OSD does this as it starts, once, and ends where it was too early.
        self._ceph("osd", "crush", "add", "osd.0", "1", "root=default")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._serve("ceph-osd", "-i", "0")

    def _ceph(self, *arguments: str) -> None:
        """Run ``ceph``, again where it was too early.

        Without authentication a client of Ceph 16 may send its command before it has the monitor's map, with no
        fsid; the monitor refuses that and does nothing (EPERM, "wrong fsid"; ceph/go-ceph#423). 10 of 240 did here.
        """
        for _ in range(9):
            try:
                self._run("ceph", *arguments)
            except AssertionError as refused:
                if "EPERM" not in str(refused):
                    raise
            else:
                return
        self._run("ceph", *arguments)

    def _serve(self, program: str, *arguments: str) -> None:
        log = self._folder / f"{program}.out"
        argv = [_program(program), *arguments, "-f"]
        self._children.append(Child(argv, env=self._environ, cwd=self._folder, log=log))

    def _run(self, program: str, *arguments: str | Path) -> str:
        command = [_program(program), *map(str, arguments)]
        done = subprocess.run(
            command, env=self._environ, capture_output=True, text=True, check=False, timeout=START_TIMEOUT
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def _environ(self) -> dict[str, str]:
        return {"CEPH_CONF": str(self._config), "HOME": str(self._folder), "PATH": os.defpath}

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            ended = [child.log_text() for child in self._children if not child.running]
            assert not ended, f"a part of Ceph ended:\n{ended[0]}"
            assert time.monotonic() < deadline, f"radosgw does not answer:\n{self._children[-1].log_text()}"
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint, timeout=5).close()
        except urllib.error.HTTPError as refused:
            refused.close()
        except OSError:
            return False
        return True


def _program(name: str) -> str:
    return shutil.which(name) or name


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    need("ceph")
    yield from served(Ceph, tmp_path_factory)
