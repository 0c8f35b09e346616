"""Copies of deliveries: dead letters, and retries on their way through the delay ladder.

A copy is stored (routed and confirmed) before the original is acknowledged: a duplicate is possible, a loss is not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from ...codec import HeaderValue
from ...delivery import DeadLetter
from ...errors import BrokerError, ConfigError
from ...signals import utc_now
from ..base import Incoming, PublishResult
from . import wire
from .control import Control
from .delays import Plan
from .publishing import Envelope, Publisher

STORE_SECONDS = 30.0
CONFIRM_SECONDS = 10.0
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0

Wanted = Callable[[], bool]


class NotStored(Exception):
    """Raised when a copy could not be stored in time; the original must not be acknowledged."""


class Copies:
    """Stores copies over a publishing channel of their own."""

    def __init__(self, publisher: Publisher, control: Control) -> None:
        self._publisher = publisher
        self._control = control
        self._topology = control.topology

    async def dead_letter(
        self, incoming: Incoming, settlement: DeadLetter, subscription: str, queue: str, wanted: Wanted
    ) -> None:
        """Store a dead letter."""
        headers = wire.dead_letter(incoming, settlement, subscription, utc_now())
        await self._store(incoming, self._topology.dead, queue, headers, wanted)

    async def delay(self, incoming: Incoming, plan: Plan, return_key: str, wanted: Wanted) -> None:
        """Store a copy on the first step of ``plan``; it comes back to the queue bound with ``return_key``."""
        step = plan.steps[0]
        headers = wire.bookkeeping(incoming, wait=plan.after_first())
        await self._store(incoming, self._topology.delay(step), return_key, headers, wanted, step=step)

    async def requeue(self, incoming: Incoming, queue: str, wanted: Wanted) -> None:
        """Store a copy at the end of the queue it came from."""
        await self._store(incoming, "", queue, wire.bookkeeping(incoming), wanted)

    async def _store(
        self,
        incoming: Incoming,
        exchange: str,
        key: str,
        headers: Mapping[str, HeaderValue],
        wanted: Wanted,
        *,
        step: int | None = None,
    ) -> None:
        """Publish until it is confirmed, nobody wants it any more, or the deadline passes. Raises `NotStored`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STORE_SECONDS
        pause = FIRST_PAUSE
        reason = "the delivery is lost"
        while wanted():
            left = deadline - loop.time()
            if left <= 0:
                break
            try:
                if step is not None:
                    await self._control.ensure_step(step, left)
                properties = wire.persistent(incoming.signal, self._publisher.next_id(), int(time.time()), headers)
                envelope = Envelope(exchange, key, properties, incoming.signal.body)
                (outcome,) = await self._publisher.publish([envelope], min(left, CONFIRM_SECONDS))
            except (BrokerError, ConfigError) as error:
                reason = str(error)
            else:
                if outcome.result is PublishResult.CONFIRMED:
                    return
                reason = outcome.reason or f"exchange {exchange!r} routes {key!r} nowhere"
                if outcome.result is PublishResult.RETURNED:
                    await self._control.repair(max(deadline - loop.time(), 0.0))
            await asyncio.sleep(min(pause, max(deadline - loop.time(), 0.0)))
            pause = min(pause * 2, LONGEST_PAUSE)
        raise NotStored(reason)
