"""Clocks that disagree, found where an effect claims to be earlier than its cause. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from ..ledger import Fact, Origin
from .model import Delivery, End, SignalTrace, Skew

_NOTICEABLE = 0.001  # seconds; below that, the time between the event and its recording explains it


def skews(root: SignalTrace) -> tuple[Skew, ...]:
    """Return the disagreements in a trace, the largest of each pair of hosts, largest first."""
    found: dict[tuple[str, str], float] = {}
    for cause, effect in _causes(root):
        behind = cause.at - effect.at
        if behind > _NOTICEABLE:
            pair = (place(cause.origin), place(effect.origin))
            found[pair] = max(found.get(pair, 0.0), behind)
    largest = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Skew(early=early, late=late, seconds=seconds) for (early, late), seconds in largest)


def place(origin: Origin) -> str:
    """Return where a recorder runs, as far as it said."""
    return origin.host or origin.name or origin.session


def _causes(root: SignalTrace) -> Iterator[tuple[Fact, Fact]]:
    """Yield pairs of facts, the first of which must have come before the second."""
    pending = [root]
    while pending:
        signal = pending.pop()
        pending.extend(signal.children)
        if signal.published is None:
            continue
        for child in signal.children:
            if child.published is not None:
                yield signal.published, child.published
        for delivery in signal.deliveries:
            yield from _within(delivery, signal.published)
        if signal.reply is not None:
            ends = (signal.published, signal.reply.answered, signal.reply.received)
            facts = [fact for fact in ends if fact is not None]
            yield from pairwise(facts)


def _within(delivery: Delivery, published: Fact) -> Iterator[tuple[Fact, Fact]]:
    previous = published
    for attempt in delivery.attempts:
        for fact in (attempt.began, attempt.ended):
            if fact is None or (fact is attempt.ended and attempt.end is End.LOST):
                continue  # who reports the loss may take its time
            yield previous, fact
        if attempt.ended is not None and attempt.end is not End.LOST:
            previous = attempt.ended
