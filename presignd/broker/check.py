"""``presignd broker check``: each part proven before it is needed, the store with real requests for each prefix."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from presignd.broker.certificate import certificate_end, end_problem, tls_context
from presignd.broker.config import of_store
from presignd.broker.models import BrokerConfig, TokenConfig
from presignd.broker.service import Signer
from presignd.broker.tokens import Tokens
from presignd.errors import Fault, PresigndError
from presignd.keys import CHECK_NAME
from presignd.presign import Grant, GrantRequest, Operation

BODY = b"presignd broker check\n"
EXPIRES = 300
ANY_REFUSAL = range(400, 500)


@dataclass(frozen=True, slots=True)
class Line:
    """One line: how a part does ("ok", "warn", "fail"), what it is, and what to do."""

    outcome: str
    name: str
    detail: str
    fix: str = ""


async def run_checks(config: BrokerConfig) -> AsyncIterator[Line]:
    """Look at the configuration's parts in order; raises nothing that is expected."""
    for warning in config.warnings:
        yield Line("warn", "config", warning)
    yield Line("ok", "config", str(config.file))
    yield _certificate(config)
    tokens = Tokens(config.file, config.broker.token_files)
    for problem in tokens.unreadable():
        yield Line("fail", "tokens", problem, "none of its tokens is valid until it is put right")
    none = "" if tokens.count else "presignd broker token create makes one, for a file that broker.token_files names"
    yield Line("warn" if none else "ok", "tokens", f"{tokens.count} of them", none)
    signer = Signer(config.store)
    try:
        async for line in _store(signer, [token for token, _ in tokens.all()]):
            yield line
    finally:
        await signer.close()


def _certificate(config: BrokerConfig) -> Line:
    try:
        tls_context(config.broker)
        ends = certificate_end(config.broker)
    except PresigndError as error:
        return Line("fail", "certificate", error.message, error.fix)
    if ends is None:
        return Line("ok", "certificate", "none: loopback, or a proxy with TLS before it")
    now = datetime.now(UTC)
    problem, left = end_problem(ends, now), f"{(ends - now).days} days left"
    if not problem:
        return Line("ok", "certificate", left)
    outcome, told = ("warn", f"only {left}") if ends > now else ("fail", problem)
    return Line(outcome, "certificate", told, "renew broker.tls_cert")


async def _store(signer: Signer, tokens: Iterable[TokenConfig]) -> AsyncIterator[Line]:
    try:
        found = await signer.presigner.credentials.get()
    except Fault as fault:
        yield _failed("credentials", fault)
        return
    yield Line("ok", "credentials", f"from {found.source}")
    for bucket, prefix in sorted({(token.bucket, token.prefix) for token in tokens}):
        yield await _prefix(signer, bucket, prefix)


async def _prefix(signer: Signer, bucket: str, prefix: str) -> Line:
    """Write, read and remove a prefix's check object, and try to have it copied by a header nobody signed."""
    probe = _Probe(signer, bucket, prefix)
    name = f"bucket {bucket}/{prefix}"
    try:
        await probe.send(Operation.PUT)
        await probe.send(Operation.HEAD)
        await probe.send(Operation.GET)
        takes_unsigned = await probe.copies_unsigned()
        await probe.forget()
    except Fault as fault:
        return _failed(name, fault)
    if takes_unsigned:
        told = (
            "the store takes headers that were not signed: whoever may PUT can copy any object that this key may read"
        )
        return Line("warn", name, told, "a bucket and a broker of its own for each who must not read the others' files")
    return Line("ok", name, "PUT, HEAD, GET went through, and no header that was not signed")


def _failed(name: str, fault: Fault) -> Line:
    return Line("fail", name, fault.message, of_store(fault.fix))


class _Probe:
    """Requests on a prefix's check object, and on one below it that it is copied to."""

    def __init__(self, signer: Signer, bucket: str, prefix: str) -> None:
        self._signer, self._bucket = signer, bucket
        self._key, self._copy = f"{prefix}{CHECK_NAME}", f"{prefix}copy/{CHECK_NAME}"

    async def _grant(self, operation: Operation, key: str) -> Grant:
        asked = GrantRequest(operation, self._bucket, key, EXPIRES)
        if operation is Operation.PUT:
            md5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()
            asked = replace(asked, size=len(BODY), checksum=f"md5:{md5}")
        (grant,) = await self._signer.presigner.grant([asked])
        if isinstance(grant, Exception):
            raise grant
        return grant

    async def send(self, operation: Operation) -> None:
        """Send one request on the check object; raise the ``Fault`` of a refusal."""
        grant = await self._grant(operation, self._key)
        await self._signer.send(grant, BODY if operation is Operation.PUT else None)

    async def copies_unsigned(self) -> bool:
        """Tell whether the store heeds a header that the signature doesn't bind."""
        grant = await self._grant(Operation.PUT, self._copy)
        unsigned = {**grant.headers, "x-amz-copy-source": f"/{self._bucket}/{self._key}"}
        answer = await self._signer.send(replace(grant, headers=unsigned), BODY, accept=ANY_REFUSAL)
        return answer.status not in ANY_REFUSAL

    async def forget(self) -> None:
        """Remove both; where that is refused they stay."""
        for key in (self._key, self._copy):
            await self._signer.send(await self._grant(Operation.DELETE, key), accept=ANY_REFUSAL)
