"""What a long queue costs: resident memory of a publisher and of a subscriber, and the rate, over the queue's length.

As a program: fills a queue and empties it, and reports.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack

from signalbus import Bus
from signalbus.bench.place import SUBSCRIPTION, place

from .embedded import IN_FLIGHT, database
from .figures import Benchmark
from .load import BODY, PATTERN, SIGNAL_TYPE, wait_acked
from .memory import resident_mebibytes
from .plan import Plan
from .processes import child, say
from .turns import Turns

STEPS = 10
WINDOW = 1_000  # of signals that are published together
TIMEOUT_SECONDS = 3_600.0
REMOVE_SECONDS = 60.0

_FIGURES = ("empty_mib", "full_mib", "drained_mib", "fill_first", "fill_last", "drain_first", "drain_last")


def benchmarks(plan: Plan) -> list[Benchmark]:
    """Return the benchmarks of long queues, on SQLite and on RabbitMQ if there is one."""
    found = _of("embedded", "SQLite", None, plan)
    return found if plan.amqp_url is None else [*found, *_of("rabbitmq", "RabbitMQ", plan.amqp_url, plan)]


def _of(broker: str, title: str, url: str | None, plan: Plan) -> list[Benchmark]:
    count = plan.sizes.queued_signals

    async def measure() -> Mapping[str, float]:
        with database(plan.directory) as path:
            async with AsyncExitStack() as stack:
                where = url if url is not None else f"sqlite:///{path}"
                process = await stack.enter_async_context(child("queued", where, count))
                return dict(zip(_FIGURES, await process.report(), strict=True))

    taken: list[Mapping[str, float]] = []

    async def measured() -> Mapping[str, float]:
        if not taken:
            taken.append(await measure())
        return taken[0]

    def pair(name: str, what: str, unit: str, figures: Mapping[str, str]) -> Benchmark:
        """Compare two figures of the one run; the first of ``figures`` (label -> figure) is the subject."""
        return Benchmark(
            name=f"{broker}.{name}",
            title=f"{title}: {what}, {count:,} signals",
            unit=unit,
            subject=next(iter(figures)),
            legs=tuple(Turns(label, measured).leg(figure) for label, figure in figures.items()),
            once=True,
            timeout_seconds=TIMEOUT_SECONDS,
        )

    first, last = "the first tenth", "the last tenth"
    return [
        pair(
            "queued",
            "resident memory of a process that queues them",
            "MiB",
            {"with all queued": "full_mib", "with an empty queue": "empty_mib"},
        ),
        pair(
            "queued_fill",
            "publishing into a queue that grows",
            "signals/s",
            {last: "fill_last", first: "fill_first"},
        ),
        pair(
            "queued_drain",
            "consuming a queue that shrinks",
            "signals/s",
            {last: "drain_last", first: "drain_first"},
        ),
    ]


async def _fill_and_empty(url: str, count: int) -> None:
    """Publish to a paused subscription, then resume it."""
    async with place(url, REMOVE_SECONDS) as where:
        await _fill_and_empty_at(where, count)


async def _fill_and_empty_at(url: str, count: int) -> None:
    bus = Bus(url, name="queued")

    async def handle(data: bytes) -> None:
        pass

    subscription = bus.subscribe(
        PATTERN, handler=handle, name=SUBSCRIPTION, concurrency=IN_FLIGHT, prefetch=2 * IN_FLIGHT
    )
    async with bus:
        await subscription.pause()
        empty = resident_mebibytes()
        filled: list[float] = []
        for _ in range(STEPS):
            started = time.perf_counter()
            for _ in range(count // STEPS // WINDOW or 1):
                await bus.publish_many([(SIGNAL_TYPE, BODY)] * min(WINDOW, count // STEPS))
            filled.append(time.perf_counter() - started)
        full = resident_mebibytes()
        each = subscription.stats().acked, bus.stats().publisher.published // STEPS
        drained: list[float] = []
        await subscription.resume()
        await wait_acked(subscription, each[0] + 1)  # the start of a consumer is not what is asked
        started = time.perf_counter()
        for step in range(1, STEPS + 1):
            await wait_acked(subscription, each[0] + step * each[1])
            drained.append(time.perf_counter() - started)
            started = time.perf_counter()
        say(
            empty,
            full,
            resident_mebibytes(),
            each[1] / filled[0],
            each[1] / filled[-1],
            each[1] / drained[0],
            each[1] / drained[-1],
        )


if __name__ == "__main__":
    asyncio.run(_fill_and_empty(sys.argv[1], int(sys.argv[2])))
