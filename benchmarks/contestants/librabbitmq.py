"""A client in C, on librabbitmq: the same confirms, and one ack a message. Compiled when it is first needed."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..figures import BenchmarkError
from ..load import PATTERN, SIGNAL_TYPE
from ..pace import Cost
from .base import PREFETCH, Place

SOURCE = Path(__file__).with_name("librabbitmq.c")
HEADER = Path("/usr/include/amqp.h")


def missing() -> str:
    """Return why there is no such client on this machine; nothing if there is."""
    if shutil.which("gcc") is None:
        return "no gcc"
    return "" if HEADER.exists() else "no librabbitmq-dev"


class LibRabbitmq:
    """A program for each turn."""

    def __init__(self, place: Place) -> None:
        self._place = place

    async def publish(self, count: int, body: bytes, in_flight: int) -> Cost:
        """Publish."""
        await self._place.declare(PATTERN)
        return await self._run("publish", count, len(body), in_flight)

    async def consume(self, count: int, body: bytes) -> Cost:
        """Publish, then consume."""
        await self.publish(count, body, PREFETCH)
        return await self._run("consume", count, len(body), PREFETCH)

    async def remove_queue(self, *, drained: bool = False) -> int:
        """Delete the queue; return how many messages it held."""
        return await self._place.remove(drained=drained)

    async def _run(self, work: str, count: int, size: int, window: int) -> Cost:
        parts = urlsplit(self._place.url)
        with tempfile.TemporaryDirectory(prefix="signalbus-bench-") as directory:
            program = Path(directory) / "client"
            await _checked("gcc", "-O2", "-o", str(program), str(SOURCE), "-lrabbitmq")
            written = await _checked(
                str(program),
                work,
                parts.hostname or "localhost",
                str(parts.port or 5672),
                unquote(parts.username or "guest"),
                unquote(parts.password or "guest"),
                unquote(parts.path[1:]) or "/",
                self._place.exchange,
                SIGNAL_TYPE,
                self._place.queue,
                *map(str, (count, size, window)),
            )
        seconds, cpu_seconds = json.loads(written)
        return Cost(count, seconds, cpu_seconds)


async def _checked(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    written, complaint = await process.communicate()
    if process.returncode:
        raise BenchmarkError(f"{command[0]} failed: {complaint.decode(errors='replace')[-500:]}")
    return written.decode()
