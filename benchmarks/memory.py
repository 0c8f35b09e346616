"""Whether memory stays flat while very many signals pass through one process.

As a program: publishes and handles signals in bounded windows and reports its resident memory on the way.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from signalbus import Bus

from .embedded import IN_FLIGHT, database
from .figures import Benchmark, Readings, at_most
from .load import BODY, PATTERN, SIGNAL_TYPE, wait_acked
from .plan import Plan
from .processes import child, say

EARLY = "at 10 %"
LATE = "at 100 %"
WINDOW = 1_000  # signals published before all of them have to be acked


def benchmarks(plan: Plan) -> list[Benchmark]:
    """Return the memory benchmark."""
    count = plan.sizes.memory_signals

    async def resident() -> Readings:
        with database(plan.directory) as path:
            async with child("memory", f"sqlite:///{path}", count) as process:
                (early,), (late,) = await process.report(), await process.report()
        return {LATE: [late], EARLY: [early]}

    return [
        Benchmark(
            name="embedded.memory",
            title=f"SQLite: resident memory while {count:,} signals pass",
            unit="MiB",
            subject=LATE,
            legs=(resident,),
            targets={EARLY: at_most(1.1)},
            once=True,
            timeout_seconds=3600.0,
        )
    ]


def resident_mebibytes() -> float:
    """Return the resident memory of this process. Linux only: elsewhere there is only its peak."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def _pass(url: str, count: int) -> None:
    bus = Bus(url, name="memory")

    async def handle(data: bytes) -> None:
        pass

    subscription = bus.subscribe(PATTERN, handler=handle, name="memory", concurrency=IN_FLIGHT)
    async with bus:
        passed = 0
        for share in (0.1, 1.0):
            while passed < count * share:
                await bus.publish_many([(SIGNAL_TYPE, BODY)] * WINDOW)
                passed += WINDOW
                await wait_acked(subscription, passed)
            say(resident_mebibytes())


if __name__ == "__main__":
    asyncio.run(_pass(sys.argv[1], int(sys.argv[2])))
