"""What an idle process costs: CPU while nothing happens, and the time until it wakes up.

As a program: an idle process with an open bus and one subscription.
"""

from __future__ import annotations

import asyncio
import sys
import time

from signalbus import Bus

from .embedded import SUBJECT, database
from .figures import Benchmark, Readings, below
from .load import BODY, PATTERN, SIGNAL_TYPE
from .plan import Plan
from .processes import child, say, wait_told_to_end

FROM_RETURN = "from return of publish"
FROM_CALL = "from call of publish"
SETTLE_SECONDS = 1.0  # imports, opening and their garbage are not idling
PAUSE_SECONDS = 0.05  # between wake-ups: the other process sleeps again


def benchmarks(plan: Plan) -> list[Benchmark]:
    """Return the benchmarks of idle processes."""

    async def cpu() -> Readings:
        return {SUBJECT: [await _idle_cpu_percent(plan)]}

    async def wake_up() -> Readings:
        return await _wake_ups(plan)

    return [
        Benchmark(
            name="embedded.idle",
            title=f"SQLite: CPU of an idle process with one subscription, {plan.sizes.idle_seconds:g} s",
            unit="% of a core",
            subject=SUBJECT,
            legs=(cpu,),
            targets={SUBJECT: below(1.0)},
            once=True,
        ),
        Benchmark(
            name="embedded.wake_up",
            title="SQLite: handler start in another, idle process",
            unit="ms",
            subject=FROM_RETURN,
            legs=(wake_up,),
            targets={FROM_RETURN: below(20.0)},
            compared=False,
            once=True,
        ),
    ]


async def _idle_cpu_percent(plan: Plan) -> float:
    with database(plan.directory) as path:
        async with child("idle", f"sqlite:///{path}") as process:
            await process.report()
            await asyncio.sleep(SETTLE_SECONDS)
            before = time.perf_counter(), process.cpu_seconds()
            await asyncio.sleep(plan.sizes.idle_seconds)
            after = time.perf_counter(), process.cpu_seconds()
    return 100 * (after[1] - before[1]) / (after[0] - before[0])


async def _wake_ups(plan: Plan) -> Readings:
    """Publish to an idle process again and again. Both processes read the same monotonic clock."""
    from_return: list[float] = []
    from_call: list[float] = []
    with database(plan.directory) as path:
        url = f"sqlite:///{path}"
        async with child("idle", url) as process, Bus(url, name="benchmark") as bus:
            await process.report()
            for _ in range(plan.sizes.wake_ups):
                await asyncio.sleep(PAUSE_SECONDS)
                called = time.monotonic()
                await bus.publish(SIGNAL_TYPE, BODY)
                returned = time.monotonic()
                (handled,) = await process.report()
                from_return.append(1000 * (handled - returned))
                from_call.append(1000 * (handled - called))
    return {FROM_RETURN: from_return, FROM_CALL: from_call}


async def _serve(url: str) -> None:
    bus = Bus(url, name="idle")

    @bus.subscribe(PATTERN, name="idle")
    async def handle(data: bytes) -> None:
        say(time.monotonic())

    async with bus:
        say()
        await wait_told_to_end()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
