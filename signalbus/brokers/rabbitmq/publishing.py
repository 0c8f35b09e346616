"""Publishing on one channel with confirms: pipelined, mandatory, with four outcomes.

Order: messages go out in the order of the calls. A deadline never cancels a message that is on its way: what is not
answered in time is UNKNOWN, since most such messages are in the queue afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from aiormq.exceptions import DeliveryError
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from ...errors import Backpressure, BrokerUnavailable
from ..base import CONFIRMED, RETURNED, PublishOutcome, PublishResult
from .confirms import REFUSED, Confirmation, Confirms, DriverConfirms, LaneConfirms, Lost
from .connection import Link
from .deadlines import LATE
from .driver import (
    ACCESS_REFUSED,
    NOT_FOUND,
    PRECONDITION_FAILED,
    DriverFailure,
    FrameWriter,
    call,
    close_quietly,
    failure_of,
    on_closed,
)
from .lane import Persistent, Properties, lane_of, publication

WINDOW = 2_000  # messages without an answer, at most
WINDOW_BYTES = 32 * 1024 * 1024
STUCK_SECONDS = 60.0  # a full window without an answer: a queue without a leader must not block the others
POLL_SECONDS = 0.05
OPEN_SECONDS = 10.0

# Body limits of RabbitMQ, by major version; an operator may have set another, which we learn from its refusal.
_MAX_BODY = {3: 128 * 1024 * 1024}
_MAX_BODY_NEWER = 16 * 1024 * 1024
_TOO_LARGE = re.compile(r"larger than (?:configured )?max size (\d+)")

_TAKEN = (PublishResult.CONFIRMED, PublishResult.RETURNED)

#: Of those behind the last one that there was time for.
UNSENT = PublishOutcome(PublishResult.REFUSED, "not sent: the broker answered too slowly, or was lost")

Opened = Callable[[Channel], Awaitable[None]]


class Envelope:
    """What to publish: where to, properties and body. ``mandatory``: to be returned if no queue takes it."""

    __slots__ = ("body", "exchange", "key", "mandatory", "properties")

    def __init__(self, exchange: str, key: str, properties: Properties, body: bytes, *, mandatory: bool = True) -> None:
        self.exchange = exchange
        self.key = key
        self.properties = properties
        self.body = body
        self.mandatory = mandatory


class Sender:
    """One incarnation of a publishing channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.dead: DriverFailure | None = None
        self.room = asyncio.Event()
        self.room.set()
        self._writer = FrameWriter(channel)
        self.clock = asyncio.get_running_loop().time
        self.answered = self.clock()  # when the newest answer came
        self._in_flight = 0
        self._bytes = 0
        lane = lane_of(channel)
        self._frames = _encoded if lane is None else publication
        self._confirms: Confirms = (
            DriverConfirms(channel, self._answered)
            if lane is None
            else LaneConfirms(channel.number, lane, self._answered, self._writer.kill)
        )
        on_closed(channel, self._on_closed)

    def send(self, envelope: Envelope) -> Confirmation:
        """Put a message on its way. Raises TypeError or ValueError if it cannot be encoded."""
        channel, properties, body = self.channel, envelope.properties, envelope.body
        frames = self._frames(
            channel.number,
            channel.max_content_size,
            envelope.exchange,
            envelope.key,
            envelope.mandatory,
            properties,
            body,
        )
        # From here on nothing can fail, so the count of confirms stays in step with the broker's.
        size = len(body)
        confirmation = self._confirms.expect(properties.message_id or "", size)
        self._in_flight += 1
        self._bytes += size
        if self._in_flight >= WINDOW or self._bytes >= WINDOW_BYTES:
            self.room.clear()
        self._writer.write(frames)
        return confirmation

    def wait(self, confirmation: Confirmation, deadline: float) -> Awaitable[None]:
        """Wait for an answer until the deadline, of the loop's clock."""
        return self._confirms.wait(confirmation, deadline)

    def _answered(self, count: int, size: int) -> None:
        self.answered = self.clock()
        self._in_flight -= count
        self._bytes -= size
        if self._in_flight < WINDOW and self._bytes < WINDOW_BYTES:
            self.room.set()

    def _on_closed(self, failure: DriverFailure) -> None:
        self._writer.kill()
        self.dead = failure
        self._confirms.lose(failure)
        self.room.set()


