"""What went wrong, as an answer: a status and ``{error, advice, type}``, never a traceback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .. import errors
from ..ledger import LedgerError

RETRY_SECONDS = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """``error`` is one sentence with the cause, ``advice`` what to do next. ``details``: each wrong value, and why."""

    status: int
    error: str
    advice: str = ""
    type: str = ""
    details: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def fields(self) -> dict[str, object]:
        """Return the members of the JSON object."""
        told: dict[str, object] = {"error": self.error, "advice": self.advice, "type": self.type}
        if self.details:
            told["details"] = [{"where": where, "error": error} for where, error in self.details]
        return told


class Refused(Exception):
    """Raised to answer with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.error)
        self.problem = problem


#: Status of each error that may be met while a question is answered; the most derived class wins.
_STATUSES: dict[type[BaseException], tuple[int, str]] = {
    errors.SignalBusError: (500, "see the log of this process"),
    errors.ConfigError: (422, "correct the request; see /api/v1/openapi.json"),
    errors.NotPermitted: (503, "the broker refuses the user of this process: check its URL"),
    errors.BrokerError: (503, "try again; /readyz says what the trouble is"),
    errors.BusClosed: (503, "this process is stopping: try again"),
    LedgerError: (500, "the store may be damaged: check it with 'PRAGMA integrity_check'"),
    TimeoutError: (504, "ask for less, or try again; /readyz says what the trouble is"),
}


def problem_of(error: BaseException) -> Problem | None:
    """Return what to answer for an error that is expected; None for one that is a bug of ours."""
    for base in type(error).__mro__:
        if base in _STATUSES:
            status, advice = _STATUSES[base]
            text = str(error) or "no answer within the time that a request may take"
            retry = {"retry-after": RETRY_SECONDS} if status == 503 else {}
            return Problem(status=status, error=text, advice=advice, type=type(error).__name__, headers=retry)
    return None


def not_found(what: str, advice: str) -> Refused:
    """Return the refusal of something that is not there."""
    return Refused(Problem(status=404, error=what, advice=advice, type="NotFound"))
