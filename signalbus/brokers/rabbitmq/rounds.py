"""One channel that consumes one queue of requests, and the requests it holds.

They belong to the channel: when it is gone they cannot be acknowledged any more, and go to somebody else.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiormq.abc import AbstractChannel
from pamqp import commands

from . import wire
from .driver import DriverFailure, FrameWriter, on_closed
from .lane import Track, lane_of

DRAIN_SECONDS = 2.0


class Round:
    """One consuming channel. Requests that it delivered can be acknowledged on it only."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        self.alive = True
        self.ended = asyncio.Event()
        self.reason = ""
        self.tag = ""
        self.deliveries = 0
        self.unanswered: dict[int, Held] = {}
        self._writer = FrameWriter(channel)
        if (lane := lane_of(channel)) is not None:
            lane.mark(channel.number, Track(ended=self._writer.kill))
        on_closed(channel, self._on_closed)
        channel.on_consumer_cancel_callbacks.add(self._on_cancelled)

    def ack(self, tag: int) -> None:
        """Acknowledge a request; without effect once the channel is gone."""
        self.unanswered.pop(tag, None)
        if self.alive:
            self._writer.write(wire.ack(self.channel.number, tag))

    async def drain(self) -> None:
        """Wait until what was acknowledged is passed on."""
        await self._writer.drain(DRAIN_SECONDS)

    def end(self, reason: str) -> None:
        """Give this round up."""
        self.reason = self.reason or reason
        self.ended.set()

    def kill(self) -> None:
        """Write nothing more."""
        self.alive = False
        self._writer.kill()

    def _on_closed(self, failure: DriverFailure) -> None:
        self.kill()
        self.end(f"the channel was closed: {failure.reason}")

    def _on_cancelled(self, frame: commands.Basic.Cancel) -> None:
        self.end("the broker cancelled the consumer: its queue is gone")


@dataclass(slots=True, eq=False)
class Held:
    """A request that is not answered yet. ``expires``: on the loop's clock."""

    round: Round
    tag: int
    reply_to: str
    correlation: str
    expires: float
    answering: bool = False
    noticed: bool = False  # its requester knows that we are at it
