"""Throughput of the embedded broker: its default settings, so every publish returns after an fsync.

As a program: ``python -m benchmarks.embedded WHO WORK DIRECTORY COUNT`` does the work and writes the signals a second.
"""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

from signalbus import Bus, Subscription

from . import embedded_peers
from .figures import Benchmark, Leg, Readings, at_least
from .load import BODY, PATTERN, SIGNAL_TYPE, Countdown, publish_all, require, wait_acked
from .plan import Plan
from .processes import child_output

SUBJECT = "signalbus"
BARE = "sqlite3, a commit a row"
SUBSCRIPTION = "load"
IN_FLIGHT = 256
BLOCK = 50  # calls one at a time before the other contestant's


def benchmarks(plan: Plan) -> list[Benchmark]:
    """Return the throughput benchmarks of the embedded broker."""
    count = plan.sizes.embedded_signals

    def ours(work: str) -> Leg:
        return functools.partial(_apart, SUBJECT, work, plan.directory, count)

    def with_rivals(work: str) -> tuple[Leg, ...]:
        slow = plan.sizes.one_at_a_time
        return ours(work), *(functools.partial(_apart, name, work, plan.directory, slow) for name in rivals)

    rivals = embedded_peers.peers()
    ahead = {name: at_least(3.0) for name in rivals}

    async def one_at_a_time() -> Readings:
        return await _one_at_a_time(plan.directory, plan.sizes.one_at_a_time)

    return [
        Benchmark(
            name="embedded.publish",
            title=f"SQLite: publish, {IN_FLIGHT} in flight",
            unit="signals/s",
            subject=SUBJECT,
            legs=with_rivals("publish"),
            targets={SUBJECT: at_least(40_000), **ahead},
        ),
        Benchmark(
            name="embedded.publish_many",
            title=f"SQLite: publish_many, {IN_FLIGHT} at a time",
            unit="signals/s",
            subject=SUBJECT,
            legs=(ours("publish_many"),),
        ),
        Benchmark(
            name="embedded.consume",
            title=f"SQLite: claim, handle, ack, {IN_FLIGHT} at a time",
            unit="signals/s",
            subject=SUBJECT,
            legs=(ours("consume"),),
        ),
        Benchmark(
            name="embedded.round_trip",
            title=f"SQLite: publish, handle, ack in one process, {IN_FLIGHT} in flight",
            unit="signals/s",
            subject=SUBJECT,
            legs=with_rivals("round_trip"),
            targets={SUBJECT: at_least(20_000), **ahead},
        ),
        Benchmark(
            name="embedded.one_at_a_time",
            title="SQLite: publish, one at a time",
            unit="signals/s",
            subject=SUBJECT,
            legs=(one_at_a_time,),
            targets={BARE: at_least(0.5)},
        ),
    ]


async def _apart(who: str, work: str, directory: Path, count: int) -> Readings:
    """Let somebody work in a new process: in ours are the objects of all libraries, for the collector to go through."""
    return {who: [float(await child_output("embedded", who, work, directory, count))]}


