"""SIGSTOP of other processes: wholly, and not while they hold a lock that the rest of the test needs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import eventually


async def stop(pid: int) -> None:
    """SIGSTOP, and wait until no thread of it runs: until then it may go on, and be stopped with a lock."""
    os.kill(pid, signal.SIGSTOP)
    if sys.platform == "linux":
        await eventually(lambda: set(_thread_states(pid)) == {"T"}, message=f"{pid} to stop")


async def stop_without_lock(pid: int, is_free: Callable[[], bool]) -> None:
    """`stop`, but not while it holds a lock: ``is_free`` says whether it can be had, and may block for a moment."""
    await stop(pid)
    while not await asyncio.to_thread(is_free):
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.01)  # it goes on, and lets go
        await stop(pid)


def _thread_states(pid: int) -> Iterator[str]:
    """The states of a process' threads; proc_pid_stat(5)."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            yield (task / "stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            pass  # it has ended meanwhile
