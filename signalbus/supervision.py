"""Supervision: long-running parts are restarted when they fail, and given up when they fail too often.

After Erlang/OTP's ``supervisor`` (https://www.erlang.org/doc/man/supervisor): a child is a function that runs until
it is cancelled; one that raises is started again, and more than ``max_restarts`` within ``period`` escalate.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import timedelta

log = logging.getLogger(__name__)

MAX_RESTARTS = 3
PERIOD = timedelta(seconds=5)


class Supervisor:
    """Runs children, each in a task of its own (one_for_one). ``escalate`` is called once, with the last error."""

    def __init__(
        self,
        name: str,
        escalate: Callable[[BaseException], None],
        *,
        max_restarts: int = MAX_RESTARTS,
        period: timedelta = PERIOD,
    ) -> None:
        self._name = name
        self._escalate = escalate
        self._max_restarts = max_restarts
        self._period = period.total_seconds()
        self._failures: deque[float] = deque()
        self._children: dict[asyncio.Task[None], str] = {}
        self._escalated = False

    def start(self, name: str, child: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run ``child`` until it returns, again whenever it raises. The task ends by itself, or when cancelled."""
        task = asyncio.create_task(self._supervise(name, child), name=f"{self._name}/{name}")
        self._children[task] = name
        task.add_done_callback(self._children.pop)
        return task

    def children(self) -> list[str]:
        """Return the names of the children that run."""
        return list(self._children.values())

    async def aclose(self) -> None:
        """Cancel the children, the newest first, and wait for each."""
        for task in reversed(list(self._children)):
            task.cancel()
            await asyncio.wait([task])

    async def _supervise(self, name: str, child: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await child()
                return
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # Drivers cancel futures of their own; that is a failure of the child, not a wish to stop it.
                failure: BaseException = error
            except Exception as error:  # noqa: BLE001 - the one place where any failure of a child must end
                failure = error
            log.error("%s/%s failed; starting it again", self._name, name, exc_info=failure)
            if self._too_often():
                if not self._escalated:
                    self._escalated = True
                    self._escalate(failure)
                return

    def _too_often(self) -> bool:
        now = asyncio.get_running_loop().time()
        self._failures.append(now)
        while self._failures[0] < now - self._period:
            self._failures.popleft()
        return len(self._failures) > self._max_restarts
