"""The status page over HTTP: who sees what, what another site can't make a browser do, and its limits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import math
import os
import re
import socket
import stat
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from presignd import pages, qr
from presignd.config import LogConfig, WebConfig
from presignd.control.peer import Peer
from presignd.control.requests import Responder
from presignd.control.view import BlockedView, InFlightView
from presignd.errors import fault
from presignd.ledger import open_ledger
from presignd.model import State
from presignd.pages import access
from presignd.pages.pace import PACE, Pace
from presignd.pipeline.settle.lane import SettlingPath
from presignd.presign.stable import ref_of
from presignd.system.clock import utcnow
from presignd.telemetry import log, metrics
from presignd.web import serving, site
from tests import running
from tests.canary import assert_no_secrets
from tests.faulty_s3 import FOREVER, FaultyS3
from tests.pages import TOKEN, Page, Stage, is_up, page_of, texts, until
from tests.served import SECRET, Served, configuration, served

__all__ = ["served"]

HTML = {"Accept": "text/html"}
EVERYTHING = ("/", "/api/status", "/events", "/healthz", "/readyz", "/metrics", "/style.css", "/live.js", "/icon.svg")


@pytest.fixture
def said() -> io.StringIO:
    """Hold all that is logged."""
    stream = io.StringIO()
    log.setup(LogConfig(level="debug", format="json"), stream=stream)
    return stream


@pytest.fixture
def pace() -> Pace:
    return PACE


@pytest_asyncio.fixture
async def page(tmp_path: Path, said: io.StringIO, pace: Pace) -> AsyncIterator[Page]:
    async with page_of(configuration(tmp_path), pace=pace) as found:
        yield found
    assert_no_secrets(said.getvalue(), TOKEN, SECRET)


async def first_event(page: Page, **given: Any) -> dict[str, Any]:
    """Return the first news that an open page gets."""
    async with page.session.get(page.root + "/events", **given) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        while not (line := await answer.content.readline()).startswith(b"data: "):
            assert line
        found: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
        return found


async def text_of(page: Page, *, known: bool = False) -> str:
    status, body, _ = await page.ask("/", cookies=await page.log_in() if known else None)
    assert status == 200
    return texts(body)


# --- without the token ------------------------------------------------------------------------------
async def test_without_the_token_no_answer_holds_a_link(page: Page) -> None:
    page.add_link("report.pdf")
    for path in EVERYTHING:
        if path == "/events":
            body = json.dumps(await first_event(page))
        else:
            _, body, _ = await page.ask(path)
        assert SECRET not in body, path
        assert "X-Amz-Signature" not in body, path
    assert "report.pdf" in await text_of(page)


async def test_with_the_token_the_page_has_the_links_and_the_status_document_still_has_none(page: Page) -> None:
    link = page.add_link("report.pdf")
    cookies = await page.log_in()
    assert SECRET in (await page.ask("/", cookies=cookies))[1]
    assert SECRET in json.dumps(await first_event(page, cookies=cookies))
    assert SECRET not in (await page.ask("/api/status", cookies=cookies))[1]
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert link.url.replace("&", "&amp;") in (await page.ask("/", headers=bearer))[1]


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", "\udcff"])
async def test_a_wrong_token_logs_nobody_in(page: Page, token: str) -> None:
    status, _, headers = await page.ask("/login", params={"token": token.encode("utf-8", "replace").decode()})
    assert (status, "Set-Cookie" in headers) == (403, False)


async def test_the_cookie_is_no_script_s_and_goes_to_no_other_site_and_is_not_the_token(page: Page) -> None:
    _, _, headers = await page.ask("/login", params={"token": TOKEN})
    cookie = headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    assert headers["Location"] == "."  # the token is not left standing in the address


async def test_the_address_to_log_in_with_is_good_once_and_holds_no_token(page: Page) -> None:
    """It stays in a browser's history and a proxy's log."""
    address = page.login_url
    assert TOKEN not in address
    for status in (303, 403):
        async with page.session.get(address, allow_redirects=False) as answer:
            assert (answer.status, "Set-Cookie" in answer.headers) == (status, status == 303)


async def test_a_look_without_a_browser_s_get_leaves_the_address_good(page: Page) -> None:
    """What fetches previews of an address asks for its head first."""
    address = page.login_url
    async with page.session.head(address, allow_redirects=False) as answer:
        assert answer.status == 403
    async with page.session.get(address, allow_redirects=False) as answer:
        assert answer.status == 303


@pytest.mark.parametrize("cookie", ["", "0" * 64, TOKEN])
async def test_a_made_up_cookie_is_nobody_s(page: Page, cookie: str) -> None:
    page.add_link("report.pdf")
    name = next(iter(await page.log_in()))
    assert SECRET not in (await page.ask("/", cookies={name: cookie}))[1]


async def test_a_qr_code_holds_a_link_so_it_needs_the_token_and_a_link_that_lives(page: Page) -> None:
    link, dead = page.add_link("report.pdf"), page.add_link("old.pdf", lives=-5)
    cookies = await page.log_in()
    shown = (await page.ask("/", cookies=cookies))[1]
    assert f'src="qr/{link.file_id}.svg"' in shown
    assert f"qr/{dead.file_id}" not in shown
    assert "qr/" not in (await page.ask("/"))[1]
    status, drawn, headers = await page.ask(f"/qr/{link.file_id}.svg", cookies=cookies)
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "image/svg+xml", "no-store")
    assert drawn.encode() == qr.as_svg(link.url)
    assert (await page.ask(f"/qr/{link.file_id}.svg"))[0] == 403
    assert (await page.ask(f"/qr/{dead.file_id}.svg", cookies=cookies))[0] == 404
    assert (await page.ask("/qr/unknown.svg", cookies=cookies))[0] == 404


# --- other sites ------------------------------------------------------------------------------------
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8321", "127.0.0.1.evil.example", "[::1", "", "a@b"])
async def test_a_foreign_name_gets_nothing_even_with_the_token(page: Page, host: str) -> None:
    """DNS rebinding: a stranger's name that resolves to here makes his page of our origin."""
    page.add_link("report.pdf")
    headers = {"Host": host, "Authorization": f"Bearer {TOKEN}"}
    for path in EVERYTHING:
        status, body, _ = await page.ask(path, headers=headers)
        assert status in {400, 421}, path
        assert "report.pdf" not in body


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:80", "10.1.2.3:8321", socket.gethostname()])
async def test_an_address_and_this_machine_s_own_name_are_answered(page: Page, host: str) -> None:
    """Over a tunnel the port is another one; an address can't be rebound."""
    assert (await page.ask("/", headers={"Host": host}))[0] == 200


