"""Parts of benchmarks that need a process of their own: a module run with ``python -m``, one JSON value a line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from .figures import BenchmarkError

_ROOT = Path(__file__).parent.parent
_END_SECONDS = 30.0


class Child:
    """A process that reports numbers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def report(self) -> list[float]:
        """Wait for the next line of numbers."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise BenchmarkError(f"the child process ended with code {await self._process.wait()}")
        return [float(number) for number in json.loads(line)]

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def end(self) -> None:
        """Tell it to end: its stdin does."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def cpu_seconds(self) -> float:
        """Return the CPU time of all its threads, user and system. Linux only."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8")
        fields = stat.rpartition(")")[2].split()  # the name before may hold spaces
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def child(module: str, *arguments: object) -> AsyncIterator[Child]:
    """Yield a running module of this package. The end of its stdin tells it to end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"{__package__}.{module}",
        *(str(argument) for argument in arguments),
        cwd=_ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    try:
        yield Child(process)
        process.stdin.close()
        async with asyncio.timeout(_END_SECONDS):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def say(*numbers: float) -> None:
    """Report numbers, in the child."""
    sys.stdout.write(json.dumps(numbers) + "\n")
    sys.stdout.flush()


async def wait_told_to_end() -> None:
    """Wait for the end of stdin, in the child, without keeping it busy."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
