"""``presignd broker check``: configuration, certificate, tokens, and each prefix with real requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from presignd.broker.certificate import certificate_end, end_problem, tls_context
from presignd.broker.config import BrokerConfig, FleetSection, TokenConfig, api_origins
from presignd.broker.load import of_store
from presignd.broker.state.database import StateAway
from presignd.broker.state.invitations import Invitations
from presignd.broker.state.links import Links
from presignd.broker.state.outbox import StateOutbox
from presignd.broker.state.place import database_at
from presignd.broker.tokens import Tokens
from presignd.checks.base import CheckResult, fail, ok, warn
from presignd.checks.cors import cors_result
from presignd.checks.webhooks import off_result, receiver_results
from presignd.config import UploadConfig
from presignd.config.addresses import parse_listen
from presignd.config.signing import is_in_clear
from presignd.errors import Fault, PresigndError, UsageError
from presignd.pages.access import load_token, readable_by_others
from presignd.pages.html import count
from presignd.presign import Operation
from presignd.presign.local import LocalPresigner
from presignd.s3.limits import CHECK_NAME
from presignd.store.probe import Probe
from presignd.store.signed import SignedStore, signed_store
from presignd.store.support import Conditions, Unsigned
from presignd.system.clock import utcnow

SEPARATE_FIX = "a bucket and a broker of its own for each uploader who must not read the others' files"
UNSIGNED = "a request with a wrong signature is taken: tokens protect nothing from those who reach the store"
UNSIGNED_FIX = "give the store its keys; a mock server that checks no signature protects nothing"


async def check_broker(config: BrokerConfig) -> AsyncIterator[CheckResult]:
    """Check the parts of a broker in order; raise no expected error."""
    for warning in config.warnings:
        yield warn("config", warning)
    yield ok("config", str(config.file or "from the environment alone"))
    yield certificate_result(config)
    for result in fleet_results(config.fleet):
        yield result
    tokens = Tokens(config.file, config.broker.token_files, config.tokens)
    for problem in tokens.unreadable():
        yield fail("tokens", problem, "none of its tokens is valid until it is fixed")
    if tokens.count:
        yield ok("tokens", f"{tokens.count} of them")
    else:
        yield warn("tokens", "0 of them", "make one for a file of broker.token_files: presignd broker token create")
    places: set[tuple[str, str]] = set()
    async for result in _links_results(config, places):
        yield result
    for result in await receiver_results(config.webhooks, "presignd broker webhook"):
        yield result
    store = signed_store(config.store, UploadConfig(), clock=utcnow)
    try:
        async for result in _store_results(store, [token for token, _ in tokens.all()]):
            yield result
        for bucket, prefix in sorted(places):
            yield await cors_result(store, bucket, prefix, config.links.url)
    finally:
        await store.close()


async def _links_results(config: BrokerConfig, places: set[tuple[str, str]]) -> AsyncIterator[CheckResult]:
    """Check the state, and that the links' host name serves nothing else.

    Adds to ``places`` the bucket and the prefix of each open invitation.
    """
    if not config.links.url:
        return
    for shared, danger, fix in shared_origins(config):
        yield warn("links", f"links.url is also {shared}: {danger}", fix)
    if is_in_clear(config.links.url):
        yield warn("links", "with http:// everyone on the way can read each link", "put TLS in front: https://")
    try:
        database = database_at(config.state)
    except UsageError as error:
        yield fail("state", error.message, error.fix)
        return
    try:
        alive = await Links(database).alive(utcnow())
        invitations = [each for each in await Invitations(database).all() if each.is_open(utcnow())]
        outbox = StateOutbox(database)
        off = [webhook.name for webhook in config.webhooks if await outbox.off_since(webhook.name)]
    except StateAway as away:
        yield fail("state", str(away), away.fix)
    else:
        place = "PostgreSQL" if config.state.url else str(config.state.path)
        links = sum(each.all for each in alive.values())
        yield ok("state", f"{place}, {count(links, 'link')} and {count(len(invitations), 'invitation')} that open")
        places |= {(each.new.bucket, each.new.prefix) for each in invitations}
        for name in off:
            yield off_result(name, "presignd broker webhook")
    finally:
        await database.close()


def shared_origins(config: BrokerConfig) -> list[tuple[str, str, str]]:
    """Return what shares the origin of links, why that is dangerous, and what to do."""
    name, found = config.links.url, []
    if name in {config.store.endpoint, config.store.public_endpoint}:
        danger = "a page in the bucket could open links and read what they show"
        found.append(("the store's address", danger, "give links.url a name of its own"))
    if name in api_origins(config.broker):
        is_local = name.startswith("http://") and not is_in_clear(name)
        danger = "one name for links and for tokens" + (", and links open on this machine alone" if is_local else "")
        found.append(("the API's address", danger, "give links.url a name of its own, and broker.url the API's"))
    return found


def certificate_result(config: BrokerConfig) -> CheckResult:
    """Check that the broker's certificate can be used, and for how long."""
    try:
        tls_context(config.broker)
        ends = certificate_end(config.broker)
    except PresigndError as error:
        return fail("certificate", error.message, error.fix)
    if ends is None:
        return ok("certificate", "none: loopback, or a TLS proxy in front")
    now = utcnow()
    problem, left = end_problem(ends, now), f"{(ends - now).days} days left"
    if not problem:
        return ok("certificate", left)
    fix = "renew broker.tls_cert"
    return warn("certificate", f"only {left}", fix) if ends > now else fail("certificate", problem, fix)


