"""Test a store's answer to a browser's preflight: whether a page of another origin may send a request (Fetch, 3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from presignd.presign import Grant
from presignd.s3.responses import Response
from presignd.store.signed import SignedStore

_ANY_STATUS = range(300, 600)


async def preflight(
    store: SignedStore,
    grant: Grant,
    method: str,
    origin: str,
    more: Iterable[str] = (),
    *,
    timeout: float | None = None,
) -> list[str]:
    """Send a preflight for ``method`` with the grant's headers and ``more``; return what the answer lacks."""
    needed = sorted(name.lower() for name in (*grant.headers, *more) if name != "Content-Length")
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    asked["Access-Control-Request-Headers"] = ",".join(needed)
    sent = replace(grant, method="OPTIONS", headers=asked)
    response = await store.client.send(sent, accept=_ANY_STATUS, timeout=timeout)
    return preflight_problems(response, method, needed, origin)


def preflight_problems(response: Response, method: str, needed: list[str], origin: str) -> list[str]:
    """Return what the answer to a preflight lacks."""
    if response.status // 100 != 2:  # noqa: PLR2004 - 2xx
        return [f"the preflight for {method} was answered with {response.status}"]
    problems = origin_problems(response.headers, origin)
    if not lists(response, "access-control-allow-methods", method):
        problems.append(f"Access-Control-Allow-Methods lacks {method}")
    missing = [name for name in needed if not lists(response, "access-control-allow-headers", name)]
    if missing:
        problems.append(f"Access-Control-Allow-Headers lacks {', '.join(missing)}")
    return problems


def origin_problems(headers: Mapping[str, str], origin: str) -> list[str]:
    """Return what is wrong if an answer does not allow ``origin``."""
    allowed = headers.get("access-control-allow-origin", "")
    if allowed in ("*", origin):
        return []
    return [
        f"Access-Control-Allow-Origin is {allowed[:100]!r}" if allowed else "Access-Control-Allow-Origin is missing"
    ]


def lists(response: Response, header: str, value: str) -> bool:
    """Return whether a header's list has a value, or all of them."""
    listed = {each.strip().lower() for each in response.headers.get(header, "").split(",")}
    return bool(listed & {"*", value.lower()})
