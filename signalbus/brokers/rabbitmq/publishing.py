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
from typing import cast

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from aiormq.exceptions import DeliveryError
from pamqp import commands

from ...errors import Backpressure, BrokerUnavailable
from ..base import CONFIRMED, RETURNED, PublishOutcome, PublishResult
from . import frames
from .connection import Link
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
from .shortcut import OnMessage, Shortcut

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

Confirmation = asyncio.Future[object]
Opened = Callable[[Channel], Awaitable[None]]


class Envelope:
    """What to publish: where to, properties and body. ``mandatory``: to be returned if no queue takes it."""

    __slots__ = ("body", "exchange", "key", "mandatory", "properties")

    def __init__(
        self, exchange: str, key: str, properties: commands.Basic.Properties, body: bytes, *, mandatory: bool = True
    ) -> None:
        self.exchange = exchange
        self.key = key
        self.properties = properties
        self.body = body
        self.mandatory = mandatory


class _Lost:
    """The answer of a publish whose channel is gone."""

    __slots__ = ("failure",)

    def __init__(self, failure: DriverFailure) -> None:
        self.failure = failure


class Sender:
    """One incarnation of a publishing channel."""

    def __init__(self, channel: Channel, on_message: OnMessage | None = None) -> None:
        self.channel = channel
        Shortcut(channel, on_message)
        self.dead: DriverFailure | None = None
        self.room = asyncio.Event()
        self.room.set()
        self._writer = FrameWriter(channel)
        self._loop = asyncio.get_running_loop()
        self.answered = self._loop.time()  # when the newest answer came
        self._in_flight = 0
        self._bytes = 0
        self._confirmations = cast("dict[int, Confirmation]", channel.confirmations)  # pyright: ignore[reportUnknownMemberType]
        on_closed(channel, self._on_closed)

    def send(self, envelope: Envelope) -> Confirmation:
        """Put a message on its way. Raises TypeError or ValueError if it cannot be encoded."""
        channel = self.channel
        body, message_id = envelope.body, envelope.properties.message_id or ""
        number = channel.number
        method = frames.method(number, envelope.exchange, envelope.key, mandatory=envelope.mandatory)
        content = frames.content(number, envelope.properties, body, channel.max_content_size)
        # From here on nothing can fail, so the count of confirms stays in step with the broker's.
        confirmation: Confirmation = self._loop.create_future()
        channel.delivery_tag += 1
        self._confirmations[channel.delivery_tag] = confirmation
        channel.message_id_delivery_tag[message_id] = channel.delivery_tag
        self._in_flight += 1
        self._bytes += len(body)
        if self._in_flight >= WINDOW or self._bytes >= WINDOW_BYTES:
            self.room.clear()

        def answered(confirmation: Confirmation) -> None:
            channel.message_id_delivery_tag.pop(message_id, None)
            confirmation.exception()  # an answer after the deadline interests nobody
            self.answered = self._loop.time()
            self._in_flight -= 1
            self._bytes -= len(body)
            if self._in_flight < WINDOW and self._bytes < WINDOW_BYTES:
                self.room.set()

        confirmation.add_done_callback(answered)
        self._writer.write(b"".join((method, *content)))
        return confirmation

    def _on_closed(self, failure: DriverFailure) -> None:
        self._writer.kill()
        self.dead = failure
        for confirmation in list(self._confirmations.values()):
            if not confirmation.done():
                confirmation.set_result(_Lost(failure))
        self.room.set()


class Publisher:
    """Publishes over a link, on a channel of its own that is opened again when it is lost.

    ``repair`` makes missing exchanges again; it is called when the broker said that one is missing (404).
    ``opened`` prepares each new channel before anything is published on it; ``on_message`` takes what it consumes.
    """

    def __init__(
        self,
        link: Link,
        repair: Callable[[float], Awaitable[None]],
        opened: Opened | None = None,
        on_message: OnMessage | None = None,
    ) -> None:
        self.max_body = _MAX_BODY_NEWER
        self.refused: str | None = None  # while the broker refuses us
        self._link = link
        self._repair = repair
        self._opened = opened
        self._on_message = on_message
        self._sender: Sender | None = None
        self._opening = asyncio.Lock()
        self._learned = False
        self._ids = map("{}-{:x}".format, itertools.repeat(secrets.token_hex(8)), itertools.count(1))

    def next_id(self) -> str:
        """Return a new AMQP message id: unique for each attempt, by anybody."""
        return next(self._ids)

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
        await _wait_all([item for item in sent if not isinstance(item, PublishOutcome) and not item.done()], deadline)
        late = f"no confirm within {timeout:.1f} s"
        outcomes = [
            item if isinstance(item, PublishOutcome) else self.outcome(item, envelope, late)
            for item, envelope in zip(sent, envelopes, strict=False)
        ]
        if self.refused is not None and any(item.result in _TAKEN for item in outcomes):
            self.refused = None
        unsent = PublishOutcome(PublishResult.REFUSED, "not sent: the broker answered too slowly, or was lost")
        return outcomes + [unsent] * (len(envelopes) - len(outcomes))

    async def publish_one(self, envelope: Envelope, timeout: float) -> PublishOutcome:
        """`publish` for a single message, at a fraction of its cost."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        sender = await self.ready(deadline)
        if not sender.room.is_set():
            (outcome,) = await self.publish([envelope], timeout)
            return outcome
        confirmation = self.send(sender, envelope)
        if isinstance(confirmation, PublishOutcome):
            return confirmation
        answered: asyncio.Future[None] = loop.create_future()

        def wake(_: object = None) -> None:
            if not answered.done():
                answered.set_result(None)

        confirmation.add_done_callback(wake)
        expiry = loop.call_at(deadline, wake)
        try:
            await answered
        finally:
            expiry.cancel()
        return self.outcome(confirmation, envelope, f"no confirm within {timeout:.1f} s")

    def send(self, sender: Sender, envelope: Envelope) -> Confirmation | PublishOutcome:
        """Put a message on its way, or say why it never can be."""
        if len(envelope.body) > self.max_body:
            return self._too_large(envelope)
        try:
            return sender.send(envelope)
        except (TypeError, ValueError, OverflowError) as error:
            return PublishOutcome(PublishResult.REFUSED, f"it cannot be encoded: {error}")

    def outcome(self, confirmation: Confirmation, envelope: Envelope, late: str) -> PublishOutcome:
        """Return what has become of a message that was sent; ``late`` is the reason if that is not known yet."""
        if not confirmation.done():
            return PublishOutcome(PublishResult.UNKNOWN, late)
        error = confirmation.exception()
        if isinstance(error, DeliveryError):
            return PublishOutcome(PublishResult.REFUSED, "RabbitMQ refuses it: a queue is full, or has no leader")
        if error is not None:
            return PublishOutcome(PublishResult.UNKNOWN, failure_of(error).reason)
        answer = confirmation.result()
        if isinstance(answer, commands.Basic.Ack):
            return CONFIRMED
        if isinstance(answer, _Lost):
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
        sender = Sender(channel, self._on_message)
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


async def _wait_all(waiting: Sequence[Confirmation], deadline: float) -> None:
    # Confirms arrive nearly in order: waiting for the last one first wakes us once, not once for each.
    loop = asyncio.get_running_loop()
    for part in (waiting[-1:], waiting):
        pending = [confirmation for confirmation in part if not confirmation.done()]
        if pending:
            await asyncio.wait(pending, timeout=max(deadline - loop.time(), 0.0))
