"""What is measured, and what a run of it found. Pure: no clock, no broker."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

#: Samples by contestant, from one turn.
Readings = Mapping[str, Sequence[float]]
#: One contestant's turn.
Leg = Callable[[], Awaitable[Readings]]

_COMPARISONS = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


class BenchmarkError(Exception):
    """Raised when a benchmark ran but did not do the work it counts."""


@dataclass(frozen=True, slots=True)
class Target:
    """A bound for the median."""

    comparison: str
    bound: float

    def met(self, value: float) -> bool:
        """Tell whether ``value`` keeps the bound."""
        return bool(_COMPARISONS[self.comparison](value, self.bound))


def at_least(bound: float) -> Target:
    """Return a lower bound."""
    return Target(">=", bound)


def at_most(bound: float) -> Target:
    """Return an upper bound."""
    return Target("<=", bound)


def below(bound: float) -> Target:
    """Return an upper bound that is not reached."""
    return Target("<", bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One question. ``legs`` take turns; ``subject`` is the contestant it is about.

    The subject's target is for its value, any other contestant's is for the ratio of the subject to it.
    ``compared``: the ratio of the subject to the others says something. ``once``: one turn has samples enough.
    """

    name: str
    title: str
    unit: str
    subject: str
    legs: tuple[Leg, ...]
    targets: Mapping[str, Target] = field(default_factory=dict[str, Target])
    compared: bool = True
    once: bool = False
    timeout_seconds: float = 300.0  # for one turn


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle and the ends of some samples."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Sum samples up."""
        return cls(statistics.median(samples), min(samples), max(samples), len(samples))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one contestant reached. ``ratio`` is the subject to this one, turn by turn, where that says something."""

    contestant: str
    value: Spread
    ratio: Spread | None
    target: Target | None

    @property
    def met(self) -> bool | None:
        """Whether the target was met, None when there is none."""
        if self.target is None:
            return None
        return self.target.met(self.ratio.median if self.ratio else self.value.median)


def rows(benchmark: Benchmark, rounds: Sequence[Readings]) -> list[Row]:
    """Sum the rounds of a benchmark up, a row for each contestant, the subject first."""
    contestants = dict.fromkeys([benchmark.subject, *(name for readings in rounds for name in readings)])
    return [_row(benchmark, contestant, rounds) for contestant in contestants]


def _row(benchmark: Benchmark, contestant: str, rounds: Sequence[Readings]) -> Row:
    ratio = None
    if benchmark.compared and contestant != benchmark.subject:
        ratio = Spread.of(
            [statistics.median(turn[benchmark.subject]) / statistics.median(turn[contestant]) for turn in rounds]
        )
    return Row(
        contestant=contestant,
        value=Spread.of([sample for turn in rounds for sample in turn[contestant]]),
        ratio=ratio,
        target=benchmark.targets.get(contestant),
    )
