"""FastStream's RabbitBroker, with a publisher object and a subscriber that acks after its handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from faststream import AckPolicy
from faststream.rabbit import Channel, ExchangeType, QueueType, RabbitBroker, RabbitExchange, RabbitQueue

from ..load import BODY, PATTERN, SIGNAL_TYPE, Countdown
from .base import LAST_ACKS_SECONDS, Client, Names


class FastStream:
    """One broker."""

    name = "FastStream"

    def __init__(self, url: str, prefetch: int) -> None:
        self._url = url
        self._prefetch = prefetch
        self._names = Names()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """Connect with a fresh queue."""
        await self._names.declare(self._url, PATTERN)
        broker = RabbitBroker(
            self._url,
            default_channel=Channel(prefetch_count=self._prefetch, publisher_confirms=True, on_return_raises=True),
            logger=None,
        )
        await broker.connect()
        try:
            yield _Client(broker, self._names)
            await asyncio.sleep(LAST_ACKS_SECONDS)
        finally:
            await broker.stop()

    async def remove_queue(self) -> int:
        """Delete the queue; return how many messages it held."""
        return await self._names.remove(self._url)


class _Client:
    def __init__(self, broker: RabbitBroker, names: Names) -> None:
        self._broker = broker
        self._exchange = RabbitExchange(names.exchange, type=ExchangeType.TOPIC, declare=False)
        # declare=False: both are there already, with the arguments that all contestants share.
        self._queue = RabbitQueue(names.queue, QueueType.QUORUM, declare=False, routing_key=PATTERN)
        self._publisher = broker.publisher(
            exchange=self._exchange, routing_key=SIGNAL_TYPE, mandatory=True, persist=True
        )

    async def publish(self) -> object:
        return await self._publisher.publish(BODY)

    async def consume(self, count: int) -> None:
        handled = Countdown(count)

        @self._broker.subscriber(self._queue, self._exchange, ack_policy=AckPolicy.ACK)
        async def handle(body: bytes) -> None:
            handled.hit()

        await self._broker.start()
        await handled.wait_done()  # the last ack follows; it is not counted, in FastStream's favour
