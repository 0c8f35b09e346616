"""One channel that consumes one queue, and the deliveries it holds.

They belong to the channel: when it is gone they cannot be settled any more, and the broker hands them out again, to
somebody. An acknowledgement for them on another channel would close that one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from aiormq.abc import AbstractChannel
from pamqp import commands

from ..base import Incoming
from . import wire
from .driver import DriverFailure, FrameWriter, on_closed
from .lane import Track, lane_of
from .subscriptions import Declared

REMEMBERED = 10_000  # messages given back and not seen again, at most


class Releases:
    """How often this process gave messages back untouched, which the broker counts as if a subscriber had died.

    RabbitMQ before 4.3 counts every return of a quorum queue's message, whatever its reason. Releases by processes
    that have ended since cannot be told from crashes.
    """

    def __init__(self) -> None:
        self._counts: OrderedDict[str, int] = OrderedDict()

    def note(self, message_id: str | None) -> None:
        """Remember that a message was given back."""
        if message_id is None:
            return
        self._counts[message_id] = self._counts.pop(message_id, 0) + 1
        if len(self._counts) > REMEMBERED:
            self._counts.popitem(last=False)

    def forget(self, message_id: str | None) -> None:
        """Forget a message: what happens to it from now on is something else."""
        if message_id is not None:
            self._counts.pop(message_id, None)

    def of(self, message_id: str | None) -> int:
        """Return how often a message was given back."""
        return self._counts.get(message_id, 0) if message_id is not None else 0


@dataclass(slots=True, eq=False)
class Handle:
    """What a delivery is to us: a tag on one incarnation. ``held`` until it is settled, being settled, or lost."""

    incarnation: Incarnation
    tag: int
    message_id: str | None
    held: bool = True
    timer: asyncio.TimerHandle | None = None  # set while the delivery waits here for its next attempt


class Incarnation:
    """One consuming channel. Dead once the channel is."""

    def __init__(self, channel: AbstractChannel, declared: Declared, releases: Releases) -> None:
        self.channel = channel
        self.declared = declared
        self.alive = True
        self.ended = asyncio.Event()
        self.reason = ""
        self.tag = ""
        self.deliveries = 0
        self._held: dict[int, Incoming] = {}
        self._releases = releases
        self._writer = FrameWriter(channel, self._acks)
        self._acked: list[int] = []  # in this turn of the loop
        if (lane := lane_of(channel)) is not None:
            lane.mark(channel.number, Track(ended=self._writer.kill))
        # Callbacks that call the driver would stop its reader for ever; these only note what happened.
        on_closed(channel, self._on_closed)
        channel.on_consumer_cancel_callbacks.add(self._on_cancelled)

    @property
    def unsettled(self) -> int:
        """How many deliveries are in our hands."""
        return len(self._held)

    def hold(self, incoming: Incoming, tag: int, message_id: str | None) -> Handle:
        """Take a delivery; also again, as another attempt under the same tag."""
        handle = Handle(self, tag, message_id)
        incoming.handle = handle
        self._held[tag] = incoming
        return handle

    def held(self) -> list[tuple[Incoming, Handle]]:
        """Return the deliveries that can be settled, oldest first."""
        return [
            (incoming, incoming.handle)
            for incoming in self._held.values()
            if isinstance(incoming.handle, Handle) and incoming.handle.held
        ]

    def ack(self, handle: Handle) -> None:
        """Acknowledge a delivery. Only written, as AMQP confirms no acknowledgement: lost, the delivery comes again."""
        self._forget(handle)
        self._acked.append(handle.tag)
        self._writer.schedule()

    def release(self, handle: Handle) -> None:
        """Give a delivery back to its place in the queue."""
        self._forget(handle)
        self._releases.note(handle.message_id)
        self._writer.write(wire.nack(self.channel.number, handle.tag))

    async def drain(self, timeout: float) -> None:
        """Wait until all that was settled is passed on."""
        await self._writer.drain(timeout)

    def end(self, reason: str) -> None:
        """Give this incarnation up; its consumer makes another."""
        if not self.reason:
            self.reason = reason
        self.ended.set()

    def kill(self) -> None:
        """Forget every delivery: none of them is ours any more."""
        self.alive = False
        self._writer.kill()
        for incoming in self._held.values():
            handle = incoming.handle
            if isinstance(handle, Handle):
                handle.held = False
                if handle.timer is not None:
                    handle.timer.cancel()
        self._held.clear()

    def _acks(self) -> bytes:
        acked, self._acked = self._acked, []
        return wire.acks(self.channel.number, acked, oldest_held=next(iter(self._held), None))

    def _forget(self, handle: Handle) -> None:
        handle.held = False
        if handle.timer is not None:
            handle.timer.cancel()
            handle.timer = None
        del self._held[handle.tag]

    def _on_closed(self, failure: DriverFailure) -> None:
        self.kill()
        self.end(f"the channel was closed: {failure.reason}")

    def _on_cancelled(self, frame: commands.Basic.Cancel) -> None:
        self.end("the broker cancelled the consumer: its queue is gone or moved")
