"""Checks: their results, and running them in order. A check that needs a failed one is skipped."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from enum import StrEnum

from presignd.config import Config, WatchConfig
from presignd.errors import ExitCode, Fault
from presignd.pipeline.upload.bucket import Bucket
from presignd.store.signed import SignedStore, signed_store
from presignd.system.clock import utcnow


class Outcome(StrEnum):
    """The outcome of a check. Only FAIL makes the whole run fail; SKIPPED was not tried."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of output: what was checked, the outcome, the cause, the fix.

    ``code`` is one of ``errors.CODES`` if the store or the presigner gave it. ``remote``: the check is about these
    (exit 3), not about this machine (exit 2).
    """

    name: str
    outcome: Outcome
    detail: str
    fix: str = ""
    code: str = ""
    remote: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """The configuration, and the store with its presigner, which only remote checks use."""

    config: Config
    store: SignedStore

    def bucket(self, watch: WatchConfig) -> Bucket:
        """Return the bucket of ``watch``, as the daemon would use it."""
        return Bucket(watch, self.config.presign, self.config.upload, self.store)


@asynccontextmanager
async def context_of(config: Config) -> AsyncIterator[Context]:
    """Build the context; send nothing. Raises ``UsageError`` for unusable TLS files or credentials."""
    store = signed_store(config.presign, config.upload, clock=utcnow)
    try:
        yield Context(config, store)
    finally:
        await store.close()


@dataclass(frozen=True, slots=True)
class Check:
    """A check: a function that yields results. A ``Fault`` that it raises becomes a failed result.

    ``needs`` names the checks that must succeed first.
    """

    name: str
    run: Callable[[Context], AsyncIterator[CheckResult]]
    needs: tuple[str, ...] = ()
    remote: bool = False


def ok(name: str, detail: str) -> CheckResult:
    """Return the result of a part that works."""
    return CheckResult(name, Outcome.OK, detail)


def warn(name: str, detail: str, fix: str = "", *, code: str = "") -> CheckResult:
    """Return the result of a part that works less well than it could."""
    return CheckResult(name, Outcome.WARN, detail, fix, code)


def fail(name: str, detail: str, fix: str, *, code: str = "") -> CheckResult:
    """Return the result of a part that does not work, with what to do."""
    return CheckResult(name, Outcome.FAIL, detail, fix, code)


def failed(name: str, fault: Fault, *, doing: str = "") -> CheckResult:
    """Return the result for ``fault``; ``doing`` names the step that met it."""
    return fail(name, f"{doing}: {fault.message}" if doing else fault.message, fault.fix, code=fault.code)


def untried(name: str, fault: Fault) -> CheckResult:
    """Return the warning for a fact that could not be found out because of ``fault``."""
    return warn(name, f"could not be tried: {fault.message}", fault.fix, code=fault.code)


async def run_checks(context: Context, checks: Sequence[Check]) -> AsyncIterator[CheckResult]:
    """Run ``checks`` in order and yield their results as they come."""
    broken: set[str] = set()
    for check in checks:
        missing = next((name for name in check.needs if name in broken), None)
        if missing:
            broken.add(check.name)
            yield CheckResult(check.name, Outcome.SKIPPED, f"needs {missing}", remote=check.remote)
            continue
        async with aclosing(_results(check, context)) as results:
            async for result in results:
                if result.outcome is Outcome.FAIL:
                    broken.add(check.name)
                yield replace(result, remote=check.remote)


async def _results(check: Check, context: Context) -> AsyncGenerator[CheckResult, None]:
    try:
        async for result in check.run(context):
            yield result
    except Fault as fault:
        yield failed(check.name, fault)


def exit_code(results: Iterable[CheckResult]) -> ExitCode:
    """Return ``DONE`` if nothing failed, ``USAGE`` if something on this machine did, else ``UNAVAILABLE``."""
    bad = [result for result in results if result.outcome is Outcome.FAIL]
    if not bad:
        return ExitCode.DONE
    return ExitCode.UNAVAILABLE if all(result.remote for result in bad) else ExitCode.USAGE
