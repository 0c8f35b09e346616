"""Delays as a ladder of queues: how a delay is made of few fixed steps. Pure.

One queue for each power of two seconds, each with that TTL, so that no message waits behind a longer one (a TTL for
each message blocks at the head of the queue). A message climbs the steps of its delay one after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SHORTEST = 1.0  # seconds; below, the subscriber holds the delivery itself
LONGEST_STEP = 2**20  # seconds, 12 days; longer delays take it several times
LONGEST_DELAY = 366 * 24 * 3600.0
_BITS = 4  # steps of one delay: the top four binary digits, so the error is at most 1/16


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in whole seconds, longest first, and a rest of under a second that the subscriber waits out."""

    steps: tuple[int, ...]
    rest: float

    @property
    def seconds(self) -> float:
        """How long it takes in all."""
        return sum(self.steps) + self.rest

    def after_first(self) -> Plan:
        """Return what is left when the first step is done."""
        return Plan(self.steps[1:], self.rest)

    def __str__(self) -> str:
        words = [str(step) for step in self.steps]
        if self.rest:
            words.append(f"{self.rest:.3f}")
        return " ".join(words)


NO_DELAY = Plan((), 0.0)


def plan(seconds: float) -> Plan:
    """Return the steps of a delay: exact under 16 s, within 1/16 above; at most a year."""
    if not seconds > 0:
        return NO_DELAY
    seconds = min(seconds, LONGEST_DELAY)
    steps: list[int] = []
    while seconds >= 2 * LONGEST_STEP:
        steps.append(LONGEST_STEP)
        seconds -= LONGEST_STEP
    whole = math.floor(seconds)
    if whole >= 2**_BITS:
        rest = 0.0
        unit = 2 ** (whole.bit_length() - _BITS)
        whole = round(seconds / unit) * unit
    else:
        rest = round(seconds - whole, 3)
        if rest >= 1.0:
            whole, rest = whole + 1, 0.0
    steps.extend(2**bit for bit in reversed(range(whole.bit_length())) if whole >> bit & 1)
    return Plan(tuple(steps), rest)


def parse(text: object) -> Plan:
    """Read a plan back from its header; what is not one means no delay."""
    if not isinstance(text, str) or len(text) > 512:
        return NO_DELAY
    steps: list[int] = []
    rest = 0.0
    for word in text.split():
        try:
            seconds = float(word)
        except ValueError:
            return NO_DELAY
        if 0 < seconds < 1:
            rest = seconds
        elif seconds.is_integer() and int(seconds) in VALID_STEPS:
            steps.append(int(seconds))
        else:
            return NO_DELAY
    return Plan(tuple(steps), rest)


VALID_STEPS = frozenset(2**bit for bit in range(LONGEST_STEP.bit_length() + 1))
