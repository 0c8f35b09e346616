"""Dramatiq: confirmed, mandatory publishes to a quorum queue, workers in threads, acks after the actor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import dramatiq as library
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.middleware import Middleware
from dramatiq.worker import Worker

from ..pace import Cost, Pace
from .base import LAST_ACKS_SECONDS, THREADS, Place

WORKER_THREADS = 8  # its default


class _QuorumBroker(RabbitmqBroker):
    """Dramatiq's own queues are classic, which would be less safe than those of the others."""

    def _build_queue_arguments(self, queue_name: str) -> dict[str, str]:
        arguments: dict[str, str] = super()._build_queue_arguments(queue_name)  # type: ignore[no-untyped-call]
        return {**arguments, "x-queue-type": "quorum"}


class Dramatiq:
    """One broker with one actor, which takes a text."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._pace: Pace | None = None
        middleware: list[Middleware] = []  # neither retries nor limits: nobody pays for what is not used
        self._broker = _QuorumBroker(url=place.url, confirm_delivery=True, middleware=middleware)
        self._actor = library.actor(broker=self._broker, actor_name="load", queue_name=place.queue)(self._handle)

    def _handle(self, text: str) -> None:
        assert self._pace is not None
        self._pace.hit(text.encode("latin-1"))

    async def publish(self, count: int, body: bytes, in_flight: int) -> Cost:
        """Publish from as many threads as there may be in flight, each with a connection."""
        return await publish_in_threads(lambda: self._actor.send(body.decode("latin-1")), count, in_flight)

    async def consume(self, count: int, body: bytes) -> Cost:
        """Publish, then let a worker do all of it."""
        await self.publish(count, body, THREADS)
        self._pace = Pace(count)
        worker = Worker(self._broker, worker_threads=WORKER_THREADS)
        worker.start()
        await self._pace.wait_done()
        await asyncio.sleep(LAST_ACKS_SECONDS)
        await asyncio.to_thread(worker.stop)
        return self._pace.cost()

    async def remove_queue(self, *, drained: bool = False) -> int:
        """Delete the queue; return how many messages it held."""
        await asyncio.to_thread(self._broker.close)
        return await self._place.remove(drained=drained)


async def publish_in_threads(publish: Callable[[], object], count: int, in_flight: int) -> Cost:
    """Call a blocking function ``count`` times, from up to ``THREADS`` threads."""
    threads = min(in_flight, THREADS)
    pace = Pace(count)

    def publish_some(number: int) -> None:
        for _ in range(number, count, threads):
            publish()
            pace.hit(b"")

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(threads) as pool:
        await asyncio.gather(*(loop.run_in_executor(pool, publish_some, number) for number in range(threads)))
    return pace.cost()
