"""What a contestant can do, and the queue that all of them use alike."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import aio_pika
from aio_pika.abc import AbstractExchange
from aiormq.exceptions import AMQPError

from signalbus.brokers.rabbitmq.removal import remove
from signalbus.config import RabbitUrl, parse_url

from ..pace import Cost, Pace

#: The peers' acks are fire-and-forget: to disconnect at once would lose the last ones. Not part of what is measured.
LAST_ACKS_SECONDS = 0.5
LATE_ACKS_SECONDS = 20.0  # until a busy broker has counted them
POLL_SECONDS = 0.1
PREFETCH = 500
SUBSCRIPTION = "load"  # of signalbus
REMOVE_SECONDS = 30.0
THREADS = 16  # of clients that publish one message at a time in each


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a contestant works: a RabbitMQ, and names of its own there."""

    url: str
    prefix: str = field(default_factory=lambda: f"signalbus-bench-{secrets.token_hex(4)}")

    @property
    def own_url(self) -> str:
        """For signalbus, whose prefix is an option of its URL."""
        return f"{self.url}{'&' if '?' in self.url else '?'}prefix={self.prefix}"

    @property
    def exchange(self) -> str:
        """Its topic exchange."""
        return f"{self.prefix}.signals"

    @property
    def dead(self) -> str:
        """Where its queue puts what it gives up."""
        return f"{self.prefix}.dead"

    @property
    def queue(self) -> str:
        """Its queue."""
        return f"{self.prefix}.load"

    @property
    def queue_arguments(self) -> dict[str, str | int]:
        """Return those that signalbus declares."""
        return {
            "x-queue-type": "quorum",
            "x-delivery-limit": 100,
            "x-overflow": "reject-publish",
            "x-dead-letter-strategy": "at-least-once",
            "x-dead-letter-exchange": self.dead,
        }

    async def declare(self, pattern: str) -> None:
        """Declare what signalbus would."""
        async with await aio_pika.connect(self.url) as connection:
            channel = await connection.channel()
            await channel.declare_exchange(self.dead, aio_pika.ExchangeType.FANOUT, durable=True)
            exchange: AbstractExchange = await channel.declare_exchange(
                self.exchange, aio_pika.ExchangeType.TOPIC, durable=True
            )
            queue = await channel.declare_queue(self.queue, durable=True, arguments=dict(self.queue_arguments))
            await queue.bind(exchange, pattern)

    async def remove(self, *, drained: bool = False) -> int:
        """Delete all that begins with the prefix and a contestant may have made; return what the queue held.

        ``drained``: it ought to be empty, as soon as the last acks have arrived.
        """
        held = 0
        async with await aio_pika.connect(self.url) as connection:
            if drained:
                await _wait_empty(connection, self.queue)
            for queue in (self.queue, f"{self.queue}.DQ", f"{self.queue}.XQ", self.dead):
                held += await _deleted(connection, queue)
            channel = await connection.channel()
            for exchange in (self.exchange, self.dead, self.queue):
                await channel.exchange_delete(exchange)
        ours = parse_url(self.own_url)
        assert isinstance(ours, RabbitUrl)
        await remove(ours, [SUBSCRIPTION], REMOVE_SECONDS)
        return held


async def _wait_empty(connection: aio_pika.abc.AbstractConnection, queue: str) -> None:
    channel = await connection.channel()
    found = await channel.declare_queue(queue, passive=True)
    deadline = time.monotonic() + LATE_ACKS_SECONDS
    while found.declaration_result.message_count and time.monotonic() < deadline:
        await asyncio.sleep(POLL_SECONDS)
        found = await channel.declare_queue(queue, passive=True)


async def _deleted(connection: aio_pika.abc.AbstractConnection, queue: str) -> int:
    channel = await connection.channel()
    try:
        return (await channel.queue_delete(queue)).message_count or 0
    except AMQPError:
        return 0  # there is none


class Client(Protocol):
    """A connected client. Its queue exists and is empty when it connects; nothing consumes it yet."""

    async def publish(self, body: bytes) -> object:
        """Publish one message, and return when the broker has confirmed it."""
        ...

    async def consume(self, pace: Pace) -> None:
        """Begin to consume, ack each message after its handler, and return when all of them were handled."""
        ...


@runtime_checkable
class Contestant(Protocol):
    """A library under test, with an event loop."""

    def connected(self, *, fresh: bool = True) -> AbstractAsyncContextManager[Client]:
        """Connect, with a fresh queue or the one that is there; disconnect at the end. The queue stays."""
        ...

    async def remove_queue(self, *, drained: bool = False) -> int:
        """Delete the queue, once nobody is connected; return how many messages it held.

        ``drained``: it ought to be empty, as soon as the last acks have arrived.
        """
        ...


@runtime_checkable
class BlockingContestant(Protocol):
    """A library under test, with threads or a program of its own. It makes its queue, with nothing in it."""

    async def publish(self, count: int, body: bytes, in_flight: int) -> Cost:
        """Publish ``count`` messages with up to so many in flight, and return when all were confirmed."""
        ...

    async def consume(self, count: int, body: bytes) -> Cost:
        """Publish ``count`` messages, then consume all of them."""
        ...

    async def remove_queue(self, *, drained: bool = False) -> int:
        """Delete the queue; return how many messages it held."""
        ...
