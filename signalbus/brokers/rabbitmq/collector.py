"""Collecting facts: from their queue into a store, acknowledged once they are stored. May run in several processes.

What is collected twice, as an acknowledgement was lost, changes nothing in the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from aiormq.abc import AbstractConnection, DeliveredMessage
from pamqp import commands

from ...errors import BrokerError
from ...ledger import Batch, LedgerError, decode
from .connection import Backoff, Link
from .driver import DriverFailure, call, close_quietly, on_closed
from .topology import Topology

log = logging.getLogger(__name__)

STEP_SECONDS = 10.0
FIRST_PAUSE = 0.5
TOGETHER = 64  # batches of one transaction of the store, and unacknowledged at most

Store = Callable[[Sequence[Batch]], object]


class Collector:
    """See the module. ``store`` blocks, and runs in a thread; it may raise `BrokerError`: then it is tried again."""

    def __init__(
        self, link: Link, topology: Topology, counters: Counter[str], store: Store, backoff_cap: float
    ) -> None:
        self._link = link
        self._queue = topology.ledger
        self._counters = counters
        self._store = store
        self._backoff = Backoff(FIRST_PAUSE, backoff_cap)

    async def run(self) -> None:
        """Collect, through losses of the connection, until this is cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            try:
                connection = await self._link.wait_up(clock() + STEP_SECONDS)
                await self._collect(connection)
            except (DriverFailure, BrokerError) as error:
                log.warning("facts are not collected for now: %s", error)
            self._backoff.ended(clock())
            self._counters["collections_lost"] += 1
            await asyncio.sleep(self._backoff.next())

    async def _collect(self, connection: AbstractConnection) -> None:
        channel = await call(connection.channel(publisher_confirms=False), STEP_SECONDS)
        arrived: asyncio.Queue[DeliveredMessage | None] = asyncio.Queue(TOGETHER + 1)  # None: it is over

        def over(_: object) -> None:
            if not arrived.full():
                arrived.put_nowait(None)

        async def arrive(message: DeliveredMessage) -> None:
            if not arrived.full():  # never, as the broker counts as well
                arrived.put_nowait(message)

        def cancelled(_: commands.Basic.Cancel) -> None:
            over(None)

        on_closed(channel, over)
        channel.on_consumer_cancel_callbacks.add(cancelled)
        try:
            await call(channel.basic_qos(prefetch_count=TOGETHER), STEP_SECONDS)
            await call(channel.basic_consume(self._queue, arrive), STEP_SECONDS)
            self._backoff.began(asyncio.get_running_loop().time())
            while messages := await _next(arrived):
                await asyncio.to_thread(self._store, self._read(messages))
                newest = messages[-1].delivery_tag or 0
                await call(channel.basic_ack(newest, multiple=True), STEP_SECONDS)
        finally:
            await close_quietly(channel.close())

    def _read(self, messages: Sequence[DeliveredMessage]) -> list[Batch]:
        batches: list[Batch] = []
        for message in messages:
            try:
                batches.append(decode(message.body))
            except LedgerError as error:
                self._counters["facts_unreadable"] += 1
                log.error("a message in %s is dropped: %s", self._queue, error)
        self._counters["facts_collected"] += sum(len(batch.rows) for batch in batches)
        return batches


async def _next(arrived: asyncio.Queue[DeliveredMessage | None]) -> list[DeliveredMessage]:
    """Wait for messages, and return all there are; none once it is over."""
    messages: list[DeliveredMessage] = []
    message = await arrived.get()
    while message is not None:
        messages.append(message)
        if arrived.empty():
            return messages
        message = arrived.get_nowait()
    return []
