"""A consumer of the embedded broker: the event loop's side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from ...delivery import Settlement
from ...errors import BrokerError
from ..base import Incoming
from .claims import Claim, Claimant
from .intake import AnyOperation
from .operations import GiveBack, Quit, Settle


class Courier(Protocol):
    """What a consumer needs of the broker: its way to the writer thread."""

    consumers: set[SqliteConsumer]

    def future(self) -> asyncio.Future[Any]:
        """Return a future of the broker's event loop."""
        ...

    async def settle(self, operation: Settle) -> bool:
        """Carry out a settlement; False once the broker is closed."""
        ...

    async def finish(self, operation: AnyOperation) -> None:
        """Submit an operation of a consumer that ends, and wait for it a while; it happens in any case."""
        ...


class SqliteConsumer:
    """See `Consumer`. Made by `SqliteBroker.consume`."""

    def __init__(self, courier: Courier, name: str, prefetch: int) -> None:
        self._courier = courier
        self._buffer: list[Incoming] = []
        self._arrived = asyncio.Event()
        self._stopped = False
        self._closed = False
        self._ending: asyncio.Task[None] | None = None
        self.claimant = Claimant(name, prefetch, self._take)

    async def receive(self) -> Sequence[Incoming]:
        """See `Consumer.receive`."""
        while not self._buffer and not self._stopped:
            self._arrived.clear()
            await self._arrived.wait()
        if self._stopped:
            return ()
        received, self._buffer = self._buffer, []
        return received

    async def settle(self, incoming: Incoming, settlement: Settlement) -> bool:
        """See `Consumer.settle`. While the disk is full, waits until the broker is closed."""
        claim = incoming.handle
        assert isinstance(claim, Claim), "the delivery is of another broker"
        if claim.settled or self._closed:
            return False
        claim.settled = True
        try:
            return await self._courier.settle(Settle(self._courier.future(), claim, settlement))
        except BrokerError:
            claim.settled = False  # it may be tried again
            raise

    async def stop(self) -> None:
        """See `Consumer.stop`."""
        if not self._stopped:
            self._stopped = True
            self._arrived.set()
            self._ending = asyncio.ensure_future(self._end())
        if self._ending is not None:
            await asyncio.shield(self._ending)

    async def aclose(self) -> None:
        """See `Consumer.aclose`."""
        await self.stop()
        if not self._closed:
            self._closed = True
            await self._courier.finish(GiveBack(self._courier.future(), self.claimant))
            self._courier.consumers.discard(self)

    def end(self) -> None:
        """Stop at once, as the broker is closed and gives everything back."""
        self._stopped = self._closed = True
        self._buffer = []
        self._arrived.set()

    def _take(self, deliveries: Sequence[Incoming]) -> None:
        self._buffer.extend(deliveries)
        self._arrived.set()

    async def _end(self) -> None:
        # What was claimed meanwhile arrives before the answer; then it is given back as well.
        await self._courier.finish(Quit(self._courier.future(), self.claimant))
        unseen, self._buffer = self._buffer, []
        claims = [claim for incoming in unseen if isinstance(claim := incoming.handle, Claim)]
        if claims:
            await self._courier.finish(GiveBack(self._courier.future(), self.claimant, claims))
