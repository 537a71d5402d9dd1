"""What a check is, what it says, and how checks run: in order, and not where what they need failed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from enum import StrEnum

from presignd.config import Config
from presignd.errors import ExitCode, Fault
from presignd.presign import Presigner
from presignd.presign.credentials import CredentialSource
from presignd.store.client import StoreClient
from presignd.store.signed import signer_and_store
from presignd.system.clock import utcnow


class Outcome(StrEnum):
    """How a check went: a warning never fails the whole, what was skipped was not tried."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line: what was looked at, how it went, the cause, the fix.

    ``code`` is one of ``errors.CODES`` where the store or presigner gave it. ``remote`` tells whether it
    is about the store or the presigner (exit 3) or about this machine (exit 2).
    """

    name: str
    outcome: Outcome
    detail: str
    fix: str = ""
    code: str = ""
    remote: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """What checks look at, and what they ask; only remote checks touch the last three.

    ``credentials`` is None where a broker signs.
    """

    config: Config
    presigner: Presigner
    store: StoreClient
    credentials: CredentialSource | None


@asynccontextmanager
async def context_of(config: Config) -> AsyncIterator[Context]:
    """Build the parts that checks ask; nothing is sent yet. Raises ``UsageError`` as those do."""
    presigner, store = signer_and_store(config, clock=utcnow)
    local = config.presign.kind == "local"
    try:
        yield Context(config, presigner, store, CredentialSource(config.presign, clock=utcnow) if local else None)
    finally:
        await presigner.close()
        await store.close()


@dataclass(frozen=True, slots=True)
class Check:
    """One small function that yields its lines; a ``Fault`` it raises is a failed line.

    ``needs`` names checks without which this one can't tell anything new.
    """

    name: str
    run: Callable[[Context], AsyncIterator[CheckResult]]
    needs: tuple[str, ...] = ()
    remote: bool = False


def ok(name: str, detail: str) -> CheckResult:
    """Say that a part works."""
    return CheckResult(name, Outcome.OK, detail)


def warn(name: str, detail: str, fix: str = "", *, code: str = "") -> CheckResult:
    """Say that a part works less well than it could."""
    return CheckResult(name, Outcome.WARN, detail, fix, code)


def fail(name: str, detail: str, fix: str, *, code: str = "") -> CheckResult:
    """Say that a part doesn't work, and what to do."""
    return CheckResult(name, Outcome.FAIL, detail, fix, code)


def failed(name: str, fault: Fault, *, doing: str = "") -> CheckResult:
    """Say what ``fault`` says; ``doing`` names the step it met."""
    return fail(name, f"{doing}: {fault.message}" if doing else fault.message, fault.fix, code=fault.code)


async def run_checks(context: Context, checks: Sequence[Check]) -> AsyncIterator[CheckResult]:
    """Run ``checks`` in order and yield their lines as they come."""
    broken: set[str] = set()
    for check in checks:
        missing = next((name for name in check.needs if name in broken), None)
        if missing:
            broken.add(check.name)
            yield CheckResult(check.name, Outcome.SKIPPED, f"needs {missing}", remote=check.remote)
            continue
        async with aclosing(_lines(check, context)) as lines:
            async for result in lines:
                if result.outcome is Outcome.FAIL:
                    broken.add(check.name)
                yield replace(result, remote=check.remote)


async def _lines(check: Check, context: Context) -> AsyncGenerator[CheckResult, None]:
    try:
        async for result in check.run(context):
            yield result
    except Fault as fault:
        yield failed(check.name, fault)


def exit_code(results: Iterable[CheckResult]) -> ExitCode:
    """Return ``DONE`` when nothing failed, ``USAGE`` when something on this machine did, else ``UNAVAILABLE``."""
    bad = [result for result in results if result.outcome is Outcome.FAIL]
    if not bad:
        return ExitCode.DONE
    return ExitCode.UNAVAILABLE if all(result.remote for result in bad) else ExitCode.USAGE
