"""What guests may rely on at a store: asked for once a prefix, and the cautious answer where it can't be known."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from presignd.broker.invitations import facts
from presignd.broker.invitations.facts import UNKNOWN, Checksums, StoreFacts
from presignd.errors import Fault, fault
from presignd.presign import Grant
from presignd.s3.responses import Response
from presignd.store.signed import SignedStore
from presignd.store.support import Conditions, Handling

NOW = datetime(2026, 1, 2, tzinfo=UTC)
PAGE = "https://files.example.org"
ALLOWED = {f"access-control-allow-{name}": "*" for name in ("origin", "methods", "headers")}
CRC, MD5 = ("crc64nvme", True), ("md5", False)


class Store:
    """A store that answers preflights with ``answer``, and whose probe finds what ``found`` says."""

    def __init__(self, answer: Response | Fault, **found: Any) -> None:
        self.answer, self.found, self.probes = answer, found, 0
        self.client = self

    async def grant(self, _request: object) -> Grant:
        return Grant("PUT", "http://store/", {}, NOW, NOW)

    async def send(self, _grant: object, **_how: object) -> Response:
        if isinstance(self.answer, Fault):
            raise self.answer
        return self.answer


class FakeProbe:
    """Stands for ``Probe``."""

    def __init__(self, store: Store, *_where: object) -> None:
        self._store = store
        store.probes += 1

    async def put_conditions(self) -> Conditions:
        if self._store.found.get("away"):
            raise fault("connection_refused", "")
        return Conditions(Handling.HONOURED, Handling.HONOURED)

    async def complete_conditions(self) -> Conditions:
        return Conditions(Handling.IGNORED, Handling.IGNORED)

    async def choose(self, _wanted: str, *, in_parts: bool) -> tuple[str, bool]:
        chosen: tuple[str, bool] = self._store.found["parts" if in_parts else "put"]
        return chosen

    async def remove(self) -> None:
        """Remove nothing."""


@pytest.fixture(autouse=True)
def _probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "Probe", FakeProbe)


def asked_of(store: Store) -> StoreFacts:
    return StoreFacts(lambda: cast("SignedStore", store), PAGE)


@pytest.mark.parametrize(
    ("answer", "put", "parts", "expected"),
    [
        pytest.param(Response(200, ALLOWED), CRC, CRC, Checksums("crc64nvme", "crc64nvme"), id="proven"),
        pytest.param(Response(200, ALLOWED), CRC, MD5, Checksums("crc64nvme", "md5"), id="proven for a PUT only"),
        pytest.param(Response(200, ALLOWED), ("crc64nvme", False), MD5, Checksums(), id="not proven"),
        pytest.param(Response(403, {}), CRC, CRC, Checksums(), id="no page may send the header"),
        pytest.param(fault("dns", ""), CRC, CRC, Checksums(), id="this host can't reach the public name"),
    ],
)
async def test_crc64nvme_is_for_a_store_that_proves_it_and_lets_pages_send_it(
    answer: Response | Fault, put: tuple[str, bool], parts: tuple[str, bool], expected: Checksums
) -> None:
    store = Store(answer, put=put, parts=parts)
    known = asked_of(store)
    found = await known.of("b", "in/")
    assert found.checksums == expected
    assert found.honoured == (True, False), "whatever becomes of the checksums"
    assert await known.honoured("b", "in/") == found.honoured
    assert store.probes == 1, "once a prefix"


async def test_a_store_that_can_not_be_asked_is_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(Response(200, ALLOWED), put=CRC, parts=CRC, away=True)
    known = asked_of(store)
    assert await known.of("b", "in/") == UNKNOWN
    store.found["away"] = False
    assert await known.of("b", "in/") == UNKNOWN, "not at each call"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + facts.AGAIN_SECONDS)
    assert (await known.of("b", "in/")).checksums == Checksums("crc64nvme", "crc64nvme")


async def test_another_store_after_a_reload_is_asked_anew() -> None:
    stores = [Store(Response(200, ALLOWED), put=MD5, parts=MD5), Store(Response(200, ALLOWED), put=CRC, parts=CRC)]
    known = StoreFacts(lambda: cast("SignedStore", stores[0]), PAGE)
    assert (await known.of("b", "in/")).checksums == Checksums()
    del stores[0]
    assert (await known.of("b", "in/")).checksums == Checksums("crc64nvme", "crc64nvme")
