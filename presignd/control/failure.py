"""Expected failures as the control socket carries them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from presignd.errors import ExitCode, PresigndError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Answered(PresigndError):
    """A failure that a daemon answered with: its code, words and exit code are kept."""

    def __init__(self, code: str, message: str, *, fix: str, exit_code: int, problems: tuple[str, ...]) -> None:
        super().__init__(message, fix=fix)
        self.code = code
        self.exit_code = exit_code
        self.problems = problems


def failure(error: PresigndError) -> dict[str, Any]:
    """Render a failure: ``{"error": {"code", "message", "fix", "exit", "problems"}}``."""
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "fix": error.fix,
            "exit": error.exit_code,
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
        exit_code=int(found.get("exit", ExitCode.UNAVAILABLE)),
        problems=tuple(map(str, found.get("problems", ()))),
    )
