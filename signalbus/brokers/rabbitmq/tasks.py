"""Long-running tasks that nobody awaits: watched, so that none dies unseen."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine

log = logging.getLogger(__name__)

RESTART_SECONDS = 1.0
END_SECONDS = 4.0

Work = Callable[[], Coroutine[object, object, None]]


class Keeper:
    """Starts tasks, restarts those that fail, and ends them all. ``failure`` is the newest one's."""

    def __init__(self, counters: Counter[str]) -> None:
        self.failure: str | None = None
        self._counters = counters
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, name: str, work: Work) -> asyncio.Task[None]:
        """Run ``work`` until it returns; start it again when it raises, or is cancelled by anyone but its owner."""
        task = asyncio.create_task(self._keep(name, work), name=f"signalbus rabbitmq {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep(self, name: str, work: Work) -> None:
        while True:
            try:
                await work()
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                # The driver cancels whoever waits for it when it gives a connection up.
                self._note(name, "cancelled by the driver")
            except Exception as error:
                # A bug of ours. Silence would be worse than another try.
                self._note(name, repr(error))
                log.critical("%s failed and is started again", name, exc_info=error)
            else:
                return
            await asyncio.sleep(RESTART_SECONDS)

    def _note(self, name: str, reason: str) -> None:
        self._counters["tasks_restarted"] += 1
        self.failure = f"{name}: {reason}"

    async def aclose(self) -> None:
        """Cancel what still runs and wait for its end, a few seconds at most."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=END_SECONDS)
            for task in late:
                log.error("%s does not end", task.get_name())


async def end(task: asyncio.Task[object]) -> None:
    """Cancel a task and wait for its end, a few seconds at most."""
    task.cancel()
    await asyncio.wait([task], timeout=END_SECONDS)
