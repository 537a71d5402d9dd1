"""The broker's client over HTTP: batches, and brokers and networks that are slow, broken or hostile."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from presignd.config import PresignConfig
from presignd.errors import Fault, PresignerFault
from presignd.presign import Grant, GrantRequest, Operation
from presignd.presign.broker_client import BrokerClient
from presignd.presign.remote import MOST, BrokerPresigner
from tests.canary import assert_no_secrets
from tests.fake_broker import FOREVER, TOKEN, FakeBroker, Grants, fake_broker
from tests.faulty_s3 import FaultyS3
from tests.stores import Store

LONG = 20.0
"""Seconds that an exchange may take, where it is answered: a busy machine is no silent broker."""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def broker(faulty_s3: FaultyS3) -> Iterator[FakeBroker]:
    with fake_broker(faulty_s3) as running:
        yield running


def utc_now() -> datetime:
    return datetime.now(UTC)


def config(broker: FakeBroker, **more: Any) -> PresignConfig:
    given = {"kind": "broker", "url": broker.url, "token": SecretStr(TOKEN), "endpoint": broker.sign.endpoint}
    return PresignConfig(**{**given, **more})


Asking = Callable[..., BrokerPresigner]


@pytest.fixture
async def asking() -> AsyncIterator[Asking]:
    """``asking(broker, …)`` makes presigners that are closed at the end; they don't sleep."""
    made: list[BrokerPresigner] = []

    async def no_sleep(_: float) -> None:
        await asyncio.sleep(0)

    def make(broker: FakeBroker, timeout: float = LONG, **more: Any) -> BrokerPresigner:
        configured = config(broker, **more)
        client = BrokerClient(configured, clock=utc_now, timeout=timeout)
        made.append(BrokerPresigner(configured, client, sleep=no_sleep))
        return made[-1]

    yield make
    for presigner in made:
        await presigner.close()


def get(key: str) -> GrantRequest:
    return GrantRequest(Operation.GET, "test-bucket", key, 900)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - the broker runs in another thread
            await asyncio.sleep(0)


def keys(broker: FakeBroker) -> list[list[str]]:
    """Return what each request for grants asked for."""
    return [[grant["key"] for grant in asked.grants] for asked in broker.posts()]


async def refusal(presigner: BrokerPresigner, *requests: GrantRequest) -> PresignerFault:
    with pytest.raises(PresignerFault) as refused:
        await presigner.grant(requests or [get("k")])
    assert_no_secrets(refused.value.message, TOKEN)
    return refused.value


# --- many at a time -----------------------------------------------------------------------------------


async def test_what_one_turn_of_the_loop_asks_for_goes_in_one_request(broker: FakeBroker, asking: Asking) -> None:
    presigner = asking(broker)
    names = [f"k{number}" for number in range(40)]
    answers = await asyncio.gather(*(presigner.grant([get(name)]) for name in names))
    assert keys(broker) == [names]
    for name, (grant,) in zip(names, answers, strict=True):
        assert isinstance(grant, Grant)
        assert f"/{name}?" in grant.url


async def test_a_request_is_never_for_more_than_a_thousand(broker: FakeBroker, asking: Asking) -> None:
    answers = await asking(broker).grant([get(f"k{number}") for number in range(MOST + 500)])
    assert [len(asked) for asked in keys(broker)] == [MOST, 500]
    assert all(isinstance(answer, Grant) and f"/k{number}?" in answer.url for number, answer in enumerate(answers))


async def test_what_is_asked_for_while_a_request_is_under_way_goes_in_the_next(
    broker: FakeBroker, asking: Asking
) -> None:
    presigner = asking(broker)
    first = asyncio.create_task(presigner.grant([get("first")]))
    await until(broker.posts)
    await asyncio.gather(*(presigner.grant([get(name)]) for name in "abc"), first)
    assert keys(broker) == [["first"], ["a", "b", "c"]]


async def test_one_that_is_refused_fails_no_other_of_its_batch(broker: FakeBroker, asking: Asking) -> None:
    def refuse_second(grants: Grants) -> Grants:
        return [grants[0], {"error": {"code": "outside_prefix", "message": "below scanner-1/"}}, grants[2]]

    broker.fault(change=refuse_second)
    first, second, third = await asking(broker).grant([get("a"), get("b"), get("c")])
    assert isinstance(first, Grant)
    assert isinstance(third, Grant)
    assert isinstance(second, Fault)
    assert (second.code, second.detail) == ("outside_prefix", "below scanner-1/")


