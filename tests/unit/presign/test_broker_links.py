"""What is asked of a broker's links, and what of its answers is believed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from presignd.errors import Fault, FileFault, PresignerFault, WatchFault, fault
from presignd.presign.broker_client import BrokerClient, BrokerResponse
from presignd.presign.broker_links import MOST, BrokerLinks
from presignd.presign.remote import Me
from presignd.presign.stable import StableLink, StableRequest, id_in, is_ref, new_link_id

ROOT = "https://files.example.org"
ENDS = datetime(2030, 1, 2, tzinfo=UTC)
LINK_ID = "mZt3k2pQv9_xY4-aB1cD5e"


def wanted(number: int = 0) -> StableRequest:
    return StableRequest(f"{number:022}", "b", f"k{number}", 5, "text/plain", "k", ENDS)


class Broker:
    """A client and a token's answer; ``answers`` are given in order, then each link as asked for."""

    def __init__(self, **me: Any) -> None:
        self.told = {"operations": ("get", "link"), "links_url": ROOT, **me}
        self.answers: list[BrokerResponse | Fault] = []
        self.asked: list[tuple[str, Any]] = []
        self.forgotten = 0
        self.links = BrokerLinks(cast("BrokerClient", self), self.me, self.forget)

    async def me(self) -> Me:
        return Me.model_validate(self.told)

    def forget(self) -> None:
        self.forgotten += 1

    async def ask(self, path: str, document: Mapping[str, Any] | None = None, *, most: int) -> BrokerResponse:
        self.asked.append((path, document))
        if not self.answers:
            assert document is not None
            return answer({"links": [as_told(each["id"]) for each in document["links"]]})
        given = self.answers.pop(0)
        if isinstance(given, Fault):
            raise given
        assert most > 0
        return given


def answer(document: Any, status: int = 200) -> BrokerResponse:
    return BrokerResponse(status, document, None, None)


def as_told(link_id: str, **more: Any) -> dict[str, Any]:
    return {"url": f"{ROOT}/l/{link_id}/k", "expires_at": "2030-01-02T00:00:00Z", "ref": "r", "state": "alive", **more}


async def test_links_come_in_the_order_asked_for_and_hide_their_addresses() -> None:
    broker = Broker()
    first, second = await broker.links.make([wanted(1), wanted(2)])
    assert isinstance(first, StableLink)
    assert isinstance(second, StableLink)
    assert (first.url, second.url) == (f"{ROOT}/l/{1:022}/k", f"{ROOT}/l/{2:022}/k")
    assert (first.expires_at, first.is_alive) == (ENDS, True)
    assert first.url not in repr(first)
    assert broker.forgotten == 0


async def test_more_than_one_call_takes_are_asked_for_in_several() -> None:
    broker = Broker()
    assert len(await broker.links.make([wanted(n) for n in range(MOST + 1)])) == MOST + 1
    assert [len(document["links"]) for _, document in broker.asked] == [MOST, 1]


async def test_a_batch_that_is_too_large_goes_in_halves_and_one_that_is_alone_waits() -> None:
    broker = Broker()
    broker.answers = [answer({}, 413)]
    assert len(await broker.links.make([wanted(n) for n in range(3)])) == 3
    assert [len(document["links"]) for _, document in broker.asked] == [3, 1, 2]
    broker.answers = [answer({}, 413)]
    with pytest.raises(PresignerFault):
        await broker.links.make([wanted()])


@pytest.mark.parametrize(
    ("told", "code", "kind"),
    [
        ({"error": {"code": "outside_prefix", "message": "m"}}, "outside_prefix", FileFault),
        ({"error": {"code": "link_taken", "message": "m"}}, "grant_refused", FileFault),
        ({"error": {"code": "operation_refused", "message": "m"}}, "not_allowed", WatchFault),
        ("text", "bad_broker", PresignerFault),
        ({"url": 5, "expires_at": None}, "bad_broker", PresignerFault),
        ({"url": f"{ROOT}/l/{0:022}/k"}, "bad_broker", PresignerFault),
        (as_told(f"{1:022}"), "bad_broker", PresignerFault),
        (as_told(f"{0:022}", url=f"https://elsewhere.example/l/{0:022}/k"), "bad_broker", PresignerFault),
        (as_told(f"{0:022}", url=f"{ROOT}.evil.example/l/{0:022}/k"), "bad_broker", PresignerFault),
        (as_told(f"{0:022}", url=f"{ROOT}/l/{0:022}/k\n"), "bad_broker", PresignerFault),
        (as_told(f"{0:022}", expires_at="0001-01-01T00:00:00+23:00"), "bad_broker", PresignerFault),
    ],
)
async def test_what_is_no_link_to_what_was_asked_is_a_fault(told: Any, code: str, kind: type[Fault]) -> None:
    broker = Broker()
    broker.answers = [answer({"links": [told]})]
    [found] = await broker.links.make([wanted()])
    assert isinstance(found, kind)
    assert found.code == code
    assert broker.forgotten == 1, "the token may be another by now"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (answer({"links": []}), "bad_broker"),
        (answer({"links": "x"}), "bad_broker"),
        (answer([]), "bad_broker"),
        (answer({"error": {"code": "operation_refused", "message": "m"}}, 403), "token_refused"),
        (answer(None, 204), "bad_broker"),
        (fault("presigner_unreachable"), "presigner_unreachable"),
    ],
)
async def test_an_answer_that_is_none_is_waited_for(given: BrokerResponse | Fault, code: str) -> None:
    broker = Broker()
    broker.answers = [given]
    with pytest.raises(PresignerFault) as raised:
        await broker.links.make([wanted()])
    assert raised.value.code == code
    assert broker.forgotten == 1


