"""FastStream's RabbitBroker, with a publisher object and a subscriber that acks after its handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from faststream import AckPolicy
from faststream.rabbit import Channel, ExchangeType, QueueType, RabbitBroker, RabbitExchange, RabbitQueue

from ..load import PATTERN, SIGNAL_TYPE
from ..pace import Pace
from .base import LAST_ACKS_SECONDS, PREFETCH, Client, Place


class FastStream:
    """One broker."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @asynccontextmanager
    async def connected(self, *, fresh: bool = True) -> AsyncIterator[Client]:
        """Connect."""
        if fresh:
            await self._place.declare(PATTERN)
        broker = RabbitBroker(
            self._place.url,
            default_channel=Channel(prefetch_count=PREFETCH, publisher_confirms=True, on_return_raises=True),
            logger=None,
        )
        await broker.connect()
        try:
            yield _Client(broker, self._place)
            await asyncio.sleep(LAST_ACKS_SECONDS)
        finally:
            await broker.stop()

    async def remove_queue(self, *, drained: bool = False) -> int:
        """Delete the queue; return how many messages it held."""
        return await self._place.remove(drained=drained)


class _Client:
    def __init__(self, broker: RabbitBroker, place: Place) -> None:
        self._broker = broker
        self._exchange = RabbitExchange(place.exchange, type=ExchangeType.TOPIC, declare=False)
        # declare=False: both are there already, with the arguments that all contestants share.
        self._queue = RabbitQueue(place.queue, QueueType.QUORUM, declare=False, routing_key=PATTERN)
        self._publisher = broker.publisher(
            exchange=self._exchange, routing_key=SIGNAL_TYPE, mandatory=True, persist=True
        )

    async def publish(self, body: bytes) -> object:
        return await self._publisher.publish(body)

    async def consume(self, pace: Pace) -> None:
        @self._broker.subscriber(self._queue, self._exchange, ack_policy=AckPolicy.ACK)
        async def handle(body: bytes) -> None:
            pace.hit(body)

        await self._broker.start()
        await pace.wait_done()  # the last ack follows; it is not counted, in FastStream's favour
