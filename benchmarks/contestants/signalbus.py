"""signalbus itself, through its public names, with every guarantee on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from signalbus import Bus, Subscription

from ..load import PATTERN, SIGNAL_TYPE, wait_acked
from ..pace import Pace
from .base import LATE_ACKS_SECONDS, POLL_SECONDS, PREFETCH, SUBSCRIPTION, Client, Place


class SignalBus:
    """One bus with one subscription, paused until it is to consume."""

    def __init__(self, place: Place) -> None:
        self._url = place.own_url

    @asynccontextmanager
    async def connected(self, *, fresh: bool = True) -> AsyncIterator[Client]:
        """Connect; with a fresh queue, of a subscription that is paused until it is to consume."""
        async with Bus(self._url, name="benchmark") as bus:
            client = _Client(bus)
            if fresh:
                await client.subscribe()
                await client.pause()
            yield client

    async def remove_queue(self, *, drained: bool = False) -> int:
        """Delete the queue; return how many messages it held."""
        async with Bus(self._url, name="benchmark") as bus:
            held = await _held(bus)
            deadline = time.monotonic() + LATE_ACKS_SECONDS
            while drained and held and time.monotonic() < deadline:
                await asyncio.sleep(POLL_SECONDS)
                held = await _held(bus)
            await bus.broker.delete(SUBSCRIPTION, 10.0)
            return held


async def _held(bus: Bus) -> int:
    return sum(queue.ready + (queue.unsettled or 0) for queue in await bus.broker.queues(10.0))


class _Client:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._pace: Pace | None = None
        self._subscription: Subscription[..., object] | None = None

    async def subscribe(self) -> Subscription[..., object]:
        subscribe = self._bus.subscribe
        self._subscription = await subscribe(
            PATTERN, handler=self._handle, name=SUBSCRIPTION, concurrency=PREFETCH, prefetch=PREFETCH
        )
        return self._subscription

    async def pause(self) -> None:
        assert self._subscription is not None
        await self._subscription.pause()

    async def _handle(self, data: bytes) -> None:
        assert self._pace is not None
        self._pace.hit(data)

    async def publish(self, body: bytes) -> object:
        return await self._bus.publish(SIGNAL_TYPE, body)

    async def consume(self, pace: Pace) -> None:
        self._pace = pace
        subscription = self._subscription
        if subscription is None:
            subscription = await self.subscribe()
        else:
            await subscription.resume()
        await pace.wait_done()
        await wait_acked(subscription, pace.count)
