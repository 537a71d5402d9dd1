"""A daemon whose links are a broker's: one for each version whatever stops meanwhile, in files and by commands."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr
from yarl import URL

from presignd.broker.tokens import hash_of
from presignd.config import Config
from presignd.control.links import Terms
from presignd.errors import CODES, Fault, WatchFault
from presignd.model import FileVersion, State
from presignd.presign.broker_links import IssuedLink
from presignd.presign.stable import id_in, new_link_id, ref_of
from tests.brokers import Broker, broker_for
from tests.links import whole_lines
from tests.postgres import Postgres
from tests.running import Running, config, running, watch
from tests.stores import Store
from tests.system.harness import Presignd, config_for

LINKS_URL = "https://files.example.org"
ALL = ("put", "multipart", "head", "get", "link")


@dataclass
class Site:
    """A store, a broker with links, and a daemon's folder."""

    store: Store
    broker: Broker
    folder: Path
    bucket: str

    def config(self, operations: Sequence[str] = ALL, **options: Any) -> Config:
        """Configure a daemon whose token may do ``operations``; ``options`` are its watch's."""
        token = self.broker.token("tests", self.bucket, operations=[*operations])
        return config(
            self.folder,
            self.store,
            watch(self.folder, bucket=self.bucket, key="{prefix}{path}", **options),
            kind="broker",
            url=self.broker.url,
            token=SecretStr(token),
            access_key="",
            secret_key=None,
        )

    def daemon(self, operations: Sequence[str] = ALL, **options: Any) -> AbstractAsyncContextManager[Running]:
        """Run a daemon so configured."""
        return running(self.config(operations, **options))


@contextmanager
def site_of(store: Store, folder: Path, state: str) -> Iterator[Site]:
    """Run a broker with this ``[state]``."""
    (folder / "broker").mkdir()
    more = f'[links]\nurl = "{LINKS_URL}"\n[state]\n{state}'
    with broker_for(folder / "broker", store, more=more) as broker:
        yield Site(store, broker, folder, store.new_bucket())


@pytest.fixture
def site(seaweedfs: Store, tmp_path: Path) -> Iterator[Site]:
    with site_of(seaweedfs, tmp_path, 'path = "state/links.db"') as found:
        yield found


def lines(daemon: Running) -> list[dict[str, Any]]:
    return [json.loads(line) for line in whole_lines(daemon.folder / "links.jsonl")]


async def issued(daemon: Running) -> list[IssuedLink]:
    return [link async for page in daemon.view.links.issued() for link in page]


async def version_of(daemon: Running, name: bytes) -> FileVersion:
    version = await daemon.ledger.by_path("drop", name)
    assert version is not None
    return version


async def test_a_file_gets_one_stable_link_which_the_log_does_not_tell(site: Site) -> None:
    async with site.daemon(link_file="{name}.link.txt") as daemon:
        daemon.drop("Résumé 1.pdf")
        [done] = await daemon.done()
        [line] = lines(daemon)
        version = await version_of(daemon, "Résumé 1.pdf".encode())
        assert line["url"] == f"{LINKS_URL}/l/{version.link_id}/R%C3%A9sum%C3%A9%201.pdf"
        assert line["expires_at"] is version.expires_at is None
        assert (daemon.folder / "drop" / "Résumé 1.pdf.link.txt").read_text().strip() == line["url"]
        [link] = await issued(daemon)
        assert (link.bucket, link.key, link.filename, link.state) == (site.bucket, line["key"], "Résumé 1.pdf", "alive")
        assert link.ref == ref_of(version.link_id)
        assert "expires_at" not in done
        assert version.link_id not in daemon.said.text
        site.broker.secrets.append(version.link_id)