async def retried(page: Page, file_id: str, **given: Any) -> int:
    return (await page.ask("/retry", method="POST", data={"file_id": file_id}, **given))[0]


async def state_of(page: Page, file_id: str) -> State | None:
    version = await page.view.ledger.by_id(file_id)
    return version.state if version else None


async def test_a_retry_needs_the_token_and_this_very_page(page: Page) -> None:
    stopped, cookies = await page.quarantined("big.iso"), await page.log_in()
    own = {"Origin": page.root}
    assert await retried(page, stopped.file_id) == 403
    assert await retried(page, stopped.file_id, headers=own) == 403
    assert await retried(page, stopped.file_id, cookies=cookies) == 403
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", page.root + ".evil.example", "file://"):
        assert await retried(page, stopped.file_id, cookies=cookies, headers={"Origin": origin}) == 403, origin
    cross = {**own, "Sec-Fetch-Site": "cross-site"}
    assert await retried(page, stopped.file_id, cookies=cookies, headers=cross) == 403
    assert await state_of(page, stopped.file_id) is State.QUARANTINED

    assert await retried(page, stopped.file_id, cookies=cookies, headers=own) == 200
    assert await state_of(page, stopped.file_id) is State.QUEUED


async def test_a_program_retries_with_the_token_alone(page: Page) -> None:
    """No site can make a browser send this header."""
    stopped = await page.quarantined("big.iso")
    assert await retried(page, stopped.file_id, headers={"Authorization": f"Bearer {TOKEN}"}) == 200
    assert await state_of(page, stopped.file_id) is State.QUEUED


