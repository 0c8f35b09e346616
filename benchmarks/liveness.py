"""How soon the dead are noticed, and what they leave behind: kill -9 of processes with open buses.

As a program: a process with as many open buses as it is told, each with a temporary subscription.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import AsyncExitStack

from signalbus import Bus, Down, Monitor

from .embedded import database
from .figures import Benchmark, BenchmarkError, Readings, at_most, below
from .memory import resident_mebibytes
from .plan import Plan
from .processes import Child, child, say, wait_told_to_end

SUBJECT = "signalbus"
MORTAL = "mortal"
LAST = "the last of them"
EARLY, LATE = "at 10 %", "at 100 %"
PROCESSES = 4
DEADLINE_SECONDS = 30.0
NOTHING_LEFT_SECONDS = 30.0


def benchmarks(plan: Plan) -> list[Benchmark]:
    """Return the benchmarks of liveness, on SQLite and on RabbitMQ if there is one."""
    found = _of("embedded", "SQLite", None, plan, down_ms=250.0)
    if plan.amqp_url is not None:
        found += _of("rabbitmq", "RabbitMQ", plan.amqp_url, plan, down_ms=50.0)
    return found


def _of(broker: str, title: str, url: str | None, plan: Plan, *, down_ms: float) -> list[Benchmark]:
    sizes = plan.sizes

    async def down() -> Readings:
        with database(plan.directory) as path:
            return {SUBJECT: await _downs(url or f"sqlite:///{path}", sizes.kills)}

    async def together() -> Readings:
        with database(plan.directory) as path:
            return {LAST: [await _together(url or f"sqlite:///{path}", sizes.killed_together)]}

    async def cycles() -> Readings:
        with database(plan.directory) as path:
            return await _cycles(url or f"sqlite:///{path}", sizes.cycles)

    return [
        Benchmark(
            name=f"{broker}.down",
            title=f"{title}: from kill -9 to Down",
            unit="ms",
            subject=SUBJECT,
            legs=(down,),
            targets={SUBJECT: below(down_ms)},
            once=True,
        ),
        Benchmark(
            name=f"{broker}.down_together",
            title=f"{title}: {sizes.killed_together} sessions killed together, all Downs",
            unit="s",
            subject=LAST,
            legs=(together,),
            targets={LAST: at_most(2.0)},
            once=True,
        ),
        Benchmark(
            name=f"{broker}.cycles",
            title=f"{title}: resident memory over {sizes.cycles:,} openings and closings",
            unit="MiB",
            subject=LATE,
            legs=(cycles,),
            targets={EARLY: at_most(1.1)},
            once=True,
            timeout_seconds=3600.0,
        ),
    ]


async def _downs(url: str, kills: int) -> list[float]:
    """Kill one process after the other; return the milliseconds until each Down."""
    times: list[float] = []
    async with Bus(url, name="watcher") as bus:
        for _ in range(kills):
            async with child("liveness", url, 1) as process:
                await process.report()
                (monitor,) = await _watched(bus)
                killed = _kill([process])
                await asyncio.wait_for(monitor.down, DEADLINE_SECONDS)
                times.append(1000 * (time.perf_counter() - killed))
        await _require_nothing_left(bus)
    return times


async def _together(url: str, sessions: int) -> float:
    """Kill several processes with many sessions at the same moment; return the seconds until the last Down."""
    async with AsyncExitStack() as stack, Bus(url, name="watcher") as bus:
        each = max(1, sessions // PROCESSES)
        processes = [
            await stack.enter_async_context(child("liveness", url, each)) for _ in range(min(PROCESSES, sessions))
        ]
        for process in processes:
            await process.report()
        watched = await _watched(bus)
        if len(watched) != each * len(processes):
            raise BenchmarkError(f"{len(watched)} sessions are listed, not {each * len(processes)}")
        killed = _kill(processes)
        downs: list[Down] = await asyncio.wait_for(
            asyncio.gather(*(monitor.down for monitor in watched)), DEADLINE_SECONDS
        )
        seconds = time.perf_counter() - killed
        if {down.session for down in downs} != {monitor.session for monitor in watched}:
            raise BenchmarkError("not every session had its own Down")
        await _require_nothing_left(bus)
    return seconds


async def _cycles(url: str, count: int) -> Readings:
    """Open and close buses; return our resident memory early and late."""
    early = 0.0
    async with Bus(url, name="watcher") as watcher:
        for number in range(count):
            bus = Bus(url, name="cycle")
            bus.subscribe("bench.cycle", handler=_ignore, name=f"cycle-{number}", durable=False)
            async with bus:
                pass
            if number == count // 10:
                early = resident_mebibytes()
        late = resident_mebibytes()
        await _require_nothing_left(watcher)
    return {LATE: [late], EARLY: [early]}


async def _watched(bus: Bus) -> list[Monitor]:
    return [await bus.monitor(info) for info in await bus.sessions() if info.name == MORTAL]


def _kill(processes: list[Child]) -> float:
    for process in processes:
        process.send(signal.SIGKILL)
    return time.perf_counter()


async def _require_nothing_left(bus: Bus) -> None:
    """Raise unless all sessions but ours, their monitors and their temporary queues are gone, soon."""
    deadline = time.perf_counter() + NOTHING_LEFT_SECONDS
    while True:
        sessions, queues, leaks = await bus.sessions(), await bus.broker.queues(10.0), await bus.leaked_monitors()
        if len(sessions) == 1 and not queues and not leaks and not bus.monitors():
            return
        if time.perf_counter() > deadline:
            raise BenchmarkError(
                f"left behind: {len(sessions) - 1} sessions, {len(queues)} queues, {len(leaks)} monitors"
            )
        await asyncio.sleep(0.1)


async def _ignore(data: bytes) -> None: ...


async def _live(url: str, buses: int) -> None:
    async with AsyncExitStack() as stack:
        for number in range(buses):
            bus = Bus(url, name=MORTAL)
            bus.subscribe("bench.mortal", handler=_ignore, name=f"mortal-{os.getpid()}-{number}", durable=False)
            await stack.enter_async_context(bus)
        say(buses)
        await wait_told_to_end()


if __name__ == "__main__":
    asyncio.run(_live(sys.argv[1], int(sys.argv[2])))
