"""Deadlines of many futures, under one timer: nearly none of them is ever late."""

from __future__ import annotations

import asyncio
import math
from typing import Final


class Late:
    """What a future holds whose deadline has passed."""


LATE: Final = Late()


class Deadlines:
    """Ends futures at their deadlines; those who set their results must leave alone what is done."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waited: dict[asyncio.Future[object], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf  # when the timer is due

    async def wait(self, future: asyncio.Future[object], deadline: float) -> None:
        """Wait for a result, `LATE` at the deadline, of the loop's clock. Cancelling the wait cancels the future."""
        if future.done():
            return
        self._waited[future] = deadline
        if deadline < self._next:
            self._set(deadline)
        try:
            await future
        finally:
            del self._waited[future]

    def _set(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = deadline
        self._timer = self._loop.call_at(deadline, self._due)

    def _due(self) -> None:
        """End what is late. The timer stays with the next deadline, also if that is met long before."""
        self._timer, self._next = None, math.inf
        now = self._loop.time()
        for future, deadline in self._waited.items():
            if deadline > now:
                self._next = min(self._next, deadline)
            elif not future.done():
                future.set_result(LATE)
        if self._next < math.inf:
            self._set(self._next)