async def test_whoever_gives_up_waiting_takes_nobody_along(broker: FakeBroker, asking: Asking) -> None:
    presigner = asking(broker)
    stays, goes = (asyncio.create_task(presigner.grant([get(name)])) for name in "ab")
    await asyncio.sleep(0)
    goes.cancel()
    [grant] = await stays
    assert isinstance(grant, Grant)
    assert keys(broker) == [["a"]]


async def test_a_batch_that_is_too_much_is_asked_for_in_halves(broker: FakeBroker, asking: Asking) -> None:
    broker.fault(status=413, times=2)
    names = [f"k{number}" for number in range(8)]
    answers = await asking(broker).grant([get(name) for name in names])
    assert [len(asked) for asked in keys(broker)] == [8, 4, 2, 4, 2]
    assert all(
        isinstance(answer, Grant) and f"/{name}?" in answer.url for name, answer in zip(names, answers, strict=True)
    )


async def test_one_grant_that_is_too_much_is_refused_alone(broker: FakeBroker, asking: Asking) -> None:
    broker.fault(status=413)
    [answer] = await asking(broker).grant([get("k")])
    assert isinstance(answer, Fault)
    assert answer.code == "grant_refused"


async def test_a_rate_that_is_met_is_waited_out_and_no_outage(broker: FakeBroker, asking: Asking) -> None:
    broker.fault(status=429, headers={"Retry-After": "1"}, times=3)
    [grant] = await asking(broker).grant([get("k")])
    assert isinstance(grant, Grant)
    assert len(broker.posts()) == 4


async def test_a_long_retry_after_is_handed_on(broker: FakeBroker, asking: Asking) -> None:
    broker.fault(status=429, headers={"Retry-After": "60"})
    refused = await refusal(asking(broker))
    assert (refused.code, refused.retry_after) == ("presigner_busy", 60)


async def test_a_closed_connection_is_replaced_unseen(broker: FakeBroker, asking: Asking) -> None:
    """A broker that was restarted has closed those that were kept open."""
    presigner = asking(broker)
    await presigner.grant([get("before")])
    broker.stop()
    broker.start()
    [grant] = await presigner.grant([get("after")])
    assert isinstance(grant, Grant)


@pytest.mark.parametrize("ask", ["grants", "me"])
async def test_a_store_in_the_brokers_place_is_told_as_that(
    store: Store, broker: FakeBroker, asking: Asking, ask: str
) -> None:
    """``presign.url`` with the store's address: no token would help."""
    presigner = asking(broker, url=store.endpoint)
    with pytest.raises(PresignerFault) as refused:
        await (presigner.grant([get("k")]) if ask == "grants" else presigner.me())
    assert refused.value.code == "bad_broker"
    assert re.search("an S3 store answers there|not in a broker's words", refused.value.message)
    assert "presign.url" in refused.value.fix


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "operation", "ours"),
    [
        ("outside_prefix", Operation.PUT, "outside_prefix"),
        ("too_large", Operation.PUT, "too_large"),
        ("key_refused", Operation.PUT, "key_refused"),
        ("outside_bucket", Operation.PUT, "not_allowed"),
        ("operation_refused", Operation.GET, "not_allowed"),
        ("header_refused", Operation.PUT, "not_allowed"),
        ("operation_refused", Operation.MULTIPART_CREATE, "grant_refused"),
        ("date_refused", Operation.GET, "clock_skew"),
        ("no_such_bucket", Operation.PUT, "no_such_bucket"),
        ("connection_refused", Operation.PUT, "connection_refused"),
        ("checksum_required", Operation.PUT, "grant_refused"),
        ("changed_while_uploading", Operation.PUT, "grant_refused"),
        ("internal_error", Operation.PUT, "grant_refused"),
        ("upload_lost", Operation.MULTIPART_PART, "grant_refused"),
        ("upload_refused", Operation.MULTIPART_PART, "upload_lost"),
        ("upload_refused", Operation.PUT, "grant_refused"),
        ("a word that nobody knows", Operation.PUT, "grant_refused"),
        ([], Operation.PUT, "grant_refused"),
        (None, Operation.PUT, "grant_refused"),
    ],
)
async def test_a_refusal_makes_a_file_or_a_watch_wait_and_never_does_more(
    broker: FakeBroker, asking: Asking, code: Any, operation: Operation, ours: str
) -> None:
    """A broker chooses no class but to wait or to quarantine, none that calls a file changed.

    The one upload that it takes for another's begins anew, as often as a file is tried.
    """
    broker.fault(change=lambda _: [{"error": {"code": code, "message": "why"}}])
    [answer] = await asking(broker).grant(
        [GrantRequest(operation, "test-bucket", "k", 60, upload_id="u", part_number=1)]
    )
    assert isinstance(answer, Fault)
    assert answer.code == ours


