"""taskiq over taskiq-aio-pika: a quorum queue, confirms as aio-pika has them by default, acks after the task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskiq import AsyncTaskiqDecoratedTask
from taskiq.acks import AcknowledgeType
from taskiq.api import run_receiver_task
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType

from ..pace import Pace
from .base import LAST_ACKS_SECONDS, PREFETCH, Client, Place


class Taskiq:
    """One broker, for tasks that take a text."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @asynccontextmanager
    async def connected(self, *, fresh: bool = True) -> AsyncIterator[Client]:
        """Connect; the broker declares its queues itself."""
        place = self._place
        broker = AioPikaBroker(
            place.url,
            qos=PREFETCH,
            exchange=Exchange(name=place.exchange),
            task_queues=[Queue(name=place.queue, type=QueueType.QUORUM)],
            dead_letter_queue=Queue(name=place.dead, type=QueueType.QUORUM),
        )
        broker.is_worker_process = True
        client = _Client(broker)
        await broker.startup()
        try:
            yield client
            await asyncio.sleep(LAST_ACKS_SECONDS)
        finally:
            await client.aclose()
            await broker.shutdown()

    async def remove_queue(self, *, drained: bool = False) -> int:
        """Delete the queue; return how many messages it held."""
        return await self._place.remove(drained=drained)


class _Client:
    def __init__(self, broker: AioPikaBroker) -> None:
        self._broker = broker
        self._pace: Pace | None = None
        self._receiving: asyncio.Task[None] | None = None

        async def handle(text: str) -> None:
            assert self._pace is not None
            self._pace.hit(text.encode("latin-1"))

        self._task: AsyncTaskiqDecoratedTask[[str], object] = broker.register_task(handle, task_name="load")

    async def publish(self, body: bytes) -> object:
        return await self._task.kiq(body.decode("latin-1"))  # its messages are JSON

    async def consume(self, pace: Pace) -> None:
        self._pace = pace
        self._receiving = asyncio.create_task(
            run_receiver_task(self._broker, max_async_tasks=PREFETCH, ack_time=AcknowledgeType.WHEN_EXECUTED)
        )
        await pace.wait_done()

    async def aclose(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.wait([self._receiving])
