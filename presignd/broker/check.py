"""``presignd broker check``: each part proven before it is needed, the store with real requests for each prefix."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from presignd.broker.certificate import certificate_end, end_problem, tls_context
from presignd.broker.config import BrokerConfig, TokenConfig, of_store
from presignd.broker.probe import Threats
from presignd.broker.service import Signer
from presignd.broker.tokens import Tokens
from presignd.errors import Fault, PresigndError
from presignd.presign import Operation
from presignd.s3.limits import CHECK_NAME
from presignd.store.probe import Conditions, Heed, Probe, in_words
from presignd.system.clock import utcnow

_APART = "a bucket and a broker of its own for each who must not read the others' files"


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
    now = utcnow()
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
    used: dict[tuple[str, str], set[str]] = {}
    for token in tokens:
        used.setdefault((token.bucket, token.prefix), set()).update(token.operations)
    for bucket, prefix in sorted(used):
        name, multipart = f"bucket {bucket}/{prefix}", "multipart" in used[bucket, prefix]
        probe = Probe(signer, bucket, f"{prefix}{CHECK_NAME}", {})
        for line in await _prefix(name, probe, Threats(signer, bucket, prefix), multipart=multipart):
            yield line


async def _prefix(name: str, probe: Probe, threats: Threats, *, multipart: bool) -> list[Line]:
    """Write, read and remove a prefix's check object, and try what a store should refuse."""
    try:
        await probe.write_kept()
        await probe.ask(Operation.GET)
        verified = await probe.verifies_signatures()
        conditions = {"a PUT": await probe.put_conditions()}
        if multipart:
            conditions["the end of an upload in parts"] = await probe.complete_conditions()
        await threats.begin()
        copies, publishes = await threats.copies_unsigned(), await threats.publishes_unsigned()
        mixes = multipart and await threats.mixes_uploads()
        await threats.forget()
        remains = await probe.forget()
    except Fault as fault:
        return [_failed(name, fault)]
    if not verified:
        return [
            Line("fail", name, _UNSIGNED, "give the store its keys; a mock server that verifies none holds nothing")
        ]
    lines = [_takes_unsigned(name, copies=copies, publishes=publishes)] if copies or publishes else []
    lines += [_mixes_uploads(name)] if mixes else []
    lines = lines or [Line("ok", name, "PUT, HEAD, GET went through, and no header that was not signed")]
    lines.append(_conditions(name.replace("bucket", "conditional writes", 1), conditions))
    if remains.versions:
        told = f"{remains.versions} of what this wrote stay there: {remains.reason}"
        lines.append(Line("warn", name, told, "none needed; s3:DeleteObjectVersion on the check key would let them go"))
    return lines


_UNSIGNED = "a request with a wrong signature is taken: no token keeps anybody out, who reaches the store has all of it"


def _conditions(name: str, seen: dict[str, Conditions]) -> Line:
    told = "; ".join(f"{way} {in_words(each)}" for way, each in seen.items())
    honoured = {heed for each in seen.values() for heed in (each.if_none_match, each.if_match)} == {Heed.HONOURED}
    if honoured:
        return Line("ok", name, told)
    return Line("warn", name, told, "give each token a prefix of its own: writers of one key may overwrite each other")


def _takes_unsigned(name: str, *, copies: bool, publishes: bool) -> Line:
    may = ["copy any object that this key may read (x-amz-copy-source)"] if copies else []
    may += ["make what it stores public (x-amz-acl)"] if publishes else []
    told = f"the store takes headers that were not signed: whoever may PUT can {', and '.join(may)}"
    fix = [_APART] if copies else []
    fix += ["a bucket whose ACLs are off (BucketOwnerEnforced, IgnorePublicAcls)"] if publishes else []
    return Line("warn", name, told, "; ".join(fix))


def _mixes_uploads(name: str) -> Line:
    told = (
        "the store takes an upload begun under one key for any other key: the broker alone keeps them apart, "
        "by what it remembers since its start"
    )
    return Line("warn", name, told, _APART)


def _failed(name: str, fault: Fault) -> Line:
    return Line("fail", name, fault.message, of_store(fault.fix))