async def test_a_link_opens_the_file_under_its_name_until_it_is_revoked(site: Site) -> None:
    async with site.daemon() as daemon, aiohttp.ClientSession() as browser:
        daemon.drop("Résumé 1.txt", b"some text")
        await daemon.done()
        [line] = lines(daemon)
        address, host = line["url"].replace(LINKS_URL, site.broker.url), {"Host": LINKS_URL.partition("//")[2]}
        async with browser.get(URL(address, encoded=True), headers=host, allow_redirects=False) as found:
            assert found.status == 302
            target = found.headers["Location"]
        async with browser.get(URL(target, encoded=True)) as opened:
            assert (opened.status, await opened.read()) == (200, b"some text")
            assert opened.headers["Content-Type"].startswith("text/plain")
            assert re.match(r"inline; filename.*R%C3%A9sum%C3%A9%201\.txt", opened.headers["Content-Disposition"])
        revoked = daemon.view.links.revocations
        assert not revoked.has(line)
        await daemon.view.links.revoke({"bucket": site.bucket, "key": line["key"]}, by_uid=0)
        assert revoked.has(line)
        async with browser.get(URL(address, encoded=True), headers=host, allow_redirects=False) as gone:
            assert gone.status == 410
    async with site.daemon() as daemon:
        assert not daemon.view.links.revocations.has(line)
        await daemon.view.links.look([line])
        assert daemon.view.links.revocations.has(line), "after a restart the broker tells it"


async def test_other_content_has_its_own_link_in_the_file_beside_it(site: Site) -> None:
    async with site.daemon(link_file="{name}.link.txt") as daemon:
        daemon.drop("a", b"first")
        await daemon.done()
        daemon.drop("a", b"second")
        await daemon.done(2)
        first, second = lines(daemon)
        assert first["url"] != second["url"]
        assert (daemon.folder / "drop" / "a.link.txt").read_text() == second["url"] + "\n"
        assert daemon.events("link_file.failed") == []


async def test_many_files_have_their_links_by_few_calls(site: Site) -> None:
    configured = site.config(link_expires=90 * 86400)
    for number in range(100):
        (site.folder / "drop" / f"{number}").write_bytes(b"%d" % number)
    async with running(configured) as daemon:
        await daemon.done(100)
        assert len({line["url"] for line in lines(daemon)}) == 100
        assert len(await issued(daemon)) == 100
        ends = datetime.fromisoformat(lines(daemon)[0]["expires_at"])
        assert abs(ends - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=2)


@pytest.mark.parametrize(
    ("options", "operations"),
    [
        ({"links": "presigned"}, ALL),
        ({}, ["put", "head", "get"]),
        ({"link_expires": 90 * 86400}, ["put", "head", "get"]),
    ],
)
async def test_links_are_presigned_where_that_is_wanted_or_the_token_has_no_others(
    site: Site, options: dict[str, Any], operations: list[str]
) -> None:
    async with site.daemon(operations=operations, **options) as daemon:
        daemon.drop("a")
        await daemon.done()
        [line] = lines(daemon)
        assert "X-Amz-Signature=" in line["url"]
        version = await version_of(daemon, b"a")
        assert version.link_id == ""
        again = await daemon.view.links.fresh(version, None, by_uid=0)
        assert "X-Amz-Signature=" in again.url
        if "link" not in operations:
            with pytest.raises(WatchFault) as refused:
                await daemon.view.links.on_terms(version, Terms(days=1), by_uid=0)
            assert refused.value.code == "no_stable_links"


async def test_stable_links_that_the_token_may_not_have_are_waited_for(site: Site) -> None:
    configured = site.config(operations=["put", "head", "get"], links="stable")
    async with running(configured) as daemon:
        daemon.drop("a")
        [blocked] = await daemon.said_by_now("links.blocked")
        assert (blocked["error_code"], blocked["fix"]) == ("no_stable_links", CODES["no_stable_links"].fix)
        assert (await version_of(daemon, b"a")).state is State.VERIFIED
        assert daemon.events("file.quarantined") == []