async def test_a_retry_without_javascript_leads_back_to_the_page(page: Page) -> None:
    first, second = await page.quarantined("a"), await page.quarantined("b")
    cookies, headers = await page.log_in(), {"Origin": page.root, **HTML}
    assert await retried(page, "", cookies=cookies, headers=headers) == 303
    assert await state_of(page, first.file_id) is await state_of(page, second.file_id) is State.QUEUED


async def test_a_retry_of_what_is_not_quarantined_says_so(page: Page) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert await retried(page, "unknown", headers=headers) == 409
    assert await retried(page, "x" * (64 << 10), headers=headers) == 413
    assert (await page.ask("/retry", method="POST", data={"x": "y"}, headers=headers))[0] == 400
    assert (await page.ask("/retry", headers=headers))[0] == 405


# --- revoking -------------------------------------------------------------------------------------------
STABLE = f"https://files.example.org/l/{'x' * 22}/a.txt"


async def revoked(page: Page, file_id: str, **given: Any) -> int:
    return (await page.ask("/revoke", method="POST", data={"file_id": file_id}, **given))[0]


async def test_a_stable_link_is_revoked_by_its_button_and_then_offered_no_more(page: Page) -> None:
    stable, signed = page.add_link("a.txt", url=STABLE, lives=None), page.add_link("b.txt")
    cookies = await page.log_in()
    own = {"Origin": page.root}
    shown = (await page.ask("/", cookies=cookies))[1]
    asks_first = rf'<details id="revoking-{stable.file_id}">.*id="revoke-{stable.file_id}".*</details>'
    assert re.search(asks_first, shown)
    assert f'id="revoke-{signed.file_id}"' not in shown
    assert 'action="revoke"' not in (await page.ask("/"))[1]
    assert await revoked(page, stable.file_id, headers=own) == 403
    assert await revoked(page, stable.file_id, cookies=cookies) == 403
    assert page.view.links.asked == []

    assert await revoked(page, stable.file_id, cookies=cookies, headers=own) == 200
    assert page.view.links.asked == [{"id": "x" * 22}]
    shown = (await page.ask("/", cookies=cookies))[1]
    assert STABLE not in shown
    assert ">revoked<" in shown
    assert await revoked(page, stable.file_id, cookies=cookies, headers=own) == 409
    assert await revoked(page, signed.file_id, cookies=cookies, headers=own) == 409
    assert await revoked(page, "unknown", cookies=cookies, headers={**own, **HTML}) == 409


async def test_a_link_that_a_command_revoked_is_offered_no_more(page: Page) -> None:
    named = zip(("a", "b", "b", "c", "d"), "xuyzv", strict=True)  # of b's file two versions had one
    by_link, _, by_file, by_ref, other = (
        page.add_link(name, url=STABLE.replace("x", letter), lives=None) for name, letter in named
    )
    cookies = await page.log_in()
    await page.view.links.revoke({"id": "x" * 22}, by_uid=0)
    await page.view.links.revoke({"bucket": by_file.bucket, "key": by_file.key}, by_uid=0)
    await page.view.links.revoke({"ref": ref_of("z" * 22)}, by_uid=0)
    shown = (await page.ask("/", cookies=cookies))[1]
    for link in (by_link, by_file, by_ref):
        assert f'id="link-{link.file_id}"' not in shown
    assert f'id="link-{other.file_id}"' in shown
    assert shown.count(">revoked<") == 4


async def test_what_revokes_a_files_links_leaves_later_ones_and_presigned_ones_on_offer(page: Page) -> None:
    cookies, signed = await page.log_in(), page.add_link("a.txt")
    await page.view.links.revoke({"bucket": signed.bucket, "key": signed.key}, by_uid=0)
    later = page.add_link("a.txt", url=STABLE)
    shown = (await page.ask("/", cookies=cookies))[1]
    assert later.url in shown
    assert signed.url.replace("&", "&amp;") in shown
    assert ">revoked<" not in shown


@pytest.mark.parametrize("pace", [Pace(snapshot=0.0, links=0.0)])
async def test_a_link_that_was_revoked_elsewhere_is_shown_so_once_the_broker_tells(page: Page) -> None:
    link, cookies = page.add_link("a.txt", url=STABLE, lives=None), await page.log_in()
    links = page.view.links
    links.elsewhere, links.away = {ref_of("x" * 22)}, fault("presigner_unreachable")
    assert link.url in (await page.ask("/", cookies=cookies))[1]
    links.away = None

    shown = ""
    async with asyncio.timeout(10):
        while ">revoked<" not in shown:
            shown = (await page.ask("/", cookies=cookies))[1]
    assert link.url not in shown