def fleet_results(fleet: FleetSection) -> list[CheckResult]:
    """Check the fleet page's token file and address; return nothing where the page is off."""
    file = fleet.token_file
    if not fleet.listen or file is None:
        return []
    name = "fleet page"
    try:
        token = load_token(file, "fleet.token_file", make=False)
    except UsageError as error:
        return [fail(name, error.message, error.fix)]
    if not token and not file.parent.is_dir():
        return [fail(name, f"fleet.token_file: {file.parent} is not a folder", "make it, or name another file")]
    results = []
    if token and readable_by_others(file):
        results.append(warn(name, f"{file} can be read by every user of this machine", f"chmod o-r {file}"))
    if not parse_listen(fleet.listen).is_local:
        fix = "listen on loopback, and put a proxy with TLS before it"
        results.append(warn(name, f"its token travels unencrypted to {fleet.listen}", fix))
    return results or [ok(name, f"at {fleet.listen}, token in {file}" + ("" if token else " (made at the start)"))]


async def _store_results(store: SignedStore, tokens: Iterable[TokenConfig]) -> AsyncIterator[CheckResult]:
    assert isinstance(store.presigner, LocalPresigner)
    try:
        found = await store.presigner.credentials.get()
    except Fault as fault:
        yield _failed("credentials", fault)
        return
    yield ok("credentials", f"from {found.source}")
    used: dict[tuple[str, str], set[str]] = {}
    for token in tokens:
        used.setdefault((token.bucket, token.prefix), set()).update(token.operations)
    for bucket, prefix in sorted(used):
        probe = Probe(store, bucket, f"{prefix}{CHECK_NAME}", {})
        for result in await _prefix_results(f"{bucket}/{prefix}", probe, multipart="multipart" in used[bucket, prefix]):
            yield result


async def _prefix_results(prefix: str, probe: Probe, *, multipart: bool) -> list[CheckResult]:
    """Write, read and remove a prefix's check object, and send requests that a store should refuse."""
    name = f"bucket {prefix}"
    try:
        await probe.write_and_find()
        await probe.read(Operation.GET)
        signatures_checked = await probe.checks_signatures()
        conditions = {"a PUT": await probe.put_conditions()}
        if multipart:
            conditions["the end of an upload in parts"] = await probe.complete_conditions()
        unsigned = await probe.obeys_unsigned()
        mixes = multipart and await probe.mixes_uploads()
        remains = await probe.remove()
    except Fault as fault:
        return [_failed(name, fault)]
    if not signatures_checked:
        return [fail(name, UNSIGNED, UNSIGNED_FIX)]
    results = [_unsigned(name, unsigned)] if unsigned.copies or unsigned.publishes else []
    results += [_mixes_uploads(name)] if mixes else []
    results = results or [ok(name, "PUT, HEAD and GET went through, and headers that are not signed have no effect")]
    results.append(_conditions(f"conditional writes {prefix}", conditions))
    if remains.versions:
        detail = f"this check could not remove {remains.versions} of the versions it wrote: {remains.reason}"
        results.append(warn(name, detail, "none needed; s3:DeleteObjectVersion on the check key would remove them"))
    return results


def _conditions(name: str, by_way: dict[str, Conditions]) -> CheckResult:
    detail = "; ".join(f"{way} {conditions}" for way, conditions in by_way.items())
    if all(conditions.honoured for conditions in by_way.values()):
        return ok(name, detail)
    return warn(name, detail, "give each token a prefix of its own: writers of one key may overwrite each other")


def _unsigned(name: str, unsigned: Unsigned) -> CheckResult:
    may = ["copy any object that this key may read (x-amz-copy-source)"] if unsigned.copies else []
    may += ["make what it stores public (x-amz-acl)"] if unsigned.publishes else []
    fix = [SEPARATE_FIX] if unsigned.copies else []
    fix += ["a bucket without ACLs (BucketOwnerEnforced, IgnorePublicAcls)"] if unsigned.publishes else []
    detail = f"the store takes headers that were not signed: a token that may PUT can {', and '.join(may)}"
    return warn(name, detail, "; ".join(fix))


def _mixes_uploads(name: str) -> CheckResult:
    detail = (
        "the store accepts an upload begun under one key for any other key: only the broker keeps them apart, "
        "by what it remembers since its start"
    )
    return warn(name, detail, SEPARATE_FIX)


def _failed(name: str, fault: Fault) -> CheckResult:
    return fail(name, fault.message, of_store(fault.fix))
