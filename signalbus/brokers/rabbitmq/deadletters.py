"""Looking at the dead letters without taking them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiormq.abc import AbstractConnection, DeliveredMessage

from ..base import StoredDeadLetter
from . import wire
from .control import counts, opened
from .driver import call
from .topology import Topology

STEP_SECONDS = 10.0
QUIET_SECONDS = 1.0  # another reader may hold some of them


async def read_dead_letters(
    connection: AbstractConnection, topology: Topology, limit: int
) -> Sequence[StoredDeadLetter]:
    """Return up to ``limit`` dead letters, oldest first. Raises `DriverFailure`.

    They are consumed and never acknowledged: closing the channel puts them back in their places.
    """
    messages: list[DeliveredMessage] = []
    arrived = asyncio.Event()

    async def take(message: DeliveredMessage) -> None:
        messages.append(message)
        arrived.set()

    async with opened(connection) as channel:
        seen = await counts(channel, topology.dead)
        wanted = min(limit, seen.ready) if seen is not None else 0
        if wanted:
            await call(channel.basic_qos(prefetch_count=min(wanted, 65_535)), STEP_SECONDS)
            await call(channel.basic_consume(topology.dead, take), STEP_SECONDS)
            while len(messages) < wanted:
                arrived.clear()
                try:
                    async with asyncio.timeout(QUIET_SECONDS):
                        await arrived.wait()
                except TimeoutError:
                    break
    prefix = topology.queue("")
    return [wire.read_dead_letter(message, index, prefix) for index, message in enumerate(messages[:limit])]
