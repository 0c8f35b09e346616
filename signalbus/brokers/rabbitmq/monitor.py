"""Finds consumers that are connected, report no error, and get nothing. Asks from the broker's side.

Libraries restore connections and lose consumers: the most repeated complaint about RabbitMQ clients. Nothing here
runs for each message.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass

from ...errors import BrokerError, ConfigError
from .consumer import RabbitConsumer
from .control import Control
from .driver import DriverFailure
from .incarnation import Incarnation
from .subscriptions import Subscriptions

log = logging.getLogger(__name__)

CALL_SECONDS = 10.0
CHECKS = 3  # looks at a consumer within the time that makes it silent


@dataclass(slots=True)
class _Seen:
    """How many deliveries an incarnation had when messages were first found waiting for it."""

    incarnation: Incarnation
    deliveries: int
    since: float


class Monitor:
    """Looks after the consumers of this process and after the bindings they need."""

    def __init__(
        self, subscriptions: Subscriptions, control: Control, counters: Counter[str], silent_after: float
    ) -> None:
        self._subscriptions = subscriptions
        self._control = control
        self._counters = counters
        self._silent_after = silent_after
        self._seen: dict[RabbitConsumer, _Seen] = {}

    async def run(self) -> None:
        """Check until cancelled."""
        checks = 0
        while True:
            await asyncio.sleep(max(self._silent_after / CHECKS, 0.05))
            checks += 1
            consumers = self._subscriptions.consumers
            for gone in self._seen.keys() - consumers:
                del self._seen[gone]
            for consumer in list(consumers):
                await self._try(self._look(consumer))
            if self._control.refused is not None:
                await self._try(self._control.recheck(CALL_SECONDS))
            if checks % CHECKS == 0:
                await self._try(self._subscriptions.rebind())

    async def _try(self, check: Coroutine[object, object, None]) -> None:
        try:
            await check
        except (BrokerError, ConfigError, DriverFailure) as error:
            # The links and consumers find out for themselves what is wrong; this is only a look.
            log.debug("a check of the consumers failed: %s", error)

    async def _look(self, consumer: RabbitConsumer) -> None:
        incarnation = consumer.incarnation
        if incarnation is None or not consumer.served.is_set() or consumer.stopped.is_set():
            self._seen.pop(consumer, None)
            return
        before = incarnation.deliveries
        counts = await self._subscriptions.look(incarnation.declared, incarnation.channel.connection)
        if consumer.incarnation is not incarnation or consumer.stopped.is_set():
            return
        if counts is None or not counts.consumers:
            self._recycle(consumer, "the broker does not know its consumer")
            return
        idle = incarnation.deliveries == before and incarnation.unsettled < consumer.prefetch
        if not (counts.ready and idle):
            self._seen.pop(consumer, None)
            return
        now = asyncio.get_running_loop().time()
        seen = self._seen.get(consumer)
        if seen is None or seen.incarnation is not incarnation or seen.deliveries != before:
            self._seen[consumer] = _Seen(incarnation, before, now)
        elif now - seen.since >= self._silent_after:
            self._recycle(consumer, f"{counts.ready} messages wait and none came for {now - seen.since:.1f} s")

    def _recycle(self, consumer: RabbitConsumer, reason: str) -> None:
        log.warning("%s: its consumer is silent and made again: %s", consumer.name, reason)
        self._counters["consumers_recycled"] += 1
        self._seen.pop(consumer, None)
        consumer.recycle(reason)
