"""Turns that give several figures at once: a rate and its cost, or the percentiles of one load."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping

from .figures import Leg, Readings

Measure = Callable[[], Awaitable[Mapping[str, float]]]


class Turns:
    """The turns of one contestant, each measured once, for whichever benchmark comes to it first."""

    def __init__(self, name: str, measure: Measure) -> None:
        self.name = name
        self._measure = measure
        self._taken: dict[int, Mapping[str, float]] = {}

    def leg(self, figure: str) -> Leg:
        """Return what reads one figure of turn after turn."""
        numbers = itertools.count()

        async def read() -> Readings:
            number = next(numbers)
            if number not in self._taken:
                self._taken[number] = await self._measure()
            return {self.name: [self._taken[number][figure]]}

        return read
