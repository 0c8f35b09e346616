"""What a publisher gets back. Imports nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class Outcome(StrEnum):
    """What became of a signal at one subscription, as far as its publisher knows."""

    ACKED = "acked"  # its handler returned
    DEAD = "dead"  # it was given up, and is a dead letter
    PENDING = "pending"  # not known to be settled


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionOutcome:
    """What became of a signal at one subscription. ``session`` settled it; ``detail`` says why it is dead."""

    subscription: str
    outcome: Outcome
    session: str = ""
    detail: str = ""


class Receipt(NamedTuple):
    """Proof that a signal is stored. ``routed`` is False only if nobody subscribes and that was allowed.

    ``attempts`` counts the sends it took; above 1, subscribers may see a duplicate with the same ``id``.
    ``subscriptions`` has what became of it, by name; filled by ``publish(until="acked")`` only.
    """

    # A tuple is made in a quarter of the time of a frozen dataclass; each publish returns one.

    id: str
    type: str
    stored_at: datetime
    routed: bool = True
    attempts: int = 1
    subscriptions: tuple[SubscriptionOutcome, ...] = ()

    @property
    def acked(self) -> bool:
        """Whether every subscription is known to have acked it."""
        return bool(self.subscriptions) and all(each.outcome is Outcome.ACKED for each in self.subscriptions)
