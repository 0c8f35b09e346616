"""How fast messages arrive, and what that costs: from the first tenth of them to the last."""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from dataclasses import dataclass

_STAMP = struct.Struct(">d")
STAMP_BYTES = _STAMP.size


@dataclass(frozen=True, slots=True)
class Cost:
    """What ``messages`` took: ``seconds`` by the clock, and of processor time of this process, all threads."""

    messages: int
    seconds: float
    cpu_seconds: float

    @property
    def figures(self) -> dict[str, float]:
        """A second, and microseconds of processor time each."""
        return {"rate": self.messages / self.seconds, "cpu": 1e6 * self.cpu_seconds / self.messages}


class Pace:
    """Counts ``count`` messages. The first tenth is not measured: it waits for the start of the consumer.

    Messages may come in any thread. With ``stamped``, the time between their making and now is kept.
    """

    def __init__(self, count: int, *, stamped: bool = False) -> None:
        self.count = count
        self.latencies: list[float] = []
        self._skipped = max(1, count // 10)
        self._seen = 0
        self._stamped = stamped
        self._marks: list[tuple[float, float]] = []
        self._mutex = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._done = asyncio.Event()

    def hit(self, body: bytes) -> None:
        """Count a message."""
        with self._mutex:
            self._seen += 1
            if self._stamped:
                self.latencies.append(time.time() - _STAMP.unpack_from(body)[0])
            if self._seen in (self._skipped, self.count):
                self._marks.append((time.perf_counter(), time.process_time()))
            if self._seen == self.count:
                self._loop.call_soon_threadsafe(self._done.set)

    async def wait_done(self) -> None:
        """Wait for the last message."""
        await self._done.wait()

    @property
    def done(self) -> bool:
        """Whether all have come."""
        return self._seen >= self.count

    def cost(self) -> Cost:
        """Return what they took, once all have come."""
        (begun, begun_cpu), (ended, ended_cpu) = self._marks
        return Cost(self.count - self._skipped, ended - begun, ended_cpu - begun_cpu)


def stamped(at: float, size: int) -> bytes:
    """Return a body of ``size`` bytes, made at ``at``, in seconds since 1970."""
    return _STAMP.pack(at) + bytes(size - STAMP_BYTES)
