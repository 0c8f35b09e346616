"""The loads of a benchmark, one after the other, on one bus: publish, consume, a steady stream, requests."""

from __future__ import annotations

import asyncio
import math
import struct
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ..bus import Bus
from ..subscription import Subscription
from .place import SUBSCRIPTION
from .series import Series

IN_FLIGHT = 256
CALLERS = 50
TYPE, PATTERN, REQUEST = "signalbus.bench", "signalbus.bench", "signalbus.bench.echo"
STEADY_SHARE, STEADY_MOST = 0.1, 1_000.0  # of the rate that was reached, and signals a second
LATE_SECONDS = 10.0  # that the last deliveries may take after the last publish
# Parts of the time there is; consuming takes as long as what was published does.
ALONE, TOGETHER, CONSUMING, STEADY, ASKING = 0.15, 0.2, 0.25, 0.2, 0.1
_STAMP = struct.Struct(">d")
SMALLEST = _STAMP.size

Call = Callable[[], Coroutine[object, object, object]]


@dataclass(slots=True)
class _Arrivals:
    """What the handler has seen since it was last cleared."""

    times: list[float] = field(default_factory=list[float])

    async def take(self, data: bytes) -> None:
        self.times.append(time.time() - _STAMP.unpack_from(data)[0])


async def measure(url: str, *, seconds: float, size: int, timeout: float) -> AsyncGenerator[Series]:
    """Yield one series after the other, for about ``seconds`` in all; signals have ``size`` bytes of data."""
    bus, arrivals = Bus(url, name="signalbus-bench", connect_timeout=timeout), _Arrivals()
    subscription = bus.subscribe(
        PATTERN, handler=arrivals.take, name=SUBSCRIPTION, concurrency=IN_FLIGHT, prefetch=2 * IN_FLIGHT
    )
    bus.respond(REQUEST, _echo)
    filling = bytes(size - SMALLEST)

    async def publish() -> None:
        await bus.publish(TYPE, _STAMP.pack(time.time()) + filling)

    async def ask() -> None:
        await bus.request(REQUEST, filling, reply=bytes)

    async with bus:
        await subscription.pause()
        alone = await calls("publish", "publish, one at a time", publish, seconds * ALONE, 1)
        yield alone
        together = await calls(
            "publish_in_flight", f"publish, {IN_FLIGHT} in flight", publish, seconds * TOGETHER, IN_FLIGHT
        )
        yield together
        yield await _consumed(subscription, alone.count + together.count, seconds * CONSUMING)
        arrivals.times.clear()
        rate = min(STEADY_SHARE * (together.rate or 1.0), STEADY_MOST)
        yield await _steady(publish, arrivals, rate, seconds * STEADY)
        yield await calls("request", "request and reply, one at a time", ask, seconds * ASKING, 1)
        yield await calls("request_callers", f"request and reply, {CALLERS} callers", ask, seconds * ASKING, CALLERS)


async def calls(name: str, title: str, call: Call, seconds: float, in_flight: int) -> Series:
    """Call for so many seconds, with a number of calls under way."""
    times: list[float] = []
    clock = time.perf_counter
    await call()  # the first one is not like the others
    begun, cpu = clock(), time.process_time()
    end = begun + seconds

    async def some() -> None:
        while (started := clock()) < end:
            await call()
            times.append(clock() - started)

    async with _together() as group:
        for _ in range(in_flight):
            group.create_task(some())
    return Series(
        name=name,
        title=title,
        count=len(times),
        seconds=clock() - begun,
        cpu_seconds=time.process_time() - cpu,
        times=times,
    )


async def _consumed(subscription: Subscription[..., object], waiting: int, seconds: float) -> Series:
    """Handle what waits, from the first on, for so many seconds at most."""
    await subscription.resume()
    await _until(lambda: subscription.stats().acked > 0)
    begun, cpu = time.perf_counter(), time.process_time()
    before = min(subscription.stats().acked, waiting - 1)
    while subscription.stats().acked < waiting and time.perf_counter() - begun < seconds:  # noqa: ASYNC110 - as below
        await asyncio.sleep(0.002)
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    count = subscription.stats().acked - before
    await _until(lambda: subscription.stats().acked >= waiting)
    return Series(name="consume", title="handle and ack", count=count, seconds=took, cpu_seconds=cpu)


async def _steady(publish: Call, arrivals: _Arrivals, rate: float, seconds: float) -> Series:
    """Publish at a rate, and take the time until each signal is in its handler."""
    count = max(1, math.ceil(rate * seconds))
    begun, cpu = time.perf_counter(), time.process_time()
    async with _together() as group:
        for number in range(count):
            if (early := begun + number / rate - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            group.create_task(publish())
    await _until(lambda: len(arrivals.times) >= count)
    return Series(
        name="steady",
        title=f"from publish to handler, at {rate:,.0f}/s",
        count=count,
        seconds=time.perf_counter() - begun,
        cpu_seconds=time.process_time() - cpu,
        times=tuple(arrivals.times),
        steady=True,
    )


async def _until(done: Callable[[], bool]) -> None:
    """Wait for what is on its way, a while."""
    deadline = time.perf_counter() + LATE_SECONDS
    while not done() and time.perf_counter() < deadline:  # noqa: ASYNC110 - the bus has no event for it
        await asyncio.sleep(0.005)


@asynccontextmanager
async def _together() -> AsyncGenerator[asyncio.TaskGroup]:
    """A task group whose first error is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors


async def _echo(data: bytes) -> bytes:
    return data