@contextmanager
def database(directory: Path) -> Iterator[Path]:
    """Yield the path of a database file that does not exist yet; it is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="signalbus-bench-", dir=directory) as name:
        yield Path(name) / "bench.db"


@asynccontextmanager
async def open_bus(
    directory: Path, landed: Countdown, ledger: str | None = None
) -> AsyncIterator[tuple[Bus, Subscription[..., object]]]:
    """Yield an open bus on a fresh file, and its one subscription. ``ledger``: what it records."""

    async def handle(data: bytes) -> None:
        landed.hit()

    with database(directory) as path:
        bus = Bus(f"sqlite:///{path}", name="benchmark", ledger=ledger)
        subscription = bus.subscribe(
            PATTERN, handler=handle, name=SUBSCRIPTION, concurrency=IN_FLIGHT, prefetch=2 * IN_FLIGHT
        )
        async with bus:
            yield bus, subscription


async def _publish(directory: Path, count: int) -> float:
    async with open_bus(directory, Countdown(0)) as (bus, subscription):
        await subscription.pause()
        rate = await publish_all(lambda: bus.publish(SIGNAL_TYPE, BODY), count, IN_FLIGHT)
        require(count, await ready(bus), "signals stored")
        return rate


async def _publish_many(directory: Path, count: int) -> float:
    batches, rest = divmod(count, IN_FLIGHT)
    async with open_bus(directory, Countdown(0)) as (bus, subscription):
        await subscription.pause()
        started = time.perf_counter()
        for size in [*[IN_FLIGHT] * batches, rest]:
            await bus.publish_many([(SIGNAL_TYPE, BODY)] * size)
        elapsed = time.perf_counter() - started
        require(count, await ready(bus), "signals stored")
        return count / elapsed


async def _consume(directory: Path, count: int) -> float:
    landed = Countdown(count)
    async with open_bus(directory, landed) as (bus, subscription):
        await subscription.pause()
        await bus.publish_many([(SIGNAL_TYPE, BODY)] * count)
        started = time.perf_counter()
        await subscription.resume()
        await landed.wait_done()
        await wait_acked(subscription, count)
        elapsed = time.perf_counter() - started
        require(0, await ready(bus), "signals left")
        return count / elapsed


async def _round_trip(directory: Path, count: int) -> float:
    landed = Countdown(count)
    async with open_bus(directory, landed) as (bus, subscription):
        started = time.perf_counter()
        publishing = asyncio.create_task(publish_all(lambda: bus.publish(SIGNAL_TYPE, BODY), count, IN_FLIGHT))
        await landed.wait_done()
        await publishing
        await wait_acked(subscription, count)
        elapsed = time.perf_counter() - started
        require(0, await ready(bus), "signals left")
        return count / elapsed


async def ready(bus: Bus) -> int:
    """Return how many deliveries wait or are in hand."""
    return sum(queue.ready + (queue.unsettled or 0) for queue in await bus.broker.queues(10.0))


async def _one_at_a_time(directory: Path, count: int) -> Readings:
    """Publish and insert in short alternating blocks: how long an fsync takes changes from second to second."""
    rates: dict[str, list[float]] = {SUBJECT: [], BARE: []}
    block = min(BLOCK, count)
    async with open_bus(directory, Countdown(0)) as (bus, subscription):
        await subscription.pause()
        with _bare_table(directory) as connection:
            for _ in range(count // block):
                started = time.perf_counter()
                for _ in range(block):
                    await bus.publish(SIGNAL_TYPE, BODY)
                rates[SUBJECT].append(block / (time.perf_counter() - started))
                started = time.perf_counter()
                for _ in range(block):
                    connection.execute("INSERT INTO signals (type, body) VALUES (?, ?)", (SIGNAL_TYPE, BODY))
                rates[BARE].append(block / (time.perf_counter() - started))
            (stored,) = connection.execute("SELECT count(*) FROM signals").fetchone()
        require(stored, await ready(bus), "signals stored")
    return rates


@contextmanager
def _bare_table(directory: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection that commits each row, with the durability of the embedded broker."""
    with database(directory) as path, closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE signals (seq INTEGER PRIMARY KEY, type TEXT NOT NULL, body BLOB NOT NULL)")
        yield connection


_OURS = {"publish": _publish, "publish_many": _publish_many, "consume": _consume, "round_trip": _round_trip}


def main(who: str, work: str, directory: str, count: str) -> None:
    """Do the work, and write its figure."""
    if who == SUBJECT:
        rate = asyncio.run(_OURS[work](Path(directory), int(count)))
    else:
        with database(Path(directory)) as path:
            rate = embedded_peers.WORKS[work](who, path, int(count))
    print(rate)


if __name__ == "__main__":
    main(*sys.argv[1:])
