"""Emptying a queue into a store of somebody's: acknowledged once it is stored. May run in several processes."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiormq.abc import AbstractConnection
from pamqp import commands

from ...errors import BrokerError, ConfigError
from ..base import StoredDeadLetter
from . import wire
from .connection import Backoff, Link
from .control import Control
from .deliveries import consume
from .driver import DriverFailure, call, close_quietly, on_closed
from .lane import Received
from .topology import Queue, Topology

log = logging.getLogger(__name__)

STEP_SECONDS = 10.0
FIRST_PAUSE = 0.5

Keep = Callable[[Sequence[Received]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A dead letter out of its queue. ``redelivered``: it may have been stored before."""

    letter: StoredDeadLetter
    redelivered: bool


class Drain:
    """Empties ``queue``, which is made if it is not there; ``drained`` is set from then on.

    ``keep`` blocks, and is called in a thread with up to ``together`` messages, perhaps with the same ones again. It
    has to be idempotent, and durable when it returns; while it raises `BrokerError`, messages wait at RabbitMQ.
    """

    def __init__(
        self,
        link: Link,
        control: Control,
        queue: Queue,
        keep: Keep,
        *,
        together: int,
        backoff_cap: float,
        drained: asyncio.Event | None = None,
    ) -> None:
        self.drained = drained or asyncio.Event()
        self._link = link
        self._control = control
        self._queue = queue
        self._keep = keep
        self._together = together
        self._backoff = Backoff(FIRST_PAUSE, backoff_cap)

    async def run(self, counters: Counter[str]) -> None:
        """Empty the queue, through losses of the connection, until this is cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            try:
                # Not over the link that consumes: a refusal may cost it all that is on it.
                await self._control.run([self._queue], STEP_SECONDS)
                await self._empty(await self._link.wait_up(clock() + STEP_SECONDS))
            except (DriverFailure, BrokerError, ConfigError) as error:
                log.warning("%s is not emptied for now: %s", self._queue.name, error)
            self._backoff.ended(clock())
            counters["drains_lost"] += 1
            await asyncio.sleep(self._backoff.next())

    async def _empty(self, connection: AbstractConnection) -> None:
        channel = await call(connection.channel(publisher_confirms=False), STEP_SECONDS)
        arrived: asyncio.Queue[Received | None] = asyncio.Queue(self._together + 1)  # None: it is over

        def over(_: object) -> None:
            if not arrived.full():
                arrived.put_nowait(None)

        def arrive(message: Received) -> None:
            if not arrived.full():  # never, as the broker counts as well
                arrived.put_nowait(message)

        def cancelled(_: commands.Basic.Cancel) -> None:
            over(None)

        on_closed(channel, over)
        channel.on_consumer_cancel_callbacks.add(cancelled)
        try:
            await call(channel.basic_qos(prefetch_count=self._together), STEP_SECONDS)
            await consume(channel, self._queue.name, arrive)
            self.drained.set()
            self._backoff.began(asyncio.get_running_loop().time())
            while messages := await _next(arrived):
                await asyncio.to_thread(self._keep, messages)
                await call(channel.basic_ack(messages[-1].tag, multiple=True), STEP_SECONDS)
        finally:
            await close_quietly(channel.close())


def dead_letters(topology: Topology, store: Callable[[Sequence[Arrived]], object]) -> Keep:
    """Return what keeps messages as dead letters; whatever they are, they can be read as some."""
    prefix = topology.queue("")

    def keep(messages: Sequence[Received]) -> object:
        return store([Arrived(letter=wire.read_dead_letter(m, prefix), redelivered=m.redelivered) for m in messages])

    return keep


async def _next(arrived: asyncio.Queue[Received | None]) -> list[Received]:
    """Wait for messages, and return all there are; none once it is over."""
    messages: list[Received] = []
    message = await arrived.get()
    while message is not None:
        messages.append(message)
        if arrived.empty():
            return messages
        message = arrived.get_nowait()
    return []
