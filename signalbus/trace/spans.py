"""A trace as spans of time, for waterfalls and OpenTelemetry. Pure.

Effects never start before their causes: where clocks disagree, a span is moved to where it can have been.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from ..ledger import Origin
from .model import Attempt, Delivery, End, SignalTrace, Trace


class SpanKind(StrEnum):
    """What happened in a span."""

    PUBLISH = "publish"
    PROCESS = "process"
    REQUEST = "request"
    RESPOND = "respond"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSpan:
    """One span. ``end`` is None while it lasts, or if nobody told; ``queued`` seconds of waiting come before it.

    ``key`` is unique in a trace and the same each time; ``parent`` the key of its cause, "" for the root.
    """

    key: str
    parent: str
    depth: int
    kind: SpanKind
    signal: SignalTrace
    start: float
    end: float | None
    queued: float = 0.0
    subscription: str = ""
    attempt: Attempt | None = None
    origin: Origin | None = None
    error: str = ""
    word: str = ""


def spans(trace: Trace) -> list[TraceSpan]:
    """Return the spans of a trace, causes before effects; none if no time is known."""
    return list(_signal(trace.root, "", 0, None))


def _signal(signal: SignalTrace, parent: str, depth: int, floor: float | None) -> Iterator[TraceSpan]:
    own = _publication(signal, parent, depth, floor)
    if own is None:
        for child in signal.children:
            yield from _signal(child, parent, depth, floor)
        return
    yield own
    floor = own.start if own.end is None or signal.request else own.end
    keys: dict[str, TraceSpan] = {}
    for delivery in signal.deliveries:
        lowest = floor
        for number, attempt in enumerate(delivery.attempts):
            if (span := _attempt(signal, delivery, attempt, number, own, lowest)) is not None:
                keys.setdefault(delivery.subscription, span)
                lowest = span.start
                yield span
    if (answer := _answer(signal, own)) is not None:
        yield answer
    for child in signal.children:
        cause = keys.get(child.cause or "", own)
        yield from _signal(child, cause.key, cause.depth + 1, max(floor, cause.start))


def _publication(signal: SignalTrace, parent: str, depth: int, floor: float | None) -> TraceSpan | None:
    at = signal.at if signal.at is not None else _first_known(signal, floor)
    if at is None:
        return None
    took = getattr(signal.published.step, "seconds", None) if signal.published else None
    start = at - max(took or 0.0, 0.0)
    start, at = (start, at) if floor is None or start >= floor else (floor, floor + at - start)
    end: float | None = at
    if signal.request:
        waited = signal.reply.waited if signal.reply else None
        end = at + waited if waited is not None else None
    failed = signal.request and signal.reply is not None and signal.reply.outcome != "reply"
    return TraceSpan(
        key=signal.id,
        parent=parent,
        depth=depth,
        kind=SpanKind.REQUEST if signal.request else SpanKind.PUBLISH,
        signal=signal,
        start=start,
        end=end,
        origin=signal.published.origin if signal.published else None,
        error=(signal.reply.error or signal.reply.outcome) if failed and signal.reply else _unroutable(signal),
        word=signal.states[0].value if signal.request or signal.unroutable else "published",
    )


def _unroutable(signal: SignalTrace) -> str:
    return "no subscription matched" if signal.unroutable else ""


def _first_known(signal: SignalTrace, floor: float | None) -> float | None:
    """Return the earliest time that anything told of a signal whose publication nobody told of."""
    attempts = (attempt for delivery in signal.deliveries for attempt in delivery.attempts)
    facts = [fact for attempt in attempts for fact in (attempt.began, attempt.ended) if fact is not None]
    if signal.reply is not None:
        facts += [fact for fact in (signal.reply.answered, signal.reply.received) if fact is not None]
    return min((fact.at for fact in facts), default=floor)


def _attempt(
    signal: SignalTrace, delivery: Delivery, attempt: Attempt, number: int, own: TraceSpan, floor: float
) -> TraceSpan | None:
    start, end = _times(attempt)
    if start is None:
        return None
    if start < floor:
        start, end = floor, None if end is None else floor + end - start
    failed = attempt.end in (End.RETRIED, End.DEAD, End.LOST)
    return TraceSpan(
        key=f"{signal.id}/{delivery.subscription}/{number}",
        parent=own.key,
        depth=own.depth + 1,
        kind=SpanKind.PROCESS,
        signal=signal,
        start=start,
        end=end,
        queued=min(attempt.queued or 0.0, start - floor),
        subscription=delivery.subscription,
        attempt=attempt,
        origin=attempt.origin,
        error=(attempt.error or attempt.end.value) if failed else "",
        word=attempt.end.value,
    )


def _times(attempt: Attempt) -> tuple[float | None, float | None]:
    if attempt.began is not None:
        start = attempt.began.at
        if attempt.work is not None:
            return start, start + attempt.work
        return start, max(attempt.ended.at, start) if attempt.ended else None
    if attempt.ended is not None:
        return attempt.ended.at - (attempt.work or 0.0), attempt.ended.at
    return None, None


def _answer(signal: SignalTrace, own: TraceSpan) -> TraceSpan | None:
    reply = signal.reply
    if reply is None or reply.answered is None:
        return None
    work = reply.work or 0.0
    start = max(reply.answered.at - work, own.start)
    return TraceSpan(
        key=f"{signal.id}/reply",
        parent=own.key,
        depth=own.depth + 1,
        kind=SpanKind.RESPOND,
        signal=signal,
        start=start,
        end=start + work,
        origin=reply.origin,
        error="" if reply.outcome == "reply" else reply.error or reply.outcome,
        word=reply.outcome,
    )
