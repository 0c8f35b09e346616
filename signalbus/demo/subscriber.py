"""A process of the demo: serves one subscription and records what it does. ``python -m signalbus.demo.subscriber``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import zlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from signalbus import Bus, Delivery, RetryPolicy, SignalBusError

from .flights import ARRIVED, CANCELLED, PATTERNS, Movement, source_of
from .lifeline import run_to_end
from .reports import tell
from .results import ResultFile, Run

CONCURRENCY = 64
PREFETCH = 512
REPORT_SECONDS = 0.1
DRAIN_SECONDS = 3.0
FAILS_ONE_IN = 100

#: Short, so that the demo is: services wait longer between attempts.
RETRY = RetryPolicy(max_attempts=6, initial=timedelta(milliseconds=50), max_delay=timedelta(milliseconds=400))


class GateBusy(Exception):
    """Raised by the board now and then: the sort of failure that a retry mends."""


def by_airline(kind: str, movement: Movement) -> str:
    """The delays of each airline."""
    return movement.carrier


def by_airport(kind: str, movement: Movement) -> str:
    """The board of each airport."""
    return movement.dest if kind == ARRIVED else movement.origin


def by_airline_and_airport(kind: str, movement: Movement) -> str:
    """The cancellations of each airline at each airport."""
    return f"{movement.carrier} {movement.origin}"


SUBJECTS: dict[str, Callable[[str, Movement], str]] = {
    "delays": by_airline,
    "board": by_airport,
    "cancellations": by_airline_and_airport,
}


class Subscriber:
    """Handles the deliveries of one subscription. After ``hold_at`` signals it records, but does not return."""

    def __init__(self, name: str, run: str, results: ResultFile, hold_at: int | None) -> None:
        self._name = name
        self._source = source_of(run)
        self._results = results
        self._hold_at = hold_at
        self._held = asyncio.Event()

    async def handle(self, movement: Movement, delivery: Delivery) -> None:
        """Record a movement."""
        if delivery.encoded.headers.get("cloudEvents_source") != self._source:
            return  # of another demo on the same broker
        kind = delivery.type.split(".")[1]
        if self._name == "board" and _fails(movement, kind, delivery.attempt):
            await self._record(delivery, None)
            raise GateBusy(f"the gate of {movement.carrier} {movement.flight} is not free yet")
        subject = SUBJECTS[self._name](kind, movement)
        await self._record(delivery, (subject, kind, None if kind == CANCELLED else movement.delay))
        if self._hold_at is not None and self._results.done >= self._hold_at:
            # The worst moment to be killed: the effect is there, the ack is not.
            if not self._held.is_set():
                self._held.set()
                tell("held", self._results.done)
            await asyncio.get_running_loop().create_future()

    async def report(self) -> None:
        """Tell the parent how many signals are done, when that changes."""
        told = -1
        while True:
            if self._results.done != told:
                told = self._results.done
                tell("progress", told)
            await asyncio.sleep(REPORT_SECONDS)

    async def _record(self, delivery: Delivery, effect: tuple[str, str, int | None] | None) -> None:
        run = Run(signal=delivery.id, attempt=delivery.attempt, crashes=delivery.crashes, effect=effect)
        await self._results.record(run)


def _fails(movement: Movement, kind: str, attempt: int) -> bool:
    """Fail the same movements in each demo, most of them once and some twice."""
    key = f"{movement.carrier}{movement.flight}{movement.scheduled}{kind}".encode()
    chance = zlib.crc32(key) % (FAILS_ONE_IN * 10)
    return chance < {1: 10, 2: 1}.get(attempt, 0)


async def serve(name: str, subscription: str, run: str, path: Path, hold_at: int | None) -> None:
    """Serve a subscription until cancelled."""
    results = ResultFile(path)
    subscriber = Subscriber(name, run, results, hold_at)
    bus = Bus(name=f"signalbus-demo/{name}", drain_timeout=DRAIN_SECONDS)
    bus.subscribe(
        *PATTERNS[name],
        handler=subscriber.handle,
        name=subscription,
        retry=RETRY,
        concurrency=CONCURRENCY,
        prefetch=PREFETCH,
    )
    async with bus:
        tell("ready", results.done, bus.session.id)
        await subscriber.report()


def main() -> int:
    """Run the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=PATTERNS)
    parser.add_argument("subscription")
    parser.add_argument("run")
    parser.add_argument("results", type=Path)
    parser.add_argument("--hold-at", type=int)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO if options.verbose else logging.CRITICAL)
    try:
        return asyncio.run(
            run_to_end(serve(options.name, options.subscription, options.run, options.results, options.hold_at))
        )
    except SignalBusError as error:
        print(f"{options.name}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
