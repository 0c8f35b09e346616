"""What this process holds: deliveries claimed for its consumers. Touched by the writer thread, except where noted."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..base import Incoming


class Claim:
    """One delivery in our hands; `Incoming.handle` of this broker.

    ``settled`` belongs to the event loop: it makes the second settlement a no-op.
    """

    __slots__ = ("claimant", "session", "settled", "shared", "signal", "subscription")

    def __init__(self, claimant: Claimant, subscription: int, session: int, signal: int, shared: bool) -> None:
        self.claimant = claimant
        self.subscription = subscription
        self.session = session
        self.signal = signal
        self.shared = shared  # the signal went to other subscriptions as well
        self.settled = False


@dataclass(slots=True, eq=False)
class Claimant:
    """The writer thread's side of a consumer. ``sink`` takes its deliveries, on the event loop."""

    name: str
    prefetch: int
    sink: Callable[[Sequence[Incoming]], None]
    subscription: int = 0  # 0 while no subscription has that name
    unsettled: dict[int, Claim] = field(default_factory=dict[int, Claim])

    @property
    def credit(self) -> int:
        """How many more deliveries it may hold."""
        return self.prefetch - len(self.unsettled)


@dataclass(frozen=True, slots=True)
class Batch:
    """Deliveries claimed by one committed statement, still to be read."""

    subscription: int
    session: int
    number: int
    claimants: tuple[Claimant, ...]


def deal(claimants: Sequence[Claimant], rows: int) -> list[Claimant]:
    """Return who gets each of ``rows`` deliveries: the least loaded first, as far as their credit goes."""
    if len(claimants) == 1:
        return [claimants[0]] * rows
    dealt: list[Claimant] = []
    load = [(len(claimant.unsettled), number, claimant) for number, claimant in enumerate(claimants)]
    heapq.heapify(load)
    while load and len(dealt) < rows:
        held, number, claimant = load[0]
        if held >= claimant.prefetch:
            heapq.heappop(load)
            continue
        dealt.append(claimant)
        heapq.heapreplace(load, (held + 1, number, claimant))
    return dealt
