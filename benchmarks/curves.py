"""How the cost of a publish grows: with subscriptions that match, with those that do not, with patterns, with sessions.

``python -m benchmarks.curves --json PATH --plot PATH`` measures on a fresh SQLite file, and on RabbitMQ if
``SIGNALBUS_TEST_AMQP_URL`` names one. Costs are in processor time of the publisher, which a busy machine spoils least,
and in signals a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from signalbus import Bus
from signalbus.bench.place import place
from signalbus.brokers.base import SubscriptionSpec

from .embedded import database
from .load import BODY, SIGNAL_TYPE
from .processes import child

SECONDS = 30.0
COUNT = 3_000
REPEATS = 3
MATCHING = (1, 2, 4, 8, 16)
OTHERS = {"SQLite": (0, 10, 100, 1_000), "RabbitMQ": (0, 10, 100)}
PATTERNS = (1, 10, 100, 300)
SESSIONS = (0, 5, 20, 50)
TITLES = {
    "matching": "subscriptions that match",
    "others": "subscriptions that do not match",
    "patterns": "patterns of the one that matches",
    "sessions": "other sessions",
}
REMOVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measurement: the best of some repeats, as whatever disturbs makes it worse."""

    broker: str
    curve: str
    x: int
    per_second: float
    cpu_us: float


async def matching(bus: Bus, x: int) -> None:
    """Subscriptions that all get the signal."""
    for number in range(x):
        await _declare(bus, f"matching-{number}", SIGNAL_TYPE)


async def others(bus: Bus, x: int) -> None:
    """Subscriptions that do not get it, besides one that does."""
    await _declare(bus, "matching", SIGNAL_TYPE)
    for number in range(x):
        await _declare(bus, f"other-{number}", f"other.n{number}.*")


async def patterns(bus: Bus, x: int) -> None:
    """Patterns of the one subscription that gets it."""
    await _declare(bus, "matching", SIGNAL_TYPE, *(f"other.n{number}.#" for number in range(x - 1)))


async def sessions(bus: Bus, x: int) -> None:
    """Sessions besides ours; they are processes of their own."""
    await _declare(bus, "matching", SIGNAL_TYPE)


CURVES = {curve.__name__: curve for curve in (matching, others, patterns, sessions)}


async def _declare(bus: Bus, name: str, *topics: str) -> None:
    await bus.broker.declare(SubscriptionSpec(name=name, patterns=topics), SECONDS)


async def _point(broker: str, curve: str, x: int, url: str) -> Point:
    async with Bus(url, name="benchmark") as bus, _crowd(url, x if curve == "sessions" else 0):
        await CURVES[curve](bus, x)
        best: list[tuple[float, float]] = []
        for _ in range(REPEATS):
            cpu, begun = time.process_time(), time.perf_counter()
            await bus.publish_many([(SIGNAL_TYPE, BODY)] * COUNT, timeout=120)
            best.append((time.perf_counter() - begun, time.process_time() - cpu))
        for queue in await bus.broker.queues(SECONDS):
            await bus.broker.delete(queue.name, SECONDS)
    seconds, cpu = (min(each) for each in zip(*best, strict=True))
    return Point(broker=broker, curve=curve, x=x, per_second=COUNT / seconds, cpu_us=1e6 * cpu / COUNT)


@asynccontextmanager
async def _crowd(url: str, sessions: int) -> AsyncIterator[None]:
    if not sessions:
        yield
        return
    async with child("liveness", url, sessions) as process:
        await process.report()
        yield


def _xs(broker: str, curve: str) -> Sequence[int]:
    return {"matching": MATCHING, "others": OTHERS[broker], "patterns": PATTERNS, "sessions": SESSIONS}[curve]


async def measure(amqp_url: str | None, directory: Path) -> list[Point]:
    """Measure all curves."""
    points: list[Point] = []
    for curve in CURVES:
        for x in _xs("SQLite", curve):
            with database(directory) as path:
                points.append(_said(await _point("SQLite", curve, x, f"sqlite:///{path}")))
        if amqp_url is not None:
            for x in _xs("RabbitMQ", curve):
                async with place(amqp_url, REMOVE_SECONDS) as url:
                    points.append(_said(await _point("RabbitMQ", curve, x, url)))
    return points


def _said(point: Point) -> Point:
    print(point, file=sys.stderr, flush=True)
    return point


def draw(points: Sequence[Point], file: Path) -> None:
    """Draw a row for each broker: signals a second over each of the four."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    brokers = list(dict.fromkeys(point.broker for point in points))
    figure, axes = plt.subplots(len(brokers), len(CURVES), figsize=(12.5, 2.6 * len(brokers)), squeeze=False)
    for row, broker in zip(axes, brokers, strict=True):
        for place_, curve in zip(row, CURVES, strict=True):
            found = [point for point in points if (point.broker, point.curve) == (broker, curve)]
            place_.plot([point.x for point in found], [point.cpu_us for point in found], "o-", color="#0b6e4f")
            place_.set_ylim(0, 1.3 * max(point.cpu_us for point in found))
            place_.set_title(broker, fontsize=9)
            place_.set_xlabel(TITLES[curve], fontsize=8)
            place_.set_ylabel("µs of CPU a publish", fontsize=8)
            place_.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    plt.close(figure)


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--again", action="store_true", help="only draw what the JSON has")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    if options.again:
        points = [Point(**fields) for fields in json.loads(options.json.read_text(encoding="utf-8"))]
    else:
        points = asyncio.run(measure(os.environ.get("SIGNALBUS_TEST_AMQP_URL"), options.directory))
        options.json.write_text(json.dumps([asdict(point) for point in points], indent=1) + "\n", encoding="utf-8")
    if options.plot is not None:
        draw(points, options.plot)


if __name__ == "__main__":
    main()
