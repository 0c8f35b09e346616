"""Looking at the dead letters without taking them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage

from ..base import StoredDeadLetter
from . import wire
from .control import Counts, counts, opened
from .driver import call
from .topology import Topology

STEP_SECONDS = 10.0
QUIET_SECONDS = 1.0  # another reader may hold some of them
RETURN_SECONDS = 1.0
RETURN_PAUSE = 0.01


async def read_dead_letters(
    connection: AbstractConnection, topology: Topology, limit: int
) -> Sequence[StoredDeadLetter]:
    """Return up to ``limit`` dead letters, oldest first. Raises `DriverFailure`.

    They are consumed, never acknowledged, and put back in their places.
    """
    messages: list[DeliveredMessage] = []
    arrived = asyncio.Event()

    async def take(message: DeliveredMessage) -> None:
        messages.append(message)
        arrived.set()

    async with opened(connection) as channel:
        seen = await counts(channel, topology.dead)
        wanted = min(limit, seen.ready) if seen is not None else 0
        if seen is not None and wanted:
            await call(channel.basic_qos(prefetch_count=min(wanted, 65_535)), STEP_SECONDS)
            answer = await call(channel.basic_consume(topology.dead, take), STEP_SECONDS)
            while len(messages) < wanted:
                arrived.clear()
                try:
                    async with asyncio.timeout(QUIET_SECONDS):
                        await arrived.wait()
                except TimeoutError:
                    break
            # Or it would all be handed to us again.
            await call(channel.basic_cancel(answer.consumer_tag or ""), STEP_SECONDS)
            await _put_back(channel, topology.dead, seen)
    prefix = topology.queue("")
    return [wire.read_dead_letter(message, index, prefix) for index, message in enumerate(messages[:limit])]


async def _put_back(channel: AbstractChannel, queue: str, before: Counts) -> None:
    """Return everything, and wait until it is back: a quorum queue takes a moment, and the next look comes at once."""
    deadline = asyncio.get_running_loop().time() + RETURN_SECONDS
    await call(channel.basic_nack(0, multiple=True, requeue=True), STEP_SECONDS)
    while asyncio.get_running_loop().time() < deadline:
        now = await counts(channel, queue)
        if now is None or now.ready >= before.ready:
            return
        await asyncio.sleep(RETURN_PAUSE)
