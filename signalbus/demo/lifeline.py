"""How a process of the demo ends: its work is done, SIGTERM, or its parent is gone."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine

from ..cli.processes import watch_parent


async def run_to_end(work: Coroutine[object, object, None]) -> int:
    """Run ``work`` until it returns or is cancelled by one of those; return the exit code."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    watch_parent(lambda: None if task.done() else _cancel(task))
    try:
        await task
    except asyncio.CancelledError:
        pass  # asked for, by a signal or by the end of the parent
    return 0


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
