"""Collecting facts: from their queue into a store, acknowledged once they are stored.

Any number of collectors may run: the queue has a single active consumer, and the broker chooses the next one when that
is gone. It tells nobody whom it has chosen, so each sends a probe through the queue now and then: who gets one is
active. What is collected twice, as an acknowledgement was lost, changes nothing in the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum

from aiormq.abc import AbstractConnection
from pamqp import commands

from ...errors import BrokerError
from ...ledger import Batch, LedgerError, decode
from ..base import PublishResult
from .arrivals import Arrivals
from .connection import Backoff, Link
from .driver import DriverFailure, call, close_quietly
from .lane import Received
from .publishing import Envelope, Publisher
from .tasks import end
from .topology import Topology

log = logging.getLogger(__name__)

STEP_SECONDS = 10.0
FIRST_PAUSE = 0.5
FLUSH_SECONDS = 1.0
PROBE_SECONDS = 3.0  # between probes
MISSED = 3  # probes in a row that an active consumer has to have missed to be none any more
PROBE = "probe"  # the type of such a message

Store = Callable[[Sequence[Batch]], object]


class CollectorState(StrEnum):
    """What a collector does."""

    AWAY = "away"  # does not consume: the broker or the store has trouble
    STANDBY = "standby"  # consumes, and another one gets everything
    ACTIVE = "active"


class Collector:
    """See the module. ``store`` blocks, and runs in a thread; it may raise `BrokerError`: then it is tried again.

    Meanwhile another collector may be chosen: its store may do better. ``changed`` is called whenever ``state`` did;
    ``trouble`` says why it is AWAY.
    """

    def __init__(
        self,
        link: Link,
        topology: Topology,
        publisher: Publisher,
        counters: Counter[str],
        store: Store,
        drain_seconds: float,
        backoff_cap: float,
    ) -> None:
        self.state = CollectorState.AWAY
        self.trouble = ""
        self.changed: Callable[[], None] = _nobody
        self._link = link
        self._queue = topology.ledger
        self._publisher = publisher
        self._counters = counters
        self._store = store
        self._drain_seconds = drain_seconds
        self._backoff = Backoff(FIRST_PAUSE, backoff_cap)

    async def run(self) -> None:
        """Collect, through losses of the connection, until this is cancelled; then store and acknowledge what is here.

        That takes ``drain_seconds`` at most. May be run again afterwards.
        """
        clock = asyncio.get_running_loop().time
        while True:
            try:
                await self._collect(await self._link.wait_up(clock() + STEP_SECONDS))
            except (DriverFailure, BrokerError) as error:
                log.warning("facts are not collected for now: %s", error)
                self.trouble = str(error)
            finally:
                self._became(CollectorState.AWAY)
            self._backoff.ended(clock())
            self._counters["collections_lost"] += 1
            await asyncio.sleep(self._backoff.next())

    async def _collect(self, connection: AbstractConnection) -> None:
        """Collect on a new channel until that ends. Raises what ended it."""
        channel = await call(connection.channel(publisher_confirms=False), STEP_SECONDS)
        arrivals = Arrivals(channel, self._read)
        try:
            await arrivals.begin(self._queue)
            self._backoff.began(asyncio.get_running_loop().time())
            if self.state is CollectorState.AWAY:  # or its first messages have come already
                self._became(CollectorState.STANDBY)
            await self._until_over(arrivals)
        finally:
            if not channel.is_closed:
                await close_quietly(channel.close())  # what is not acknowledged goes back

    async def _until_over(self, arrivals: Arrivals) -> None:
        storing = asyncio.create_task(self._store_all(arrivals), name="signalbus facts to the store")
        probing = asyncio.create_task(self._probe(arrivals), name="signalbus probes of the ledger")
        try:
            await asyncio.wait((storing, probing), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._drain(arrivals, storing)
            raise
        finally:
            await end(probing)
            await end(storing)
        for failure in [task.exception() for task in (storing, probing) if not task.cancelled()]:
            if failure is not None:
                raise failure
        raise DriverFailure(arrivals.over or "the channel ended")

    # Storing

    async def _store_all(self, arrivals: Arrivals) -> None:
        while (group := await arrivals.next()) is not None:
            if group.batches:
                await self._stored(group.batches)
            arrivals.ack(group)

    async def _stored(self, batches: Sequence[Batch]) -> None:
        """Store batches; one on which the store stumbles is dropped, or it would hold up all others for ever."""
        facts = sum(len(batch.rows) for batch in batches)
        try:
            await asyncio.to_thread(self._store, batches)
            self._counters["facts_collected"] += facts
        except BrokerError:
            raise
        except Exception as error:
            # Facts come from other processes, and other versions; what nobody foresaw of them is a bug of ours.
            if len(batches) > 1:
                for batch in batches:
                    await self._stored([batch])
                return
            self._counters["facts_unreadable"] += facts
            log.critical("%d facts of %s cannot be stored and are dropped", facts, batches[0].origin, exc_info=error)

    async def _drain(self, arrivals: Arrivals, storing: asyncio.Task[None]) -> None:
        """Let what was taken be stored and acknowledged. What cannot be goes back."""
        try:
            await arrivals.stop()
        except DriverFailure as failure:
            arrivals.end(failure.reason)
        await asyncio.wait([storing], timeout=self._drain_seconds)
        if storing.done() and (error := storing.exception()) is not None:
            log.warning("the last facts were not stored, and wait at RabbitMQ: %s", error)
        await arrivals.flush(FLUSH_SECONDS)

    def _read(self, message: Received) -> Batch | None:
        if self.state is not CollectorState.ACTIVE:
            self._became(CollectorState.ACTIVE)
        if message.properties.message_type == PROBE:
            return None
        try:
            return decode(message.body)
        except LedgerError as error:
            self._counters["facts_unreadable"] += 1
            log.error("a message in %s is dropped: %s", self._queue, error)
            return None

    # Being chosen

    async def _probe(self, arrivals: Arrivals) -> None:
        """Send probes while nothing else comes. An active consumer that does not get one is none any more."""
        clock = asyncio.get_running_loop().time
        missed = 0
        while not arrivals.over:
            asked = clock()
            sent = arrivals.heard < asked - PROBE_SECONDS and await self._send()
            await asyncio.sleep(PROBE_SECONDS)
            silent = sent and arrivals.heard < asked and not arrivals.unsettled
            missed = missed + 1 if silent and self.state is CollectorState.ACTIVE else 0
            if missed == MISSED:
                self._counters["consumers_recycled"] += 1
                arrivals.end("nothing comes any more, not even our own probes")

    async def _send(self) -> bool:
        """Send a probe; whether it is in the queue. While the broker takes no messages nothing can be said."""
        properties = commands.Basic.Properties(
            message_type=PROBE, delivery_mode=1, message_id=self._publisher.next_id()
        )
        try:
            envelope = Envelope("", self._queue, properties, b"", mandatory=False)
            [outcome] = await self._publisher.publish([envelope], STEP_SECONDS)
        except BrokerError as error:
            log.debug("no probe can be sent: %s", error)
            return False
        return outcome.result is PublishResult.CONFIRMED

    def _became(self, state: CollectorState) -> None:
        if state is not CollectorState.AWAY:
            self.trouble = ""
        if state is not self.state:
            self.state = state
            self.changed()


def _nobody() -> None:
    """Tell nobody of changes."""
