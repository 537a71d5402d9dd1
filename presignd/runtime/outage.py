"""What holds up a part of this machine, such as a full disk: waited for, and told once each way."""

from __future__ import annotations

from typing import Literal

from presignd.errors import PresigndError
from presignd.system.clock import utcnow
from presignd.telemetry.log import get_logger


class Trouble:
    """Says ``PART.blocked`` when it begins and ``PART.unblocked`` at its end, however many meet it meanwhile.

    ``problem`` is what was met last, None while all is well; ``since`` (UTC) is when it began.
    """

    def __init__(self, part: Literal["ledger", "links"]) -> None:
        self.part: Literal["ledger", "links"] = part
        self.problem: PresigndError | None = None
        self.since = utcnow()
        self._log = get_logger()

    def met(self, problem: PresigndError) -> None:
        """Note a problem, and tell it where it is the first."""
        if self.problem is None:
            self.since = utcnow()
            self._log.error(f"{self.part}.blocked", error_code=problem.code, error=problem.message, fix=problem.fix)
        self.problem = problem

    def over(self) -> None:
        """Note that it works, and tell it where it did not."""
        if self.problem is not None:
            self._log.info(f"{self.part}.unblocked")
        self.problem = None