async def test_links_come_by_themselves_once_the_broker_is_back(site: Site) -> None:
    """It is away from before the link: the file is verified, and the next start has nothing to repair."""
    async with site.daemon() as daemon:
        make = daemon.pipeline.in_effect.work.presigner.links
        assert make is not None
        await make.root()
        broker_ask = make._client.ask

        async def ask(path: str, *given: Any, **more: Any) -> Any:
            if path == "/v1/links":
                await asyncio.to_thread(site.broker.kill)
            return await broker_ask(path, *given, **more)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(make._client, "ask", ask)
            daemon.drop("a")
            await daemon.said_by_now("links.blocked")
        assert lines(daemon) == []
        await asyncio.to_thread(site.broker.start)
        await daemon.done()
        assert await daemon.said_by_now("links.unblocked")
        assert len(await issued(daemon)) == len(lines(daemon)) == 1


async def test_a_state_that_is_away_holds_up_stable_links_alone(
    seaweedfs: Store, own_postgres: Postgres, tmp_path: Path
) -> None:
    """503 with Retry-After: uploads go on, and so do presigned links."""
    with site_of(seaweedfs, tmp_path, f'url = "{own_postgres.new_database()}"') as site:
        async with site.daemon() as daemon:
            await asyncio.to_thread(own_postgres.kill)
            daemon.drop("a")
            [blocked] = await daemon.said_by_now("links.blocked")
            assert blocked["error_code"] == "presigner_unreachable"
            assert "503" in blocked["error"]
            version = await version_of(daemon, b"a")
            assert version.state is State.VERIFIED
            assert "X-Amz-" in (await daemon.view.links.fresh(version, 60, by_uid=0)).url
            with pytest.raises(Fault, match="503"):
                await daemon.view.links.fresh(version, None, by_uid=0)
            await asyncio.to_thread(own_postgres.start)
            await daemon.done()
            assert len(await issued(daemon)) == 1


# --- by hand --------------------------------------------------------------------------------------------


async def test_a_person_gets_the_living_link_then_a_new_one_that_stays(site: Site) -> None:
    async with site.daemon(link_expires=90 * 86400) as daemon:
        daemon.drop("a")
        await daemon.done()
        links, [line] = daemon.view.links, lines(daemon)
        version = await version_of(daemon, b"a")
        assert (await links.fresh(version, None, by_uid=0)).url == line["url"]
        assert "X-Amz-" in (await links.fresh(version, 60, by_uid=0)).url
        await links.revoke({"id": version.link_id}, by_uid=7)
        new = await links.fresh(version, None, by_uid=0)
        assert new.url != line["url"]
        renewed = await version_of(daemon, b"a")
        assert id_in(new.url) == renewed.link_id
        assert new.expires_at == renewed.expires_at
        assert (await links.fresh(renewed, None, by_uid=0)).url == new.url
        assert [link.state for link in await issued(daemon)] == ["revoked", "alive"]
        [revoked] = daemon.events("link.revoked")
        assert revoked["by_uid"] == 7
        assert len(lines(daemon)) == 1
        for link_id in (version.link_id, renewed.link_id):
            assert link_id not in daemon.said.text


async def test_a_new_end_is_the_one_that_the_token_allows(site: Site) -> None:
    configured = site.config()
    async with running(configured) as daemon:
        daemon.drop("a")
        await daemon.done()
        version = await version_of(daemon, b"a")
        assert version.expires_at is None
        await daemon.view.links.revoke({"bucket": site.bucket, "key": version.key or ""}, by_uid=0)
        secret = configured.presign.token
        assert secret is not None
        _limit(site, secret.get_secret_value())
        link = await daemon.view.links.fresh(version, None, by_uid=0)
        assert link.expires_at is not None
        assert abs(link.expires_at - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=2)
        assert (await version_of(daemon, b"a")).expires_at == link.expires_at


def _limit(site: Site, secret: str) -> None:
    """Write the token's file anew: its links live 30 days at most."""
    text = f'[[token]]\nname = "tests"\nhash = "{hash_of(secret)}"\nbucket = "{site.bucket}"\nmax_stable_link = "30d"\n'
    draft = site.broker.folder / "limited.draft"
    draft.write_text(f"{text}operations = {json.dumps([*ALL])}\n")
    draft.replace(site.broker.folder / "tokens.d" / "tests.toml")


