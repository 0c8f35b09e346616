"""aio-pika without anything on top."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage

from ..load import PATTERN, SIGNAL_TYPE
from ..pace import Pace
from .base import LAST_ACKS_SECONDS, PREFETCH, Client, Place


class PlainAioPika:
    """One connection, one channel."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @asynccontextmanager
    async def connected(self, *, fresh: bool = True) -> AsyncIterator[Client]:
        """Connect."""
        if fresh:
            await self._place.declare(PATTERN)
        async with await aio_pika.connect(self._place.url) as connection:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            await channel.set_qos(prefetch_count=PREFETCH)
            exchange = await channel.get_exchange(self._place.exchange)
            yield _Client(channel, exchange, self._place.queue)
            await asyncio.sleep(LAST_ACKS_SECONDS)

    async def remove_queue(self, *, drained: bool = False) -> int:
        """Delete the queue; return how many messages it held."""
        return await self._place.remove(drained=drained)


class _Client:
    def __init__(self, channel: AbstractChannel, exchange: AbstractExchange, queue: str) -> None:
        self._channel = channel
        self._exchange = exchange
        self._queue = queue

    async def publish(self, body: bytes) -> object:
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        return await self._exchange.publish(message, SIGNAL_TYPE, mandatory=True)

    async def consume(self, pace: Pace) -> None:
        async def handle(message: AbstractIncomingMessage) -> None:
            pace.hit(message.body)
            await message.ack()

        queue = await self._channel.get_queue(self._queue)
        await queue.consume(handle)
        await pace.wait_done()
