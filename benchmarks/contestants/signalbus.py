"""signalbus itself, through its public names."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from signalbus import Bus, Subscription

from ..load import BODY, PATTERN, SIGNAL_TYPE, Countdown, wait_acked
from .base import Client

SUBSCRIPTION = "load"


class SignalBus:
    """One bus with one subscription, paused until it is to consume."""

    name = "signalbus"

    def __init__(self, url: str, prefetch: int) -> None:
        separator = "&" if "?" in url else "?"
        self._url = f"{url}{separator}prefix=signalbus-bench-{secrets.token_hex(4)}"
        self._prefetch = prefetch

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """Connect with a fresh queue."""
        bus = Bus(self._url, name="benchmark")
        client = _Client(bus, self._prefetch)
        async with bus:
            await client.subscription.pause()
            yield client

    async def remove_queue(self) -> int:
        """Delete the queue; return how many messages it held."""
        async with Bus(self._url, name="benchmark") as bus:
            held = sum(queue.ready + (queue.unsettled or 0) for queue in await bus.broker.queues(10.0))
            await bus.broker.delete(SUBSCRIPTION, 10.0)
            return held


class _Client:
    def __init__(self, bus: Bus, prefetch: int) -> None:
        self._bus = bus
        self._handled = Countdown(0)
        self.subscription: Subscription[..., object] = bus.subscribe(
            PATTERN, handler=self._handle, name=SUBSCRIPTION, concurrency=prefetch, prefetch=prefetch
        )

    async def _handle(self, data: bytes) -> None:
        self._handled.hit()

    async def publish(self) -> object:
        return await self._bus.publish(SIGNAL_TYPE, BODY)

    async def consume(self, count: int) -> None:
        self._handled = Countdown(count)
        await self.subscription.resume()
        await self._handled.wait_done()
        await wait_acked(self.subscription, count)