async def test_a_link_is_revoked_without_javascript_and_one_that_is_not_stays(page: Page) -> None:
    link = page.add_link("a.txt", url=STABLE)
    given: dict[str, Any] = {"cookies": await page.log_in(), "headers": {"Origin": page.root, **HTML}}
    page.view.links.away = fault("presigner_unreachable")
    assert await revoked(page, link.file_id, **given) == 503
    assert STABLE in (await page.ask("/", cookies=given["cookies"]))[1]
    page.view.links.away = None
    assert await revoked(page, link.file_id, **given) == 303


async def test_every_answer_tells_the_browser_to_trust_nothing_else(page: Page) -> None:
    for path in (*EVERYTHING, "/nothing"):
        async with page.session.get(page.root + path) as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "http" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "no-store"


async def test_the_page_loads_nothing_from_elsewhere_and_holds_no_inline_code(page: Page) -> None:
    _, body, _ = await page.ask("/", cookies=await page.log_in())
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=.(https?:)?//", body)
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", body)


async def test_a_file_name_is_text_and_nothing_else(page: Page) -> None:
    evil = "<img src=x onerror=alert(1)>&\"'\u202egpj.exe"
    await page.quarantined(evil)
    await page.quarantined("not-utf8-\udcff")
    page.add_link(evil)
    for cookies in (None, await page.log_in()):
        _, body, _ = await page.ask("/", cookies=cookies)
        assert re.findall("<img [^>]{4}", body) == ["<img src="] * bool(cookies), "its QR code's alone"
        assert "<img src=x" not in body
        assert "&lt;img src=x onerror=alert(1)&gt;" in body
        assert "\\u202egpj.exe" in body, "a name can't turn the reading direction"
        assert "not-utf8-\\xff" in body


# --- what it shows ----------------------------------------------------------------------------------
async def test_an_idle_page_says_that_all_is_done(page: Page) -> None:
    shown = await text_of(page)
    assert "Up to date" in shown
    assert "Nothing was uploaded in the last hour" in shown


async def test_what_goes_on_is_shown(page: Page) -> None:
    moving = await page.recorded("film.mkv", size=4_000_000_000)
    page.view.uploads = [InFlightView(moving, 1_000_000_000, 25e6)]
    page.view.unsettled = [SettlingPath("drop", b"slow.log", utcnow() - timedelta(minutes=9), "open for writing")]
    page.view.held_up = [BlockedView("store", "", "connection_refused", "nothing listens", utcnow())]
    await page.quarantined("huge.bin")
    page.add_link("old.txt", lives=-5)
    shown = await text_of(page, known=True)
    for words in (
        "Waiting for the store",
        "connection_refused",
        "start the store",
        "film.mkv",
        "1.0 GB of 4.0 GB, 25.0 MB/s",
        "slow.log",
        "open for writing, for 9 min",
        "huge.bin",
        "it is 9 TB",
        "raise the watch's max_size",
        "old.txt",
        "expired",
        "1 file quarantined",
    ):
        assert words in shown.replace("&#x27;", "'"), words


async def test_a_frozen_store_is_shown_by_how_long_nothing_was_sent(page: Page) -> None:
    page.view.uploads = [InFlightView(await page.recorded("film.mkv", size=4_000_000_000), 1_000_000_000, 25e6, 12.0)]
    assert "1.0 GB of 4.0 GB, nothing sent for 12 s" in await text_of(page)


async def test_a_link_without_an_end_is_offered_and_says_no_end(page: Page) -> None:
    link = page.add_link("lasts.txt", lives=None)
    cookies = await page.log_in()
    _, shown, _ = await page.ask("/", cookies=cookies)
    assert link.url in shown
    assert "expire" not in shown
    assert (await page.ask(f"/qr/{link.file_id}.svg", cookies=cookies))[0] == 200


async def test_a_link_that_is_dead_is_not_offered(page: Page) -> None:
    page.add_link("old.txt", lives=-5)
    assert SECRET not in (await page.ask("/", cookies=await page.log_in()))[1]


