"""An outage of a part of this machine, such as a full disk: logged when it begins and when it ends."""

from __future__ import annotations

from typing import Literal

from presignd.errors import PresigndError
from presignd.system.clock import utcnow
from presignd.telemetry.log import get_logger


class Trouble:
    """Logs ``PART.blocked`` at the first problem and ``PART.unblocked`` at the end, and nothing in between.

    ``problem`` is the latest one, None while there is none; ``since`` (UTC) is when the first one was met. ``name``
    identifies one of several parts of a kind.
    """

    def __init__(self, part: Literal["ledger", "links", "inbox"], name: str = "") -> None:
        self.part: Literal["ledger", "links", "inbox"] = part
        self.name = name
        self._named = {part: name} if name else {}
        self.problem: PresigndError | None = None
        self.since = utcnow()
        self._log = get_logger()

    def met(self, problem: PresigndError) -> None:
        """Note a problem, and log the first."""
        if self.problem is None:
            self.since = utcnow()
            self._log.error(
                f"{self.part}.blocked", **self._named, error_code=problem.code, error=problem.message, fix=problem.fix
            )
        self.problem = problem

    def over(self) -> None:
        """Note that the part works, and log the end of a problem."""
        if self.problem is not None:
            self._log.info(f"{self.part}.unblocked", **self._named)
        self.problem = None