async def test_a_link_on_terms_is_another_one(site: Site) -> None:
    async with site.daemon() as daemon:
        daemon.drop("a")
        await daemon.done()
        version, links = await version_of(daemon, b"a"), daemon.view.links
        limited = await links.on_terms(version, Terms(days=30, downloads=5, pin="2580", name="b.txt"), by_uid=0)
        assert limited.url.endswith("/b.txt")
        assert limited.expires_at is not None
        endless = await links.on_terms(version, Terms(pin="2580"), by_uid=0)
        assert endless.expires_at is None
        [own, first, second] = await issued(daemon)
        assert (own.pin, first.pin, first.max_downloads, second.max_downloads) == (False, True, 5, None)
        assert (await version_of(daemon, b"a")).link_id == version.link_id
        assert "2580" not in daemon.said.text.replace(limited.file_id, "")
        await links.revoke({"ref": first.ref}, by_uid=0)
        await links.revoke({"bucket": site.bucket, "key": version.key or ""}, by_uid=0)
        assert {link.state for link in await issued(daemon)} == {"revoked"}


async def test_a_link_of_a_version_that_is_not_finished_is_not_recorded_as_its_own(site: Site) -> None:
    async with site.daemon() as daemon:
        daemon.drop("a")
        await daemon.done()
        version = await version_of(daemon, b"a")
        before = version._replace(state=State.VERIFIED, link_id="", linked=False)
        link = await daemon.view.links.fresh(before, None, by_uid=0)
        assert id_in(link.url) != version.link_id
        assert (await version_of(daemon, b"a")).link_id == version.link_id
        not_yet = version._replace(state=State.VERIFIED, linked=False)
        assert id_in((await daemon.view.links.fresh(not_yet, None, by_uid=0)).url) == version.link_id


async def test_a_link_that_the_broker_refuses_a_person_says_why(site: Site) -> None:
    async with site.daemon() as daemon:
        daemon.drop("a")
        await daemon.done()
        with pytest.raises(Fault, match="a pin has 4 to 64") as refused:
            await daemon.view.links.on_terms(await version_of(daemon, b"a"), Terms(pin="1"), by_uid=0)
        assert refused.value.code == "grant_refused"


async def test_without_a_broker_there_are_no_stable_links(seaweedfs: Store, tmp_path: Path) -> None:
    async with running(config(tmp_path, seaweedfs, watch(tmp_path, bucket=seaweedfs.new_bucket()))) as daemon:
        daemon.drop("a")
        await daemon.done()
        version = await version_of(daemon, b"a")
        with pytest.raises(WatchFault, match="kind is"):
            await daemon.view.links.on_terms(version, Terms(days=1), by_uid=0)
        with pytest.raises(WatchFault, match="kind is"):
            await daemon.view.links.revoke({"id": new_link_id()}, by_uid=0)
        removed = version._replace(watch="removed")
        assert "X-Amz-" in (await daemon.view.links.fresh(removed, None, by_uid=0)).url


# --- crashes, and the commands ----------------------------------------------------------------------------


@pytest.fixture
def daemon(site: Site) -> Iterator[Presignd]:
    """Return a daemon with its own process, not started yet."""
    token = site.broker.token("tests", site.bucket, operations=[*ALL])
    token_file = site.folder / "token"
    token_file.touch(0o600)
    token_file.write_text(token)
    presign = f'kind = "broker"\nurl = "{site.broker.url}"\ntoken_file = "{token_file}"'
    text = config_for(site.store, site.folder, site.bucket, watch='settle = "0s"', presign=presign)
    made = Presignd(site.folder, text, secrets=(token, site.store.secret_key))
    yield made
    made.end()
    for line in made.links():
        for told in (made.log, site.broker.log):
            assert id_in(line["url"]) not in told.read_text()


