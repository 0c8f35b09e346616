"""Requests of this process: one channel to send them and to hear the answers, by RabbitMQ's direct reply-to.

The address that answers come to belongs to the channel: when it is lost, so is every answer that is still to come.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from aiormq.channel import Channel
from pamqp import commands

from ...codec import EncodedSignal
from ...errors import Backpressure, BrokerError, BusClosed, InvalidSignal
from ..base import Answer, AnswerKind, PublishOutcome, PublishResult
from . import dialogue, wire
from .confirms import Confirmation
from .deliveries import consume
from .driver import DriverFailure, on_closed
from .lane import Received
from .publishing import Envelope, Publisher
from .topology import Topology

log = logging.getLogger(__name__)

BARRIER_SECONDS = 1.0

_OUTCOMES = {
    PublishResult.RETURNED: AnswerKind.NO_RESPONDER,
    PublishResult.REFUSED: AnswerKind.OVERLOADED,
    PublishResult.UNKNOWN: AnswerKind.LOST,
}


@dataclass(slots=True, eq=False)
class Call:
    """One open request. ``pinned``: the session that has it for sure, and answers though it stopped."""

    request_type: str
    channel: Channel
    sent: float
    answered: asyncio.Future[Answer]
    pinned: str = ""

    def end(self, kind: AnswerKind, reason: str) -> None:
        """End it without an answer, unless it has one."""
        if not self.answered.done():
            self.answered.set_result(Answer(kind, reason=reason))


class Calls:
    """Sends requests and waits for their answers."""

    def __init__(self, topology: Topology, counters: Counter[str]) -> None:
        self._topology = topology
        self._counters = counters
        self._publisher: Publisher | None = None
        self._open: dict[str, Call] = {}
        # Nobody else can guess an id: a forged answer finds no request.
        self._ids = map("{}-{:x}".format, itertools.repeat(secrets.token_hex(16)), itertools.count(1))
        self._closed = False

    def attach(self, publisher: Publisher) -> None:
        """Use this publisher from now on; its channels are to be given to `listen` first."""
        self._publisher = publisher

    @property
    def open(self) -> Iterable[Call]:
        """The requests without an answer."""
        return self._open.values()

    async def request(self, signal: EncodedSignal, timeout: float) -> Answer:
        """Send a request and wait for its answer. Raises as `Broker.request` says."""
        publisher = self._publisher
        assert publisher is not None
        if (problem := wire.problem_of(signal)) is not None:
            raise InvalidSignal(f"request {signal.id} cannot be sent: {problem}")
        loop = asyncio.get_running_loop()
        started = loop.time()
        deadline = started + timeout
        while not (sender := await publisher.ready(deadline)).room.is_set():
            await _wait_room(sender.room, deadline)
        id = next(self._ids)  # noqa: A001
        now = loop.time()
        envelope = Envelope(
            "",
            self._topology.requests(signal.type),
            dialogue.request(signal, id, deadline - now, time.time()),
            signal.body,
        )
        if self._closed:
            raise BusClosed("the broker is not open")
        asked = Call(signal.type, sender.channel, now, loop.create_future())
        self._open[id] = asked
        expiry = loop.call_at(deadline, asked.end, AnswerKind.EXPIRED, "no answer in time")
        try:
            confirmation = publisher.send(sender, envelope)
            if isinstance(confirmation, PublishOutcome):
                raise InvalidSignal(f"request {signal.id} cannot be sent: {confirmation.reason}")
            confirmation.add_done_callback(lambda done: self._confirmed(asked, done, envelope))
            return await asked.answered
        finally:
            expiry.cancel()
            del self._open[id]

    async def listen(self, channel: Channel) -> None:
        """Hear the answers on a new channel, before anything is asked on it. Raises `DriverFailure`."""
        await consume(channel, dialogue.REPLY_QUEUE, self._hear, no_ack=True)
        on_closed(channel, lambda failure: self._lost(channel, failure))

    async def wait_heard(self) -> None:
        """Return once every answer that the broker has passed on before is heard, or after a second.

        What comes back from nowhere on the same channel comes after them. No call to the driver: it would close the
        channel, and lose every answer, when one takes too long.
        """
        assert self._publisher is not None
        header = commands.Basic.Properties(message_id=self._publisher.next_id(), delivery_mode=1)
        try:
            await self._publisher.publish([Envelope("", self._topology.requests(""), header, b"")], BARRIER_SECONDS)
        except BrokerError as error:
            log.debug("not sure to have heard every answer: %s", error)

    def aclose(self) -> None:
        """End every request."""
        self._closed = True
        for asked in list(self._open.values()):
            asked.end(AnswerKind.LOST, "the bus was closed")

    def _confirmed(self, asked: Call, confirmation: Confirmation, envelope: Envelope) -> None:
        if confirmation.cancelled() or asked.answered.done():
            return
        assert self._publisher is not None
        outcome = self._publisher.outcome(confirmation, envelope, 0.0)
        if outcome.result is PublishResult.CONFIRMED:
            return
        asked.end(_OUTCOMES[outcome.result], outcome.reason or f"nobody responds to {asked.request_type!r}")

    def _hear(self, message: Received) -> None:
        """Take what a responder says."""
        asked = self._open.get(message.properties.correlation_id or "")
        if asked is None or asked.answered.done():
            self._counters["replies_late"] += 1
            return
        said = dialogue.read_answer(message)
        if said is None:
            self._counters["replies_refused"] += 1
        elif said.answer is not None:
            asked.answered.set_result(said.answer)
        else:
            asked.pinned = said.session if said.kind == dialogue.WORKING else ""

    def _lost(self, channel: Channel, failure: DriverFailure) -> None:
        for asked in list(self._open.values()):
            if asked.channel is channel:
                asked.end(AnswerKind.LOST, f"our connection was lost: {failure.reason}")


async def _wait_room(room: asyncio.Event, deadline: float) -> None:
    try:
        async with asyncio.timeout_at(deadline):
            await room.wait()
    except TimeoutError as error:
        raise Backpressure("too many requests are being sent: none was confirmed in time") from error
