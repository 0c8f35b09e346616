"""A trace as bars over time, in plain text: waiting and work told apart."""

from __future__ import annotations

from collections.abc import Iterator

from ..escapes import escape
from .model import Trace
from .rendering import clipped, columns, duration, padded, short_id
from .spans import SpanKind, TraceSpan, spans

_BAR_COLUMNS = 48
_LABEL_COLUMNS = 40  # at most, on a terminal
_WAIT, _WORK, _OPEN = "░", "█", "▒"


def render_waterfall(trace: Trace, *, width: int | None = None, now: float | None = None) -> str:
    """Return bars, one a line. What lasts still goes on until ``now``, or has no length."""
    found = spans(trace)
    if not found:
        return f"{escape(trace.root.type) or trace_id(trace)}  no time is known"
    begin = min(span.start - span.queued for span in found)
    finish = max(_end(span, now) for span in found)
    labels = [clipped(_label(span), None if width is None else _LABEL_COLUMNS) for span in found]
    column = max(map(columns, labels))
    head = f"{' ' * column}  0{duration(finish - begin):>{_BAR_COLUMNS - 1}}"
    lines = [head, *_lines(found, labels, column, begin, finish, now), f"{_WAIT} waiting  {_WORK} work  {_OPEN} lasts"]
    return "\n".join(clipped(line.rstrip(), width) for line in lines)


def trace_id(trace: Trace) -> str:
    """Return the id of a trace's root, safe to print."""
    return escape(trace.root.id)


def _lines(
    found: list[TraceSpan], labels: list[str], column: int, begin: float, finish: float, now: float | None
) -> Iterator[str]:
    for span, label in zip(found, labels, strict=True):
        queued = f"waited {duration(span.queued)}" if span.queued else ""
        work = duration(span.end - span.start) if span.end is not None and span.end > span.start else ""
        error = "" if span.error == span.word else escape(span.error)
        told = "  ".join(part for part in (escape(span.word), queued, work, error) if part)
        yield f"{padded(label, column)}  {_bar(span, begin, finish, now)}  {told}"


def _label(span: TraceSpan) -> str:
    indent = "  " * span.depth
    match span.kind:
        case SpanKind.PROCESS:
            assert span.attempt is not None
            return f"{indent}{escape(span.subscription)} attempt {span.attempt.number}"
        case SpanKind.RESPOND:
            return f"{indent}responder"
        case _:
            return f"{indent}{escape(span.signal.type)} {short_id(span.signal.id)}"


def _end(span: TraceSpan, now: float | None) -> float:
    if span.end is not None:
        return span.end
    return span.start if now is None else max(now, span.start)


def _bar(span: TraceSpan, begin: float, finish: float, now: float | None) -> str:
    """Return the bar of a span; what is there has one column at least."""
    scale = _BAR_COLUMNS / (finish - begin) if finish > begin else 0.0
    waits = min(int((span.start - span.queued - begin) * scale), _BAR_COLUMNS - 1)
    works = min(max(int((span.start - begin) * scale), waits), _BAR_COLUMNS - 1)
    ends = min(max(round((_end(span, now) - begin) * scale), works + 1), _BAR_COLUMNS)
    mark = _OPEN if span.end is None else _WORK
    return padded(" " * waits + _WAIT * (works - waits) + mark * (ends - works), _BAR_COLUMNS)
