"""aio-pika without anything on top."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage

from ..load import BODY, PATTERN, SIGNAL_TYPE, Countdown
from .base import LAST_ACKS_SECONDS, Client, Names


class PlainAioPika:
    """One connection, one channel."""

    name = "aio-pika"

    def __init__(self, url: str, prefetch: int) -> None:
        self._url = url
        self._prefetch = prefetch
        self._names = Names()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """Connect with a fresh queue."""
        await self._names.declare(self._url, PATTERN)
        async with await aio_pika.connect(self._url) as connection:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            await channel.set_qos(prefetch_count=self._prefetch)
            exchange = await channel.get_exchange(self._names.exchange)
            yield _Client(channel, exchange, self._names.queue)
            await asyncio.sleep(LAST_ACKS_SECONDS)

    async def remove_queue(self) -> int:
        """Delete the queue; return how many messages it held."""
        return await self._names.remove(self._url)


class _Client:
    def __init__(self, channel: AbstractChannel, exchange: AbstractExchange, queue: str) -> None:
        self._channel = channel
        self._exchange = exchange
        self._queue = queue

    async def publish(self) -> object:
        message = aio_pika.Message(BODY, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        return await self._exchange.publish(message, SIGNAL_TYPE, mandatory=True)

    async def consume(self, count: int) -> None:
        acked = Countdown(count)

        async def handle(message: AbstractIncomingMessage) -> None:
            await message.ack()
            acked.hit()

        queue = await self._channel.get_queue(self._queue)
        await queue.consume(handle)
        await acked.wait_done()
