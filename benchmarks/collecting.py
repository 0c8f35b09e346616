"""What a router does with facts that wait at RabbitMQ: collected into its store, by the clock and in processor time.

The clock is that of the machine: RabbitMQ, the router and whatever else runs share it. Processor time is the router's.
"""

from __future__ import annotations

import asyncio
import functools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiormq
from pamqp import commands

from signalbus import Bus
from signalbus.config import RabbitUrl, parse_url
from signalbus.ledger import Batch, Origin, encode
from signalbus.ledger.facts import Row
from signalbus.router.daemon import Router
from signalbus.signals import new_id
from signalbus.trace.listing import Retention
from signalbus.trace.store import SqliteStore

from .figures import Benchmark, Leg, Readings, at_least
from .load import require
from .plan import Plan

PREFIX = "benchmarks.collecting"
BATCH = 250  # facts, as a bus sends them
POLL_SECONDS = 0.02
TARGET = 30_000


def benchmarks(plan: Plan) -> list[Benchmark]:
    """Return the benchmarks of the router; none without a RabbitMQ."""
    if plan.amqp_url is None:
        return []
    url = f"{plan.amqp_url}?prefix={PREFIX}"

    async def leg(unit: int) -> Readings:
        return {"signalbus": [(await _collect(url, plan.directory, plan.sizes.facts))[unit]]}

    legs: tuple[Leg, ...] = (functools.partial(leg, 0), functools.partial(leg, 1))
    return [
        Benchmark(
            name=f"ledger.collect{suffix}",
            title=f"RabbitMQ: a router collects {plan.sizes.facts:,} facts into its store",
            unit=unit,
            subject="signalbus",
            legs=(turn,),
            targets={"signalbus": at_least(TARGET)},
        )
        for suffix, unit, turn in zip(("", "_cpu"), ("facts/s", "facts/s of processor time"), legs, strict=True)
    ]


async def _collect(url: str, directory: Path, count: int) -> tuple[float, float]:
    batches = list(facts(count))
    with tempfile.TemporaryDirectory(dir=directory) as place:
        path = Path(place) / "ledger.db"
        router = Router(Bus(url, name="router", ledger="off"), path, Retention())
        async with asyncio.timeout(60):
            await _fill(url, batches)
        serving = asyncio.create_task(router.serve())
        try:
            return await _until_stored(router, path, sum(len(batch.rows) for batch in batches))
        finally:
            serving.cancel()
            await asyncio.wait([serving])


async def _until_stored(router: Router, path: Path, count: int) -> tuple[float, float]:
    """Measure from the first facts that are stored to the last."""
    await router.ready.wait()
    store = await asyncio.to_thread(SqliteStore, path, read_only=True)
    try:
        first = await _reached(store, 1)
        started, cpu = time.perf_counter(), time.process_time()
        last = await _reached(store, count)
        elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
        require(count, last, "facts stored")
        return (last - first) / elapsed, (last - first) / cpu
    finally:
        await asyncio.to_thread(store.close)


async def _reached(store: SqliteStore, count: int) -> int:
    """Return how much is stored, once it is as much."""
    while (stats := await asyncio.to_thread(store.stats)).facts < count:  # noqa: ASYNC110 - a file has no event
        await asyncio.sleep(POLL_SECONDS)
    return stats.facts


async def _fill(url: str, batches: Sequence[Batch]) -> None:
    """Put facts into the queue, in place of whatever is in it."""
    parsed = parse_url(url)
    assert isinstance(parsed, RabbitUrl)
    async with Bus(url, name="filler", ledger="off"):  # makes the queue
        pass
    queue = f"{parsed.prefix}.ledger"
    properties = commands.Basic.Properties(delivery_mode=2)
    async with aiormq.connect(parsed.servers[0]) as connection:
        channel = await connection.channel()
        await channel.queue_purge(queue)
        for batch in batches:
            await channel.basic_publish(encode(batch), routing_key=queue, properties=properties)


def facts(count: int) -> Iterator[Batch]:
    """Yield batches of a publisher and a subscriber that tell of the same signals, at least ``count`` facts of them."""
    shop, billing = _Teller("shop"), _Teller("billing")
    now = time.time()
    for number in range(0, count, 3):
        signal, at = new_id(), now + number * 1e-5
        shop.rows.append(("accepted", at, signal, "order.placed", "shop", None, None, None, None, None, ("billing",)))
        billing.rows.append(("delivered", at + 0.001, signal, "order.placed", "billing", 1, 0, 0.001, None))
        billing.rows.append(("acked", at + 0.003, signal, "order.placed", "billing", 1, 0, 0.002))
        for teller in (shop, billing):
            if len(teller.rows) >= BATCH:
                yield teller.batch()
    yield from (teller.batch() for teller in (shop, billing) if teller.rows)


class _Teller:
    def __init__(self, name: str) -> None:
        self.rows: list[Row] = []
        self._origin = Origin(recorder=new_id(), session=new_id(), name=name, host="here", pid=1)
        self._first = 1

    def batch(self) -> Batch:
        made = Batch(origin=self._origin, first=self._first, rows=self.rows)
        self._first += len(self.rows)
        self.rows = []
        return made