@pytest.mark.parametrize(
    "point",
    [
        "commit.apply.verify.before",
        "commit.apply.verify.after",
        "links.made",
        "links.append.before",
        "links.append.written",
        "links.append.synced",
        "commit.record_linked.before",
        "commit.record_linked.after",
    ],
)
def test_a_kill_anywhere_makes_one_link(site: Site, daemon: Presignd, point: str) -> None:
    """One in ``links.jsonl``, and one at the broker: the id was committed before it was asked for."""
    daemon._prefix = ["env", f"PRESIGND_CRASH_AT={point}"]
    daemon.start()
    (site.folder / "drop" / "a").write_bytes(b"content")
    assert daemon.process
    assert daemon.process.wait(60) == -signal.SIGKILL
    daemon._prefix = []
    daemon.start()
    daemon.until(lambda: daemon.events("file.done"), "file.done")
    [line] = daemon.links()
    [link] = [json.loads(each) for each in daemon.run("links", "--issued", "--json", check=True).stdout.splitlines()]
    assert (link["key"], link["state"]) == (line["key"], "alive")
    assert daemon.run("link", daemon.folder / "drop" / "a", check=True).stdout.strip() == line["url"]


def test_the_commands_make_list_and_revoke_links(site: Site, daemon: Presignd) -> None:
    daemon.start()
    file = site.folder / "drop" / "a"
    file.write_bytes(b"content")
    daemon.until(lambda: daemon.events("file.done"), "file.done")
    own = daemon.run("link", file, check=True).stdout.strip()
    limited = daemon.run("link", file, "--days", "30", "--downloads", "5", "--pin", "--json", check=True)
    document = json.loads(limited.stdout)
    assert re.fullmatch("[0-9]{6}", document["pin"])
    shown = daemon.run("link", file, "--pin", "--name", "b.txt", check=True)
    assert shown.stdout.strip().endswith("/b.txt")
    assert re.search(r"PIN: [0-9]{6} \(shown only now", shown.stderr)
    pin_file = site.folder / "pin"
    pin_file.write_text("my own PIN\n")
    assert "pin" not in json.loads(daemon.run("link", file, "--pin-from", pin_file, "--json", check=True).stdout)
    assert "X-Amz-" in daemon.run("link", file, "--expires", "1m", check=True).stdout
    assert len(daemon.run("link", file, "--qr", check=True).stdout.splitlines()) > 10

    def listed() -> list[list[str]]:
        return [line.split("\t") for line in daemon.run("links", "--issued", check=True).stdout.splitlines()]

    assert [row[5] for row in listed()] == ["alive", "alive, PIN", "alive, PIN", "alive, PIN"]
    assert [row[2] for row in listed()] == ["0", "0 of 5", "0", "0"]
    assert listed()[0][4] == "no end"
    assert "revoked the link, if the broker's token has it" in daemon.run("unlink", own, check=True).stderr
    assert "if the broker's token has it" in daemon.run("unlink", listed()[1][0], check=True).stderr
    assert [row[5] for row in listed()] == ["revoked", "revoked, PIN", "alive, PIN", "alive, PIN"]
    assert f"links to {site.bucket}/tests/a" in daemon.run("unlink", file, check=True).stderr
    assert {row[5].partition(",")[0] for row in listed()} == {"revoked"}
    new = daemon.run("link", file, check=True).stdout.strip()
    assert new != own
    assert json.loads(daemon.run("status", file, "--json", check=True).stdout)["version"]["link"] == "stable"
    put = site.folder / "elsewhere"
    put.write_bytes(b"other")
    sent = daemon.run("put", put, check=True).stdout.strip()
    assert sent.startswith(f"{LINKS_URL}/l/")
    for link in (own, new, sent, document["url"], shown.stdout.strip()):
        assert id_in(link) not in daemon.log.read_text()
    unknown = daemon.run("unlink", "no-such-file")
    assert unknown.returncode == 4
    assert unknown.stderr.startswith(
        "presignd: unlink: nothing was uploaded from or as no-such-file (presignd links --"
    )
    presigned = daemon.run("link", file, "--expires", "1m", check=True).stdout.strip()
    refused = daemon.run("unlink", presigned)
    assert refused.returncode == 4
    assert refused.stderr.startswith(
        "presignd: unlink: this address is no stable link (presigned links can't be revoked;"
    )
    assert daemon.run("link", file, "--days", "1", "--expires", "1m").returncode == 2
