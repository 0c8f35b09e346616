"""A trace as bars over time: geometry in percent of the width, numbers only. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...trace.model import End, Trace
from ...trace.rendering import duration
from ...trace.spans import SpanKind, TraceSpan, spans
from .glyphs import TONES

MAX_BARS = 150  # rows of the figure
MAX_INDENT = 12  # levels that the style sheet knows
_TICKS = 5  # about
_CLOCK = (
    1.0,
    2.0,
    5.0,
    10.0,
    15.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    900.0,
    1_800.0,
    3_600.0,
    7_200.0,
    21_600.0,
    86_400.0,
)
_THINNEST = 0.4  # percent: what is there can be seen

_TONES = {SpanKind.PUBLISH: "quiet", SpanKind.REQUEST: "quiet", SpanKind.RESPOND: "good"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A row of the figure: when it waited, and when it was worked on, in percent of the width.

    ``lasts``: nobody told of its end. ``tone``: a class of the style sheet.
    """

    span: TraceSpan
    indent: int
    waits_from: float
    works_from: float
    works_for: float
    lasts: bool
    tone: str

    @property
    def waits_for(self) -> float:
        """How wide the wait is."""
        return round(self.works_from - self.waits_from, 3)

    @property
    def work(self) -> float | None:
        """Seconds of work, where they are known."""
        return None if self.span.end is None else self.span.end - self.span.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The figure. ``ticks``: places with a round time since the beginning; ``left_out``: rows beyond the bound."""

    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    seconds: float
    left_out: int


def timeline(trace: Trace, now: float) -> Timeline | None:
    """Return the figure of a trace, None if no time is known. What lasts still goes on until ``now``."""
    found = spans(trace)
    if not found:
        return None
    shown = found[:MAX_BARS]
    begin = min(span.start - span.queued for span in shown)
    finish = max(_end(span, now) for span in shown)
    length = finish - begin
    return Timeline(
        bars=tuple(_bar(span, begin, length, now) for span in shown),
        ticks=_ticks(length),
        seconds=length,
        left_out=len(found) - len(shown),
    )


def _bar(span: TraceSpan, begin: float, length: float, now: float) -> Bar:
    waits = _percent(span.start - span.queued - begin, length)
    works = _percent(span.start - begin, length)
    ends = _percent(_end(span, now) - begin, length)
    works = min(works, 100 - _THINNEST)
    return Bar(
        span=span,
        indent=min(span.depth, MAX_INDENT),
        waits_from=min(waits, works),
        works_from=works,
        works_for=round(min(max(ends - works, _THINNEST), 100 - works), 3),
        lasts=span.end is None,
        tone=_tone(span),
    )


def _tone(span: TraceSpan) -> str:
    if span.attempt is not None:
        return TONES[span.attempt.end] if span.attempt.end is not End.RETRIED else "warn"
    return "bad" if span.error else _TONES[span.kind]


def _end(span: TraceSpan, now: float) -> float:
    return max(now, span.start) if span.end is None else max(span.end, span.start)


def _percent(seconds: float, length: float) -> float:
    return round(min(max(100 * seconds / length, 0.0), 100.0), 3) if length > 0 else 0.0


def _ticks(length: float) -> tuple[tuple[float, str], ...]:
    """Return round times, up to the end."""
    if length <= 0:
        return ((0.0, "0"),)
    step = _round_step(length / _TICKS)
    times = [step * number for number in range(int(length / step + 1e-9) + 1)]
    return tuple((_percent(time, length), duration(time) if time else "0") for time in times)


def _round_step(least: float) -> float:
    """Return a step of a clock, else 1, 2 or 5 times a power of ten, not below ``least``."""
    if _CLOCK[0] < least <= _CLOCK[-1]:
        return next(step for step in _CLOCK if step >= least)
    power = 10.0 ** math.floor(math.log10(least))
    return next(each * power for each in (1.0, 2.0, 5.0, 10.0) if each * power >= least * (1 - 1e-9))
