"""A trace as rows of a table: every attempt with its outcome, its wait, its work and its error. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from ...trace.model import Attempt, Delivery, Reply, SignalTrace, State, Trace
from ...trace.rendering import inferred, who
from .glyphs import GLYPHS, TONES

MAX_STEPS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A row. ``what``: the subscription or the type; ``state``: a word, with ``glyph`` and ``tone``.

    ``waited`` and ``worked`` are seconds, None where nobody told; ``by`` is who told.
    """

    signal: str
    what: str
    kind: str
    state: str
    glyph: str
    tone: str
    at: float | None = None
    waited: float | None = None
    worked: float | None = None
    attempt: int | None = None
    error: str = ""
    by: str = ""
    note: str = ""


def steps(trace: Trace) -> tuple[list[Step], bool]:
    """Return the rows of a trace, causes before effects, and whether there are more than these."""
    found = list(islice(_signals(trace.root), MAX_STEPS + 1))
    return found[:MAX_STEPS], len(found) > MAX_STEPS


def _signals(root: SignalTrace) -> Iterator[Step]:
    pending = [root]
    while pending:
        signal = pending.pop()
        yield _publication(signal)
        for delivery in signal.deliveries:
            yield from _delivery(signal, delivery)
        if signal.reply is not None:
            yield _reply(signal, signal.reply)
        pending.extend(reversed(signal.children))


def _publication(signal: SignalTrace) -> Step:
    word = "requested" if signal.request else "unroutable" if signal.unroutable else "published"
    return Step(
        signal=signal.id,
        what=signal.type,
        kind="request" if signal.request else "signal",
        state=word,
        glyph=GLYPHS[State.UNROUTABLE] if signal.unroutable else "•",
        tone="bad" if signal.unroutable else "quiet",
        at=signal.at,
        worked=getattr(signal.published.step, "seconds", None) if signal.published else None,
        error="no subscription matched" if signal.unroutable else "",
        by=who(signal.published.origin) if signal.published else "",
        note="" if signal.published else "(publication inferred)",
    )


def _delivery(signal: SignalTrace, delivery: Delivery) -> Iterator[Step]:
    for gap in delivery.gaps:
        yield _unseen(signal, delivery, gap.last - gap.first + 1, "attempts that nobody told of (inferred)")
    for attempt in delivery.attempts:
        yield _attempt(signal, delivery, attempt)
    if delivery.crashes:
        yield _unseen(signal, delivery, delivery.crashes, "lost runs (inferred from the count of crashes)")
    if not delivery.attempts or delivery.state in (State.WAITING, State.RETRYING):
        yield Step(
            signal=signal.id,
            what=delivery.subscription,
            kind="delivery",
            state=delivery.state.value,
            glyph=GLYPHS[delivery.state],
            tone=TONES[delivery.state],
            at=delivery.since,
        )


def _attempt(signal: SignalTrace, delivery: Delivery, attempt: Attempt) -> Step:
    replayed = f"replay {attempt.replay}" if attempt.replay else ""
    return Step(
        signal=signal.id,
        what=delivery.subscription,
        kind="delivery",
        state=attempt.end.value,
        glyph=GLYPHS[attempt.end],
        tone=TONES[attempt.end],
        at=next((fact.at for fact in (attempt.began, attempt.ended) if fact is not None), None),
        waited=attempt.queued,
        worked=attempt.work,
        attempt=attempt.number,
        error=attempt.error,
        by=who(attempt.origin),
        note=" ".join(part for part in (replayed, inferred(attempt)) if part),
    )


def _unseen(signal: SignalTrace, delivery: Delivery, count: int, note: str) -> Step:
    return Step(
        signal=signal.id,
        what=delivery.subscription,
        kind="delivery",
        state="unknown",
        glyph="?",
        tone="calm",
        note=f"{count} {note}",
    )


def _reply(signal: SignalTrace, reply: Reply) -> Step:
    state = State.REPLIED if reply.outcome == "reply" else State.FAILED
    told = reply.answered or reply.received
    return Step(
        signal=signal.id,
        what="reply" if state is State.REPLIED else reply.outcome,
        kind="reply",
        state=state.value,
        glyph=GLYPHS[state],
        tone=TONES[state],
        at=told.at if told else None,
        waited=reply.waited,
        worked=reply.work,
        error=reply.error,
        by=who(reply.origin),
    )
