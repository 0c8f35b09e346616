"""Whether the memory of a router stays flat while it collects as fast as it can, for a while, and forgets as much.

`--long` takes ten minutes. Another process keeps the queue from ever being empty.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import aiormq
from pamqp import commands

from signalbus import Bus
from signalbus.config import RabbitUrl, parse_url
from signalbus.ledger import Batch, encode

from .collecting import facts
from .figures import Benchmark, BenchmarkError, Readings, at_most
from .plan import Plan
from .processes import Child, child, say

PREFIX = "benchmarks.memory"
MARKS = (0.1, 0.5, 1.0)
AHEAD = 200  # messages that wait: a second's work
KEEP_MIB = 256  # then as much is forgotten as is stored
ROUND = 30_000  # facts made at a time


def benchmarks(plan: Plan) -> list[Benchmark]:
    """Return the benchmark; none without a RabbitMQ."""
    if plan.amqp_url is None:
        return []
    url, seconds = f"{plan.amqp_url}?prefix={PREFIX}", plan.sizes.router_seconds

    async def resident() -> Readings:
        return await _resident(url, plan.directory, seconds)

    return [
        Benchmark(
            name="ledger.router_memory",
            title=f"RabbitMQ: resident memory of a router at full rate for {seconds:g} s",
            unit="MiB",
            subject=_mark(MARKS[-1]),
            legs=(resident,),
            # Not to the first: SQLite's caches have not reached their bounds by then.
            targets={_mark(MARKS[1]): at_most(1.05)},
            once=True,
            timeout_seconds=seconds + 120.0,
        )
    ]


def _mark(share: float) -> str:
    return f"at {share:.0%}"


async def _resident(url: str, directory: Path, seconds: float) -> Readings:
    with tempfile.TemporaryDirectory(dir=directory) as place:
        async with _router(url, Path(place)) as router, child("router_memory", url) as filler:
            started, read = time.monotonic(), dict[str, list[float]]()
            for share in MARKS:
                await asyncio.sleep(started + seconds * share - time.monotonic())
                read[_mark(share)] = [_resident_mebibytes(router)]
            collected = await _collected(filler)
            size = sum(path.stat().st_size for path in Path(place).iterdir()) >> 20  # noqa: ASYNC240 - a moment
            print(f"{collected / seconds:,.0f} facts/s, {size} MiB on disk", file=sys.stderr)
            return dict(reversed(read.items()))


async def _collected(filler: Child) -> float:
    """Stop the filler, and return how many of its facts were taken."""
    [put] = json.loads(await filler.end())
    return float(put)


@asynccontextmanager
async def _router(url: str, directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    async with Bus(url, name="maker", ledger="off"):  # makes the queue
        pass
    words = ("-q", "--store", "ledger.db", "--keep-mib", str(KEEP_MIB))
    env = {**os.environ, "SIGNALBUS_URL": url, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "signalbus.cli", "router", *words, cwd=directory, env=env
    )
    try:
        yield process
        if process.returncode is not None:
            raise BenchmarkError(f"the router ended with code {process.returncode}")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _resident_mebibytes(process: asyncio.subprocess.Process) -> float:
    """Return the resident memory of a process. Linux only."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# The other process


async def _fill(url: str) -> None:
    """Keep some messages in the queue until stdin ends; then say how many facts there were."""
    parsed = parse_url(url)
    assert isinstance(parsed, RabbitUrl)
    queue, ended = f"{parsed.prefix}.ledger", asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    properties, put = commands.Basic.Properties(delivery_mode=2), 0
    batches = _endless()
    async with aiormq.connect(parsed.servers[0]) as connection:
        channel = await connection.channel()
        while not ended.done():
            waiting = (await channel.queue_declare(queue, passive=True)).message_count or 0
            if waiting >= AHEAD:
                await asyncio.sleep(0.05)
            for batch in [next(batches) for _ in range(max(AHEAD - waiting, 0))]:
                await channel.basic_publish(encode(batch), routing_key=queue, properties=properties)
                put += len(batch.rows)
    say(float(put))


def _endless() -> Iterator[Batch]:
    for _ in count():
        yield from facts(ROUND)


if __name__ == "__main__":
    asyncio.run(_fill(sys.argv[1]))