async def test_the_last_hour_is_there_after_a_restart(tmp_path: Path, said: io.StringIO) -> None:
    async with page_of(configuration(tmp_path)) as page:
        page.add_link("a.bin", size=3_000_000, age=600)
        page.add_link("too-old.bin", size=9_000_000, age=3700)
    (tmp_path / "drop").rmdir()
    async with page_of(configuration(tmp_path)) as page:
        await until(lambda: page.snapshots._throughput._files)
        assert "1 file with 3.0 MB in the last hour" in await text_of(page)
    assert "error" not in said.getvalue()


@pytest.mark.parametrize("pace", [Pace(look=0.02, snapshot=0.0)])
async def test_an_open_page_gets_only_what_changed(page: Page) -> None:
    wanted = {"stopped", "headline", "watches"}
    async with page.session.get(page.root + "/events") as answer:
        events: list[dict[str, Any]] = []
        while not (events and wanted <= {name for event in events[1:] for name in event}):
            line = await answer.content.readline()
            if line.startswith(b"data: "):
                events.append(json.loads(line.removeprefix(b"data: "))["parts"])
                if len(events) == 1:
                    await page.quarantined("big.iso")
    assert wanted | {"links", "hour"} <= set(events[0])
    # The ledger is asked twice for one snapshot, so that the change may come in two pieces.
    assert {name for event in events[1:] for name in event} == wanted
    assert "big.iso" in json.dumps(events[1:])


async def test_the_status_document_is_the_one_of_the_status_command(page: Page) -> None:
    await page.quarantined("big.iso")
    _, body, headers = await page.ask("/api/status")
    (asked,) = [found async for found in Responder(page.view).answer({"op": "status"}, Peer.me(), ())]
    assert headers["Content-Type"].startswith("application/json")
    found = json.loads(body)
    for watch in (*found["watches"], *asked["watches"]):
        watch.pop("next_scan")  # the stage makes it up each time
    assert found == asked


# --- for other programs -----------------------------------------------------------------------------
async def test_readiness_names_what_files_wait_for(page: Page) -> None:
    assert (await page.ask("/readyz"))[:2] == (200, "ok\n")
    page.view.held_up = [BlockedView("store", "", "dns", "the endpoint's name does not resolve", utcnow())]
    page.view.lost = True
    page.snapshots.stale()
    status, words, _ = await page.ask("/readyz")
    assert status == 503
    assert words == "watch drop: its folder is away\nthe store: dns: the endpoint's name does not resolve\n"


@pytest.mark.parametrize("phase", ["starting", "draining"])
async def test_a_daemon_that_starts_or_drains_is_not_ready(page: Page, phase: str) -> None:
    page.view._phase.name = phase
    assert (await page.ask("/readyz"))[:2] == (503, f"{phase}\n")


async def test_health_is_every_loop_s_turn(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "overdue", lambda _: [])
    assert (await page.ask("/healthz"))[:2] == (200, "ok\n")
    monkeypatch.setattr(site, "overdue", lambda _: ["dispatch"])
    assert (await page.ask("/healthz"))[:2] == (503, "dispatch: no turn in time\n")


@pytest.mark.parametrize("pace", [Pace(patience=0.05)])
async def test_a_ledger_that_hangs_is_told_and_health_still_answers(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page.view.ledger, "summary", asyncio.Event().wait)
    for path in ("/", "/readyz", "/metrics", "/api/status", "/events"):
        status, words, _ = await page.ask(path)
        assert (status, words) == (503, "the ledger does not answer; look at its disk\n"), path
    assert (await page.ask("/healthz"))[0] in {200, 503}


