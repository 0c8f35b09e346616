"""Running a command that Ctrl-C and SIGTERM stop in order, and a second one at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable

from .output import say

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_interruptible(work: Callable[[], Awaitable[int]]) -> int:
    """Run ``work`` to its exit code; the first signal cancels it, and the code is 130 or 143 then."""

    async def main() -> int:
        received: list[int] = []
        task = asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            if received:
                stop_now(number)
            received.append(number)
            task.cancel()  # first: what follows may fail
            if sys.stderr.isatty():
                say("\nsignalbus: stopping in order (a second signal stops now)")

        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, stop, number)
        try:
            return await work()
        except asyncio.CancelledError:
            if not received:
                raise
            return 128 + received[0]
        finally:
            if not received:
                for number in SIGNALS:
                    loop.remove_signal_handler(number)

    return asyncio.run(main())


def stop_now(number: int) -> None:
    """End the process, whatever it does; the broker gives unsettled deliveries to others."""
    say("signalbus: stopping now; signals that are not settled will come again")
    os._exit(128 + number)
