"""``presignd check`` and ``presignd broker check``: one check for each part; each result has cause and fix.

folders → writing → inboxes → trust → writer check → events → inotify → ledger → credentials → invitations →
endpoint → certificate → clock →
buckets → webhooks → receivers
"""

from presignd.checks.base import Check, CheckResult, Context, Outcome, context_of, exit_code, fail, ok, run_checks, warn
from presignd.checks.buckets import check_buckets
from presignd.checks.endpoint import check_certificate, check_endpoint
from presignd.checks.inboxes import check_inboxes, check_invitations
from presignd.checks.local import (
    check_events,
    check_folders,
    check_inotify,
    check_ledger,
    check_writers,
    check_written,
    problem_result,
)
from presignd.checks.presigner import check_clock, check_credentials
from presignd.checks.trust import check_trust
from presignd.checks.webhooks import check_receivers, check_webhooks

__all__ = [
    "CHECKS",
    "CheckResult",
    "Context",
    "Outcome",
    "context_of",
    "exit_code",
    "fail",
    "local_checks",
    "ok",
    "problem_result",
    "run_checks",
    "warn",
]

CHECKS = (
    Check("folders", check_folders),
    Check("writing", check_written, needs=("folders",)),
    Check("inboxes", check_inboxes, needs=("folders",)),
    Check("trust", check_trust, needs=("folders",)),
    Check("writer check", check_writers, needs=("folders",)),
    Check("events", check_events, needs=("folders",)),
    Check("inotify", check_inotify, needs=("folders",)),
    Check("ledger", check_ledger),
    Check("credentials", check_credentials, remote=True),
    Check("invitations", check_invitations, needs=("credentials",), remote=True),
    Check("endpoint", check_endpoint, remote=True),
    Check("certificate", check_certificate, needs=("endpoint",), remote=True),
    Check("clock", check_clock, needs=("credentials", "endpoint", "certificate"), remote=True),
    Check("buckets", check_buckets, needs=("clock",), remote=True),
    Check("webhooks", check_webhooks),
    Check("receivers", check_receivers, needs=("webhooks",), remote=True),
)
"""Every check of a loaded configuration, in order."""


def local_checks() -> tuple[Check, ...]:
    """Return the checks that send nothing to other machines (``--offline``)."""
    return tuple(check for check in CHECKS if not check.remote)
