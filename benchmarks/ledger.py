"""What the ledger costs: the embedded broker with all facts, with those of failures, and with none.

Turns alternate, and are counted by the clock and in processor time: the second means something on a busy machine, too.
Facts are stored within them; sorting them into the tables of traces goes on afterwards, and has a figure of its own.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from signalbus.brokers.sqlite.broker import SqliteBroker

from .embedded import IN_FLIGHT, open_bus, ready
from .figures import Benchmark, BenchmarkError, Leg, Readings, at_least
from .load import BODY, SIGNAL_TYPE, Countdown, publish_all, require, wait_acked
from .plan import Plan

LEVELS = {"all": 0.85, "failures": 0.97}  # of what is reached without a ledger
FILE_SECONDS = 120.0

Rates = tuple[float, float]  # signals a second, and a second of processor time
Turn = Callable[[Path, int, str], Awaitable[Rates]]


def benchmarks(plan: Plan) -> list[Benchmark]:
    """Return the benchmarks of the ledger."""
    directory, count = plan.directory, plan.sizes.embedded_signals
    turns: dict[str, Turn] = {"publish": _publish, "consume": _consume}
    compared = [
        _compared(name, turn, level, directory, count, by_clock=by_clock)
        for name, turn in turns.items()
        for level in LEVELS
        for by_clock in (True, False)
    ]
    return [*compared, _filing(directory, count)]


def _compared(name: str, turn: Turn, level: str, directory: Path, count: int, *, by_clock: bool) -> Benchmark:
    unit = "signals/s" if by_clock else "signals/s of processor time"

    async def leg(setting: str) -> Readings:
        rates = await turn(directory, count, setting)
        return {f"ledger={setting}": [rates[0 if by_clock else 1]]}

    legs: tuple[Leg, ...] = (functools.partial(leg, level), functools.partial(leg, "off"))
    return Benchmark(
        name=f"ledger.{name}_{level}{'' if by_clock else '_cpu'}",
        title=f"SQLite: {name} with ledger={level}, {IN_FLIGHT} in flight",
        unit=unit,
        subject=f"ledger={level}",
        legs=legs,
        targets={"ledger=off": at_least(LEVELS[level])},
    )


def _filing(directory: Path, count: int) -> Benchmark:
    async def leg() -> Readings:
        return {"signalbus": [await _file(directory, count)]}

    return Benchmark(
        name="ledger.filing",
        title="SQLite: sorting stored facts into the tables of traces",
        unit="facts/s",
        subject="signalbus",
        legs=(leg,),
    )


async def _publish(directory: Path, count: int, level: str) -> Rates:
    async with open_bus(directory, Countdown(0), level) as (bus, subscription):
        await subscription.pause()
        cpu = time.process_time()
        rate = await publish_all(lambda: bus.publish(SIGNAL_TYPE, BODY), count, IN_FLIGHT)
        cpu = time.process_time() - cpu
        require(count, await ready(bus), "signals stored")
        _require_no_loss(bus.stats().broker.counters)
        return rate, count / cpu


async def _consume(directory: Path, count: int, level: str) -> Rates:
    landed = Countdown(count)
    async with open_bus(directory, landed, level) as (bus, subscription):
        await subscription.pause()
        await bus.publish_many([(SIGNAL_TYPE, BODY)] * count)
        cpu, started = time.process_time(), time.perf_counter()
        await subscription.resume()
        await landed.wait_done()
        await wait_acked(subscription, count)
        elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
        require(0, await ready(bus), "signals left")
        _require_no_loss(bus.stats().broker.counters)
        return count / elapsed, count / cpu


async def _file(directory: Path, count: int) -> float:
    async with open_bus(directory, Countdown(0), "all") as (bus, subscription):
        await subscription.pause()
        await bus.publish_many([(SIGNAL_TYPE, BODY)] * count)
        assert isinstance(bus.broker, SqliteBroker)
        started = time.perf_counter()
        async with await bus.broker.traces(FILE_SECONDS) as traces:
            await traces.find("nothing")
            require(0, traces.behind, "facts that wait")
            filed = (await traces.stats()).facts
        return filed / (time.perf_counter() - started)


def _require_no_loss(counters: object) -> None:
    """A ledger that drops what it cannot keep would be a cheap one."""
    assert isinstance(counters, dict)
    if counters.get("facts_dropped"):
        raise BenchmarkError(f"{counters['facts_dropped']} facts were dropped; the figure would mean nothing")
