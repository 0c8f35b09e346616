"""Child processes: each in a process group of its own, tied to this one by its standard input.

A child that sees the end of its standard input knows that its parent is gone, however that ended: none is orphaned.
Ctrl-C reaches the parent only, which then stops its children in order.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

STDIN = 0
STOP_SECONDS = 5.0
LINE_LIMIT = 1 << 20  # bytes


class Child:
    """One child process at a time; may be started again."""

    def __init__(self, arguments: Sequence[str], *, environment: Mapping[str, str], piped: bool = False) -> None:
        self._arguments = tuple(arguments)
        self._environment = dict(environment)
        self._piped = piped
        self._process: Process | None = None
        self._stopped = False

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start ``python <arguments>``; its standard output is piped if asked for, else it is ours."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._arguments,
            stdin=PIPE,
            stdout=PIPE if self._piped else None,
            env=self._environment,
            process_group=0,
            limit=LINE_LIMIT,
        )
        if self._stopped:  # while we started it
            self.send(signal.SIGKILL)

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield the lines it prints until it ends."""
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            yield line

    async def wait(self) -> int:
        """Wait for its end and return its exit code, negative for a signal."""
        assert self._process is not None
        code = await self._process.wait()
        self._close()
        return code

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        process = self._process
        if process is not None and process.returncode is None:
            try:
                process.send_signal(number)
            except ProcessLookupError:
                pass  # it ended just now

    async def stop(self, grace: float = STOP_SECONDS) -> int | None:
        """Ask it to end, and end it after ``grace`` seconds. Idempotent. Returns its exit code."""
        self._stopped = True
        if self._process is None:
            return None
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                return await self.wait()
        except TimeoutError:
            self.send(signal.SIGKILL)
            return await self.wait()

    def _close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


def watch_parent(ended: Callable[[], None]) -> None:
    """In a child: call ``ended`` once when the parent is gone."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(STDIN, 1024):
            loop.remove_reader(STDIN)
            ended()

    loop.add_reader(STDIN, readable)
