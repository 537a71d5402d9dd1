"""``presignd put -``: upload standard input as it comes, and print its link."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any, Self

from presignd.cli import bars, loop, put
from presignd.cli.ask import asking
from presignd.errors import PresigndError, Refused, UsageError, reason_of
from presignd.runtime import frames

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STDIN = 0


def check_name(name: str) -> None:
    """Raise ``UsageError`` unless ``name`` can be the name of a file."""
    if not name:
        raise UsageError("put: standard input has no name", fix="give it one: presignd put - --name NAME")
    if "/" in name or name in (".", ".."):
        raise UsageError("put: --name: give the name of a file, without folders", fix="--key takes a whole key")
    with contextlib.suppress(UnicodeEncodeError):
        name.encode()
        return
    raise UsageError("put: --name is no UTF-8", fix="give another name")


async def put_stdin(name: str, request: Mapping[str, Any], config: Path | None, *, as_json: bool) -> int:
    """Upload standard input as ``request`` says and print its link; return the exit code.

    Ctrl-C and SIGTERM abort the upload.
    """
    with loop.cleaning_up_on_sigterm():
        async with asking(config, work=True) as asker:
            with bars.progress(bars.BYTES) as progress:
                try:
                    with put.bar(progress, name, None) as report, _Forwarded(STDIN) as forwarded:
                        asked = {**request, "op": "put_stream", "name": name}
                        outcome: put.LinkOrError = await put.link_of(asker, asked, forwarded.fd, report)
                except PresigndError as error:
                    outcome = error
                with bars.hidden(progress):
                    return put.print_outcome(f"/dev/stdin/{name}", outcome, as_json=as_json)


class _Forwarded:
    """Sends what a descriptor reads to a socket, in frames; ``fd`` is the other end, for the reader.

    This is done in a thread, which can read a file, a terminal and a pipe alike; the process doesn't wait for it.
    """

    def __init__(self, source: int) -> None:
        self._source = source
        self._failed: OSError | None = None

    def __enter__(self) -> Self:
        self._ours, self._theirs = socket.socketpair()
        self.fd = self._theirs.fileno()
        threading.Thread(target=self._forward, name="standard input", daemon=True).start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Raise ``Refused`` if the descriptor could not be read: the reader only found no end mark."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)  # wakes the thread, if it waits to send
        self._theirs.close()
        if self._failed and isinstance(error, PresigndError):
            raise _unreadable(self._failed) from None

    def _forward(self) -> None:
        with self._ours:
            try:
                frames.send(self._source, self._ours)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the reader has ended, and reports why
            except OSError as error:
                self._failed = error


def _unreadable(error: OSError) -> Refused:
    return Refused(f"put: standard input: {reason_of(error)}", fix="give it a pipe or a file to read")
