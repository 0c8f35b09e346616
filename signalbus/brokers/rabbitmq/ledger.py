"""Facts for the ledger: batches on their way to the queue that a router collects, and their collection.

They go over a channel of their own, one behind the other, and never wait in anybody's way: what finds no room here or
there is dropped, the oldest first, and counted. The queue is bounded at the broker.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence

from pamqp import commands

from ...errors import BrokerError
from ...ledger import Batch, encode
from ..base import PublishResult
from .publishing import Envelope, Publisher
from .topology import Topology

WAITING_BYTES = 16 * 1024 * 1024
SEND_SECONDS = 10.0
PAUSE_SECONDS = 1.0  # before what could not be sent is tried again
TOGETHER = 20  # batches of one turn
CLOSE_SECONDS = 1.0
CONTENT_TYPE = "application/vnd.signalbus.facts+json"


class LedgerPost:
    """Sends facts. `run` is to be kept going from the opening of the broker on."""

    def __init__(self, publisher: Publisher, topology: Topology, counters: Counter[str]) -> None:
        self.trouble = ""
        self._publisher = publisher
        self._queue = topology.ledger
        self._counters = counters
        self._waiting: deque[tuple[int, bytes]] = deque()  # facts, and a batch of them
        self._bytes = 0
        self._stirred = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def append(self, batches: Sequence[Batch]) -> None:
        """See `Broker.append`."""
        for batch in batches:
            encoded = encode(batch)
            self._waiting.append((len(batch.rows), encoded))
            self._bytes += len(encoded)
        while self._bytes > WAITING_BYTES and self._waiting:
            facts, encoded = self._waiting.popleft()
            self._bytes -= len(encoded)
            self._counters["facts_dropped"] += facts
        self._idle.clear()
        self._stirred.set()

    async def run(self) -> None:
        """Send what waits, for ever."""
        while True:
            while self._waiting:
                if not await self._send():
                    await asyncio.sleep(PAUSE_SECONDS)
            self._stirred.clear()
            self._idle.set()
            await self._stirred.wait()

    async def aclose(self) -> None:
        """Let what waits be sent, for a moment."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._idle.wait()
        except TimeoutError:
            self._counters["facts_dropped"] += sum(facts for facts, _ in self._waiting)
        await self._publisher.aclose()

    async def _send(self) -> bool:
        """Send the oldest batches; whether they are stored. A batch that comes twice changes nothing."""
        sent = [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
        try:
            outcomes = await self._publisher.publish([self._envelope(encoded) for _, encoded in sent], SEND_SECONDS)
        except BrokerError as error:
            self.trouble = f"facts of the ledger cannot be sent: {error}"
            self._waiting.extendleft(reversed(sent))
            return False
        again: list[tuple[int, bytes]] = []
        for (facts, encoded), outcome in zip(sent, outcomes, strict=True):
            if outcome.result is PublishResult.UNKNOWN:
                again.append((facts, encoded))
                continue
            self._bytes -= len(encoded)
            if outcome.result is not PublishResult.CONFIRMED:
                self._counters["facts_dropped"] += facts
                self.trouble = f"facts of the ledger were refused: {outcome.reason}"
        self._waiting.extendleft(reversed(again))
        if all(outcome.result is PublishResult.CONFIRMED for outcome in outcomes):
            self.trouble = ""
        return not again

    def _envelope(self, encoded: bytes) -> Envelope:
        properties = commands.Basic.Properties(
            content_type=CONTENT_TYPE, delivery_mode=2, message_id=self._publisher.next_id()
        )
        return Envelope("", self._queue, properties, encoded, mandatory=False)
