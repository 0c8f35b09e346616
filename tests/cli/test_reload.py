from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from signalbus.cli.reload import wait_changed

HOUR = 3_600 * 10**9


def set_time(path: Path, nanoseconds: int) -> None:
    os.utime(path, ns=(nanoseconds, nanoseconds))


async def test_a_change_before_the_wait_counts(tmp_path: Path) -> None:
    path = tmp_path / "app.py"
    path.touch()
    async with asyncio.timeout(5):
        assert await wait_changed(frozenset({path}), time.time_ns() - HOUR) == path


async def test_a_change_during_the_wait_counts(tmp_path: Path) -> None:
    path = tmp_path / "app.py"
    path.touch()
    set_time(path, time.time_ns() - 2 * HOUR)
    waiting = asyncio.create_task(wait_changed(frozenset({path}), time.time_ns() - HOUR))
    await asyncio.sleep(0)  # it has looked once, and waits
    assert not waiting.done()
    path.write_text("changed")
    async with asyncio.timeout(5):
        assert await waiting == path


async def test_a_file_from_the_future_does_not_start_it_again_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "app.py"
    path.touch()
    set_time(path, time.time_ns() + HOUR)
    waiting = asyncio.create_task(wait_changed(frozenset({path}), time.time_ns()))
    await asyncio.sleep(0)
    assert not waiting.done()
    path.unlink()  # an editor that replaces it
    path.write_text("changed")
    async with asyncio.timeout(5):
        assert await waiting == path
