"""Clocks that disagree, found where an effect claims to be earlier than its cause. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from ..ledger import Accepted, Fact, Origin
from .model import Delivery, End, SignalTrace, Skew

_NOTICEABLE = 0.001  # seconds; below that, the time between the event and its recording explains it


def skews(root: SignalTrace) -> tuple[Skew, ...]:
    """Return the disagreements in a trace, the largest of each pair of hosts, largest first."""
    found: dict[tuple[str, str], float] = {}
    for cause, effect in _causes(root):
        behind = _began(cause) - effect.at
        if behind > _NOTICEABLE:
            pair = (place(cause.origin), place(effect.origin))
            found[pair] = max(found.get(pair, 0.0), behind)
    largest = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Skew(early=early, late=late, seconds=seconds) for (early, late), seconds in largest)


def _began(fact: Fact) -> float:
    """Return when what a fact tells began: a signal may be handled before its publisher hears that it is stored."""
    if isinstance(fact.step, Accepted) and fact.step.seconds is not None:
        return fact.at - fact.step.seconds
    return fact.at


def place(origin: Origin) -> str:
    """Return where a recorder runs, as far as it said."""
    return origin.host or origin.name or origin.session


def _causes(root: SignalTrace) -> Iterator[tuple[Fact, Fact]]:
    """Yield pairs of facts, the first of which must have come before the second."""
    pending = [root]
    while pending:
        signal = pending.pop()
        pending.extend(signal.children)
        for child in signal.children:
            yield from _pairs(signal.published, child.published)
        for delivery in signal.deliveries:
            yield from _within(delivery, signal.published)
        if signal.reply is not None:
            yield from _pairs(signal.published, signal.reply.answered, signal.reply.received)


def _pairs(*told: Fact | None) -> Iterator[tuple[Fact, Fact]]:
    return pairwise(fact for fact in told if fact is not None)


def _within(delivery: Delivery, published: Fact | None) -> Iterator[tuple[Fact, Fact]]:
    """An attempt begins after any of a lower number, or the publication; runs of one number may overlap."""
    number, earlier, latest = 0, published, published
    for attempt in delivery.attempts:
        if attempt.replay:
            earlier = delivery.replays[attempt.replay - 1]
        elif attempt.number > number:
            number, earlier = attempt.number, latest
        # Who reports the loss of a session may take its time, or have a clock of its own.
        ended = None if attempt.end is End.LOST else attempt.ended
        yield from _pairs(earlier, attempt.began or ended, ended if attempt.began else None)
        latest = (ended if attempt.end is End.RETRIED else None) or attempt.began or latest