async def test_metrics_are_what_the_status_document_says(page: Page) -> None:
    await page.quarantined("big.iso")
    await page.recorded("waits.txt")
    page.view.held_up = [BlockedView("store", "", "connection_refused", "", utcnow())]
    page.view.unsettled = [SettlingPath("drop", b"slow.log", utcnow() - timedelta(seconds=60), "open")]
    status, body, headers = await page.ask("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = body.splitlines()
    for line in (
        'presignd_quarantined_files{watch="drop"} 1.0',
        'presignd_pending_files{watch="drop"} 1.0',
        'presignd_settling_files{watch="drop"} 1.0',
        "presignd_store_up 0.0",
        "presignd_inflight_uploads 0.0",
    ):
        assert line in lines, line
    # Counted over the whole process: other tests' daemons count too, so here only that it is there.
    assert any(line.startswith('presignd_uploads_total{status="adopted",watch="drop"} ') for line in lines)
    age = metrics.REGISTRY.get_sample_value("presignd_oldest_settling_seconds", {"watch": "drop"})
    assert age == pytest.approx(60, abs=5)


async def test_metrics_may_ask_for_the_token_too(tmp_path: Path, said: io.StringIO) -> None:
    async with page_of(configuration(tmp_path), metrics_auth=True) as page:
        status, _, headers = await page.ask("/metrics")
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert (await page.ask("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}))[0] == 200
        assert (await page.ask("/metrics", cookies=await page.log_in()))[0] == 200
        assert (await page.ask("/healthz"))[0] in {200, 503}
    assert TOKEN not in said.getvalue()


async def comes_to(page: Page, path: str, wanted: int) -> None:
    """Ask until the answer is ``wanted``, each time over a connection of its own."""
    async with asyncio.timeout(10):
        while True:
            async with page.session.get(page.root + path, headers={"Connection": "close"}) as answer:
                if answer.status == wanted:
                    return
            await asyncio.sleep(0.02)


# --- it hurts nobody --------------------------------------------------------------------------------
async def test_a_taken_port_is_a_warning_and_the_page_comes_when_it_is_free(tmp_path: Path, said: io.StringIO) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = configuration(tmp_path)
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        web = config.web.model_copy(update={"listen": listen})
        view = Stage(config.model_copy(update={"web": web}), await open_ledger(config.ledger.path))
        async with serving.serving(view, Pace(restart=0.02)) as page:
            await until(lambda: "web.unavailable" in said.getvalue())
            await asyncio.sleep(0.1)
            taken.close()
            await until(lambda: is_up(page))
        await view.ledger.close(clean=True)
    [warning] = [json.loads(line) for line in said.getvalue().splitlines() if "web.unavailable" in line]
    assert warning["level"] == "warning"
    assert warning["error"] == f"{listen}: Address already in use"
    assert "web.listen" in warning["fix"]


async def test_what_the_system_refuses_is_a_warning_once_and_the_page_comes_later(
    tmp_path: Path, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, tries = access.load_token, iter(range(99))

    def refused(path: Path, option: str) -> str:
        if next(tries) < 4:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return load(path, option)

    monkeypatch.setattr(access, "load_token", refused)
    async with page_of(configuration(tmp_path), listen="127.0.0.1:0", pace=Pace(restart=0.02)) as page:
        await until(lambda: is_up(page.page))
    lines = [json.loads(line) for line in said.getvalue().splitlines()]
    [warning] = [line for line in lines if line["event"] == "web.unavailable"]
    assert warning["error"] == "Too many open files"
    assert not [line for line in lines if line["event"] == "web.crashed"]


async def test_a_crash_of_the_page_is_told_and_it_comes_back(
    tmp_path: Path, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with page_of(configuration(tmp_path), pace=Pace(restart=0.02, sample=0.01)) as page:
        monkeypatch.setattr(page.view, "in_flight", lambda: 1 / 0)
        await until(lambda: "web.crashed" in said.getvalue())
        monkeypatch.setattr(page.view, "in_flight", list)
        await until(lambda: is_up(page.page))
        assert (await page.ask("/"))[0] == 200
    assert "ZeroDivisionError" in said.getvalue()


async def test_a_bug_in_one_answer_costs_that_answer_alone(
    page: Page, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page.view, "blocked", lambda: 1 / 0)
    status, words, _ = await page.ask("/")
    assert (status, words) == (500, "a bug in presignd; its log has the traceback\n")
    assert "web.internal_error" in said.getvalue()
    monkeypatch.undo()
    assert (await page.ask("/"))[0] == 200


@contextlib.asynccontextmanager
async def connected(page: Page, count: int, says: bytes) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Hold ``count`` connections, each of which says something, and then nothing more."""
    held = [await asyncio.open_connection(*page.root.removeprefix("http://").split(":")) for _ in range(count)]
    for _, writer in held:
        writer.write(says)
    try:
        yield [reader for reader, _ in held]
    finally:
        for _, writer in held:
            writer.close()


@pytest.mark.parametrize("pace", [Pace(idle=1.0)])
async def test_clients_are_bounded_and_the_idle_are_let_go(page: Page, said: io.StringIO) -> None:
    async with connected(page, 3, b"GET / HT") as idle:
        for reader in idle:
            async with asyncio.timeout(30):
                assert await reader.read() == b""
    assert "error" not in said.getvalue()


EVENTS = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def test_strangers_with_endless_streams_and_idle_connections_keep_no_probe_and_nobody_logged_in_out(
    page: Page, said: io.StringIO
) -> None:
    cookies = await page.log_in()
    async with connected(page, pages.site.STREAMS, EVENTS), connected(page, 3 * pages.serving.CONNECTIONS, b"GET / HT"):
        for path in ("/healthz", "/metrics", "/") * 20:
            async with aiohttp.ClientSession() as session, session.get(page.root + path) as answer:
                assert answer.status == 200
        assert await first_event(page, cookies=cookies)
    assert "error" not in said.getvalue()


async def test_one_stranger_has_few_streams_and_is_told_so(page: Page) -> None:
    async with connected(page, pages.site.STREAMS_OF_ONE, EVENTS) as streams:
        for reader in streams:
            await reader.readuntil(b"event: page\n")
        assert (await page.ask("/events"))[0] == 503
    await comes_to(page, "/events", 200)


async def test_a_stream_ends_after_a_while_and_the_next_one_is_served(tmp_path: Path, said: io.StringIO) -> None:
    async with page_of(configuration(tmp_path), pace=Pace(longest_stream=0.1)) as page:
        for _ in range(2):
            streams = await asyncio.gather(*(page.ask("/events") for _ in range(pages.site.STREAMS_OF_ONE)))
            assert {(status, text.startswith("event: page\n")) for status, text, _ in streams} == {(200, True)}
    assert "error" not in said.getvalue()


async def test_rubbish_is_answered_and_no_event(page: Page, said: io.StringIO) -> None:
    host, port = page.root.removeprefix("http://").split(":")
    for rubbish in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET /login?token=%s\r\n\r\n" % TOKEN.encode(), b"\0" * 10000):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(rubbish + b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert [line for line in said.getvalue().splitlines() if '"log"' not in line and "web.started" not in line] == []


async def test_the_ledger_is_asked_once_for_all_who_look_at_the_same_time(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    summary = page.view.ledger.summary

    async def counted() -> Any:
        nonlocal asked
        asked += 1
        return await summary()

    monkeypatch.setattr(page.view.ledger, "summary", counted)
    await asyncio.gather(*(page.ask(path) for path in ("/", "/api/status", "/readyz", "/metrics") * 3))
    assert asked == 1


# --- a whole daemon ---------------------------------------------------------------------------------
async def test_a_daemon_s_work_is_counted_and_its_store_s_absence_is_told(tmp_path: Path, faulty_s3: FaultyS3) -> None:
    named = running.watch(tmp_path, "counted-here")
    web = WebConfig(listen="127.0.0.1:0")
    configured = running.config(tmp_path, faulty_s3, named).model_copy(update={"web": web})
    async with (
        running.running(configured) as daemon,
        serving.serving(daemon.view, Pace(snapshot=0.0, snapshot_share=math.inf)) as up,
        aiohttp.ClientSession() as session,
    ):
        daemon.pipeline.on_link.append(up.hear)
        await until(lambda: is_up(up))
        root = up.login_url().partition("/login")[0]

        async def answer(path: str) -> tuple[int, str]:
            async with session.get(root + path) as got:
                return got.status, await got.text()

        await daemon.said_by_now("daemon.ready")
        daemon.drop("a.txt", b"12345", watch="counted-here")
        await daemon.done()
        assert await answer("/healthz") == (200, "ok\n")
        assert await answer("/readyz") == (200, "ok\n")
        counted = (await answer("/metrics"))[1].splitlines()
        assert 'presignd_uploads_total{status="linked",watch="counted-here"} 1.0' in counted
        assert 'presignd_upload_bytes_total{watch="counted-here"} 5.0' in counted
        assert "presignd_store_up 1.0" in counted
        assert "1 file with 5 bytes in the last hour" in (await answer("/"))[1]

        faulty_s3.fault(times=FOREVER, status=503, code="InternalError")
        daemon.drop("b.txt", watch="counted-here")
        await daemon.said_by_now("store.unreachable")
        status, why = await answer("/readyz")
        assert status == 503
        assert "server_error" in why
        assert "presignd_store_up 0.0" in (await answer("/metrics"))[1].splitlines()
        assert await answer("/healthz") == (200, "ok\n")
        faulty_s3.heal()
        await daemon.done(2)
        assert await answer("/readyz") == (200, "ok\n")


# --- the token, the socket, the command -------------------------------------------------------------
async def test_a_missing_token_is_made_for_this_user_alone(tmp_path: Path, said: io.StringIO) -> None:
    place = tmp_path / "made"
    async with page_of(configuration(tmp_path), token_file=place) as page:
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
        token = place.read_text("ascii").strip()
        assert len(token) >= 40
        await page.log_in()
    assert token not in said.getvalue()


async def test_a_token_that_could_be_guessed_keeps_the_page_away_and_nothing_else(
    tmp_path: Path, said: io.StringIO
) -> None:
    place = tmp_path / "short"
    place.write_text("letmein")
    config = configuration(tmp_path)
    web = config.web.model_copy(update={"listen": "127.0.0.1:0", "token_file": place})
    ledger = await open_ledger(config.ledger.path)
    async with serving.serving(Stage(config.model_copy(update={"web": web}), ledger)) as page:
        await until(lambda: "web.unavailable" in said.getvalue())
        assert not is_up(page)
    await ledger.close(clean=True)
    assert "at least 16 characters" in said.getvalue()
    assert "letmein" not in said.getvalue()


async def test_a_token_that_others_can_read_and_an_address_that_others_reach_are_told(
    tmp_path: Path, said: io.StringIO
) -> None:
    place = tmp_path / "open"
    place.write_text("a-token-all-can-read")
    place.chmod(0o644)
    config = configuration(tmp_path)
    async with page_of(config, listen="0.0.0.0:0", token_file=place) as page:
        assert page.root.startswith("http://127.0.0.1:")
        assert (await page.ask("/"))[0] == 200
    events = {event["event"]: event for event in map(json.loads, said.getvalue().splitlines())}
    assert events["web.token_readable"]["level"] == "warning"
    assert "TLS" in events["web.started"]["fix"]


async def test_behind_a_unix_socket_the_proxy_decides_about_names(tmp_path: Path, said: io.StringIO) -> None:
    place = tmp_path / "web.sock"
    async with page_of(configuration(tmp_path), listen=f"unix:{place}") as page:
        connector = aiohttp.UnixConnector(str(place))
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.get("http://status.example.org/healthz") as answer:
                assert answer.status in {200, 503}
            stopped = await page.quarantined("big.iso")
            headers = {"Origin": "https://status.example.org", "Authorization": f"Bearer {TOKEN}"}
            data = {"file_id": stopped.file_id}
            async with session.post("http://status.example.org/retry", data=data, headers=headers) as answer:
                assert answer.status == 200
        assert stat.S_IMODE(place.stat().st_mode) == 0o660
    assert not place.exists()
    assert_no_secrets(said.getvalue(), TOKEN)


async def test_the_login_address_goes_to_who_may_have_links(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    (answer,) = await served.ask({"op": "web"})
    assert answer["url"].startswith("http://127.0.0.1:8321/login?code=")
    monkeypatch.setattr("presignd.control.peer.Peer.may_have_links", lambda *_: False)
    assert (await served.refusal({"op": "web"})).code == "refused"


async def test_the_page_ends_with_the_daemon_though_somebody_has_it_open(tmp_path: Path, said: io.StringIO) -> None:
    async with page_of(configuration(tmp_path)) as page:
        reader, writer = await asyncio.open_connection(*page.root.removeprefix("http://").split(":"))
        writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await reader.readuntil(b"event: page\n")
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < pages.serving.SHUTDOWN_SECONDS + 2
    writer.close()
    assert "error" not in said.getvalue()
