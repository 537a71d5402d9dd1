"""Every expected failure: its fixed code, its cause and fix, how it is handled, and its exit code.

The class of a fault decides how it is handled: wait for the store or the watch, retry the file, request a new grant,
let the file settle again, or quarantine it. ``CODES`` is the one table of codes, and ``docs/errors.md`` is tested
against it; ``ExitCode`` is the one table of exit codes. No message here ever holds a URL or a credential.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
"""The system's errors that are ``too_many_files``."""

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The system's errors that are ``disk_full``."""

LONGEST_PAUSE = 3600.0
"""The longest pause between two tries in seconds, whatever a store requests. A stored time further ahead than this was
written by a wrong clock."""


class ExitCode(IntEnum):
    """The exit codes of every command. Each expected failure carries its own as ``exit_code``."""

    DONE = 0
    """Done; for ``run``, a clean drain on SIGTERM or SIGINT."""
    BUG = 1
    """An unexpected failure: with its traceback, redacted."""
    USAGE = 2
    """Wrong usage or configuration: every problem is listed, each with its key."""
    UNAVAILABLE = 3
    """The store or the presigner can't be reached or refuses, or a lock is held; trying later may work."""
    REFUSED = 4
    """A file is quarantined, missing or refused, or differs from its object."""
    PENDING = 5
    """Still pending when the timeout ran out."""
    INTERRUPTED = 130
    """Ctrl-C; not for ``run``."""


def worst(codes: Collection[int]) -> int:
    """Return the exit code of a command whose files ended with these: a refused file counts most, a wait least."""
    by_weight = (ExitCode.REFUSED, ExitCode.UNAVAILABLE, ExitCode.PENDING)
    return next((code for code in by_weight if code in codes), max(codes, default=ExitCode.DONE))


