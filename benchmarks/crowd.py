"""Several processes at once on one queue of RabbitMQ, and how soon a process is ready."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack

import aio_pika

from .contestants import BY_LOOP, FASTSTREAM, SIGNALBUS, Place, contestants
from .figures import Benchmark, BenchmarkError, Leg, Readings, at_least, at_most
from .plan import Plan
from .processes import child, child_output

SIZE = 256
PROCESSES = (1, 2, 4)
POLL_SECONDS = 0.05
EMPTY_SECONDS = 300.0


def benchmarks(plan: Plan) -> list[Benchmark]:
    """Return the benchmarks; none without a RabbitMQ."""
    if plan.amqp_url is None:
        return []
    url, count = plan.amqp_url, plan.sizes.crowd_signals
    known = contestants()
    pair = [name for name in (SIGNALBUS, FASTSTREAM) if name in known]

    def consuming(name: str, processes: int) -> Leg:
        async def leg() -> Readings:
            return {name: [await _rate(name, url, count, processes)]}

        return leg

    def starting(name: str) -> Leg:
        async def leg() -> Readings:
            return {name: [await _start_ms(name, url)]}

        return leg

    return [
        *(
            Benchmark(
                name=f"rabbitmq.consumers_{processes}",
                title=f"RabbitMQ: consume, handle, ack in {processes} process{'es' if processes > 1 else ''}",
                unit="signals/s",
                subject=SIGNALBUS,
                legs=tuple(consuming(name, processes) for name in pair),
                targets={FASTSTREAM: at_least(1.0)},
                timeout_seconds=2 * EMPTY_SECONDS,
            )
            for processes in PROCESSES
        ),
        Benchmark(
            name="rabbitmq.start",
            title="RabbitMQ: from the start of a process to its first confirmed publish",
            unit="ms",
            subject=SIGNALBUS,
            legs=tuple(starting(name) for name in BY_LOOP if name in known),
            targets={FASTSTREAM: at_most(1.0)},
        ),
    ]


async def _start_ms(name: str, url: str) -> float:
    """Start a process where all that it declares is there already, as it is but for the first time."""
    place = Place(url=url)
    try:
        await _started(name, place)
        began = time.time()
        return 1000 * (await _started(name, place) - began)
    finally:
        await place.remove()


async def _started(name: str, place: Place) -> float:
    """Return when a new process was ready."""
    written = await child_output("contest", name, "start", place.url, place.prefix, 1, SIZE, 1)
    figures: dict[str, float] = json.loads(written.splitlines()[-1])
    return figures["ready"]


async def _rate(name: str, url: str, count: int, processes: int) -> float:
    """Fill a queue, then let several processes empty it; return what all of them did in a second."""
    place = Place(url=url)
    try:
        await child_output("contest", name, "fill", url, place.prefix, count, SIZE, 500)
        queue = await _queue(place)
        async with AsyncExitStack() as stack:
            crowd = [
                await stack.enter_async_context(child("contest", name, "serve", url, place.prefix, count, SIZE, 500))
                for _ in range(processes)
            ]
            await asyncio.gather(*(each.report() for each in crowd))
            await _wait_empty(url, queue)
            written = [await each.end() for each in crowd]
    finally:
        await place.remove()
    reports: list[dict[str, float]] = [json.loads(text.splitlines()[-1]) for text in written]
    busy = [report for report in reports if report["count"]]
    seen = sum(report["count"] for report in busy)
    if seen < count:
        raise BenchmarkError(f"{name}: {seen} of {count} messages were handled; the figure would mean nothing")
    return float(count / (max(report["last"] for report in busy) - min(report["first"] for report in busy)))


async def _queue(place: Place) -> str:
    """Return the name of the queue that is there: signalbus has names of its own."""
    for queue in (place.queue, f"{place.prefix}.q.load"):
        async with await aio_pika.connect(place.url) as connection:
            try:
                await (await connection.channel()).get_queue(queue)
            except aio_pika.exceptions.ChannelClosed:
                continue
            return queue
    raise BenchmarkError(f"no queue begins with {place.prefix}")


async def _wait_empty(url: str, queue: str) -> None:
    """Wait until nothing is ready and nothing comes any more."""
    async with asyncio.timeout(EMPTY_SECONDS), await aio_pika.connect(url) as connection:
        quiet = 0
        while quiet < 20:
            channel = await connection.channel()
            found = await channel.declare_queue(queue, passive=True)
            await channel.close()
            quiet = 0 if found.declaration_result.message_count else quiet + 1
            await asyncio.sleep(POLL_SECONDS)
