"""Celery: a quorum queue, confirmed persistent publishes, late acks, the solo pool (a task is nothing but a count)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import cast

from celery import Celery as App
from celery import Task
from celery.worker import WorkController, state

from ..pace import Cost, Pace
from .base import LAST_ACKS_SECONDS, PREFETCH, THREADS, Place
from .dramatiq import publish_in_threads


class Celery:
    """One app with one task, which takes a text."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._pace: Pace | None = None
        self._app = App("benchmark", broker=place.url)
        self._app.conf.update(
            broker_connection_retry_on_startup=True,
            broker_transport_options={"confirm_publish": True},
            task_acks_late=True,
            task_default_exchange=place.exchange,
            task_default_exchange_type="topic",
            task_default_queue=place.queue,
            task_default_queue_type="quorum",
            task_default_routing_key=place.queue,
            task_ignore_result=True,
            worker_enable_remote_control=False,
            worker_hijack_root_logger=False,
            worker_prefetch_multiplier=PREFETCH,
        )

        def handle(text: str) -> None:
            assert self._pace is not None
            self._pace.hit(text.encode("latin-1"))

        decorate = cast("Callable[[Callable[[str], None]], Task]", self._app.task(name="load"))
        self._task = decorate(handle)

    async def publish(self, count: int, body: bytes, in_flight: int) -> Cost:
        """Publish from as many threads as there may be in flight."""
        return await publish_in_threads(lambda: self._task.apply_async((body.decode("latin-1"),)), count, in_flight)

    async def consume(self, count: int, body: bytes) -> Cost:
        """Publish, then let a worker do all of it."""
        await self.publish(count, body, THREADS)
        self._pace = Pace(count)
        options = {"without_gossip": True, "without_mingle": True, "without_heartbeat": True, "loglevel": "ERROR"}
        worker = WorkController(app=self._app, pool_cls="solo", concurrency=1, quiet=True, **options)
        thread = threading.Thread(target=worker.start, daemon=True)
        thread.start()
        await self._pace.wait_done()
        await asyncio.sleep(LAST_ACKS_SECONDS)
        state.should_stop = 0  # what its own signal handlers set
        await asyncio.to_thread(thread.join, 10.0)
        return self._pace.cost()

    async def remove_queue(self, *, drained: bool = False) -> int:
        """Delete the queue; return how many messages it held."""
        self._app.close()
        return await self._place.remove(drained=drained)
