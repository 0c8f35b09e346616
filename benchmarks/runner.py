"""Runs benchmarks: contestants take turns, in an order that rotates from round to round."""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from .figures import Benchmark, Readings, Row, rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a benchmark found, or why it could not."""

    benchmark: Benchmark
    rows: Sequence[Row] = ()
    error: str | None = None


async def run(benchmark: Benchmark, rounds: int) -> Result:
    """Run a benchmark. Whatever goes wrong in it is in the result: the others go on."""
    try:
        turns = [await _round(benchmark, number) for number in range(1 if benchmark.once else rounds)]
    except Exception as error:  # noqa: BLE001 - contestants are foreign code, and all of this is reported
        traceback.print_exc()
        return Result(benchmark=benchmark, error=f"{type(error).__name__}: {error}")
    return Result(benchmark=benchmark, rows=rows(benchmark, turns))


async def _round(benchmark: Benchmark, number: int) -> Readings:
    legs = benchmark.legs
    first = number % len(legs)
    readings: dict[str, Sequence[float]] = {}
    for leg in legs[first:] + legs[:first]:
        gc.collect()  # nobody pays for what the one before left behind
        async with asyncio.timeout(benchmark.timeout_seconds):
            readings.update(await leg())
    found = ", ".join(f"{name} {statistics.median(samples):,.4g}" for name, samples in readings.items())
    print(f"{benchmark.name} round {number + 1}: {found} {benchmark.unit}", file=sys.stderr, flush=True)
    return readings