async def test_what_a_broker_says_is_one_short_line_without_anything_secret(broker: FakeBroker, asking: Asking) -> None:
    message = "a\r\nforged line \x1b[31m http://h/b/k?X-Amz-Signature=" + "ab" * 32 + " " + "x" * 5000
    broker.fault(change=lambda _: [{"error": {"code": "too_large", "message": message}}])
    [answer] = await asking(broker).grant([get("k")])
    assert isinstance(answer, Fault)
    assert answer.detail.isprintable()
    assert len(answer.detail) <= 200
    assert_no_secrets(answer.message)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "bad_broker"),
        (403, "bad_broker"),
        (429, "presigner_busy"),
        (500, "presigner_unreachable"),
        (503, "presigner_unreachable"),
        (200, "bad_broker"),
        (204, "bad_broker"),
        (400, "bad_broker"),
        (404, "bad_broker"),
        (405, "bad_broker"),
    ],
)
async def test_a_refusal_of_the_whole_has_everything_wait(
    broker: FakeBroker, asking: Asking, status: int, code: str
) -> None:
    broker.fault(status=status, times=FOREVER)
    assert (await refusal(asking(broker))).code == code


@pytest.mark.parametrize("status", [401, 403])
async def test_a_broker_that_refuses_the_token_says_so_in_its_own_words(
    broker: FakeBroker, asking: Asking, status: int
) -> None:
    broker.fault(status=status, body=b'{"error": {"code": "unauthorized", "message": "no valid token"}}')
    refused = await refusal(asking(broker))
    assert (refused.code, refused.detail) == ("token_refused", f"{status} no valid token")


async def test_a_revoked_token_is_refused_and_named_nowhere(broker: FakeBroker, asking: Asking) -> None:
    presigner = asking(broker)
    await presigner.grant([get("k")])
    broker.token = "another-token"
    assert (await refusal(presigner)).code == "token_refused"


async def test_a_broker_that_says_the_token_again_is_not_repeated(broker: FakeBroker, asking: Asking) -> None:
    for said in (TOKEN, TOKEN.upper(), " ".join(TOKEN), json.dumps({"error": {"code": "x", "message": TOKEN[3:20]}})):
        broker.fault(status=401, body=said.encode())
        wrong = await refusal(asking(broker))
        assert wrong.code == "bad_broker"
        assert_no_secrets(wrong.message, TOKEN, TOKEN[3:20], TOKEN.upper())


# --- a hostile broker ---------------------------------------------------------------------------------


def swap(grants: Grants) -> Grants:
    return list(reversed(grants))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda grants: grants[:-1], "bad_broker"),
        (lambda grants: [*grants, grants[0]], "bad_broker"),
        (lambda grants: {"0": grants[0]}, "bad_broker"),
        (lambda _: None, "bad_broker"),
        (lambda _: "grants", "bad_broker"),
    ],
    ids=["fewer", "more", "a table", "null", "text"],
)
async def test_an_answer_of_another_length_or_shape_is_refused_whole(
    broker: FakeBroker, asking: Asking, change: Callable[[Grants], Any], code: str
) -> None:
    broker.fault(change=change)
    assert (await refusal(asking(broker), get("a"), get("b"))).code == code


@pytest.mark.parametrize(
    "change",
    [
        swap,
        lambda grants: [{**each, "url": each["url"].replace("127.0.0.1", "192.0.2.1")} for each in grants],
        lambda grants: [{**each, "url": each["url"].replace("/test-bucket/", "/evil/")} for each in grants],
        lambda grants: [{**each, "method": "PUT"} for each in grants],
        lambda grants: [None for _ in grants],
        lambda grants: [[] for _ in grants],
        lambda grants: [{} for _ in grants],
        lambda grants: ["grant" for _ in grants],
    ],
    ids=["another order", "another host", "another bucket", "another method", "null", "list", "empty", "text"],
)
async def test_grants_that_were_not_asked_for_are_refused_each(
    broker: FakeBroker, asking: Asking, change: Callable[[Grants], Any]
) -> None:
    broker.fault(change=change)
    for answer in await asking(broker).grant([get("a"), get("b")]):
        assert isinstance(answer, PresignerFault)
        assert answer.code == "wrong_grant"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>it works</html>",
        b'{"grants": [',
        b'{"grants": [NaN]}x',
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"grants": ' + b'[{"a":' * 10_000,
        json.dumps({"grants": ["\ud800"]}).encode(),
    ],
    ids=["empty", "a page", "cut", "more behind", "no UTF-8", "deep", "deep tables", "half a character"],
)
async def test_what_is_no_json_is_refused_and_ends_nothing(broker: FakeBroker, asking: Asking, body: bytes) -> None:
    broker.fault(status=200, body=body)
    presigner = asking(broker)
    assert (await refusal(presigner)).code in ("bad_broker", "wrong_grant")
    [grant] = await presigner.grant([get("k")])
    assert isinstance(grant, Grant)