def _encoded(
    channel: int,
    limit: int,
    exchange: str,
    key: str,
    mandatory: bool,
    properties: Properties,
    body: bytes,
) -> bytes:
    """Do what the lane's encoder does with the driver's own."""
    if isinstance(properties, Persistent):
        properties = properties.generic()
    frames = [
        frame.marshal(commands.Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory), channel),
        frame.marshal(ContentHeader(body_size=len(body), properties=properties), channel),
    ]
    frames += [frame.marshal(ContentBody(body[start : start + limit]), channel) for start in range(0, len(body), limit)]
    return b"".join(frames)


class Publisher:
    """Publishes over a link, on a channel of its own that is opened again when it is lost.

    ``repair`` makes missing exchanges again; it is called when the broker said that one is missing (404).
    ``opened`` prepares each new channel before anything is published on it.
    """

    def __init__(self, link: Link, repair: Callable[[float], Awaitable[None]], opened: Opened | None = None) -> None:
        self.max_body = _MAX_BODY_NEWER
        self.refused: str | None = None  # while the broker refuses us
        self._link = link
        self._repair = repair
        self._opened = opened
        self._sender: Sender | None = None
        self._opening = asyncio.Lock()
        self._learned = False
        self._prefix, self._numbers = secrets.token_hex(8), itertools.count(1)

    def next_id(self) -> str:
        """Return a new AMQP message id: unique for each attempt, by anybody."""
        return f"{self._prefix}-{next(self._numbers):x}"

    async def publish(self, envelopes: Sequence[Envelope], timeout: float) -> list[PublishOutcome]:
        """Publish in order and wait for the outcomes, at most ``timeout`` seconds.

        Raises `BrokerUnavailable` or `Backpressure` if nothing was sent within that time.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        sender = await self.ready(deadline)
        sent: list[Confirmation | PublishOutcome] = []
        for envelope in envelopes:
            if not sender.room.is_set() and not await _wait(sender.room, deadline):
                break
            if sender.dead is not None:
                break
            sent.append(self.send(sender, envelope))
        if not sent and sender.dead is None:
            if loop.time() - sender.answered >= STUCK_SECONDS:
                self._link.suspect(sender.channel.connection, DriverFailure("confirms do not come any more"))
            raise Backpressure(f"{self._link.server} answers too slowly: {WINDOW} messages are unconfirmed")
        # Confirms arrive nearly in order: waiting for the last one first wakes us once, not once for each.
        for item in reversed(sent):
            if not isinstance(item, PublishOutcome) and not item.done():
                await sender.wait(item, deadline)
        outcomes = [
            item if isinstance(item, PublishOutcome) else self.outcome(item, envelope, timeout)
            for item, envelope in zip(sent, envelopes, strict=False)
        ]
        if self.refused is not None and any(item.result in _TAKEN for item in outcomes):
            self.refused = None
        return outcomes + [UNSENT] * (len(envelopes) - len(outcomes))

    async def publish_one(self, envelope: Envelope, timeout: float) -> PublishOutcome:
        """Do for a single message what `publish` does for many, in half the time."""
        sender = self._sender
        if sender is None or sender.dead is not None or self._link.blocked or not sender.room.is_set():
            return (await self.publish([envelope], timeout))[0]
        confirmation = self.send(sender, envelope)
        if isinstance(confirmation, PublishOutcome):
            return confirmation
        await sender.wait(confirmation, sender.clock() + timeout)
        outcome = self.outcome(confirmation, envelope, timeout)
        if self.refused is not None and outcome.result in _TAKEN:
            self.refused = None
        return outcome

    def send(self, sender: Sender, envelope: Envelope) -> Confirmation | PublishOutcome:
        """Put a message on its way, or say why it never can be."""
        if len(envelope.body) > self.max_body:
            return self._too_large(envelope)
        try:
            return sender.send(envelope)
        except (TypeError, ValueError, OverflowError) as error:
            return PublishOutcome(PublishResult.REFUSED, f"it cannot be encoded: {error}")

    def outcome(self, confirmation: Confirmation, envelope: Envelope, timeout: float) -> PublishOutcome:
        """Return what has become of a message that was sent, and was waited for ``timeout`` seconds."""
        error = confirmation.exception() if confirmation.done() else None
        if error is not None:
            unknown = PublishOutcome(PublishResult.UNKNOWN, failure_of(error).reason)
            return REFUSED if isinstance(error, DeliveryError) else unknown
        answer = confirmation.result() if confirmation.done() else LATE
        if isinstance(answer, PublishOutcome):
            return answer
        if answer is LATE:
            return PublishOutcome(PublishResult.UNKNOWN, f"no confirm within {timeout:.1f} s")
        if isinstance(answer, commands.Basic.Ack):
            return CONFIRMED
        if isinstance(answer, Lost):
            self._learn(answer.failure)
            if len(envelope.body) > self.max_body:
                return self._too_large(envelope)
            return PublishOutcome(PublishResult.UNKNOWN, f"the channel was lost: {answer.failure.reason}")
        return RETURNED

    def _too_large(self, envelope: Envelope) -> PublishOutcome:
        size = len(envelope.body)
        return PublishOutcome(PublishResult.REFUSED, f"{size} bytes, more than the {self.max_body} RabbitMQ takes")

    def _learn(self, failure: DriverFailure) -> None:
        """Take the broker's own body limit from its refusal, which costs a channel each time."""
        if failure.code == PRECONDITION_FAILED and (found := _TOO_LARGE.search(failure.reason)):
            self.max_body = int(found[1])
            self._learned = True

    async def prepare(self, connection: AbstractConnection) -> None:
        """Open the channel on a new connection: later, on a blocked one, that would hang."""
        self._note_end()
        self._sender = await self._open_on(connection)

    async def ready(self, deadline: float) -> Sender:
        """Return a channel that takes messages, before the deadline."""
        loop = asyncio.get_running_loop()
        while True:
            # First, since opening a channel on a blocked connection hangs.
            if not self._link.blocked:
                sender = self._sender
                return await self._open(deadline) if sender is None or sender.dead is not None else sender
            if loop.time() >= deadline:
                raise Backpressure(
                    f"RabbitMQ at {self._link.server} takes no publishes: it has blocked us "
                    "(memory or disk alarm; see `rabbitmq-diagnostics alarms`)"
                )
            await asyncio.sleep(min(POLL_SECONDS, max(deadline - loop.time(), 0.0)))

    async def _open(self, deadline: float) -> Sender:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline), self._opening:
                while self._sender is None or self._sender.dead is not None:
                    if self._note_end() == NOT_FOUND:
                        await self._repair(deadline - loop.time())
                    connection = await self._link.wait_up(deadline)
                    try:
                        self._sender = await self._open_on(connection)
                    except DriverFailure as failure:
                        self._link.suspect(connection, failure)
                        await asyncio.sleep(POLL_SECONDS)
                return self._sender
        except TimeoutError as error:
            raise BrokerUnavailable(self._link.trouble("no channel to publish on in time")) from error

    def _note_end(self) -> int | None:
        """Learn from the end of the last channel; return the broker's code for it."""
        dead = self._sender.dead if self._sender is not None else None
        if dead is None:
            return None
        self._learn(dead)
        if dead.code == ACCESS_REFUSED:
            self.refused = dead.reason
        return dead.code

    async def _open_on(self, connection: AbstractConnection) -> Sender:
        channel = await call(connection.channel(on_return_raises=False), OPEN_SECONDS)
        assert isinstance(channel, Channel)
        if not self._learned:
            self.max_body = _max_body(connection)
        sender = Sender(channel)
        if self._opened is not None:
            await self._opened(channel)
        return sender

    async def aclose(self) -> None:
        """Close the channel. Bounded."""
        sender, self._sender = self._sender, None
        if sender is not None and sender.dead is None:
            await close_quietly(sender.channel.close())


def _max_body(connection: AbstractConnection) -> int:
    version = str(connection.server_properties.get("version", ""))
    major = version.partition(".")[0]
    return _MAX_BODY.get(int(major), _MAX_BODY_NEWER) if major.isdigit() else _MAX_BODY_NEWER


async def _wait(event: asyncio.Event, deadline: float) -> bool:
    try:
        async with asyncio.timeout_at(deadline):
            await event.wait()
    except TimeoutError:
        return False
    return True
