"""Batches of facts that one consuming channel brought: read as they come, waiting to be stored, then acknowledged.

They belong to the channel: when it is gone, the broker hands out again what was not acknowledged, to somebody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from aiormq.abc import AbstractChannel
from pamqp import commands

from ...ledger import Batch
from . import wire
from .deliveries import consume
from .driver import DriverFailure, FrameWriter, call, on_closed
from .lane import Received, Track, lane_of

#: Batches that may wait or be stored at a time: the next transaction is read while one is stored. Some 2 MB as a rule.
PREFETCH = 64
TOGETHER = 32  # batches of one transaction of the store, at most: a tenth of a second
STEP_SECONDS = 10.0

Read = Callable[[Received], Batch | None]


@dataclass(frozen=True, slots=True)
class Group:
    """What is stored together. ``newest``: the delivery tag that stands for all of it."""

    batches: list[Batch]
    newest: int


class Arrivals:
    """See the module. ``read`` returns what a message holds, None for what is not to be stored."""

    def __init__(self, channel: AbstractChannel, read: Read) -> None:
        self.over = ""  # why nothing comes any more
        self.heard = float("-inf")  # when the newest message came, by the loop's clock
        self._channel = channel
        self._read = read
        self._tag = ""
        self._waiting: deque[tuple[int, Batch | None]] = deque()  # the broker counts them
        self._newest = self._acked = 0
        self._stirred = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._writer = FrameWriter(channel)
        if (lane := lane_of(channel)) is not None:
            lane.mark(channel.number, Track(ended=self._writer.kill))
        # Callbacks that call the driver would stop its reader for ever; these only note what happened.
        on_closed(channel, self._on_closed)
        channel.on_consumer_cancel_callbacks.add(self._on_cancelled)

    @property
    def unsettled(self) -> bool:
        """Whether anything of ours is not acknowledged."""
        return self._acked < self._newest

    async def begin(self, queue: str) -> None:
        """Consume. Raises `DriverFailure`."""
        await call(self._channel.basic_qos(prefetch_count=PREFETCH), STEP_SECONDS)
        self._tag = await consume(self._channel, queue, self._take)

    async def next(self) -> Group | None:
        """Wait for what is to be stored next; None once it is over, and all that came before was returned."""
        while not self._waiting:
            if self.over:
                return None
            self._stirred.clear()
            await self._stirred.wait()
        taken = [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
        return Group([batch for _, batch in taken if batch is not None], taken[-1][0])

    def ack(self, group: Group) -> None:
        """Acknowledge what is stored. Only written, as AMQP confirms no acknowledgement: lost, it comes again."""
        self._acked = group.newest
        self._writer.write(wire.acks(self._channel.number, [group.newest], oldest_held=None))

    def end(self, reason: str) -> None:
        """Note that nothing comes any more."""
        self.over = self.over or reason
        self._stirred.set()

    async def stop(self) -> None:
        """Take nothing more; what has come can still be stored and acknowledged. Raises `DriverFailure`."""
        if not self.over:
            await call(self._channel.basic_cancel(self._tag), STEP_SECONDS)
        self.end("stopped")

    async def flush(self, timeout: float) -> None:
        """Wait until the acknowledgements are passed on."""
        await self._writer.drain(timeout)

    def _take(self, message: Received) -> None:
        self.heard = self._clock()
        self._newest = message.tag
        self._waiting.append((message.tag, self._read(message)))
        self._stirred.set()

    def _on_closed(self, failure: DriverFailure) -> None:
        self._writer.kill()
        self._waiting.clear()  # not ours any more
        self.end(f"the channel was closed: {failure.reason}")

    def _on_cancelled(self, frame: commands.Basic.Cancel) -> None:
        self.end("the broker cancelled the consumer: its queue is gone or moved")
