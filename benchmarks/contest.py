"""One turn of one contestant, in a process of its own: nobody pays for what another one left behind.

As a program: ``python -m benchmarks.contest NAME WORK URL PREFIX COUNT SIZE WINDOW`` does the work and writes its
figures as one JSON object. ``serve`` consumes until it is told to end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Mapping

from .contestants import BlockingContestant, Contestant, contestant
from .contestants.base import PREFETCH, Place
from .figures import BenchmarkError
from .load import publish_all
from .pace import Cost, Pace, stamped
from .processes import child_output, say, wait_told_to_end

WARM_UP = 2_000  # of the interpreter, of connections, of the broker; for those that have one
SPACE_SECONDS = 0.5  # between connecting to consume and the first message of a steady load

Figures = Mapping[str, float]


async def turn(name: str, work: str, url: str, count: int, size: int, window: int) -> Figures:
    """Let a contestant work in a new process; return its figures."""
    place = Place(url=url)
    try:
        written = await child_output("contest", name, work, url, place.prefix, count, size, window)
        figures: dict[str, float] = json.loads(written.splitlines()[-1])
        return figures
    finally:
        await place.remove()


# In the process


async def publish(rival: Contestant | BlockingContestant, count: int, body: bytes, window: int) -> Figures:
    """Publish with a window in flight; the queue has to hold all of it afterwards."""
    warm_up = min(WARM_UP, count)
    if isinstance(rival, BlockingContestant):
        warm_up = 0
        cost = await rival.publish(count, body, window)
    else:
        async with rival.connected() as client:
            await publish_all(lambda: client.publish(body), warm_up, window)
            cpu, started = time.process_time(), time.perf_counter()
            await publish_all(lambda: client.publish(body), count, window)
            cost = Cost(count, time.perf_counter() - started, time.process_time() - cpu)
    _require(count + warm_up, await rival.remove_queue(), "messages stored")
    return cost.figures


async def consume(rival: Contestant | BlockingContestant, count: int, body: bytes, window: int) -> Figures:
    """Fill the queue, then consume it; nothing may be left, but for the last acks of a worker that is stopped."""
    if isinstance(rival, BlockingContestant):
        cost = await rival.consume(count, body)
        left = await rival.remove_queue(drained=True)
        _require(0, max(0, left - PREFETCH), "messages left after the acks")
        return cost.figures
    async with rival.connected() as client:
        await publish_all(lambda: client.publish(body), count, PREFETCH)
        pace = Pace(count)
        await client.consume(pace)
        cost = pace.cost()
    _require(0, await rival.remove_queue(drained=True), "messages left after the acks")
    return cost.figures


async def latency(rival: Contestant | BlockingContestant, count: int, body: bytes, window: int) -> Figures:
    """Publish ``window`` messages a second and consume them; from the moment each was due to be published."""
    assert not isinstance(rival, BlockingContestant)
    async with rival.connected() as client, asyncio.TaskGroup() as group:
        pace = Pace(count, stamped=True)
        consuming = group.create_task(client.consume(pace))
        await asyncio.sleep(SPACE_SECONDS)
        cpu, begun = time.process_time(), time.time()
        for number in range(count):
            due = begun + number / window
            if (early := due - time.time()) > 0:
                await asyncio.sleep(early)
            group.create_task(_published(client.publish(stamped(due, len(body)))))
        await consuming
        cpu = time.process_time() - cpu
    _require(0, await rival.remove_queue(drained=True), "messages left after the acks")
    times = sorted(pace.latencies[pace.count // 10 :])
    found = {name: 1000 * times[int(len(times) * share)] for name, share in SHARES.items()}
    return {**found, "cpu": 1e6 * cpu / count}


SHARES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}


async def fill(rival: Contestant | BlockingContestant, count: int, body: bytes, window: int) -> Figures:
    """Make the queue, and fill it for others."""
    assert not isinstance(rival, BlockingContestant)
    async with rival.connected() as client:
        await publish_all(lambda: client.publish(body), count, window)
    return {}


async def serve(rival: Contestant | BlockingContestant, count: int, body: bytes, window: int) -> Figures:
    """Consume, with others, until told to end; report how many there were, when the first and the last one came."""
    assert not isinstance(rival, BlockingContestant)
    seen: list[float] = []

    class Times(Pace):
        def hit(self, body: bytes) -> None:
            seen.append(time.monotonic())

    async with rival.connected(fresh=False) as client:
        consuming = asyncio.create_task(client.consume(Times(count)))
        say()
        await wait_told_to_end()
        consuming.cancel()
        await asyncio.wait([consuming])
    return {"count": len(seen), "first": min(seen, default=0.0), "last": max(seen, default=0.0)}


async def start(rival: Contestant | BlockingContestant, count: int, body: bytes, window: int) -> Figures:
    """Be there, and publish one message; the process' start is measured from outside."""
    assert not isinstance(rival, BlockingContestant)
    async with rival.connected() as client:
        await client.publish(body)
        return {"ready": time.time()}


async def _published(publishing: object) -> None:
    assert asyncio.iscoroutine(publishing)
    await publishing


def _require(expected: int, found: int, what: str) -> None:
    if found != expected:
        raise BenchmarkError(f"{what}: expected {expected}, found {found}; the figure would mean nothing")


WORKS = {work.__name__: work for work in (publish, consume, latency, fill, serve, start)}


def main(name: str, work: str, url: str, prefix: str, *numbers: str) -> None:
    """Do the work, and write the figures as the last line."""
    logging.disable(logging.WARNING)
    count, size, window = map(int, numbers)

    async def run() -> Figures:
        return await WORKS[work](contestant(name, Place(url=url, prefix=prefix)), count, bytes(size), window)

    sys.stdout.write("\n" + json.dumps(dict(asyncio.run(run()))) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
