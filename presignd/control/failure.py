"""Expected failures as the control socket carries them, and the exit code each ends a command with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from presignd.errors import FileFault, PresigndError, Refused, TimedOut, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

BUG, USAGE, UNAVAILABLE, REFUSED, PENDING = 1, 2, 3, 4, 5


class Answered(PresigndError):
    """A failure that a daemon answered with: its code, words and exit code are kept."""

    def __init__(self, code: str, message: str, *, fix: str, exit_code: int, problems: tuple[str, ...]) -> None:
        super().__init__(message, fix=fix)
        self.code = code
        self.exit_code = exit_code
        self.problems = problems


def exit_code(error: PresigndError) -> int:
    """Return the exit code of an expected failure; what may pass later (store, presigner, lock) is 3."""
    match error:
        case Answered():
            return error.exit_code
        case UsageError():
            return USAGE
        case Refused() | FileFault():
            return REFUSED
        case TimedOut():
            return PENDING
    return UNAVAILABLE


def failure(error: PresigndError) -> dict[str, Any]:
    """Render a failure: ``{"error": {"code", "message", "fix", "exit", "problems"}}``."""
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "fix": error.fix,
            "exit": exit_code(error),
            "problems": list(getattr(error, "problems", ())),
        }
    }


def raised(answer: Mapping[str, Any]) -> Answered | None:
    """Return the failure in ``answer``, None where it is none."""
    found = answer.get("error")
    if not isinstance(found, dict):
        return None
    return Answered(
        str(found.get("code", "unavailable")),
        str(found.get("message", "")),
        fix=str(found.get("fix", "")),
        exit_code=int(found.get("exit", UNAVAILABLE)),
        problems=tuple(map(str, found.get("problems", ()))),
    )
