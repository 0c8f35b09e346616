"""Looking at the dead letters without taking them.

They are consumed, never acknowledged, and put back. A quorum queue hands out what was put back first, in the order
of putting back; so a look takes all that earlier looks have put back, however few it was asked for, and sorts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from aiormq.abc import AbstractChannel, AbstractConnection

from ..base import StoredDeadLetter
from . import wire
from .control import counts, opened
from .deliveries import consume
from .driver import FrameWriter, call
from .lane import Received
from .topology import Topology

STEP_SECONDS = 10.0
QUIET_SECONDS = 1.0  # another reader may hold some of them
RETURN_SECONDS = 1.0
RETURN_PAUSE = 0.01
LEAST_BATCH = 50


async def read_dead_letters(
    connection: AbstractConnection, topology: Topology, limit: int
) -> Sequence[StoredDeadLetter]:
    """Return up to ``limit`` dead letters, oldest first. Raises `DriverFailure`."""
    if limit < 1:
        return []
    prefix = topology.queue("")
    batch = min(max(limit, LEAST_BATCH), 65_535)
    found: list[tuple[StoredDeadLetter, int]] = []
    async with opened(connection) as channel:
        while messages := await _take(channel, topology.dead, batch):
            found += [(wire.read_dead_letter(message, prefix), message.tag) for message in messages]
            if len(messages) < batch or (len(found) >= limit and not messages[-1].redelivered):
                break
        found.sort(key=lambda item: item[0].at)
        if found:
            await _put_back(channel, topology.dead, [tag for _, tag in found])
    return [replace(letter, position=position) for position, (letter, _) in enumerate(found[:limit])]


async def _take(channel: AbstractChannel, queue: str, batch: int) -> Sequence[Received]:
    """Take up to ``batch`` messages that wait."""
    messages: list[Received] = []
    arrived = asyncio.Event()

    def take(message: Received) -> None:
        messages.append(message)
        arrived.set()

    waiting = await counts(channel, queue)
    wanted = min(batch, waiting.ready) if waiting is not None else 0
    if not wanted:
        return messages
    await call(channel.basic_qos(prefetch_count=wanted), STEP_SECONDS)
    tag = await consume(channel, queue, take)
    try:
        while len(messages) < wanted:
            arrived.clear()
            async with asyncio.timeout(QUIET_SECONDS):
                await arrived.wait()
    except TimeoutError:
        pass
    # Or what is put back would be handed to us again.
    await call(channel.basic_cancel(tag), STEP_SECONDS)
    return messages


async def _put_back(channel: AbstractChannel, queue: str, tags: Sequence[int]) -> None:
    """Return messages in this order, and wait until they are back: it takes a moment, and the next look comes at once.

    One by one: of more than 32 returned together a quorum queue of RabbitMQ 3.10 loses the order.
    """
    deadline = asyncio.get_running_loop().time() + RETURN_SECONDS
    writer = FrameWriter(channel)
    writer.write(b"".join(wire.nack(channel.number, tag) for tag in tags))
    await writer.drain(RETURN_SECONDS)
    while asyncio.get_running_loop().time() < deadline:
        now = await counts(channel, queue)
        if now is None or now.ready >= len(tags):
            return
        await asyncio.sleep(RETURN_PAUSE)
