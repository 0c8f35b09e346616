from __future__ import annotations

import asyncio
from pathlib import Path

from signalbus.demo.results import ResultFile, Run, read_counts, read_done, read_totals


def run(signal: str, *, attempt: int = 1, crashes: int = 0, delay: int | None = 5, failed: bool = False) -> Run:
    effect = None if failed else ("UA", "departed", delay)
    return Run(signal=signal, attempt=attempt, crashes=crashes, effect=effect)


async def test_effects_happen_once_and_runs_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    results = ResultFile(path)
    await asyncio.gather(*(results.record(run(f"s{n}")) for n in range(100)))
    await results.record(run("s1", crashes=1))
    await results.record(run("late", failed=True))
    await results.record(run("late", attempt=2, delay=None))
    assert results.done == 101
    results.close()
    counts = read_counts(path)
    assert (counts.runs, counts.failed, counts.retried, counts.redelivered, counts.duplicates) == (103, 1, 1, 1, 1)
    assert read_totals(path) == {("UA", "departed"): (101, 100, 500)}
    assert len(read_done(path)) == 101


async def test_a_successor_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    for _ in range(2):
        results = ResultFile(path)
        await results.record(run("s1"))
        assert results.done == 1
        results.close()
    assert read_counts(path).duplicates == 1


def test_a_file_that_was_never_begun_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    assert read_done(path) == set()
    assert read_counts(path).runs == 0
