"""From facts to a trace: a signal, where it went, and what it caused. Pure.

Takes any facts in any order, some of them missing or told twice, and never raises. See `signalbus.trace.attempts` for
what may be inferred.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..ledger import Accepted, Delivered, Fact, Replied, ReplySide, Requested, SessionDown, SessionUp, Unroutable
from ..ledger.facts import DeliveryStep, Publication, SignalStep
from .attempts import Downs, delivery, steady
from .clocks import skews
from .model import Attempt, Delivery, End, Reply, SignalTrace, Trace

MAX_DEPTH = 50  # generations; a longer chain of causes is a loop that somebody built
MAX_SIGNALS = 2_000


def build(root: str, facts: Iterable[Fact]) -> Trace:
    """Return the trace of the signal ``root``. ``facts``: of it, of what it caused, and of sessions."""
    unique = {fact.id: fact for fact in facts}
    known = _Known(unique.values())
    generations, left_out = _reachable(root, known)
    made: dict[str, SignalTrace] = {}
    for signal in reversed(generations):
        outline = _signal(signal, known.facts[signal], known.downs)
        children = sorted((made[child] for child in generations[signal]), key=_by_time)
        made[signal] = replace(outline, children=tuple(_attributed(child, outline) for child in children))
    return Trace(
        root=made[root],
        skews=skews(made[root]),
        complete=all(fact.origin.complete for signal in generations for fact in known.facts[signal]),
        left_out=left_out,
    )


def outline(signal: str, facts: Iterable[Fact]) -> SignalTrace:
    """Return one signal without what it caused."""
    known = _Known({fact.id: fact for fact in facts}.values())
    return _signal(signal, known.facts[signal], known.downs)


@dataclass(slots=True)
class _Known:
    """Facts by what they are about."""

    facts: defaultdict[str, list[Fact]]
    downs: dict[str, Fact]
    caused: dict[str, list[str]]

    def __init__(self, facts: Iterable[Fact]) -> None:
        self.facts = defaultdict(list)
        self.downs = {}
        self.caused = {}
        causes: dict[str, str] = {}
        for fact in sorted(facts, key=lambda each: (each.origin.recorder, each.sequence)):
            step = fact.step
            if isinstance(step, SessionDown):
                self.downs.setdefault(step.session, fact)
            elif not isinstance(step, SessionUp):
                self.facts[step.signal].append(fact)
                if cause := _cause(step):
                    causes.setdefault(step.signal, cause)
        for signal, cause in causes.items():
            self.caused.setdefault(cause, []).append(signal)


def _cause(step: SignalStep) -> str | None:
    return step.causationid if isinstance(step, Publication | Delivered) else None


def _reachable(root: str, known: _Known) -> tuple[dict[str, list[str]], int]:
    """Return the signals of a trace, nearest first, each with its children; and how many were left out."""
    generations: dict[str, list[str]] = {root: []}
    current, depth, left_out = [root], 0, 0
    while current:
        following: list[str] = []
        for signal in current:
            for child in known.caused.get(signal, ()):
                if child in generations:
                    continue  # it caused itself, by what its publisher says
                if depth >= MAX_DEPTH or len(generations) >= MAX_SIGNALS:
                    left_out += 1
                    continue
                generations[child] = []
                generations[signal].append(child)
                following.append(child)
        current, depth = following, depth + 1
    return generations, left_out


def _signal(signal: str, facts: Sequence[Fact], downs: Downs) -> SignalTrace:
    times = steady(facts)
    ordered = sorted(facts, key=lambda fact: (times[fact.id], fact.origin.recorder, fact.sequence))
    published = _publication(ordered)
    found = SignalTrace(id=signal, type=_type(ordered), published=published, causationid=_causation(ordered))
    if published is not None and isinstance(step := published.step, Publication):
        found = replace(
            found,
            **{name: getattr(step, name) for name in _COPIED},
            causationid=step.causationid or found.causationid,
            unroutable=isinstance(step, Unroutable),
        )
    replied = [fact for fact in ordered if isinstance(fact.step, Replied)]
    return replace(
        found,
        request=bool(replied) or isinstance(published.step if published else None, Requested),
        reply=_reply(replied),
        deliveries=_deliveries(ordered, published, downs),
    )


_COPIED = ("source", "subject", "time", "correlationid", "traceparent", "data", "cut")


def _publication(ordered: Sequence[Fact]) -> Fact | None:
    """Return what was told first of its publication. Unroutable only if nothing shows that it went somewhere."""
    found = [fact for fact in ordered if isinstance(fact.step, Accepted | Requested)]
    elsewhere = any(isinstance(fact.step, DeliveryStep | Replied) for fact in ordered)
    if not found and not elsewhere:
        found = [fact for fact in ordered if isinstance(fact.step, Unroutable)]
    return found[0] if found else None


def _type(ordered: Sequence[Fact]) -> str:
    return next((fact.step.type for fact in ordered if isinstance(fact.step, SignalStep) and fact.step.type), "")


def _causation(ordered: Sequence[Fact]) -> str | None:
    return next((cause for fact in ordered if isinstance(fact.step, SignalStep) and (cause := _cause(fact.step))), None)


def _deliveries(ordered: Sequence[Fact], published: Fact | None, downs: Downs) -> tuple[Delivery, ...]:
    """Return what became of a signal where it was routed to, and where somebody told of it."""
    steps: dict[str, list[Fact]] = {}
    for fact in ordered:
        step = fact.step
        if isinstance(step, Accepted):
            for subscription in step.subscriptions or ():
                steps.setdefault(subscription, [])
        elif isinstance(step, DeliveryStep):
            steps.setdefault(step.subscription, []).append(fact)
    return tuple(delivery(name, facts, downs, published=published) for name, facts in sorted(steps.items()))


def _reply(replied: Sequence[Fact]) -> Reply | None:
    """Return how a request ended: what its requester got counts, else what the responder sent."""
    if not replied:
        return None
    received = _newest(replied, ReplySide.REQUESTER)
    answered = _newest(replied, ReplySide.RESPONDER)
    told = received or answered or replied[-1]
    step = told.step
    assert isinstance(step, Replied)
    work = answered.step.seconds if answered and isinstance(answered.step, Replied) else None
    waited = received.step.seconds if received and isinstance(received.step, Replied) else None
    return Reply(
        outcome=step.outcome,
        error=": ".join(part for part in (step.error, step.message) if part),
        work=None if work is None else max(work, 0.0),
        waited=None if waited is None else max(waited, 0.0),
        responder=answered.origin.session if answered else step.responder,
        origin=answered.origin if answered else None,
        answered=answered,
        received=received,
    )


def _newest(replied: Sequence[Fact], side: ReplySide) -> Fact | None:
    return next((fact for fact in reversed(replied) if isinstance(fact.step, Replied) and fact.step.side == side), None)


def _attributed(child: SignalTrace, parent: SignalTrace) -> SignalTrace:
    """Note whose handler published a child, if only one can have."""
    if child.published is None:
        return child
    found = {
        each.subscription
        for each in parent.deliveries
        if any(_published_in(child.published, attempt) for attempt in each.attempts)
    }
    return replace(child, cause=found.pop()) if len(found) == 1 else child


def _published_in(published: Fact, attempt: Attempt) -> bool:
    """Tell whether a signal can have been published by an attempt: by the same recorder, while it ran."""
    if attempt.began is None or attempt.began.origin != published.origin:
        return False
    ended = attempt.ended.sequence if attempt.ended and attempt.end is not End.LOST else None
    return attempt.began.sequence < published.sequence and (ended is None or published.sequence < ended)


def _by_time(signal: SignalTrace) -> tuple[bool, float, str]:
    return (signal.at is None, signal.at or 0.0, signal.id)
