"""What all sessions did, made of what each says of itself from look to look. Pure.

A lower bound: what a session did between the last look and its end nobody told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..brokers.base import SessionStatus
from ..sessions import SessionReport, decode_report

PUBLISHED = "published"
OUTCOMES = ("delivered", "acked", "failed")
SUBSCRIPTIONS = 500  # that are counted each for itself
OTHERS = "(others)"

#: What a session counted: signals it published, and deliveries by subscription and outcome.
Counts = Counter[tuple[str, str]]
_PUBLISHED = (PUBLISHED, "")


@dataclass(slots=True)
class Tally:
    """Sums since the first look. ``rates``: a second, over the time between the last two looks; None before."""

    totals: Counts = field(default_factory=Counts)
    rates: dict[str, float] | None = None
    _seen: dict[str, Counts] = field(default_factory=dict[str, Counts])
    _names: set[str] = field(default_factory=set[str])
    _at: float | None = None

    def look(self, sessions: Sequence[SessionStatus], now: float) -> None:
        """Take in what sessions say at a time, in seconds that only grow."""
        told = {status.info.id: status.report for status in sessions}
        seen: dict[str, Counts] = {}
        grown = Counts()
        for session, report in told.items():
            before = self._seen.get(session)
            if report is None:  # it does not answer: it goes on from where it was
                seen[session] = before if before is not None else Counts()
                continue
            counts = seen[session] = _counts(decode_report(report))
            if self._at is not None:
                grown += counts - before if before is not None else counts
        self._seen = seen
        self._add(grown, now)

    def _add(self, grown: Counts, now: float) -> None:
        for (name, subscription), count in grown.items():
            self.totals[name, self._counted_as(subscription)] += count
        if self._at is not None and now > self._at:
            sums = Counter[str]()
            for (name, _), count in grown.items():
                sums[name] += count
            self.rates = {name: sums[name] / (now - self._at) for name in (PUBLISHED, *OUTCOMES)}
        self._at = now

    def _counted_as(self, subscription: str) -> str:
        """Return a name to count under: those that come late share one, as there may be any number of them."""
        if subscription not in self._names and len(self._names) >= SUBSCRIPTIONS:
            return OTHERS
        self._names.add(subscription)
        return subscription


def _counts(report: SessionReport) -> Counts:
    counts = Counts({_PUBLISHED: report.published})
    for service in report.subscriptions:
        told = (service.received, service.acked, service.failed)
        for outcome, count in zip(OUTCOMES, told, strict=True):
            counts[outcome, str(service.name)] += _number(count)
    return counts


def _number(told: object) -> int:
    return told if isinstance(told, int) else 0  # another session's word: it may be anything