class PresigndError(Exception):
    """An expected failure: one line for the user, never a traceback."""

    code = "internal_error"
    exit_code: int = ExitCode.UNAVAILABLE

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class UsageError(PresigndError):
    """Wrong usage or configuration; ``problems`` lists each with its key."""

    code = "config"
    exit_code = ExitCode.USAGE

    def __init__(self, message: str, *, problems: tuple[str, ...] = (), fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.problems = problems


class NotConfigured(UsageError):
    """There is no configuration at all, neither in a file nor in the environment."""


class Unavailable(PresigndError):
    """Something that is needed can't be reached or taken now: a daemon, a lock, the store."""

    code = "unavailable"


class LedgerLost(PresigndError):
    """The ledger's file was removed or replaced while the daemon runs: what it writes is lost.

    Waiting does not help; the next start makes a new ledger.
    """

    code = "ledger_lost"


class Refused(PresigndError):
    """A file is quarantined, missing or refused."""

    code = "refused"
    exit_code = ExitCode.REFUSED


class TimedOut(PresigndError):
    """Still pending when the caller's time ran out."""

    code = "pending"
    exit_code = ExitCode.PENDING


class Fault(PresigndError):
    """A failure of one request or file; the subclass decides how it is handled."""

    def __init__(self, code: str, detail: str = "", *, retry_after: float | None = None) -> None:
        entry = CODES[code]
        super().__init__(f"{entry.cause}: {detail}" if detail else entry.cause, fix=entry.fix)
        self.code = code
        self.detail = detail
        self.number = 0
        """The system's errno, 0 for none (``system_fault``)."""
        self.retry_after = None if retry_after is None else min(retry_after, LONGEST_PAUSE)


class StoreFault(Fault):
    """The store is unreachable or fails: all its watches wait for one probe, unless that of another bucket succeeds."""


class WatchFault(Fault):
    """The store answers and refuses the watch as a whole: the watch waits for one probe."""


class BucketFault(WatchFault):
    """The store can't do what the watch's bucket or headers require, for any key: the watch waits for its probe."""


class PresignerFault(Fault):
    """The presign component can't be reached or has no credentials now: wait and try again."""


class GrantFault(Fault):
    """The grant expired, or was refused as expired: request a new one at once."""


class RetryFault(Fault):
    """A temporary fault of this file: retry with backoff, ``attempts`` times."""


class ChangedFault(Fault):
    """The file changed since it settled: it settles again."""


class FileFault(Fault):
    """The file can't be uploaded until a person acts: quarantine."""

    exit_code = ExitCode.REFUSED


def passing(error: PresigndError | OSError) -> Fault | None:
    """Return the fault that is not the file's and that passes by itself; None for any other error.

    Too many files are open, a disk is full, or a handle is stale (ESTALE, on NFS) though the file may be there.
    """
    if lacks_descriptors(error):
        return fault("too_many_files")
    number = error.errno if isinstance(error, OSError) else getattr(error, "number", 0)
    if number in NO_SPACE:
        return fault("disk_full")
    return fault("read_error", os.strerror(number)) if number == errno.ESTALE else None


def lacks_descriptors(error: PresigndError | OSError) -> bool:
    """Return whether the reason is too many open files: then nothing is known about the file itself."""
    return error.errno in NO_DESCRIPTORS if isinstance(error, OSError) else error.code == "too_many_files"


def reason_of(error: OSError) -> str:
    """Return the system's message for an error, without paths."""
    return error.strerror or type(error).__name__


@dataclass(frozen=True, slots=True)
class Code:
    """One row of ``CODES``: the class of its faults, and cause and fix for the user."""

    kind: type[Fault]
    cause: str
    fix: str


CODES: dict[str, Code] = {
    # The store is unreachable or fails.
    "connection_refused": Code(
        StoreFault, "nothing listens at the endpoint", "start the store, or correct presign.endpoint's host and port"
    ),
    "connection_reset": Code(
        StoreFault, "the connection broke off", "check the store, and proxies on the way to it; presignd tries again"
    ),
    "no_route": Code(StoreFault, "the endpoint can't be reached", "check routes and firewalls on the way to it"),
    "dns": Code(
        StoreFault, "the endpoint's name does not resolve", "correct presign.endpoint, or the machine's DNS settings"
    ),
    "tls": Code(
        StoreFault,
        "the TLS handshake failed",
        "set presign.ca_file for a private CA, renew the certificate, or use http:// for a plain port",
    ),
    "timeout": Code(
        StoreFault, "no progress within upload.timeout", "check the network and the store, or raise upload.timeout"
    ),
    "proxy": Code(StoreFault, "the proxy refused or failed", "correct presign.proxy, HTTPS_PROXY or NO_PROXY"),
    "slow_down": Code(StoreFault, "the store asks to slow down", "wait; if it goes on, lower upload.concurrency"),
    "server_error": Code(
        StoreFault, "the store reports an internal error (5xx)", "look at the store's log; presignd tries again"
    ),
    "bad_response": Code(
        StoreFault,
        "the answer is not an S3 answer",
        "make sure presign.endpoint is the S3 port, not a console or a website",
    ),
    # The store refuses the watch as a whole.
    "access_denied": Code(
        WatchFault,
        "the store denies access (403)",
        "allow the key s3:PutObject and s3:GetObject on the bucket, for the check object .presignd-check too",
    ),
    "signature_mismatch": Code(
        WatchFault,
        "the signature does not match (403)",
        "correct presign.access_key and presign.secret_key, or the broker's (Swift reports an unknown access key as "
        "this, too); if a proxy rewrites Host, set presign.public_endpoint",
    ),
    "invalid_access_key": Code(
        WatchFault,
        "the store does not know the access key (403)",
        "correct presign.access_key, or the broker's",
    ),
    "account_suspended": Code(
        WatchFault,
        "the store has suspended the user that this key belongs to (403)",
        "have the store's administrator enable that user again, or use another user's key",
    ),
    "expired_credentials": Code(
        WatchFault, "the signing credential has expired", "renew it; presignd picks up the new one by itself"
    ),
    "no_such_bucket": Code(WatchFault, "the bucket does not exist (404)", "create it, or correct the watch's bucket"),
    "clock_skew": Code(
        WatchFault, "this machine's clock and the store's differ too much", "synchronise the clock (NTP)"
    ),
    "wrong_region": Code(WatchFault, "the bucket is in another region", "set presign.region, or leave it empty to ask"),
    "redirected": Code(
        WatchFault, "the store redirects elsewhere", "set presign.endpoint and presign.region to what it names"
    ),
    # The store can't do what the watch requires.
    "store_full": Code(BucketFault, "the store is full", "free space in the store, or raise its quota"),
    "not_implemented": Code(
        BucketFault,
        "the store does not implement this (501)",
        "remove the header that the message names from the watch's headers, or use a store that supports it",
    ),
    # The presign component.
    "presigner_unreachable": Code(
        PresignerFault, "the presign component can't be reached", "check its address, and that it runs"
    ),
    "no_credentials": Code(
        PresignerFault,
        "no credentials were found",
        "set presign.access_key and presign.secret_key (or secret_key_file), AWS_* or a shared credentials file",
    ),
    "token_refused": Code(
        PresignerFault,
        "the broker refuses the token",
        "put a valid one into presign.token_file and reload; `presignd broker token create` makes one",
    ),
    "presigner_busy": Code(
        PresignerFault,
        "the broker asks to slow down",
        "wait; if it goes on, have the token's rate raised at the broker",
    ),
    "bad_broker": Code(
        PresignerFault,
        "the server at presign.url is not a presignd broker",
        "correct presign.url (redirects are not followed), and check proxies on the way to it",
    ),
    "wrong_grant": Code(
        PresignerFault,
        "the broker signed another request than it was asked for",
        "set presign.endpoint, public_endpoint and addressing as in the broker's [store]; if they are equal, do not "
        "trust it",
    ),
    "not_allowed": Code(
        WatchFault,
        "the broker's token does not allow this",
        "correct the watch's bucket and key, or have the token's bucket and operations changed at the broker",
    ),
    "no_stable_links": Code(
        WatchFault,
        "there are no stable links here",
        'use presign.kind = "broker" with a broker that has [links] url, and a token with the operations link and get; '
        'or set the watch\'s links to "presigned"',
    ),
    "no_inbox": Code(
        PresignerFault,
        "the broker has no such invitation for this token",
        "correct the inbox's invitation, or have the token's operations (receive, get), bucket or prefix changed at "
        "the broker",
    ),
    # A grant.
    "expired_grant": Code(
        GrantFault, "the presigned request expired before the store handled it", "none: presignd asks for a new one"
    ),
    # Temporary faults of the file.
    "bad_digest": Code(
        RetryFault,
        "the store received other bytes than were sent",
        "none: presignd sends it again; if it goes on, test memory and network",
    ),
    "missing_object": Code(
        RetryFault, "the object is gone after the store accepted it", "check the store's lifecycle rules and its log"
    ),
    "upload_lost": Code(
        RetryFault,
        "the store lost the multipart upload",
        "none: presignd begins again; if it goes on, check the store's lifecycle rules",
    ),
    "rejected": Code(RetryFault, "the store rejected this request", "see the status and S3 code in the message"),
    "precondition_failed": Code(
        RetryFault, "the object changed between the check and the upload", "none: presignd checks again"
    ),
    "read_error": Code(RetryFault, "reading the file failed", "look at the disk (dmesg)"),
    "too_many_files": Code(
        RetryFault,
        "this process or machine has too many files open",
        "raise the limit (LimitNOFILE= in the unit, ulimit -n, sysctl fs.file-max); presignd tries again",
    ),
    "disk_full": Code(RetryFault, "the disk is full", "free disk space; presignd tries again"),
    "links_failed": Code(
        RetryFault,
        "the links file can't be written",
        "let the daemon's user write links.file and its folder; presignd tries again",
    ),
    "webhook_failed": Code(
        RetryFault,
        "the receiver of a webhook did not take a message",
        "look at the receiver, and try it: presignd webhook test NAME (at a broker: presignd broker webhook test "
        "NAME); presignd tries again for three days",
    ),
    "webhook_gone": Code(
        RetryFault,
        "the receiver of a webhook answered 410 (gone), so the webhook is off",
        "remove the webhook, or, if its receiver is there again: presignd webhook enable NAME (at a broker: presignd "
        "broker webhook enable NAME)",
    ),
    "inbox_failed": Code(
        RetryFault,
        "the inbox's folder can't be written",
        "make the folder, and give the daemon's user write permission on it and on the folders in it (under systemd "
        "also ReadWritePaths=, see docs/inbox.md); presignd tries again",
    ),
    "wrong_bytes": Code(
        RetryFault,
        "the object holds other bytes than were received",
        "look at the object, and ask the sender for it again; it stays on the broker's list, and presignd tries again, "
        "at most an hour apart",
    ),
    # The file changed.
    "changed_while_uploading": Code(
        ChangedFault, "the file changed while it was read", "none: presignd uploads it once it no longer changes"
    ),
    # A person has to act.
    "unreadable": Code(
        FileFault, "the file can't be read", "give the daemon's user read permission, then run presignd retry"
    ),
    "too_large": Code(
        FileFault, "the file is larger than what can be stored", "raise the watch's max_size, or split the file"
    ),
    "stream_lost": Code(
        FileFault,
        "what put - read from its standard input is lost: it can't be read again",
        "run the command again, with what writes into it",
    ),
    "body_limit": Code(
        FileFault,
        "a proxy before the store refuses a body of this size (413)",
        "raise the proxy's limit (nginx: client_max_body_size), or set upload.multipart_threshold and part_size below "
        "it",
    ),
    "key_refused": Code(
        FileFault,
        "the file's name can't be made into a storable key",
        "rename it, or change the key template (no //, backslash, dot segments, control characters; UTF-8; 1024 bytes)",
    ),
    "key_taken": Code(
        FileFault,
        "another file of this ledger has that key",
        'give the watch a key template that keeps them apart, e.g. "{path}", or set collision = "rename"',
    ),
    "exists": Code(
        FileFault, "the key holds another object", 'remove that object, or set collision to "update" or "overwrite"'
    ),
    "grant_refused": Code(
        FileFault,
        "the presign component refuses this request",
        "the message names what it refuses (a header, a checksum, an expiry): correct that in the watch",
    ),
    "outside_prefix": Code(
        FileFault,
        "the key is outside what the broker's token may write",
        'begin the watch\'s key with "{prefix}", then run presignd retry',
    ),
    "finish_failed": Code(
        FileFault,
        "the file is uploaded, but could not be moved or deleted",
        "make move_to (or the folder) writable, then run presignd retry",
    ),
    "internal_error": Code(
        FileFault,
        "a bug in presignd stopped this file",
        "report it with the traceback from the log; presignd retry tries the file again",
    ),
}


def system_fault(code: str, error: OSError) -> Fault:
    """Return the fault ``code`` with the system's message and errno."""
    made = fault(code, reason_of(error))
    made.number = error.errno or 0
    return made


def fault(code: str, detail: str = "", *, retry_after: float | None = None) -> Fault:
    """Return a fault of the class that ``CODES`` gives for ``code``.

    ``detail`` goes to the user and the log: it must hold no URL. ``retry_after`` is in seconds.
    """
    return CODES[code].kind(code, detail, retry_after=retry_after)
