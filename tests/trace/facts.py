"""Facts for tests, told by a few recorders with clocks of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from signalbus.ledger import Batch, Fact, Origin
from signalbus.ledger.facts import Step, to_row


class About(TypedDict):
    """What all facts about a signal say."""

    signal: str
    type: str


class Published(About):
    """What all facts about a publication say."""

    source: str
    causationid: str | None
    subject: str | None


class At(About):
    """What all facts about a delivery say."""

    subscription: str


class AtAttempt(At):
    """What facts about an attempt say."""

    attempt: int
    crashes: int


NOON = 1_767_268_800.0  # 2026-01-01 12:00:00 UTC


class Teller:
    """One process with a recorder; ``skew``: seconds that its clock is ahead."""

    def __init__(self, name: str, host: str, pid: int, *, skew: float = 0.0, level: str = "all") -> None:
        self.origin = Origin(recorder=f"r-{name}", session=f"s-{name}", name=name, host=host, pid=pid, level=level)
        self.facts: list[Fact] = []
        self._skew = skew

    def tell(self, seconds: float, step: Step) -> Fact:
        """Record a step, so many seconds after noon."""
        sequence = len(self.facts) + 1
        fact = Fact(origin=self.origin, sequence=sequence, at=round(NOON + seconds + self._skew, 6), step=step)
        self.facts.append(fact)
        return fact

    def batch(self, dropped: int = 0) -> Batch:
        """Return all facts as one batch."""
        return batch_of(self.facts, dropped)


def batch_of(facts: Sequence[Fact], dropped: int = 0) -> Batch:
    """Return facts of one recorder, without holes in their numbers, as a batch."""
    rows = [to_row(fact.at, fact.step) for fact in facts]
    return Batch(origin=facts[0].origin, first=facts[0].sequence, rows=rows, dropped=dropped)
