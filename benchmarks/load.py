"""Load: many calls under way at once, and counting what arrives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from signalbus import Subscription

from .figures import BenchmarkError

BODY = bytes(range(256))
SIGNAL_TYPE = "bench.load"
PATTERN = "bench.#"


async def publish_all(publish: Callable[[], Awaitable[object]], count: int, in_flight: int) -> float:
    """Call ``publish`` ``count`` times with ``in_flight`` calls under way; return calls per second."""
    tickets = iter(range(count))

    async def publish_some() -> None:
        for _ in tickets:
            await publish()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as publishers:
        for _ in range(in_flight):
            publishers.create_task(publish_some())
    return count / (time.perf_counter() - started)


class Countdown:
    """Is done after ``count`` hits."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._done = asyncio.Event()

    def hit(self) -> None:
        """Count one."""
        self._left -= 1
        if self._left <= 0:
            self._done.set()

    async def wait_done(self) -> None:
        """Wait for the last hit."""
        await self._done.wait()


async def wait_acked(subscription: Subscription[..., object], count: int) -> None:
    """Wait until ``count`` deliveries were acked: a handler that has returned is not enough."""
    while subscription.stats().acked < count:  # noqa: ASYNC110 - the bus has no event for it
        await asyncio.sleep(0.001)


def require(expected: int, found: int, what: str) -> None:
    """Raise `BenchmarkError` unless the broker holds what was counted."""
    if found != expected:
        raise BenchmarkError(f"{what}: expected {expected}, found {found}; the figure would mean nothing")