@pytest.mark.parametrize("told", [{"links_url": None}, {"operations": ("get",)}, {"operations": None}])
async def test_a_broker_or_a_token_without_links_is_asked_for_none(told: dict[str, Any]) -> None:
    broker = Broker(**told)
    assert await broker.links.root() == ""
    with pytest.raises(WatchFault) as raised:
        await broker.links.make([wanted()])
    assert raised.value.code == "no_stable_links"
    assert (broker.asked, broker.forgotten) == ([], 1)


@pytest.mark.parametrize("url", ["ftp://x", "https://x/?q", "https://user@x", "https://x y", "https://"])
def test_an_address_of_links_that_is_none_is_no_answer(url: str) -> None:
    with pytest.raises(ValueError, match="links_url"):
        Me.model_validate({"links_url": url})


# --- revoking and listing -------------------------------------------------------------------------------


async def test_what_is_revoked_is_named_once_and_answered_without_a_word() -> None:
    broker = Broker()
    broker.answers = [answer(None, 204)]
    await broker.links.revoke({"ref": "r"})
    assert broker.asked == [("/v1/links/revoke", {"ref": "r"})]
    broker.answers = [answer({}, 200)]
    with pytest.raises(PresignerFault):
        await broker.links.revoke({"ref": "r"})


def listed(ref: str = "r", **more: Any) -> dict[str, Any]:
    return {"ref": ref, "bucket": "b", "key": "k", "state": "alive", "made_at": "2026-01-02T03:04:05Z", **more}


async def test_the_list_is_read_to_its_end() -> None:
    broker = Broker()
    broker.answers = [answer({"links": [listed("a"), listed("b")], "next": "r-_"}), answer({"links": [], "next": None})]
    assert [[link.ref for link in page] async for page in broker.links.issued()] == [["a", "b"], []]
    assert [path for path, _ in broker.asked] == ["/v1/links", "/v1/links?after=r-_"]


async def test_of_the_links_that_were_asked_for_those_that_were_revoked_are_told() -> None:
    broker = Broker()
    links = [listed("a", state="revoked"), listed("b"), listed("c", state="revoked")]
    broker.answers = [answer({"links": links, "next": "c"}), answer({}, 403)]
    assert await broker.links.revoked({"b", "a"}) == {"a"}, "an older broker tells of others"
    assert broker.asked == [("/v1/links?refs=a,b", None)]
    with pytest.raises(PresignerFault):
        await broker.links.revoked({"a"})


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"links": None, "next": None},
        {"links": [listed()]},
        {"links": [listed(opened="often")], "next": None},
        {"links": [listed("not a ref")], "next": None},
        {"links": [], "next": "x"},
        {"links": [listed()], "next": ""},
        {"links": [listed()], "next": 7},
    ],
)
async def test_a_list_that_is_none_or_has_no_end_is_not_believed(document: Any) -> None:
    broker = Broker()
    broker.answers = [answer(document)]
    with pytest.raises(PresignerFault):
        [page async for page in broker.links.issued()]


async def test_a_list_that_begins_again_has_no_end() -> None:
    broker = Broker()
    broker.answers = [answer({"links": [listed(ref)], "next": after}) for ref, after in ("ab", "bc", "cb")]
    with pytest.raises(PresignerFault, match="no end"):
        [page async for page in broker.links.issued()]


async def test_a_refused_list_says_so() -> None:
    broker = Broker()
    broker.answers = [answer({"error": {"code": "operation_refused", "message": "m"}}, 403)]
    with pytest.raises(PresignerFault):
        [page async for page in broker.links.issued()]


# --- ids and refs ---------------------------------------------------------------------------------------


def test_ids_are_new_each_time_and_found_in_an_address() -> None:
    assert new_link_id() != new_link_id()
    for address in (f"{ROOT}/l/{LINK_ID}/a.pdf", f"http://h:1/l/{LINK_ID}", f"{ROOT}/l/{LINK_ID}/a%20b.pdf?x#y"):
        assert id_in(address) == LINK_ID


@pytest.mark.parametrize(
    "text", [LINK_ID, f"/srv/l/{LINK_ID}/a", f"{ROOT}/l/{LINK_ID}x/a", f"{ROOT}/?/l/{LINK_ID}/a", ""]
)
def test_what_is_no_address_of_a_link_has_no_id(text: str) -> None:
    assert id_in(text) == ""


@pytest.mark.parametrize(("text", "is_one"), [("mZt3k2pQv9_xY4-a", True), ("a.pdf", False), (LINK_ID, False)])
def test_a_ref_has_a_form_of_its_own(text: str, *, is_one: bool) -> None:
    assert is_ref(text) is is_one