async def test_a_redirect_is_never_followed(broker: FakeBroker, asking: Asking, faulty_s3: FaultyS3) -> None:
    """Whoever answers could have the token sent elsewhere, or over plain http."""
    for status in (301, 302, 303, 307, 308):
        broker.fault(status=status, headers={"Location": f"{faulty_s3.endpoint}/v1/grants"})
        assert (await refusal(asking(broker))).code == "bad_broker"
    assert faulty_s3.requests == []


async def test_an_endless_answer_is_cut(broker: FakeBroker, asking: Asking) -> None:
    broker.fault(endless=True)
    refused = await refusal(asking(broker))
    assert (refused.code, refused.detail) == ("bad_broker", "its answer has no end")


async def test_an_answer_of_100_mb_is_cut(broker: FakeBroker, asking: Asking) -> None:
    broker.fault(status=200, body=b" " * 100_000_000)
    assert (await refusal(asking(broker))).code == "bad_broker"


async def test_a_compressed_answer_is_not_unpacked(broker: FakeBroker, asking: Asking) -> None:
    """Some kilobytes may unpack to gigabytes."""
    broker.fault(status=200, headers={"Content-Encoding": "gzip"}, body=b"\x1f\x8b" + bytes(64))
    assert (await refusal(asking(broker))).code == "bad_broker"


async def test_a_broker_that_never_answers_is_given_up(broker: FakeBroker, asking: Asking) -> None:
    broker.fault(hang=True)
    refused = await refusal(asking(broker, timeout=0.5))
    assert (refused.code, refused.detail) == ("presigner_unreachable", "no answer within 0.5 s")


async def test_a_connection_that_breaks_off_is_asked_once_more(broker: FakeBroker, asking: Asking) -> None:
    broker.fault(reset=True)
    [grant] = await asking(broker).grant([get("k")])
    assert isinstance(grant, Grant)
    broker.fault(reset=True, times=2)
    assert (await refusal(asking(broker))).code == "presigner_unreachable"


async def test_a_broker_that_is_away_is_told_with_its_address(broker: FakeBroker, asking: Asking) -> None:
    broker.stop()
    refused = await refusal(asking(broker))
    assert refused.code == "presigner_unreachable"
    assert broker.url.removeprefix("http://") in refused.detail


@pytest.mark.parametrize(
    "me",
    [
        [],
        "me",
        {"prefix": 5},
        {"prefix": "x" * 2000},
        {"operations": "put"},
        {"valid_until": "soon"},
        {"valid_until": "9999-12-31T23:59:59-23:59"},
        {"name": "forged\nline"},
        {"operations": ["\x1b[31m"]},
        {"bucket": "a\n"},
        {"name": TOKEN},
        {"name": TOKEN[4:24].upper()},
        {"prefix": TOKEN + "/"},
        {"prefix": "../../another/"},
        {"prefix": "a/../"},
        {"prefix": "/a/"},
        {"prefix": "a//"},
        {"prefix": "a\\"},
        {"prefix": "a\0"},
    ],
    ids=repr,
)
async def test_a_token_told_of_in_no_known_words_is_refused(broker: FakeBroker, asking: Asking, me: Any) -> None:
    broker.me = me
    with pytest.raises(PresignerFault) as refused:
        await asking(broker).prefix()
    assert refused.value.code == "bad_broker"


async def test_what_the_token_may_do_is_asked_once_and_again_when_it_is_doubted(
    broker: FakeBroker, asking: Asking
) -> None:
    presigner = asking(broker)
    broker.me["prefix"] = "a/"
    assert [await presigner.prefix(), await presigner.prefix()] == ["a/", "a/"]
    assert len(broker.asked) == 1
    broker.me["prefix"] = "b/"
    presigner.look_again("test-bucket")
    assert await presigner.prefix() == "b/"


