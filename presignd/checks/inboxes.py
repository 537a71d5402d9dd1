"""Check inboxes: whether their folders can be written, and whether the broker lists their invitations' files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from presignd.checks.base import CheckResult, Context, fail, failed, ok
from presignd.config import InboxConfig
from presignd.errors import CODES, Fault
from presignd.inbox.inboxes import broker_inbox


async def check_inboxes(context: Context) -> AsyncIterator[CheckResult]:
    """Make a file in each inbox's folder, and remove it."""
    for inbox in context.config.inboxes:
        yield await asyncio.to_thread(_written, inbox)


def _written(inbox: InboxConfig) -> CheckResult:
    name = f"inbox {inbox.name}"
    if os.access(inbox.path, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return ok(name, f"{inbox.path} can be written")
    return fail(name, f"{inbox.path} can't be written", CODES["inbox_failed"].fix, code="inbox_failed")


async def check_invitations(context: Context) -> AsyncIterator[CheckResult]:
    """Request each inbox's list from the broker, without acknowledging files."""
    for inbox in context.config.inboxes:
        yield await _listed(context, inbox)


async def _listed(context: Context, inbox: InboxConfig) -> CheckResult:
    name, broker = f"invitation {inbox.invitation}", broker_inbox(context.config, inbox)
    try:
        found, _ = await broker.arrived("0", 0)
    except Fault as problem:
        return failed(name, problem)
    finally:
        await broker.close()
    return ok(name, f"files that wait at the broker: {len(found)}")
