"""What a publisher gets back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from .setters import setters


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


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class Receipt:
    """Proof that a signal is stored. ``routed`` is False only if nobody subscribes and that was allowed.

    ``attempts`` counts the sends it took; above 1, subscribers may see a duplicate with the same ``id``.
    ``subscriptions`` has what became of it, by name; filled by ``publish(until="acked")`` only.
    """

    id: str
    type: str
    stored_at: datetime
    routed: bool = True
    attempts: int = 1
    subscriptions: tuple[SubscriptionOutcome, ...] = ()

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - the attribute's name
        type: str,  # noqa: A002 - the attribute's name
        stored_at: datetime,
        routed: bool = True,
        attempts: int = 1,
        subscriptions: tuple[SubscriptionOutcome, ...] = (),
    ) -> None:
        _set_id(self, id)
        _set_type(self, type)
        _set_stored_at(self, stored_at)
        _set_routed(self, routed)
        _set_attempts(self, attempts)
        _set_subscriptions(self, subscriptions)

    @property
    def acked(self) -> bool:
        """Whether every subscription is known to have acked it."""
        return bool(self.subscriptions) and all(each.outcome is Outcome.ACKED for each in self.subscriptions)


_set_id, _set_type, _set_stored_at, _set_routed, _set_attempts, _set_subscriptions = setters(Receipt)