# --- clocks -------------------------------------------------------------------------------------------


async def test_grants_are_judged_by_the_brokers_clock(broker: FakeBroker, asking: Asking) -> None:
    """The broker signs, so a wrong clock here makes no grant wrong."""
    broker.skew = timedelta(hours=-3)
    presigner = asking(broker)
    [grant] = await presigner.grant([get("k")])
    assert isinstance(grant, Grant)
    assert presigner.clock_offset is not None
    assert abs(presigner.clock_offset + 3 * 3600) < 60


async def test_a_grant_that_was_made_long_ago_is_refused(broker: FakeBroker, asking: Asking) -> None:
    """It may have been handed to somebody else before."""
    presigner = asking(broker)
    kept: Grants = []
    broker.skew = timedelta(hours=-1)
    broker.fault(change=kept.__iadd__)
    await presigner.grant([get("k")])
    broker.skew = timedelta()
    broker.fault(change=lambda _: kept)
    [answer] = await presigner.grant([get("k")])
    assert isinstance(answer, PresignerFault)
    assert answer.code == "wrong_grant"


# --- a hostile network --------------------------------------------------------------------------------


@pytest.fixture
def ca() -> trustme.CA:
    return trustme.CA()


def server_side(ca: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture
def ca_file(ca: trustme.CA, tmp_path: Path) -> Path:
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tmp_path / "ca.pem"


async def asked_once(broker: FakeBroker, **more: Any) -> Grant | PresignerFault:
    """Ask for one grant by a client that is closed before the broker is."""
    configured = config(broker, **more)
    presigner = BrokerPresigner(configured, BrokerClient(configured, clock=utc_now, timeout=LONG))
    try:
        [answer] = await presigner.grant([get("k")])
    except PresignerFault as refused:
        return refused
    finally:
        await presigner.close()
    assert isinstance(answer, Grant)
    return answer


def code(answer: Grant | PresignerFault) -> str:
    assert isinstance(answer, PresignerFault)
    return answer.code


async def test_tls_by_a_private_ca(faulty_s3: FaultyS3, ca: trustme.CA, ca_file: Path) -> None:
    with fake_broker(faulty_s3, tls=server_side(ca, "127.0.0.1")) as broker:
        assert isinstance(await asked_once(broker, ca_file=ca_file), Grant)


async def test_a_broker_that_cannot_prove_its_name_is_not_given_the_token(
    faulty_s3: FaultyS3, ca: trustme.CA, ca_file: Path
) -> None:
    for signer, name in ((trustme.CA(), "127.0.0.1"), (ca, "elsewhere.example.org")):
        with fake_broker(faulty_s3, tls=server_side(signer, name)) as broker:
            refused = await asked_once(broker, ca_file=ca_file)
            assert isinstance(refused, PresignerFault)
            assert refused.code == "presigner_unreachable"
            assert "TLS" in refused.message
            assert broker.asked == []


async def test_https_is_never_spoken_in_clear(broker: FakeBroker) -> None:
    """Someone on the way who answers in plain HTTP hears nothing."""
    url = broker.url.replace("http:", "https:")
    assert code(await asked_once(broker, url=url)) == "presigner_unreachable"
    assert broker.asked == []


async def test_a_client_certificate_is_shown_and_does_without_a_token(
    faulty_s3: FaultyS3, ca: trustme.CA, ca_file: Path, tmp_path: Path
) -> None:
    tls = server_side(ca, "127.0.0.1")
    tls.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(tls)
    pem = tmp_path / "client.pem"
    ca.issue_cert("scanner-1@example.org").private_key_and_cert_chain_pem.write_to_path(str(pem))
    with fake_broker(faulty_s3, tls=tls) as broker:
        answer = await asked_once(broker, ca_file=ca_file, client_cert=pem, token=None)
        assert code(answer) == "token_refused"  # the fake one knows tokens alone
        assert "authorization" not in broker.asked[0].headers
        assert code(await asked_once(broker, ca_file=ca_file, token=None)) == "presigner_unreachable"
        assert len(broker.asked) == 1


async def test_a_proxy_is_asked_where_one_is_set(broker: FakeBroker, asking: Asking) -> None:
    presigner = asking(broker, url="http://broker.invalid:8420", proxy=broker.url)
    [grant] = await presigner.grant([get("k")])
    assert isinstance(grant, Grant)
    assert broker.asked[0].headers["host"] == "broker.invalid:8420"
